// elizaOS's side: its server as published, with one agent whose model answers at once with a fixed text.
// A model in a plugin is how elizaOS is told what an agent answers; the XML is what its prompts ask for.
import { AgentServer } from "@elizaos/server";

const { PORT, DATA_DIR, AGENT_ID, ANSWER } = process.env;
const before = "<response><thought>none</thought><action>REPLY</action><actions>REPLY</actions><text>";
const after = "</text></response>";

async function* pieces() {
  yield before + ANSWER.slice(0, 6);
  yield ANSWER.slice(6) + after;
}

async function answer(_runtime, params) {
  return params.stream ? { textStream: pieces() } : before + ANSWER + after;
}

const model = { name: "fixed-text", description: "", models: { TEXT_SMALL: answer, TEXT_LARGE: answer } };
const character = { id: AGENT_ID, name: "Echo", bio: "Answers at once.", plugins: [], settings: {} };

await new AgentServer().start({
  port: Number(PORT),
  dataDir: DATA_DIR,
  agents: [{ character, plugins: [model] }],
});

// Drives the published client and prints what its promises resolve to, as one JSON object.
// Usage: node elizaos_client.mjs <path of the client's index.js> <service URL>
const [path, baseUrl] = process.argv.slice(2);
const { ElizaClient } = await import(path);
const { sessions } = ElizaClient.create({ baseUrl });
const agentId = '00000000-0000-4000-8000-000000000001';
const userId = crypto.randomUUID();
const seen = {};

const refusal = async (promise) => {
  try {
    return { resolved: await promise };
  } catch (error) {
    return { name: error.name, code: error.code, status: error.status, message: error.message };
  }
};

seen.health = await sessions.checkHealth();
seen.created = await sessions.createSession({ agentId, userId, metadata: { platform: 'npm' } });
const id = seen.created.sessionId;
seen.read = await sessions.getSession(id);
seen.listed = await sessions.listSessions();
seen.sent = await sessions.sendMessage(id, { content: 'first', metadata: { source: 'npm' } });
seen.answered = await sessions.sendMessageSync(id, { content: 'second' });
seen.streamed = await sessions.sendMessage(id, { content: 'third', transport: 'sse' });
seen.attached = await sessions.sendMessageSync(id, {
  content: 'fourth',
  attachments: [{ type: 'image', url: 'https://example.org/a.png', name: 'a.png', size: 3, mimeType: 'image/png' }],
});
seen.messages = await sessions.getMessages(id);
const cursor = seen.answered.cursor ?? seen.messages.messages[4].cursor;
seen.before = await sessions.getMessages(id, { limit: 2, before: cursor });
seen.after = await sessions.getMessages(id, { limit: 2, after: cursor });
const instant = new Date(seen.messages.messages[4].createdAt);
seen.beforeDate = await sessions.getMessages(id, { before: instant });
seen.beforeText = await sessions.getMessages(id, { before: instant.toISOString() });
seen.afterDate = await sessions.getMessages(id, { after: instant });
seen.unknownSession = await refusal(sessions.getSession(crypto.randomUUID()));
seen.unknownAgent = await refusal(sessions.createSession({ agentId: crypto.randomUUID(), userId }));
seen.tooLong = await refusal(sessions.sendMessage(id, { content: 'x'.repeat(4001) }));
seen.deleted = await sessions.deleteSession(id);
seen.afterDelete = await refusal(sessions.getSession(id));

console.log(JSON.stringify(seen, (_key, value) => (value === undefined ? '(undefined)' : value)));

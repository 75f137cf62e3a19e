// The in-memory Express shape: the Sessions API of elizaOS 1.7.2 over a Map, and an agent inside it that
// answers at once. No database, no limits, no other process: what one would write in an afternoon. Its replies
// have the members of elizaOS's, so that it parses, renews and serialises as much as the model it is cut from.
import { randomUUID } from "node:crypto";
import express from "express";

const { PORT, AGENT_ID, ANSWER } = process.env;
const TIMEOUT = { timeoutMinutes: 30, autoRenew: true, maxDurationMinutes: 720, warningThresholdMinutes: 5 };
const MINUTE_MS = 60_000;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const PIECES = [ANSWER.slice(0, 6), ANSWER.slice(6)];

const sessions = new Map();

class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

function deadline(session) {
  const most = session.createdAt.getTime() + session.timeoutConfig.maxDurationMinutes * MINUTE_MS;
  return new Date(Math.min(Date.now() + session.timeoutConfig.timeoutMinutes * MINUTE_MS, most));
}

function live(id) {
  const session = sessions.get(id);
  if (!session) throw new Refused(404, "SESSION_NOT_FOUND", `Session with ID '${id}' not found`);
  if (session.expiresAt.getTime() <= Date.now()) {
    sessions.delete(id);
    throw new Refused(410, "SESSION_EXPIRED", `Session '${id}' expired at ${session.expiresAt.toISOString()}`);
  }
  return session;
}

function info(session) {
  const { messages, ...told } = session;
  const timeRemaining = Math.max(0, session.expiresAt.getTime() - Date.now());
  const isNearExpiration = timeRemaining <= session.timeoutConfig.warningThresholdMinutes * MINUTE_MS;
  return { ...told, timeRemaining, isNearExpiration };
}

function append(session, authorId, content, metadata) {
  const message = { id: randomUUID(), content, authorId, isAgent: authorId === AGENT_ID, createdAt: new Date(), metadata };
  session.messages.push(message);
  return message;
}

const app = express();
app.use(express.json({ limit: "2mb" }));
const base = "/api/messaging/sessions";

app.post(base, (req, res) => {
  const { agentId, userId, metadata = {} } = req.body ?? {};
  for (const [field, value] of Object.entries({ agentId, userId }))
    if (!UUID.test(value)) throw new Refused(400, "VALIDATION_ERROR", `Invalid UUID format for field '${field}'`);
  const createdAt = new Date();
  const session = {
    sessionId: randomUUID(), channelId: randomUUID(), agentId, userId, createdAt, lastActivity: createdAt, metadata,
    expiresAt: createdAt, timeoutConfig: { ...TIMEOUT, ...req.body.timeoutConfig }, renewalCount: 0, messages: [],
  };
  session.expiresAt = deadline(session);
  sessions.set(session.sessionId, session);
  const { lastActivity, renewalCount, messages, ...told } = session;
  res.status(201).json(told);
});

app.get(`${base}/:id`, (req, res) => res.json(info(live(req.params.id))));

app.post(`${base}/:id/messages`, (req, res) => {
  const { content, metadata = {}, transport = "websocket" } = req.body ?? {};
  if (typeof content !== "string" || content.length < 1 || content.length > 4000)
    throw new Refused(400, "VALIDATION_ERROR", "Invalid content");
  const session = live(req.params.id);
  const { sessionId, agentId, userId, timeoutConfig } = session;
  session.lastActivity = new Date();
  session.renewalCount += 1;
  session.expiresAt = deadline(session);
  const all = { ...session.metadata, sessionId, agentId, userId, timeoutConfig, ...metadata };
  const said = append(session, userId, content, all);
  const userMessage = {
    id: said.id, channel_id: session.channelId, message_server_id: "00000000-0000-0000-0000-000000000000",
    author_id: userId, content, created_at: said.createdAt.getTime(), source_type: "user",
    raw_message: { content }, metadata: all,
  };
  const answer = append(session, agentId, ANSWER, {});
  const agentResponse = { thought: "", actions: ["REPLY"], providers: [], text: ANSWER, simple: true, responseId: answer.id, inReplyTo: said.id };
  const sessionStatus = { expiresAt: session.expiresAt, renewalCount: session.renewalCount, wasRenewed: true, isNearExpiration: false };
  if (transport !== "sse") return res.status(201).json({ success: true, userMessage, agentResponse, sessionStatus });
  const event = (name, data) => res.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
  res.set({ "Content-Type": "text/event-stream", "Cache-Control": "no-cache" }).flushHeaders();
  event("user_message", userMessage);
  PIECES.forEach((chunk, index) => event("chunk", { messageId: answer.id, chunk, index }));
  event("done", agentResponse);
  res.end();
});

app.get(`${base}/:id/messages`, (req, res) => {
  const { messages } = live(req.params.id);
  const limit = Math.min(100, Math.max(1, Number.parseInt(req.query.limit ?? "50", 10) || 50));
  const page = messages.slice(-limit).reverse();
  const cursors = page.length ? { before: page.at(-1).createdAt.getTime(), after: page[0].createdAt.getTime() } : undefined;
  res.json({ messages: page, hasMore: messages.length > limit, cursors });
});

app.use((error, _req, res, _next) => {
  const { status = 500, code = "INTERNAL_SERVER_ERROR", message } = error;
  res.status(status).json({ error: { code, message, timestamp: new Date().toISOString() } });
});

setInterval(() => {
  for (const [id, session] of sessions) if (session.expiresAt.getTime() <= Date.now()) sessions.delete(id);
}, 5 * MINUTE_MS).unref();

app.listen(Number(PORT), "127.0.0.1");

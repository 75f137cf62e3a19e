"""What tests of the store need: sessions made in a line, time that passes at once, the store as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import redis

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import (
    LOCAL_APP,
    AgentId,
    AppName,
    MessageId,
    SessionId,
    TurnId,
    UserId,
    new_message_id,
    new_session_id,
    new_turn_id,
)
from sessions_api.domain.messages import LogEntry, NewMessage
from sessions_api.domain.sessions import NewSession, OnBusy, Session
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.live.events import facts_of
from sessions_api.store import Store
from sessions_api.store.connection import Script
from sessions_api.store.log import Appended
from sessions_api.store.sessions import Once
from sessions_api.store.state import State, in_places, read_state
from tests.support.servers import TestServer

USER = UserId("11111111-1111-4111-8111-111111111111")
OTHER_APP = AppName("other")
AGENT = AgentId("aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa")
MINUTE_MS = 60_000
CONFIG = TimeoutConfig(30 * MINUTE_MS, True, 720 * MINUTE_MS, 5 * MINUTE_MS)
"""The service's defaults: half an hour, twelve hours at most, a warning five minutes before."""
NO_RENEWAL = TimeoutConfig(30 * MINUTE_MS, False, 720 * MINUTE_MS, 5 * MINUTE_MS)
RETENTION_MS = 60 * MINUTE_MS

# Time passes for one session by moving all of its instants back: what the scripts then see
# is what they would see that much later, to the millisecond, and no test has to wait for it.
AGE = Script(
    "age",
    in_places("""
local session, alarm, log, draft, due, ready, users, agents, near = unpack(KEYS)
local sid, by = ARGV[1], tonumber(ARGV[2])
local function int(x) return string.format('%.0f', x) end
local state = redis.call('HGET', session, 'state')
if not state then return {'absent'} end
local s = state_of(state)
redis.call('ZREM', due, '') -- a write that frees comes first: time passes when Redis is full, too
local listed = s.listed_ms > 0 and s.listed_ms or s.created_ms
for key, id in pairs({[users] = s.user_id, [agents] = s.agent_id}) do
  local owner = s.app .. ':' .. string.lower(id) .. ':'
  if redis.call('ZREM', key, owner .. int(listed) .. ':' .. sid) == 1 then
    redis.call('ZADD', key, 0, owner .. int(listed - by) .. ':' .. sid)
  end
end
local function earlier(instant) return instant > 0 and instant - by or 0 end
s.created_ms, s.expires_ms = earlier(s.created_ms), earlier(s.expires_ms)
s.held_until_ms, s.last_activity_ms = earlier(s.held_until_ms), earlier(s.last_activity_ms)
s.last_renewal_ms = earlier(s.last_renewal_ms)
s.warned_ms, s.retry_ms, s.alarm_ms = earlier(s.warned_ms), earlier(s.retry_ms), earlier(s.alarm_ms)
s.listed_ms, s.keys_until_ms, s.hint_ms = earlier(s.listed_ms), earlier(s.keys_until_ms), earlier(s.hint_ms)
redis.call('HSET', session, 'state', cmsgpack.pack(s))
local records = redis.call('HGETALL', session)
for i = 1, #records, 2 do
  if #records[i] == 36 then
    local turn = cmsgpack.unpack(records[i + 1])
    if turn.lease_ms then turn.lease_ms = turn.lease_ms - by end
    if turn.not_before_ms then turn.not_before_ms = turn.not_before_ms - by end
    if turn.deadline_ms then turn.deadline_ms = turn.deadline_ms - by end
    redis.call('HSET', session, records[i], cmsgpack.pack(turn))
  end
end
for _, index in ipairs({due, near}) do
  local score = redis.call('ZSCORE', index, sid)
  if score then redis.call('ZADD', index, int(score - by), sid) end
end
for _, key in ipairs({session, alarm, log, draft}) do
  local left = redis.call('PTTL', key)
  if left >= 0 then
    if left <= by then redis.call('DEL', key) else redis.call('PEXPIRE', key, int(left - by)) end
  end
end
return {'ok'}
"""),
)


def is_life(ttl_ms: int, left_ms: int, *, slack_ms: int) -> bool:
    """Whether a key of a session that is to be seen for *left_ms* lives so long, and hardly longer."""
    return left_ms - slack_ms < ttl_ms < left_ms + MINUTE_MS + slack_ms


async def state_of(store: Store, session_id: SessionId) -> State:
    """The session's state as it is stored."""
    packed = await store.redis.command(b"HGET", store.keyspace.of(session_id).session, b"state", safe=True)
    return read_state(packed)


async def put_state(store: Store, session_id: SessionId, **fields: Any) -> None:
    """Set *fields* of the session's state, by no rule of the service."""
    state = msgspec.structs.replace(await state_of(store, session_id), **fields)
    key = store.keyspace.of(session_id).session
    await store.redis.command(b"HSET", key, b"state", msgspec.msgpack.encode(state), safe=True)


async def age(store: Store, session_id: SessionId, by_ms: int) -> None:
    """Let *by_ms* pass for one session, at once."""
    of = store.keyspace.of(session_id)
    await store.redis.script(AGE, of.all(), (of.sid, by_ms))


def new_session(
    user: str = USER,
    *,
    app: AppName = LOCAL_APP,
    agent: str = AGENT,
    config: TimeoutConfig = CONFIG,
    on_busy: OnBusy = "queue",
    retention_ms: int = RETENTION_MS,
    metadata: bytes = b"{}",
) -> NewSession:
    session_id = new_session_id(UserId(user.lower()))
    return NewSession(session_id, app, agent, user, metadata, config, on_busy, retention_ms)


async def opened(store: Store, user: str = USER, **settings: Any) -> Session:
    session, _ = await store.sessions.create(new_session(user, **settings))
    return session


def user_body(message_id: str, text: str) -> bytes:
    return json.dumps(
        {"authorId": USER, "id": message_id, "content": text, "isAgent": False}, separators=(",", ":")
    ).encode()


def agent_body(message_id: str, text: str) -> bytes:
    return json.dumps({"id": message_id, "content": text, "isAgent": True}, separators=(",", ":")).encode()


def answer_body(text: str) -> bytes:
    """As an answer is handed to the store, which puts id and author in front."""
    return json.dumps({"content": text, "isAgent": True}, separators=(",", ":")).encode()


async def say(
    store: Store,
    session_id: SessionId,
    text: str = "hello",
    *,
    on_busy: OnBusy | None = None,
    once: Once | None = None,
    message_id: MessageId | None = None,
    turn_id: TurnId | None = None,
    is_agent_away: bool = False,
) -> Appended:
    """A user's message, with a fresh message id and turn id unless they are given."""
    message_id = message_id or new_message_id()
    return await store.log.append(
        session_id,
        grant=EVERYTHING,
        message=NewMessage(message_id, user_body(message_id, text)),
        turn_id=turn_id or new_turn_id(),
        on_busy=on_busy,
        once=once,
        is_agent_away=is_agent_away,
    )


_bits = iter(range(1, 1 << 62))


async def claimed(
    store: Store,
    session_id: SessionId,
    *,
    turn_ms: int = 300_000,
    max_attempts: int = 3,
    history: int = 50,
    fence_bits: str | None = None,
) -> ClaimedTurn:
    """The session's oldest queued turn, taken; fails the test if there is none."""
    claim = await store.turns.claim(
        session_id,
        agent_id=AGENT,
        worker="worker",
        fence_bits=fence_bits or f"{next(_bits):016x}",
        message_id=new_message_id(),
        turn_ms=turn_ms,
        max_attempts=max_attempts,
        history=history,
    )
    assert claim.turn is not None
    return claim.turn


async def complete(store: Store, taken: ClaimedTurn, text: str = "answer") -> bool:
    """Whether the turn was cancelled."""
    turn = taken.turn
    written = await store.turns.complete(
        SessionId(taken.session_id), turn.turn_id, fence=turn.fence, body=answer_body(text)
    )
    return written.is_cancelled


def once(key: str = "key", *, content: bytes = b"content", scope: str = "scope") -> Once:
    return Once.of(app=LOCAL_APP, scope=scope, key=key, content=content)


# ------------------------------------------------------------------ the store as a whole

_INSTANT = re.compile(rb"\b1[0-9]{12}\b")
_FIRST_INSTANT = 10**12


def dump(server: TestServer) -> dict[bytes, Any]:
    """Every key with its value and whether it has a TTL, instants replaced by ``<ms>``."""
    found: dict[bytes, Any] = {}
    with redis.Redis(port=server.port, host="127.0.0.1", protocol=2) as client:
        for key in sorted(client.scan_iter(count=1000)):
            kind = client.type(key)
            value: Any
            if kind == b"hash":
                value = {name: _read(text) for name, text in sorted(client.hgetall(key).items())}
            elif kind == b"zset":
                value = [
                    (_timeless(member), score > 1e12)
                    for member, score in client.zrange(key, 0, -1, withscores=True)
                ]
            elif kind == b"stream":
                value = [
                    {name: _timeless(text) for name, text in fields.items()}
                    for _, fields in client.xrange(key)
                ]
            else:
                value = _timeless(client.get(key))
            found[key] = (value, client.pttl(key) > 0)
    return found


def _timeless(text: bytes) -> bytes:
    return _INSTANT.sub(b"<ms>", text)


def _read(value: bytes) -> Any:
    """A session's state or a turn's record by its members: Lua writes those in no particular order."""
    if value[:1] < b"\x80":
        return _timeless(value)
    return _without_instants(msgspec.msgpack.decode(value))


def _without_instants(value: Any) -> Any:
    match value:
        case dict():
            return {name: _without_instants(member) for name, member in value.items()}
        case list():
            return [_without_instants(member) for member in value]
        case int():
            return "<ms>" if value > _FIRST_INSTANT else value
        case _:
            return value


class Ears:
    """What was published on sessions' live channels and agents' wake channels."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._pubsub = client.pubsub()  # type: ignore[no-untyped-call]
        self._pubsub.psubscribe("sa:live:*", "sa:wake:*", "sa:marker")
        confirmed = 0
        while confirmed < 3:
            message = self._pubsub.get_message(timeout=5)
            assert message is not None
            confirmed += message["type"] == "psubscribe"

    def heard(self) -> list[tuple[str, str, bytes]]:
        """Type (or ``wake``), its arguments behind the time, payload: of everything since the last call."""
        self._client.publish("sa:marker", "")
        events: list[tuple[str, str, bytes]] = []
        while True:
            message = self._pubsub.get_message(timeout=5)
            assert message is not None
            if message["type"] != "pmessage":
                continue
            channel, data = message["channel"], message["data"]
            if channel == b"sa:marker":
                return events
            if channel.startswith(b"sa:wake:"):
                events.append(("wake", channel.decode(), data))
            else:
                for words, body in facts_of(data):
                    events.append((words[0], " ".join(words[6:]), body))

    def types(self) -> list[str]:
        """The types of what was heard, hints aside."""
        return [kind for kind, *_ in self.heard() if kind != "wake"]


@contextmanager
def listening(server: TestServer) -> Iterator[Ears]:
    with redis.Redis(port=server.port, host="127.0.0.1", protocol=2, socket_timeout=10) as client:
        ears = Ears(client)
        try:
            yield ears
        finally:
            ears._pubsub.close()


async def written(store: Store, session_id: SessionId) -> list[LogEntry]:
    """The whole log, page by page."""
    entries: list[LogEntry] = []
    while True:
        after = entries[-1].cursor if entries else 0
        replay = await store.log.replay(session_id, grant=EVERYTHING, after=after, limit=7)
        entries += replay.entries
        if replay.complete:
            return entries

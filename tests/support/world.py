"""Two applications with their sessions and agents, and whoever may come and ask for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.access import (
    OTHER_AGENT,
    RIGHTS,
    SESSION,
    WORKER_AGENT,
    Caller,
    Keys,
    Row,
    cast_keys,
)
from tests.support.client import eventually, some_id
from tests.support.presence import attend_at
from tests.support.service import Service

FOLLOWERS = 2
PREFIX = "owned:"
# Timeouts of seconds; nobody answers and nobody sweeps. Limits are on that ask whose a session is.
SETTINGS = {
    "SESSIONS_ENV": "test",
    "SESSION_MIN_TIMEOUT_MINUTES": "0.005",
    "SESSIONS_KEEPER": "off",
    "SESSIONS_DISPATCHER": "off",
    "SESSIONS_MAX_FOLLOWERS_PER_SESSION": str(FOLLOWERS),
    "SESSIONS_LIMIT_MESSAGES_USER": "100000/1",
    "SESSIONS_LIMIT_MESSAGES_AGENT": "100000/1",
}
KEY_OF = {"app": "shop", "agent": "worker", "admin": "admin"}
NEVER_THE_SAME = {"date", "x-request-id"}


class Target(NamedTuple):
    """What a request is about: a session and an open turn of it, with the fence that its worker has."""

    session_id: str
    agent_id: str = WORKER_AGENT
    turn_id: str = "7e570000-0000-4000-8000-000000000000"
    fence: str = "1.leaked"

    @property
    def tail(self) -> str:
        return f"/{self.session_id}"

    def hidden(self, text: str) -> str:
        """*text* without the ids, in which two replies may differ."""
        return text.replace(self.session_id, "<session>").replace(self.agent_id, "<agent>")


def absent() -> Target:
    """A session that never was, of an agent that never was."""
    return Target(some_id(), agent_id=some_id())


_BODIES: dict[str, dict[str, Any]] = {
    "POST /messages transport: websocket": {"content": "hi"},
    "POST /messages transport: http": {"content": "hi", "transport": "http", "timeoutMs": 1},
    "POST /messages transport: sse": {"content": "hi", "transport": "sse", "timeoutMs": 1},
    "POST /messages role: agent": {"content": "hi", "role": "agent"},
    "POST /messages role: system": {"content": "hi", "role": "system"},
    "PATCH /timeout": {"timeoutMinutes": 20},
    "POST /tokens": {"scopes": ["read"]},
    "POST /turns/{turnId}/delta": {"fence": "{fence}", "text": "so", "offset": 0},
    "POST /turns/{turnId}/extend": {"fence": "{fence}"},
    "POST /turns/{turnId}/complete": {"fence": "{fence}", "content": "so"},
    "POST /turns/{turnId}/fail": {"fence": "{fence}", "code": "BROKEN", "message": "It broke"},
    "POST /turns/{turnId}/release": {"fence": "{fence}"},
    "POST /api/messaging/sessions": {"agentId": "{agent}", "userId": "11111111-1111-4111-8111-111111111111"},
    "PUT /api/agents/{agentId}": {"name": "Support", "kind": "worker"},
    "POST /api/agents/{agentId}/turns/claim": {"worker": "w"},
}
_SUCCESS = {
    "POST /messages transport: websocket": 201,
    "POST /messages transport: http": 504,  # it waited a millisecond for an answer
    "POST /messages role: agent": 201,
    "POST /messages role: system": 201,
    "POST /tokens": 201,
    "POST /tokens/refresh": 201,
    "POST /api/messaging/sessions": 201,
    "POST /api/agents/{agentId}/turns/claim": 204,
}


def _name(row: Row) -> str:
    path = row.path.removeprefix(SESSION)
    return " ".join(filter(None, (row.method, path, row.detail)))


def options(row: Row, at: Target) -> tuple[str, dict[str, Any]]:
    """Path and options of the row's request about *at*."""
    path = row.path.format(sessionId=at.session_id, turnId=at.turn_id, agentId=at.agent_id)
    body = _BODIES.get(_name(row))
    if body is None:
        return path, {}
    filled = {
        name: value.format(fence=at.fence, agent=at.agent_id) if isinstance(value, str) else value
        for name, value in body.items()
    }
    return path, {"json": filled} | ({"params": {"wait": 0}} if path.endswith("/claim") else {})


def success(row: Row) -> int:
    """The status of the row's request where it is granted."""
    return _SUCCESS.get(_name(row), 200)


class Told(NamedTuple):
    """A reply without what differs between any two."""

    status: int
    headers: list[tuple[str, str]]
    body: Any


class World:
    """Two applications with their sessions, and whoever may come."""

    def __init__(self, url: str, keys: Keys) -> None:
        self.url = url
        self._stack = ExitStack()
        self._passing: list[Caller] = []
        self.by_key = {name: keys.caller(url, name) for name in keys.secrets}
        self.nobody = Caller(url)

    def open(self) -> None:
        """What belongs to others; made once, since nobody here may change it."""
        rival = self.by_key["rival"]
        self.rivals = self.target("rival", OTHER_AGENT)
        for number in range(20):
            rival.say(self.rivals.session_id, f"{number} " + "x" * 3900)
        for _ in range(FOLLOWERS):
            stream = self._stack.enter_context(rival.events(self.rivals.session_id))
            assert stream.next().name == "session.snapshot"
        timeouts = {"timeoutMinutes": 0.01, "warningThresholdMinutes": 0.001}
        ended = rival.session(agentId=OTHER_AGENT, timeoutConfig=timeouts)
        eventually(lambda: rival.call("GET", f"/{ended}").status_code == 410)
        self.rivals_ended = Target(ended, OTHER_AGENT)
        self.neighbour = self.target("shop", WORKER_AGENT)
        """Another session of the application that the tokens are of."""

    def leave(self) -> None:
        """Close the clients of tokens that were made since the last call."""
        for caller in self._passing:
            caller.close()
        self._passing.clear()

    def close(self) -> None:
        self.leave()
        self._stack.close()
        for caller in (self.nobody, *self.by_key.values()):
            caller.close()

    def target(self, owner: str = "shop", agent_id: str = WORKER_AGENT) -> Target:
        """A new session whose first message is being answered."""
        caller = self.by_key[owner]
        session_id = caller.session(agentId=agent_id)
        caller.say(session_id, "hello")
        worker = self.by_key["worker" if agent_id == WORKER_AGENT else "stranger"]
        while True:
            path = f"/api/agents/{agent_id}/turns/claim"
            turn = worker.http.post(path, json={"worker": "w"}, params={"wait": 5}).json()
            if turn["session"]["sessionId"] == session_id:
                return Target(session_id, agent_id, turn["turnId"], turn["fence"])

    def who(self, column: str, at: Target, *, also: str = "") -> Caller:
        """Whoever stands in *column*; a token is of *at*, and may do *also*."""
        if column in RIGHTS:
            rights = {column, also} - {""}
            self._passing.append(Caller(self.url, self.by_key["shop"].token(at.session_id, *rights)))
            return self._passing[-1]
        return self.nobody if column == "nobody" else self.by_key[KEY_OF[column]]

    def not_theirs(self, column: str) -> list[Target]:
        if column == "admin":
            return []
        return [self.rivals, self.rivals_ended, *([self.neighbour] if column in RIGHTS else [])]


def ask(caller: Caller, row: Row, at: Target) -> Told:
    """What *caller* is told; of a stream only that it began."""
    path, more = options(row, at)
    with caller.http.stream(row.method, path, **more) as reply:
        is_stream = reply.headers.get("content-type", "").startswith("text/event-stream")
        body = "" if is_stream else reply.read().decode()
    headers = [(k, at.hidden(v)) for k, v in reply.headers.multi_items() if k not in NEVER_THE_SAME]
    if reply.status_code >= 400:
        error = json.loads(body)
        assert error["error"].pop("requestId") == reply.headers["x-request-id"]
        assert error["error"].pop("timestamp")
        body = json.dumps(error)
    return Told(reply.status_code, headers, at.hidden(body))


def code_of(told: Told) -> str:
    return str(json.loads(told.body)["error"]["code"])


def agents_file(folder: Path) -> Path:
    """A file that defines both agents."""
    path = folder / "agents.toml"
    path.write_text(
        "".join(
            f'[[agents]]\nid = "{agent}"\nname = "Worker"\nkind = "worker"\n'
            for agent in (WORKER_AGENT, OTHER_AGENT)
        )
    )
    return path


@contextmanager
def served_world(folder: Path, redis_url: str) -> Iterator[World]:
    """A service with all of it, in a process of its own."""
    keys = cast_keys()
    attend_at(redis_url, WORKER_AGENT, OTHER_AGENT, key_prefix=PREFIX)
    own = {"SESSIONS_KEY_PREFIX": PREFIX, "SESSIONS_AGENTS_FILE": str(agents_file(folder))}
    with Service(folder, redis_url=redis_url, env=SETTINGS | keys.env | own) as service:
        world = World(service.url, keys)
        try:
            world.open()
            yield world
        finally:
            world.close()
        service.assert_no_bug_logged()

"""For tests of limits: a caller of several replicas, agents in number, what a reply says of a limit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, cycle
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from websockets.sync.client import ClientConnection

from tests.support.client import Api, problem, some_id
from tests.support.service import Service

SILENT = "a9e50000-0000-4000-8000-00000000dead"
"""Never answers; who needs it there says so (``attend_at``)."""
_agents, _addresses = count(1), count(1)
_MANY = 40


@contextmanager
def serving(folder: Path, redis_url: str, replicas: int = 2, /, **env: str) -> Iterator[list[Api]]:
    """``serve`` in as many processes, with agents that answer at once, and with no defaults but its own."""
    agents = [(_agent(number), "echo") for number in range(1, _MANY + 1)]
    (folder / "agents.toml").write_text(
        "\n".join(
            f'[[agents]]\nid = "{agent}"\nname = "A"\nkind = "{kind}"'
            for agent, kind in [*agents, (SILENT, "worker")]
        )
    )
    env = {"SESSIONS_AGENTS_FILE": str(folder / "agents.toml"), "SESSIONS_DEV": "off"} | env
    with ExitStack() as stack:
        services = [
            stack.enter_context(Service(folder, redis_url=redis_url, env=env, name=f"replica-{number}"))
            for number in range(replicas)
        ]
        apis = [Api(service.url) for service in services]
        for api in apis:
            stack.callback(api.close)
        yield apis
        for service in services:
            service.assert_no_bug_logged()


def some_agent() -> str:
    """One of those, which was told nothing yet."""
    return _agent(next(_agents))


def _agent(number: int) -> str:
    assert number <= _MANY
    return f"a9e50000-0000-4000-8000-{number:012}"


def some_address() -> str:
    """One that no test had yet, as a proxy writes it behind another that the client has made up."""
    number = next(_addresses)
    assert number < 256
    return f"192.0.2.7, 198.51.100.{number}"


class Caller:
    """Somebody who asks the replicas by turns, with these headers."""

    def __init__(self, replicas: list[Api], **headers: str) -> None:
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.replicas = replicas
        self._turns = cycle(replicas)

    def call(self, method: str, path: str, *, headers: Any = None, **options: Any) -> httpx2.Response:
        return next(self._turns).call(method, path, headers=self.headers | (headers or {}), **options)

    def create(self, agent: str, user: str | None = None, **options: Any) -> httpx2.Response:
        return self.call("POST", "", json={"agentId": agent, "userId": user or some_id()}, **options)

    def session(self, agent: str, user: str | None = None) -> str:
        reply = self.create(agent, user)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["sessionId"])

    def post(self, session_id: str, content: str = "hi", *, key: str = "", **fields: Any) -> httpx2.Response:
        headers = {"idempotency-key": key} if key else {}
        return self.call(
            "POST", f"/{session_id}/messages", json={"content": content, **fields}, headers=headers
        )

    def token(self, session_id: str) -> Caller:
        """Somebody from an address of their own with a token of the session."""
        token = self.call("POST", f"/{session_id}/tokens").json()["token"]
        return Caller(self.replicas, authorization=f"Bearer {token}", x_forwarded_for=some_address())

    def moved(self) -> Caller:
        """The same caller from another address."""
        return Caller(self.replicas, **self.headers | {"x-forwarded-for": some_address()})

    def websocket(self, session_id: str, *, at: int = 0) -> ClientConnection:
        return self.replicas[at].websocket(session_id, additional_headers=self.headers)


class Stands(NamedTuple):
    quota: int
    window_s: int
    left: int
    reset_s: int


def standings(reply: httpx2.Response) -> dict[str, Stands]:
    """Policy → how the caller stands with it, by both headers."""
    policies = re.findall(r'"([a-z-]+)";q=(\d+);w=(\d+)', reply.headers.get("ratelimit-policy", ""))
    lefts = re.findall(r'"([a-z-]+)";r=(\d+);t=(\d+)', reply.headers.get("ratelimit", ""))
    assert [name for name, *_ in policies] == [name for name, *_ in lefts]
    return {
        name: Stands(int(quota), int(window_s), int(left), int(reset_s))
        for (name, quota, window_s), (_, left, reset_s) in zip(policies, lefts, strict=True)
    }


def left(reply: httpx2.Response, policy: str) -> int:
    """How many more are admitted, as an accepted reply says."""
    assert reply.status_code < 300, reply.text
    return standings(reply)[policy].left


def limited(reply: httpx2.Response, policy: str, quota: int, window_s: int) -> int:
    """Until when to wait, in seconds, by a 429 of this policy that says all that it has to."""
    error = problem(reply, 429, "RATE_LIMIT_EXCEEDED")
    assert error["retryable"] is True
    wait_s = int(reply.headers["retry-after"])
    assert error["details"] == {
        "policy": policy,
        "limit": quota,
        "windowSeconds": window_s,
        "retryAfterSeconds": wait_s,
    }
    assert 1 <= wait_s <= math.ceil(window_s / quota)
    assert standings(reply) == {policy: Stands(quota, window_s, 0, wait_s)}
    return wait_s

"""The service with an agent of workers, and a session whose turns are claimed and answered over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from sessions_api.domain.ids import SessionId
from tests.api.conftest import BASE, Api
from tests.support.stores import age
from tests.support.waiting import eventually

AGENT = "AAAAAAAA-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
UNKNOWN = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"


class Desk:
    """A service with one agent of workers, and one session of it."""

    def __init__(self, api: Api, session: dict[str, Any]) -> None:
        self.api = api
        self.http = api.http
        self.session = session
        self.session_id = SessionId(session["sessionId"])

    async def say(self, content: str = "hello", **more: Any) -> str:
        """A user's message; its turn."""
        url = f"{BASE}/{self.session_id}/messages"
        reply = await self.http.post(url, json={"content": content} | more)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["turnId"])

    async def claim(self, wait: Any = 10, *, agent: str = AGENT, **body: Any) -> httpx2.Response:
        body = {"worker": "worker-1"} | body
        return await self.http.post(f"/api/agents/{agent}/turns/claim?wait={wait}", json=body)

    async def claimed(self, content: str = "hello", **more: Any) -> dict[str, Any]:
        await self.say(content, **more)
        reply = await self.claim()
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    async def write(
        self, turn: dict[str, Any], what: str, *, query: str = "", **body: Any
    ) -> httpx2.Response:
        url = f"{BASE}/{self.session_id}/turns/{turn['turnId']}/{what}{query}"
        return await self.http.post(url, json={"fence": turn["fence"]} | body)

    async def wrote(self, turn: dict[str, Any], what: str, **body: Any) -> bool:
        """Whether the turn was cancelled."""
        reply = await self.write(turn, what, **body)
        assert reply.status_code == 200, reply.text
        return bool(reply.json()["cancelled"])

    async def cancel(self, turn: dict[str, Any]) -> None:
        reply = await self.http.post(f"{BASE}/{self.session_id}/turns/{turn['turnId']}/cancel")
        assert reply.status_code == 200, reply.text

    async def turn(self, turn: dict[str, Any]) -> dict[str, Any]:
        return dict((await self.http.get(f"{BASE}/{self.session_id}/turns/{turn['turnId']}")).json())

    async def history(self) -> list[dict[str, Any]]:
        """Oldest first."""
        reply = await self.http.get(f"{BASE}/{self.session_id}/messages")
        return list(reversed(reply.json()["messages"]))

    async def age(self, by_ms: int) -> None:
        await age(self.api.state.store, self.session_id, by_ms)


@asynccontextmanager
async def at_desk(redis_url: str) -> AsyncIterator[Desk]:
    """A started service; its agent has a worker that was there a moment ago."""
    async with Api(redis_url) as api:
        body = {"name": "By hand", "kind": "worker", "maxAttempts": 2}
        assert (await api.http.put(f"/api/agents/{AGENT}", json=body)).status_code == 201
        hello = await api.http.post(f"/api/agents/{AGENT}/turns/claim?wait=0", json={"worker": "first"})
        assert hello.status_code == 204

        async def is_there() -> bool:
            reply = await api.http.get(f"/api/agents/{AGENT}/availability")
            return bool(reply.json()["state"] != "offline")

        await eventually(is_there)
        yield Desk(api, await api.create(agentId=AGENT, metadata={"plan": "gold"}))


def error(reply: httpx2.Response) -> str:
    return str(reply.json()["error"]["code"])


def fields(reply: httpx2.Response) -> list[str]:
    assert reply.status_code == 400, reply.text
    return [each["field"] for each in reply.json()["error"]["details"]["errors"]]

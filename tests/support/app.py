"""Whoever uses an agent, in coroutine tests: sessions, messages, what became of them."""

from __future__ import annotations

import json
from typing import Any, Self
from uuid import uuid4

import httpx2

from tests.support.waiting import eventually

SESSIONS = "/api/messaging/sessions"


class App:
    """Whoever uses the agent: sessions of a user of its own."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.AsyncClient(base_url=url, timeout=40, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, body: Any = None, **params: Any) -> httpx2.Response:
        return await self._http.request(method, path, json=body, params=params)

    async def create(self, agent_id: str, **more: Any) -> str:
        """A new session's id."""
        body = {"agentId": agent_id, "userId": str(uuid4())} | more
        reply = await self.call("POST", SESSIONS, body)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["sessionId"])

    async def say(self, session_id: str, content: str, **more: Any) -> dict[str, Any]:
        reply = await self.call("POST", f"{SESSIONS}/{session_id}/messages", {"content": content} | more)
        assert reply.status_code == 201, reply.text
        said: dict[str, Any] = reply.json()
        return said

    async def ask(self, session_id: str, content: str) -> str:
        """The answer's text."""
        said = await self.say(session_id, content, transport="http", timeoutMs=40_000)
        return str(said["agentResponse"]["text"])

    async def turn(self, session_id: str, turn_id: str) -> dict[str, Any]:
        reply = await self.call("GET", f"{SESSIONS}/{session_id}/turns/{turn_id}")
        assert reply.status_code == 200, reply.text
        turn: dict[str, Any] = reply.json()
        return turn

    async def ended(self, session_id: str, turn_id: str, *, within_s: float = 40) -> dict[str, Any]:
        """The turn, once it has its outcome."""

        async def is_over() -> bool:
            return (await self.turn(session_id, turn_id))["state"] not in {"queued", "running"}

        await eventually(is_over, within_s=within_s)
        return await self.turn(session_id, turn_id)

    async def cancel(self, session_id: str, turn_id: str) -> None:
        reply = await self.call("POST", f"{SESSIONS}/{session_id}/turns/{turn_id}/cancel")
        assert reply.status_code == 200, reply.text

    async def messages(self, session_id: str) -> list[dict[str, Any]]:
        """Oldest first."""
        reply = await self.call("GET", f"{SESSIONS}/{session_id}/messages")
        assert reply.status_code == 200, reply.text
        return list(reversed(reply.json()["messages"]))

    async def said(self, session_id: str) -> list[str]:
        return [message["content"] for message in await self.messages(session_id)]

    async def draft(self, session_id: str) -> str:
        """The running answer so far, as somebody who comes in the middle sees it."""
        async with self._http.stream("GET", f"{SESSIONS}/{session_id}/events") as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    turn = json.loads(line.removeprefix("data: "))["data"].get("turn") or {}
                    return str(turn.get("text", ""))
        raise AssertionError("a stream without a snapshot")

    async def has_draft(self, session_id: str) -> None:
        """Wait until the running answer has text."""
        await eventually(lambda: self.draft(session_id))

    async def availability(self, agent_id: str) -> dict[str, Any]:
        reply = await self.call("GET", f"/api/agents/{agent_id}/availability")
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

"""How each system is spoken to: the same five kinds of work in each one's documented requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

import msgspec

from bench.load import Request

QUESTION = "Could you tell me which plan fits a team of five, and what it costs per month?"
ANSWER = f"echo: {QUESTION}"
AGENT_ID = "00000000-0000-4000-8000-000000000001"
METADATA = {"plan": "pro"}

encode = msgspec.json.encode


class Dialect(Protocol):
    """Requests by a session's *key*, which is whatever this system needs to find it again."""

    sends_per_page: int
    """Exchanges after which a session's history has 50 messages."""
    streamed: bytes
    """What only a stream that told the whole answer has."""

    def create(self) -> Request: ...

    def key(self, reply: bytes) -> str:
        """Of the session that *reply*, the one to create, tells of."""
        ...

    def get(self, key: str) -> Request: ...

    def history(self, key: str) -> Request: ...

    def send(self, key: str) -> Request:
        """Answered with the agent's whole answer."""
        ...

    def stream(self, key: str) -> Request:
        """Answered with a stream of the agent's answer, piece by piece."""
        ...


@dataclass
class Sessions:
    """The Sessions API: ours, elizaOS's, and the in-memory shape in Express."""

    sends_per_page: int = 25
    streamed: bytes = b"event: done\n"
    base: str = "/api/messaging/sessions"

    def create(self) -> Request:
        body = {"agentId": AGENT_ID, "userId": str(uuid4()), "metadata": METADATA}
        return Request("POST", self.base, encode(body))

    def key(self, reply: bytes) -> str:
        return _text(reply, "sessionId")

    def get(self, key: str) -> Request:
        return Request("GET", f"{self.base}/{key}")

    def history(self, key: str) -> Request:
        return Request("GET", f"{self.base}/{key}/messages?limit=50")

    def send(self, key: str) -> Request:
        return self._post(key, "http")

    def stream(self, key: str) -> Request:
        return self._post(key, "sse")

    def _post(self, key: str, transport: str) -> Request:
        body = {"content": QUESTION, "transport": transport}
        return Request("POST", f"{self.base}/{key}/messages", encode(body))


@dataclass
class Adk:
    """``adk api_server``: a session is read with its events, so its history is the same request."""

    sends_per_page: int = 25
    streamed: bytes = ANSWER.encode()
    app: str = "echo"

    def create(self) -> Request:
        target = f"/apps/{self.app}/users/{uuid4()}/sessions"
        return Request("POST", target, encode({"state": METADATA}))

    def key(self, reply: bytes) -> str:
        return f"{_text(reply, 'userId')}/sessions/{_text(reply, 'id')}"

    def get(self, key: str) -> Request:
        return Request("GET", f"/apps/{self.app}/users/{key}")

    def history(self, key: str) -> Request:
        return self.get(key)

    def send(self, key: str) -> Request:
        return Request("POST", "/run", encode(self._run(key)))

    def stream(self, key: str) -> Request:
        return Request("POST", "/run_sse", encode({**self._run(key), "streaming": True}))

    def _run(self, key: str) -> dict[str, object]:
        user, _, session = key.partition("/sessions/")
        message = {"role": "user", "parts": [{"text": QUESTION}]}
        return {"appName": self.app, "userId": user, "sessionId": session, "newMessage": message}


@dataclass
class LangGraph:
    """``langgraph dev``: a session is a thread, its messages are in the thread's state."""

    sends_per_page: int = 25
    streamed: bytes = f'data: "{QUESTION}"'.encode()
    assistant: str = "echo"

    def create(self) -> Request:
        return Request("POST", "/threads", encode({"metadata": METADATA}))

    def key(self, reply: bytes) -> str:
        return _text(reply, "thread_id")

    def get(self, key: str) -> Request:
        return Request("GET", f"/threads/{key}")

    def history(self, key: str) -> Request:
        return Request("GET", f"/threads/{key}/state")

    def send(self, key: str) -> Request:
        return Request("POST", f"/threads/{key}/runs/wait", encode(self._run()))

    def stream(self, key: str) -> Request:
        return Request(
            "POST", f"/threads/{key}/runs/stream", encode({**self._run(), "stream_mode": ["custom"]})
        )

    def _run(self) -> dict[str, object]:
        return {
            "assistant_id": self.assistant,
            "input": {"messages": [{"role": "user", "content": QUESTION}]},
        }


def _text(reply: bytes, name: str) -> str:
    told: dict[str, Any] = msgspec.json.decode(reply)
    return str(told[name])

"""A service of the tests that speaks the worker protocol as it is told: for faults that are rare."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from uuid import uuid4

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from tests.support.waiting import until

AGENT = "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11"
USER = "11111111-1111-4111-8111-111111111111"
Kind = Literal["define", "claim", "delta", "extend", "complete", "fail", "release"]


@dataclass
class Fault:
    """What one request gets instead of its reply; *status* 0: it is done, and the connection breaks."""

    status: int
    code: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Heard:
    """One request."""

    kind: Kind
    body: dict[str, Any]
    at_s: float
    headers: dict[str, str]


class Desk:
    """Hands out what is :meth:`put`, and keeps every request in :attr:`heard`."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.drafts: defaultdict[str, bytearray] = defaultdict(bytearray)  # turn → UTF-16
        self.cancelled: set[str] = set()
        self.lost: set[str] = set()
        self.gone: set[str] = set()  # workers that said goodbye
        self._waiting: deque[dict[str, Any]] = deque()
        self._changed = asyncio.Condition()
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._held: defaultdict[str, asyncio.Event] = defaultdict(_passed)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        config = uvicorn.Config(self, host="127.0.0.1", port=0, lifespan="off", log_config=None, ws="none")
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._serving = asyncio.create_task(self._server._serve())
        await until(lambda: self._server is not None and self._server.started)
        [port] = {each.getsockname()[1] for server in self._server.servers for each in server.sockets}
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        assert self._serving is not None
        self._server.should_exit = self._server.force_exit = True
        await self._serving

    # ------------------------------------------------------------ what the test does

    async def put(self, content: str = "hello", *, attempt: int = 1, **more: Any) -> str:
        """A turn to be claimed; its id."""
        turn_id = str(uuid4())
        message = {
            "cursor": 1,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "id": str(uuid4()),
            "content": content,
            "authorId": USER,
            "isAgent": False,
            "role": "user",
            "metadata": {},
        }
        turn = {
            "turnId": turn_id,
            "fence": f"1.{uuid4().hex}",
            "attempt": attempt,
            "messageId": str(uuid4()),
            "deadline": "2026-01-01T00:05:00.000Z",
            "leaseUntil": "2026-01-01T00:00:10.000Z",
            "session": {"sessionId": str(uuid4()), "agentId": AGENT, "userId": USER, "metadata": {}},
            "messages": [message],
            "history": [],
            "more": False,
        }
        async with self._changed:
            self._waiting.append(turn | more)
            self._changed.notify_all()
        return turn_id

    def misbehave(self, kind: Kind, *faults: Fault) -> None:
        """The next requests of this kind get these."""
        self._faults[kind].extend(faults)

    def hold(self, kind: Kind) -> asyncio.Event:
        """Requests of this kind are heard, and not answered until the event is set."""
        self._held[kind] = asyncio.Event()
        return self._held[kind]

    def behave(self) -> None:
        """From now on."""
        self._faults.clear()

    async def cancel(self, turn_id: str) -> None:
        async with self._changed:
            self.cancelled.add(turn_id)
            self._changed.notify_all()

    def of(self, kind: Kind) -> list[Heard]:
        return [each for each in self.heard if each.kind == kind]

    def bodies(self, kind: Kind) -> list[dict[str, Any]]:
        return [each.body for each in self.of(kind)]

    def text(self, turn_id: str) -> str:
        return self.drafts[turn_id].decode("utf-16-le")

    async def hears(self, kind: Kind, times: int = 1) -> dict[str, Any]:
        """Wait until so many of this kind were heard; the last one's body."""
        await until(lambda: len(self.of(kind)) >= times)
        return self.bodies(kind)[times - 1]

    # ------------------------------------------------------------ the protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads(await _body(receive) or b"{}")
        parts = scope["path"].strip("/").split("/")
        kind: Any = "define" if len(parts) == 3 else parts[-1]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.heard.append(Heard(kind, body, asyncio.get_running_loop().time(), headers))
        await self._held[kind].wait()
        fault = self._faults[kind].popleft() if self._faults[kind] else None
        if fault is not None and fault.status:
            await _reply(send, fault.status, _error(fault), fault.headers)
            return
        wait_s = float(
            dict(each.split("=") for each in scope["query_string"].decode().split("&") if each).get("wait", 0)
        )
        status, told = await self._answer(kind, parts, body, wait_s, receive)
        if fault is not None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            return  # uvicorn closes the connection of a reply that does not come to its end
        await _reply(send, status, told, {})

    async def _answer(
        self, kind: Kind, parts: list[str], body: dict[str, Any], wait_s: float, receive: Receive
    ) -> tuple[int, Any]:
        if kind == "define":
            return 200, {}
        if kind == "claim":
            turn = await self._claim(body["worker"], wait_s, receive) if body["capacity"] else None
            if not body["capacity"]:
                async with self._changed:
                    self.gone.add(body["worker"])
                    self._changed.notify_all()
            return (200, turn) if turn else (204, None)
        turn_id = parts[-2]
        if turn_id in self.lost:
            return 409, _error(Fault(409, "TURN_LOST"))
        if kind == "extend":
            await self._wait(lambda: turn_id in self.cancelled, wait_s, receive)
        if turn_id in self.cancelled:
            return 200, {"cancelled": True}
        if kind == "delta":
            return self._delta(turn_id, body)
        return 200, {"cancelled": False}

    def _delta(self, turn_id: str, body: dict[str, Any]) -> tuple[int, Any]:
        draft, text = self.drafts[turn_id], body["text"].encode("utf-16-le")
        if body["offset"] * 2 == len(draft):
            draft += text
        elif body["offset"] * 2 + len(text) > len(draft):
            return 409, _error(Fault(409, "DELTA_GAP", {"expected": len(draft) // 2}))
        return 200, {"cancelled": False}

    async def _claim(self, worker: str, wait_s: float, receive: Receive) -> dict[str, Any] | None:
        await self._wait(lambda: self._waiting or worker in self.gone, wait_s, receive)
        return self._waiting.popleft() if self._waiting else None

    async def _wait(self, condition: Any, wait_s: float, receive: Receive) -> None:
        """Until *condition*, for so long at most, or the client has gone."""
        if not wait_s or condition():
            return
        gone = asyncio.create_task(_disconnected(receive))
        ready = asyncio.create_task(self._until(condition))
        try:
            await asyncio.wait({gone, ready}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            ready.cancel()
            await asyncio.wait({gone, ready})

    async def _until(self, condition: Any) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)


def _passed() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def _body(receive: Receive) -> bytes:
    whole = b""
    while True:
        message: Message = await receive()
        whole += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return whole


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _error(fault: Fault) -> dict[str, Any]:
    return {"error": {"code": fault.code or "FAULT", "message": "so it is", "details": fault.details}}


async def _reply(send: Send, status: int, body: Any, headers: dict[str, str]) -> None:
    content = b"" if body is None else json.dumps(body).encode()
    told = {"content-length": str(len(content)), "content-type": "application/json"} | headers
    raw = [(name.encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})

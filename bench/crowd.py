"""Followers by the thousand, as a program: ``python -m bench.crowd PORT KIND COUNT SESSIONS_FILE OUT_FILE``.

A process of its own, so that what is measured around it shares no event loop with
ten thousand connections. *KIND* is ``sse`` or ``ws``; follower N listens to session N
modulo the lines of the file.
It says ``told N`` once every follower has its snapshot, then ``heard N`` as messages
come in; SIGTERM makes it write OUT_FILE (:class:`Heard`) and end.
"""

from __future__ import annotations

import asyncio
import re
import resource
import signal
import sys
import time
from array import array
from asyncio import Transport
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, cast

import msgspec
import uvloop

from bench.load import Request

BASE = "/api/messaging/sessions"
AT_ONCE = 64
ONE_ADDRESS = 20_000
"""Connections from one loopback address; its ports are 28,000."""
SAY_S = 0.02
OPENED_S = 300.0
AGAIN_S = 1.0
_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
_SNAPSHOT = b"session.snapshot"
_REFUSED = b"HTTP/1.1 503"
_PING, _PONG, _CLOSE = 0x9, 0xA, 0x8


class Heard(msgspec.Struct, rename="camel"):
    """Every message that a follower got: the place of its session in the file, its cursor, when it came."""

    sessions: list[int]
    cursors: list[int]
    """As of Redis's clock, in whole milliseconds."""
    at_ms: list[float]
    lost: int
    """Followers whose connection ended."""
    refused: int
    """Times that a follower was told to come back, and did."""


class Crowd:
    """What all followers heard."""

    def __init__(self) -> None:
        self.told = 0
        self.lost = 0
        self.refused = 0
        self.sessions = array("l")
        self.cursors = array("q")
        self.at_ms = array("d")

    def note(self, session: int, cursor: int) -> None:
        self.sessions.append(session)
        self.cursors.append(cursor)
        self.at_ms.append(time.time() * 1000)

    def write(self, path: Path) -> None:
        heard = Heard(list(self.sessions), list(self.cursors), list(self.at_ms), self.lost, self.refused)
        path.write_bytes(msgspec.json.encode(heard))


class Follower(asyncio.Protocol):
    """One connection; *session* is its place in the file."""

    tail: ClassVar[str]
    headers: ClassVar[dict[str, str]]
    status: ClassVar[bytes]

    def __init__(self, crowd: Crowd, session: int, session_id: str, port: int) -> None:
        self._crowd = crowd
        self._session = session
        self._request = Request("GET", f"{BASE}/{session_id}{self.tail}", headers=self.headers).encode(port)
        self._transport: Transport
        self._received = b""
        self._has_head = False
        self.is_refused = False
        """With 503: the service has too much to do."""
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the snapshot is here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Transport", transport)
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_refused:
            return
        self._crowd.lost += 1
        if not self.told.done():
            self.told.set_exception(RuntimeError(f"hung up: {exc or self._received[:300]!r}"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._has_head:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(self.status):
                self.is_refused = head.startswith(_REFUSED)
                if self.is_refused:
                    self.told.set_result(None)
                self._transport.abort()
                return
            self._has_head = True
            self._received = rest
        if not self.told.done() and _SNAPSHOT in self._received:
            self.told.set_result(None)
        self.read()

    def read(self) -> None:
        """Note the messages that are whole, and keep the rest of what was received."""
        raise NotImplementedError


class SseFollower(Follower):
    """``/events``: a message's frame is looked for, whatever chunks it came in."""

    tail = "/events"
    headers: ClassVar = {"Accept": "text/event-stream"}
    status = b"HTTP/1.1 200"
    _message = re.compile(rb"id: (\d+)\nevent: message\.created\n")

    def read(self) -> None:
        whole, end, rest = self._received.rpartition(b"\n\n")
        if end:
            for found in self._message.finditer(whole):
                self._crowd.note(self._session, int(found[1]))
            self._received = rest


class WsFollower(Follower):
    """``/ws``: frames are taken apart, since a ping wants its pong."""

    tail = "/ws"
    headers: ClassVar = _UPGRADE
    status = b"HTTP/1.1 101"
    _message = re.compile(rb'\{"cursor":(\d+),"prev":\d+,"type":"message\.created"')

    def read(self) -> None:
        data, at = self._received, 0
        while len(data) >= at + 2:
            size, start = data[at + 1], at + 2
            if size >= 126:
                start += 2 if size == 126 else 8
                if len(data) < start:
                    break
                size = int.from_bytes(data[at + 2 : start])
            if len(data) < start + size:
                break
            self._take(data[at] & 0x0F, data[start : start + size])
            at = start + size
        self._received = data[at:]

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == _PING:
            self._transport.write(bytes((0x80 | _PONG, 0x80 | len(payload), 0, 0, 0, 0)) + payload)
        elif kind == _CLOSE:
            self._transport.close()
        elif found := self._message.match(payload):
            self._crowd.note(self._session, int(found[1]))


KINDS: dict[str, type[Follower]] = {"sse": SseFollower, "ws": WsFollower}


async def follow(crowd: Crowd, kind: type[Follower], port: int, sessions: Sequence[str], count: int) -> None:
    """Open *count* followers, a few at a time; each has its snapshot at the end."""
    loop = asyncio.get_running_loop()
    numbers = iter(range(count))

    async def open_one(number: int) -> bool:
        session = number % len(sessions)
        _, follower = await loop.create_connection(
            lambda: kind(crowd, session, sessions[session], port),
            "127.0.0.1",
            port,
            local_addr=(f"127.0.1.{1 + number // ONE_ADDRESS}", 0) if count > ONE_ADDRESS else None,
        )
        await follower.told
        return not follower.is_refused

    async def open_some() -> None:
        for number in numbers:
            while not await open_one(number):
                crowd.refused += 1
                await asyncio.sleep(AGAIN_S)
            crowd.told += 1

    async with asyncio.timeout(OPENED_S), asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(open_some())


async def main(kind: str, port: int, count: int, sessions: Sequence[str], out: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    crowd = Crowd()
    await follow(crowd, KINDS[kind], port, sessions, count)
    print(f"told {crowd.told}", flush=True)
    said = 0
    while not stop.is_set():
        heard = len(crowd.cursors)
        if heard != said:
            said = heard
            print(f"heard {heard}", flush=True)
        try:
            async with asyncio.timeout(SAY_S):
                await stop.wait()
        except TimeoutError:
            pass
    crowd.write(out)


if __name__ == "__main__":
    port, kind, count, sessions_file, out_file = sys.argv[1:]
    sessions = Path(sessions_file).read_text().split()
    uvloop.run(main(kind, int(port), int(count), sessions, Path(out_file)))

"""A client cheap enough to load a server from one core; it reads every answer to its end."""

from __future__ import annotations

import asyncio
import itertools
import time
from asyncio import Transport
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

PER_ADDRESS = 900
"""Requests from one address of the loopback range: elizaOS admits 1,000 of each in a quarter of an hour."""
ANSWER_S = 60.0
_addresses = (f"127.{1 + n // 62500}.{n // 250 % 250}.{1 + n % 250}" for n in itertools.count())


class Wire(asyncio.Protocol):
    """One HTTP/1.1 connection; one exchange at a time."""

    def __init__(self) -> None:
        self._transport: Transport
        self._received = bytearray()
        self._parts: list[bytes] = []
        self._status = 0
        self._left: int | None = None
        """What is still to come of a body or chunk; None before the head is read, -1 at a chunk's head."""
        self._is_chunked = False
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None

    @classmethod
    async def open(cls, port: int) -> Wire:
        loop = asyncio.get_running_loop()
        source = (next(_addresses), 0)
        _, wire = await loop.create_connection(cls, "127.0.0.1", port, local_addr=source)
        return wire

    def close(self) -> None:
        self._transport.close()

    async def ask(self, raw: bytes) -> tuple[int, bytes]:
        """Status and whole body of the reply to the request *raw*.

        Raises:
            ConnectionError: the connection broke.
        """
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return await self._reply

    # ------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionError(f"the connection broke: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        while self._advance():
            pass

    def _advance(self) -> bool:
        """Read one thing more: the head, a chunk's head, a piece of body; False if it is not all here."""
        if self._left is None:
            return self._head()
        if self._left == -1:
            return self._chunk_head()
        end = self._left + (2 if self._is_chunked else 0)
        if len(self._received) < end:
            return False
        self._parts.append(bytes(self._received[: self._left]))
        del self._received[:end]
        if self._is_chunked and self._left:
            self._left = -1
            return True
        self._end()
        return False

    def _head(self) -> bool:
        at = self._received.find(b"\r\n\r\n")
        if at < 0:
            return False
        head = bytes(self._received[:at]).lower()
        del self._received[: at + 4]
        self._status = int(head[9:12])
        self._is_chunked = b"\r\ntransfer-encoding: chunked" in head
        self._left = -1 if self._is_chunked else _length(head)
        return True

    def _chunk_head(self) -> bool:
        at = self._received.find(b"\r\n")
        if at < 0:
            return False
        self._left = int(self._received[:at], 16)
        del self._received[: at + 2]
        return True

    def _end(self) -> None:
        body = b"".join(self._parts)
        self._parts.clear()
        self._left = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_result((self._status, body))


def _length(head: bytes) -> int:
    at = head.find(b"\r\ncontent-length: ")
    return int(head[at + 18 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


class Line:
    """A connection of one client, which comes from another address now and then."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._wire: Wire | None = None
        self._asked = 0

    async def open(self) -> None:
        """A connection from an address that was not used before."""
        self.close()
        self._wire = await Wire.open(self._port)
        self._asked = 0

    async def ask(self, raw: bytes) -> bytes:
        """The body of the reply.

        Raises:
            RuntimeError: it is an error, or the line is not open.
            ConnectionError: the connection broke.
        """
        if self._asked >= PER_ADDRESS:
            await self.open()
        if self._wire is None:
            raise RuntimeError("the line is not open")
        self._asked += 1
        status, body = await self._wire.ask(raw)
        if status >= 400:
            raise RuntimeError(f"{raw[:80]!r}: {status} {body[:500]!r}")
        return body

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
        self._wire = None


class Seen(NamedTuple):
    """What a storm saw; *broken*: connections that ended before their answer."""

    elapsed_s: float
    times_ms: list[float]
    broken: int


async def storm(
    lines: Sequence[Line],
    requests: Sequence[Iterator[bytes]],
    *,
    seconds: float,
    check: Callable[[bytes], Any],
) -> Seen:
    """Each of *lines*, opened anew, asks its own *requests* in turn until *seconds* are over or they end.

    What was asked by then is waited for. *check* raises on a reply that is not what was asked for.
    A connection that breaks is counted and opened again, as a client would.

    Raises:
        ConnectionError: it happens more often than there are lines.
    """
    times_ms: list[float] = []
    broken = 0
    for line in lines:
        await line.open()
    started_s = time.perf_counter()
    ends_s = started_s + seconds

    async def one(line: Line, own: Iterator[bytes]) -> None:
        nonlocal broken
        asked_s = time.perf_counter()
        for raw in own:
            try:
                check(await line.ask(raw))
            except ConnectionError:
                broken += 1
                if broken > len(lines):
                    raise
                await line.open()
                continue
            now_s = time.perf_counter()
            times_ms.append((now_s - asked_s) * 1000)
            if now_s >= ends_s:
                return
            asked_s = now_s

    async with asyncio.timeout(seconds + ANSWER_S):
        async with asyncio.TaskGroup() as tasks:
            for line, own in zip(lines, requests, strict=True):
                tasks.create_task(one(line, own))
    return Seen(time.perf_counter() - started_s, times_ms, broken)

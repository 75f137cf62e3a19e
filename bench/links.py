"""HTTP/1.1 as cheaply as Python can: many open connections cost the load's core little."""

from __future__ import annotations

import asyncio
from asyncio import Transport
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import msgspec

from bench.load import Request
from bench.processes import Service

T = TypeVar("T")
_LENGTH = b"content-length:"
_encode = msgspec.json.Encoder().encode


class Link(asyncio.Protocol):
    """A connection that stays open; one exchange at a time."""

    def __init__(self, target: Service, headers: Mapping[str, str] | None = None) -> None:
        self._port = target.port
        self._headers = headers or {}
        self._transport: Transport
        self._received = b""
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None

    @classmethod
    async def open(cls, target: Service, headers: Mapping[str, str] | None = None) -> Link:
        """*headers* go with every request."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(lambda: cls(target, headers), "127.0.0.1", target.port)
        return link

    def close(self) -> None:
        self._transport.close()

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Status and body of the reply.

        Raises:
            RuntimeError: it is an error, or the connection broke.
        """
        request = Request(method, path, b"" if body is None else _encode(body), self._headers)
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request.encode(self._port))
        status, text = await self._reply
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {text[:500]!r}")
        return status, text

    # ------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(RuntimeError(f"the connection broke: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        status = int(head[9:12])
        size = 0 if status == 204 else _length(head)
        if len(rest) >= size and self._reply is not None:
            self._received = rest[size:]
            if not self._reply.done():
                self._reply.set_result((status, rest[:size]))


def _length(head: bytes) -> int:
    lower = head.lower()
    start = lower.index(_LENGTH) + len(_LENGTH)
    return int(lower[start:].split(b"\r\n", 1)[0])


class Ear(asyncio.Protocol):
    """A follower that counts: how often *mark* came in its stream of events."""

    def __init__(self, request: bytes, mark: bytes, on_count: Callable[[int], None]) -> None:
        self._request = request
        self._mark = mark
        self._on_count = on_count
        self._tail = b""
        self._transport: Transport
        self.is_told = asyncio.Event()
        """Set once the snapshot is here: what comes from now on is heard."""

    @classmethod
    async def open(cls, target: Service, path: str, mark: bytes, on_count: Callable[[int], None]) -> Ear:
        loop = asyncio.get_running_loop()
        request = Request("GET", path).encode(target.port)
        _, ear = await loop.create_connection(lambda: cls(request, mark, on_count), "127.0.0.1", target.port)
        await ear.is_told.wait()
        return ear

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        text = self._tail + data
        if not self.is_told.is_set() and b"session.snapshot" in text:
            self.is_told.set()
        if count := text.count(self._mark):
            self._on_count(count)
        self._tail = text[-len(self._mark) + 1 :]


@contextmanager
def closing(links: list[Any]) -> Iterator[None]:
    """Close all of *links* at the end, also those that were added meanwhile."""
    try:
        yield
    finally:
        for link in links:
            link.close()


async def unless_failed(tasks: list[asyncio.Task[None]], work: Awaitable[T]) -> T:
    """The result of *work*, or the failure of one of *tasks*, which are not expected to end before it."""
    own = asyncio.ensure_future(work)
    await asyncio.wait([own, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            own.cancel()
            task.result()
            raise RuntimeError("a worker ended")
    return own.result()

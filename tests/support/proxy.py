"""A TCP proxy in front of a Redis server that does to a connection what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from ssl import SSLContext
from typing import Any, Self
from urllib.parse import urlsplit

import hiredis

Match = Callable[[list[bytes]], bool]


class Proxy:
    """Forwards to *url*, and misbehaves as told; runs in the test's own loop.

    ::

        async with Proxy(server.url) as proxy:
            proxy.drop_reply(lambda command: command[0] == b"EVALSHA")
            redis = Redis.from_url(proxy.url)
    """

    def __init__(self, url: str, *, tls: SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._tls = tls  # what clients must speak; towards the server it is plain TCP
        self.connections = 0  # accepted since the start
        self.commands: list[list[bytes]] = []  # every command that came through
        self.dropped = 0  # replies swallowed
        self.jitter_s = 0.0  # each chunk, either way, waits for up to this long
        self._to_drop: list[Match] = []
        self._open = asyncio.Event()
        self._open.set()
        self._writers: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}  # client side → server side
        self._handlers: set[asyncio.Task[Any]] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"redis{'s' if self._tls else ''}://127.0.0.1:{self._port}/0"

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.refuse()
        # The handlers end by themselves: asyncio 3.11 reports a cancelled one as an error.
        while self._handlers:
            self.cut()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.wait(self._handlers, timeout=0.05)

    async def accept(self) -> None:
        """Take connections (again), always on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse new connections and cut the open ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """End every open connection at once."""
        for client, server in list(self._writers.items()):
            client.transport.abort()
            server.transport.abort()

    def freeze(self) -> None:
        """Half-open: connections stay, nothing passes."""
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def inject(self, data: bytes) -> None:
        """Send *data* to every client, as if the server had."""
        for client in self._writers:
            client.write(data)

    def drop_reply(self, match: Match) -> None:
        """Let the next command that matches run, then swallow its reply and cut the connection."""
        self._to_drop.append(match)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            upstream_reader, upstream = await asyncio.open_connection(*self._target)
            self._writers[writer] = upstream
            pipe = _Pipe(self, reader, writer, upstream_reader, upstream)
            pumps = [asyncio.create_task(pipe.commands()), asyncio.create_task(pipe.replies())]
            self._pumps.update(pumps)
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
                self._pumps.difference_update(pumps)
        except OSError:
            pass  # the server is away: so is this connection
        finally:
            self._writers.pop(writer, None)
            for side in (writer, upstream):
                if side is not None:
                    side.transport.abort()
                    with contextlib.suppress(OSError):
                        await side.wait_closed()
            self._handlers.discard(task)

    def is_dropped(self, command: list[bytes]) -> bool:
        """Whether *command* was the one whose reply is to be swallowed."""
        for match in self._to_drop:
            if match(command):
                self._to_drop.remove(match)
                return True
        return False

    async def pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        """Write *data* later, if the network is slow, or not before it thaws."""
        if self.jitter_s:
            await asyncio.sleep(random.uniform(0, self.jitter_s))
        await self._open.wait()
        writer.write(data)
        await writer.drain()


class _Pipe:
    """One connection through the proxy; it ends where either of its pumps does."""

    def __init__(
        self,
        proxy: Proxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream_reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._upstream_reader = upstream_reader
        self._upstream = upstream
        self._sent = 0
        self._answered = 0
        self._drop_after: int | None = None  # swallow everything, and cut once this many replies came

    async def commands(self) -> None:
        parser = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := await self._reader.read(65536):
                parser.feed(data)
                while command := parser.gets():
                    self._sent += 1
                    self._proxy.commands.append(command)
                    if self._drop_after is None and self._proxy.is_dropped(command):
                        self._drop_after = self._sent
                await self._proxy.pass_on(data, self._upstream)

    async def replies(self) -> None:
        parser = hiredis.Reader(notEnoughData=self, replyError=Exception)
        with contextlib.suppress(OSError):
            while data := await self._upstream_reader.read(65536):
                parser.feed(data)
                while parser.gets() is not self:
                    self._answered += 1
                if self._drop_after is None:
                    await self._proxy.pass_on(data, self._writer)
                elif self._answered >= self._drop_after:
                    self._proxy.dropped += 1
                    return

"""A server in the test's own loop, and a client of event streams that reads as slowly as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any, NamedTuple, Self

import uvicorn
from starlette.types import ASGIApp

from tests.support.waiting import until


class Served:
    """*app* behind a real uvicorn on a free port, as the service runs it."""

    def __init__(self, app: ASGIApp) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="websockets-sansio",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._serving: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        await until(lambda: self._server.started)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.should_exit = True
        async with asyncio.timeout(10):
            await self._serving
        self._socket.close()


class Frame(NamedTuple):
    """One frame of an event stream; *data* is the parsed JSON, None for a comment or ``retry:``."""

    id: str | None
    event: str | None
    data: Any
    retry: int | None
    comment: str | None


class EventStream:
    """An HTTP/1.1 GET whose reply is read frame by frame."""

    def __init__(
        self, port: int, path: str, headers: dict[str, str] | None = None, *, buffer: int = 0
    ) -> None:
        self._port = port
        self._path = path
        self._headers = headers or {}
        self._buffer = buffer
        self._text = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_over = False

    async def __aenter__(self) -> Self:
        connection = socket.socket()
        if self._buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._port))
        except OSError:
            connection.close()
            raise
        limit = self._buffer or 2**16
        self._reader, self._writer = await asyncio.open_connection(sock=connection, limit=limit)
        lines = [f"GET {self._path} HTTP/1.1", "Host: localhost", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        async with asyncio.timeout(10):
            status, *headers = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(status.split()[1])
        for line in headers:
            name, _, value = line.partition(":")
            if name:
                self.headers[name.lower()] = value.strip()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def next(self, *, within_s: float = 10) -> Frame | None:
        """The next frame; None at the end of the stream."""
        async with asyncio.timeout(within_s):
            while b"\n\n" not in self._text:
                if not await self._read_chunk():
                    return None
        frame, _, self._text = self._text.partition(b"\n\n")
        return _parsed(frame.decode())

    async def _read_chunk(self) -> bool:
        try:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            self._text += (await self._reader.readexactly(size + 2))[:-2]
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        self.is_over = size == 0
        return size > 0

    async def next_event(self, *, within_s: float = 10) -> Frame:
        """The next frame that is an event."""
        while True:
            frame = await self.next(within_s=within_s)
            assert frame is not None, "the stream ended"
            if frame.event is not None:
                return frame

    async def until(self, event: str) -> list[Frame]:
        """The events up to the first called *event*."""
        seen = [await self.next_event()]
        while seen[-1].event != event:
            seen.append(await self.next_event())
        return seen


def _parsed(text: str) -> Frame:
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        name, _, value = line.partition(":")
        fields[name or "comment"] = value.removeprefix(" ")
    retry = fields.get("retry")
    return Frame(
        id=fields.get("id"),
        event=fields.get("event"),
        data=json.loads(fields["data"]) if "data" in fields else None,
        retry=int(retry) if retry is not None else None,
        comment=fields.get("comment"),
    )

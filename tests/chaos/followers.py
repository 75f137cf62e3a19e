"""Followers that come back with their cursor, to another replica, until told that there is no more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from tests.chaos.history import Following, Heard, now_ms
from tests.support.client import BASE
from tests.support.streams import EventStream

RETRY_S = 0.05
SILENCE_S = 20.0
"""A stream says something every 15 s; one that does not has been cut without our hearing of it."""
OPEN_S = 8.0
ENDS = {4404: "deleted", 4410: "expired"}


class Follower:
    """One follower, running between :meth:`start` and :meth:`stop`."""

    def __init__(
        self,
        urls: Sequence[str],
        session_id: str,
        *,
        who: str,
        transport: str,
        after: int | None,
        at: int,
    ) -> None:
        self.following = Following(who=f"{who} ({transport})", session_id=session_id, after=after)
        self.cursor = after
        self._urls = list(urls)
        self._transport = transport
        self._at = at
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()  # a bug of this module, if anything

    @property
    def is_over(self) -> bool:
        return self._task is not None and self._task.done()

    def has_come_to(self, cursor: int) -> bool:
        return self.is_over or (self.cursor or 0) >= cursor

    async def _run(self) -> None:
        connection = self._over_sse if self._transport == "sse" else self._over_websocket
        while not self.following.ended_by:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, WebSocketException):
                await connection()
            self._at += 1
            if not self.following.ended_by:
                await asyncio.sleep(RETRY_S)

    async def _over_sse(self) -> None:
        port = int(self._urls[self._at % len(self._urls)].rpartition(":")[2])
        headers = {} if self.cursor is None else {"Last-Event-ID": str(self.cursor)}
        stream = EventStream(port, f"{BASE}/{self.following.session_id}/events", headers)
        try:
            async with asyncio.timeout(OPEN_S):
                await stream.__aenter__()
            if stream.status == 404:
                self.following.ended_by = "deleted"
            if stream.status != 200:
                return
            self.following.connections += 1
            while (frame := await stream.next(within_s=SILENCE_S)) is not None:
                if frame.event is not None:
                    self._hear(frame.data)
                    if frame.event == "closing":
                        self.following.ended_by = ENDS.get(frame.data["data"]["code"], "")
        finally:
            if hasattr(stream, "_writer"):  # also of one that was not answered
                await stream.__aexit__()

    async def _over_websocket(self) -> None:
        url = self._urls[self._at % len(self._urls)].replace("http", "ws", 1)
        start = "" if self.cursor is None else f"?after={self.cursor}"
        socket = await connect(
            f"{url}{BASE}/{self.following.session_id}/ws{start}",
            subprotocols=[Subprotocol("sessions.v1")],
            open_timeout=OPEN_S,
            close_timeout=1,
            ping_interval=5,
            ping_timeout=SILENCE_S,
        )
        try:
            self.following.connections += 1
            while True:
                event = json.loads(await socket.recv())
                if event["type"] != "error":
                    self._hear(event)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else 0
            if code in ENDS:
                self.following.ended_by = ENDS[code]
                closing = {"type": "closing", "sessionId": self.following.session_id, "data": {"code": code}}
                self._hear(closing)
        finally:
            await socket.close()

    def _hear(self, event: dict[str, Any]) -> None:
        self.following.events.append(
            Heard(
                at_ms=now_ms(),
                connection=self.following.connections,
                type=event["type"],
                session_id=event["sessionId"],
                cursor=event.get("cursor"),
                prev=event.get("prev"),
                data=event["data"],
            )
        )
        if event["type"] == "session.snapshot" and self.cursor is None:
            self.cursor = event["data"]["cursor"]
        elif event.get("cursor") is not None:
            self.cursor = event["cursor"]

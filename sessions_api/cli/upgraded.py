"""A client's WebSocket: uvicorn's, with bounds on what never becomes a frame that the app reads.

``live/websocket.py`` bounds the frames it is given, in size and rate. Below it a
client could send fragments without end, or pings, which are answered without
anybody asking for them; and uvicorn parses a whole read, up to 256 KiB, before
anybody is asked: 40,000 frames hold all other clients up for a third of a second.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

from sessions_api.cli.connections import LOGGER
from sessions_api.cli.outward import refusal
from sessions_api.domain.limits import Bucket
from sessions_api.errors import FieldError, InvalidInput
from sessions_api.live.closing import TOO_MANY
from sessions_api.live.framing import FRAMES_BURST, FRAMES_PER_S

SLICE_BYTES: Final = 8 * 1024
MAX_FRAGMENTS: Final = 1024
MAX_WAITING: Final = 256
NOT_UTF8: Final = 1007
HANDSHAKE: Final = (
    "GET by HTTP/1.1 without a body; Sec-WebSocket-Version: 13; one Sec-WebSocket-Key of 16 bytes in base64; "
    "at most 128 headers, each line of at most 8 KiB"
)


class Upgraded(WebSocketsSansIOProtocol):
    """Refuses a bad handshake in our envelope; ends a conversation that floods with 4429."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = LOGGER  # a line for each connection would cost more than the connection
        self.conn.logger = LOGGER
        self._control = Bucket(FRAMES_PER_S, FRAMES_BURST)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), SLICE_BYTES):
            if self.disconnected:
                return
            super().data_received(data[start : start + SLICE_BYTES])
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refuse_handshake()  # uvicorn overlooks what is not even a request to the library

    def handle_connect(self, event: Request) -> None:
        if self.conn.accept(event).status_code == 101:
            super().handle_connect(event)
        else:
            self.handshake_initiated = True
            self._refuse_handshake()

    def _refuse_handshake(self) -> None:
        bad = FieldError("Upgrade", "is no WebSocket handshake (RFC 6455)", None, HANDSHAKE)
        self.transport.write(refusal(InvalidInput("Invalid WebSocket handshake", [bad])))
        self._give_up()

    # ------------------------------------------------------------ frames

    def handle_cont(self, event: Frame) -> None:
        if self.disconnected:
            return
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self._fail(TOO_MANY.code, TOO_MANY.reason)

    def handle_ping(self) -> None:
        if self._may_control():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        if self._may_control():
            super().handle_pong(event)

    def _may_control(self) -> bool:
        if self.disconnected:
            return False
        if self._control.allows(asyncio.get_running_loop().time()):
            return True
        self._fail(TOO_MANY.code, TOO_MANY.reason)
        return False

    def send_receive_event_to_app(self) -> None:
        """As uvicorn's, which would write a stack into the log for each text that is none."""
        data = b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return
        if self.queue.qsize() >= MAX_WAITING:
            self._fail(TOO_MANY.code, TOO_MANY.reason)
            return
        if self.curr_msg_data_type == "text":
            try:
                self.queue.put_nowait({"type": "websocket.receive", "text": data.decode()})
            except UnicodeDecodeError:
                self._fail(NOT_UTF8, "not UTF-8")
                return
        else:
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    # ------------------------------------------------------------ the end

    async def send(self, message: ASGISendEvent) -> None:
        """As uvicorn's; what is said to a client that is gone is dropped.

        That it is gone, the app is told where it listens, and there alone: an
        error here would reach it in the middle of saying something else. One that went
        before it was accepted is not accepted by uvicorn, which would then take whatever
        is said next for a mistake of the app's.
        """
        if self.transport.is_closing() and not self.handshake_complete:
            return
        with suppress(ClientDisconnected):
            await super().send(message)
        if message["type"] == "websocket.accept":
            del self.request, self.response  # uvicorn would keep their headers as long as the connection

    def _fail(self, code: int, reason: str) -> None:
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is not None:
            super().handle_parser_exception()
        self._give_up()  # also where frames came before the handshake had its answer: uvicorn would crash

    def handle_close(self, event: Frame) -> None:
        if self.handshake_complete:
            super().handle_close(event)
        else:
            self._give_up()  # it did not wait for the answer; uvicorn would go on giving it

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        if self.close_sent:
            self._give_up()

    def _give_up(self) -> None:
        """Close; whatever the app says from now on is dropped, not a protocol error of its own."""
        self.handshake_complete = True
        self.close_sent = True
        self.disconnected = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        self.transport.close()

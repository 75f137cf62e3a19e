"""How a WebSocket begins: it is accepted, its client says who it is, or it is told why not.

A refusal is a handshake that is accepted, an error frame, and a close code: a
browser shows its page nothing of a handshake that is refused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from sessions_api.errors import SessionsError, Unauthenticated
from sessions_api.live.closing import closing_of
from sessions_api.live.framing import BadFrame, ack, error_frame, read_frame, text_of
from sessions_api.live.operations import Answer
from sessions_api.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Send

    from sessions_api.domain.access import Caller

SUBPROTOCOL: Final = "sessions.v1"
SEND_TIMEOUT_S: Final = 30.0
AUTH_TIMEOUT_S: Final = 5.0


class ClientLeft(Exception):
    """The client did not wait for the end of the handshake: there is nobody to answer."""


class Handshake:
    """One WebSocket before its conversation; *offered* are its client's subprotocols."""

    def __init__(
        self, receive: Receive, send: Send, *, request_id: str, instance: str, offered: list[str]
    ) -> None:
        self.receive = receive
        self.send = send
        self.request_id = request_id
        self.instance = instance
        self._offered = offered
        self._is_accepted = False

    async def accept(self) -> None:
        """Complete the handshake. Repeatable.

        Raises:
            ClientLeft
        """
        if self._is_accepted:
            return
        if (await self.receive())["type"] != "websocket.connect":
            raise ClientLeft
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in self._offered else None
        await self.send({"type": "websocket.accept", "subprotocol": subprotocol})
        self._is_accepted = True

    async def authenticate(
        self, whom: Callable[[str | None], Caller], *, within_s: float = AUTH_TIMEOUT_S
    ) -> Caller:
        """Whom the first frame shows, which has to be ``auth {token}``; it is answered with an ack.

        Raises:
            Unauthenticated: another frame came first, or none in time; and what *whom* raises.
            ClientLeft
        """
        await self.accept()
        try:
            async with asyncio.timeout(within_s):
                message = await self.receive()
        except TimeoutError as error:
            raise Unauthenticated(f"No auth frame came within {within_s:g} s") from error
        if message["type"] != "websocket.receive":
            raise ClientLeft
        frame = read_frame(message.get("text"), message.get("bytes"))
        if frame["type"] != "auth":
            raise Unauthenticated("The first frame must be auth, with the token of the session")
        caller = whom(text_of(frame, "token"))
        await self.send(
            {"type": "websocket.send", "text": ack(frame.get("ref"), Answer(200, b"{}")).decode()}
        )
        return caller

    async def refuse(self, error: SessionsError | BadFrame) -> None:
        """Say why not, and close."""
        reason, closing, ref = error, closing_of(error), None
        if isinstance(error, BadFrame):
            reason, closing, ref = error.error, error.closing, error.ref
        metrics.count_refusal(reason)
        frame = error_frame(reason, ref, request_id=self.request_id, instance=self.instance)
        last: dict[str, Any] = {"type": "websocket.close", "code": closing.code, "reason": closing.reason}
        try:
            await self.accept()
            metrics.FOLLOWERS_CUT.of(str(closing.code)).inc()
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self.send({"type": "websocket.send", "text": frame.decode()})
                await self.send(last)
        except (ClientLeft, TimeoutError, OSError):
            pass  # gone already

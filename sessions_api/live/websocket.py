"""``GET /{id}/ws``: a conversation in frames of JSON, subprotocol ``sessions.v1``.

Out go events (as on ``/events``), and for each frame that came in one ``ack`` or
``error`` with its ``ref``:

- ``{"type": "ack", "ref": …, "status": 201, "data": <the body HTTP would have sent>}``
- ``{"type": "error", "ref": …, "status": 410, "error": {…}, "title": …, "detail": …, "instance": …}``

In come ``auth``, ``resume {after}``, ``message {content, …, idempotencyKey?}``,
``heartbeat``, ``renew {idempotencyKey?}``, ``cancel {turnId}`` and ``ping``, one
at a time. From the ack of a ``resume`` on, the stream is what follows *after*;
what came before it belongs to the earlier position. A later ``auth {token}``
shows a fresh session token before the old one ends; the first one is the
handshake's (``handshake.py``).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

from sessions_api.domain.access import Caller
from sessions_api.domain.ids import SessionId
from sessions_api.domain.limits import Bucket
from sessions_api.errors import InvalidInput, SessionsError
from sessions_api.live.closing import TOO_MANY
from sessions_api.live.framing import (
    FRAMES_BURST,
    FRAMES_PER_S,
    BadFrame,
    ack,
    error_frame,
    invalid,
    read_frame,
    text_of,
)
from sessions_api.live.handshake import SEND_TIMEOUT_S, Handshake
from sessions_api.live.operations import Answer, Operations
from sessions_api.live.patience import Patience
from sessions_api.telemetry import metrics
from sessions_api.wire.problems import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sessions_api.live.hub import Hub
    from sessions_api.live.subscription import Subscription

MAX_CURSOR: Final = 10**16

log = structlog.get_logger(__name__)


class Conversation:
    """One WebSocket, from its handshake to its close; :meth:`run` is all there is to call."""

    __slots__ = (
        "_after",
        "_authenticate",
        "_caller",
        "_handshake",
        "_hub",
        "_is_gone",
        "_operations",
        "_patience",
        "_rate",
        "_send",
        "_send_timeout_s",
        "_session_id",
        "_subscription",
        "_turn_to_send",
    )

    def __init__(
        self,
        handshake: Handshake,
        *,
        hub: Hub,
        operations: Operations,
        session_id: SessionId,
        caller: Caller,
        authenticate: Callable[[str | None], Caller],
        after: int | None,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        """*caller*: as the handshake showed; *authenticate* tells whom the token of a later frame shows."""
        self._handshake = handshake
        self._send = handshake.send
        self._hub = hub
        self._operations = operations
        self._session_id = session_id
        self._caller = caller
        self._authenticate = authenticate
        self._after = after
        self._send_timeout_s = send_timeout_s
        self._turn_to_send = asyncio.Lock()
        self._patience = Patience()
        self._subscription: Subscription  # from run() on
        self._is_gone = False
        self._rate = Bucket(FRAMES_PER_S, FRAMES_BURST)

    async def run(self) -> None:
        """Talk until either side ends it.

        Raises:
            SessionsError: the session cannot be followed; nothing was said yet.
            ClientLeft
        """
        self._subscription = await self._hub.follow(
            self._session_id, grant=self._caller.read_grant, after=self._after, key_id=self._caller.key_id
        )
        followers = metrics.FOLLOWERS.labels("ws")
        followers.inc()
        reading: asyncio.Task[None] | None = None
        try:
            await self._handshake.accept()
            reading = asyncio.create_task(self._read_frames(), name="ws client")
            await self._write_events()
        except (TimeoutError, OSError):
            pass  # too slow, or gone: nothing can be said to it any more
        finally:
            followers.dec()
            self._subscription.close()
            if reading is not None:
                reading.cancel()
                await asyncio.wait([reading])
            self._patience.close()

    # ------------------------------------------------------------ out

    async def _write_events(self) -> None:
        sent = metrics.EVENTS.of("ws")
        while True:
            subscription = self._subscription
            event = await subscription.next()
            async with self._turn_to_send:
                if self._is_gone:
                    return
                if subscription is not self._subscription:
                    continue  # a resume took its place meanwhile
                closing = event.closing
                if closing is not None:
                    metrics.FOLLOWERS_CUT.of(str(closing.code)).inc()
                    await self._say(
                        {"type": "websocket.close", "code": closing.code, "reason": closing.reason}
                    )
                    return
                await self._say({"type": "websocket.send", "text": event.json.decode()})
            sent.inc()

    async def _say(self, message: dict[str, Any]) -> None:
        """Send it; whoever calls holds the turn to send."""
        with self._patience.within(self._send_timeout_s):
            await self._send(message)

    async def _reply(self, frame: bytes) -> None:
        async with self._turn_to_send:
            await self._say({"type": "websocket.send", "text": frame.decode()})

    # ------------------------------------------------------------ in

    async def _read_frames(self) -> None:
        """Until the client leaves or sends what is no frame; the writer then ends the conversation."""
        try:
            while True:
                message = await self._handshake.receive()
                if message["type"] == "websocket.disconnect":
                    self._is_gone = True
                    break
                if message["type"] == "websocket.receive":
                    await self._answer(message.get("text"), message.get("bytes"))
        except BadFrame as bad:
            with suppress(TimeoutError, OSError):  # the conversation ends, whether it is heard or not
                await self._reply(self._error_frame(bad.error, bad.ref))
            self._subscription.finish(bad.closing)
            return
        except (TimeoutError, OSError):
            self._is_gone = True
        self._subscription.close()

    async def _answer(self, text: str | None, data: bytes | None) -> None:
        if not self._rate.allows(asyncio.get_running_loop().time()):
            raise BadFrame(InvalidInput(f"Too many frames: at most {FRAMES_PER_S:g} a second"), TOO_MANY)
        frame = read_frame(text, data)
        ref = frame.pop("ref", None)
        kind = frame.pop("type")
        try:
            if kind == "resume":
                await self._resume(ref, frame)
                return
            answer = await self._do(kind, frame)
        except SessionsError as error:
            metrics.count_refusal(error)
            turn_id = frame.get("turnId")
            as_sent = {"turnId": turn_id} if isinstance(turn_id, str) else NOTHING
            await self._reply(self._error_frame(error, ref, as_sent))
        except Exception as error:  # the other frames, and the stream, must not suffer
            log.exception("frame_failed", request_id=self._handshake.request_id, session_id=self._session_id)
            await self._reply(self._error_frame(error, ref))
        else:
            await self._reply(ack(ref, answer))

    async def _do(self, kind: str, frame: dict[str, Any]) -> Answer:
        operations, caller, session_id = self._operations, self._caller, self._session_id
        match kind:
            case "message":
                key = text_of(frame, "idempotencyKey")
                frame.pop("idempotencyKey", None)
                frame.pop("mode", None)
                return await operations.send(session_id, caller, frame | {"transport": "websocket"}, key)
            case "heartbeat":
                return await operations.heartbeat(session_id, caller)
            case "renew":
                return await operations.renew(session_id, caller, text_of(frame, "idempotencyKey"))
            case "cancel":
                turn_id = text_of(frame, "turnId")
                if turn_id is None:
                    raise invalid("turnId", "is required")
                return await operations.cancel(session_id, caller, turn_id)
            case "auth":
                self._caller = self._authenticate(text_of(frame, "token"))
                self._subscription.show(self._caller.read_grant, self._caller.key_id)
                return Answer(200, b"{}")
            case _:  # ping
                return Answer(200, b"{}")

    async def _resume(self, ref: str | int | None, frame: dict[str, Any]) -> None:
        after = frame.get("after")
        if type(after) is not int or not 0 <= after < MAX_CURSOR:
            raise invalid("after", "must be a cursor: an integer from an earlier event")
        subscription = await self._hub.follow(
            self._session_id, grant=self._caller.read_grant, after=after, key_id=self._caller.key_id
        )
        async with self._turn_to_send:
            before, self._subscription = self._subscription, subscription
            before.close()
            await self._say({"type": "websocket.send", "text": ack(ref, Answer(200, b"{}")).decode()})

    def _error_frame(
        self, error: Exception, ref: str | int | None, as_sent: Mapping[str, str] = NOTHING
    ) -> bytes:
        handshake = self._handshake
        return error_frame(
            error, ref, request_id=handshake.request_id, instance=handshake.instance, as_sent=as_sent
        )

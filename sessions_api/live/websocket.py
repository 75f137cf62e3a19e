"""``GET /{id}/ws``: a conversation in frames of JSON, subprotocol ``sessions.v1``.

Out go events (as on ``/events``), and for each frame that came in one ``ack`` or
``error`` with its ``ref``:

- ``{"type": "ack", "ref": …, "status": 201, "data": <the body HTTP would have sent>}``
- ``{"type": "error", "ref": …, "status": 410, "error": {…}, "title": …, "detail": …, "instance": …}``

In come ``auth``, ``resume {after}``, ``message {content, …, idempotencyKey?}``,
``heartbeat``, ``renew {idempotencyKey?}``, ``cancel {turnId}`` and ``ping``, one
at a time. From the ack of a ``resume`` on, the stream is what follows *after*;
what came before it belongs to the earlier position.

A refusal is a handshake that is accepted, an error frame, and a close code: a
browser shows its page nothing of a handshake that is refused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from sessions_api.domain.ids import SessionId
from sessions_api.errors import BodyTooLarge, FieldError, InvalidInput, MalformedBody, SessionsError
from sessions_api.live.closing import BAD_FRAME, TOO_MANY, Closing, closing_of
from sessions_api.live.operations import Answer, Caller, Operations
from sessions_api.live.patience import Patience
from sessions_api.telemetry import metrics
from sessions_api.wire.problems import NOTHING, problem_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Send

    from sessions_api.live.hub import Hub
    from sessions_api.live.subscription import Subscription

SUBPROTOCOL: Final = "sessions.v1"
MAX_FRAME_BYTES: Final = 256 * 1024
MAX_REF_CHARS: Final = 64
MAX_CURSOR: Final = 10**16
FRAMES_PER_S: Final = 20.0
FRAMES_BURST: Final = 60.0
SEND_TIMEOUT_S: Final = 30.0

log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class _Envelope(msgspec.Struct):
    """The members of an error's envelope that a frame takes over; its own ``type`` is the frame's."""

    error: msgspec.Raw
    title: str
    status: int
    detail: str
    instance: str


_envelope = msgspec.json.Decoder(_Envelope)


class BadFrame(Exception):
    """What came is no frame of ours, which ends the conversation; *closing* and *error* say how."""

    def __init__(
        self, error: SessionsError, closing: Closing = BAD_FRAME, *, ref: str | int | None = None
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.closing = closing
        self.ref = ref


class Rate:
    """How many frames one client may send: a bucket of *burst*, filled with *per_s*."""

    __slots__ = ("_burst", "_left", "_per_s", "_since_s")

    def __init__(self, per_s: float = FRAMES_PER_S, burst: float = FRAMES_BURST) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._since_s = 0.0

    def allows(self, now_s: float) -> bool:
        self._left = min(self._burst, self._left + (now_s - self._since_s) * self._per_s)
        self._since_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Conversation:
    """One WebSocket, from its handshake to its close; :meth:`run` is all there is to call."""

    __slots__ = (
        "_after",
        "_caller",
        "_hub",
        "_instance",
        "_is_gone",
        "_offered",
        "_operations",
        "_patience",
        "_rate",
        "_receive",
        "_request_id",
        "_send",
        "_send_timeout_s",
        "_session_id",
        "_subscription",
        "_turn_to_send",
    )

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        hub: Hub,
        operations: Operations,
        session_id: SessionId,
        caller: Caller,
        after: int | None,
        request_id: str,
        instance: str,
        offered: list[str],
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        self._receive = receive
        self._send = send
        self._hub = hub
        self._operations = operations
        self._session_id = session_id
        self._caller = caller
        self._after = after
        self._request_id = request_id
        self._instance = instance
        self._offered = offered
        self._send_timeout_s = send_timeout_s
        self._turn_to_send = asyncio.Lock()
        self._patience = Patience()
        self._subscription: Subscription  # from run() on
        self._is_gone = False
        self._rate = Rate()

    async def run(self) -> None:
        try:
            self._subscription = await self._hub.follow(
                self._session_id, app=self._caller.app, after=self._after
            )
        except SessionsError as error:
            await refuse(
                self._receive,
                self._send,
                error,
                request_id=self._request_id,
                instance=self._instance,
                offered=self._offered,
            )
            return
        followers = metrics.FOLLOWERS.labels("ws")
        followers.inc()
        reading: asyncio.Task[None] | None = None
        try:
            if await accept(self._receive, self._send, self._offered):
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
                message = await self._receive()
                if message["type"] == "websocket.disconnect":
                    self._is_gone = True
                    break
                if message["type"] == "websocket.receive":
                    await self._answer(message.get("text"), message.get("bytes"))
        except BadFrame as bad:
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
            turn_id = frame.get("turnId")
            as_sent = {"turnId": turn_id} if isinstance(turn_id, str) else NOTHING
            await self._reply(self._error_frame(error, ref, as_sent))
        except Exception as error:  # the other frames, and the stream, must not suffer
            log.exception("frame_failed", request_id=self._request_id, session_id=self._session_id)
            await self._reply(self._error_frame(error, ref))
        else:
            await self._reply(_ack(ref, answer))

    async def _do(self, kind: str, frame: dict[str, Any]) -> Answer:
        operations, caller, session_id = self._operations, self._caller, self._session_id
        match kind:
            case "message":
                key = _text(frame, "idempotencyKey")
                frame.pop("idempotencyKey", None)
                frame.pop("mode", None)
                return await operations.send(session_id, caller, frame | {"transport": "websocket"}, key)
            case "heartbeat":
                return await operations.heartbeat(session_id, caller)
            case "renew":
                return await operations.renew(session_id, caller, _text(frame, "idempotencyKey"))
            case "cancel":
                turn_id = _text(frame, "turnId")
                if turn_id is None:
                    raise _invalid("turnId", "is required")
                return await operations.cancel(session_id, caller, turn_id)
            case _:  # auth: without access keys everybody is who they are; ping
                return Answer(200, b"{}")

    async def _resume(self, ref: str | int | None, frame: dict[str, Any]) -> None:
        after = frame.get("after")
        if type(after) is not int or not 0 <= after < MAX_CURSOR:
            raise _invalid("after", "must be a cursor: an integer from an earlier event")
        subscription = await self._hub.follow(self._session_id, app=self._caller.app, after=after)
        async with self._turn_to_send:
            before, self._subscription = self._subscription, subscription
            before.close()
            await self._say({"type": "websocket.send", "text": _ack(ref, Answer(200, b"{}")).decode()})

    def _error_frame(
        self, error: Exception, ref: str | int | None, as_sent: Mapping[str, str] = NOTHING
    ) -> bytes:
        return error_frame(error, ref, request_id=self._request_id, instance=self._instance, as_sent=as_sent)


async def refuse(
    receive: Receive, send: Send, error: Exception, *, request_id: str, instance: str, offered: list[str]
) -> None:
    """Accept the handshake, say why not, close."""
    closing = closing_of(error)
    if not await accept(receive, send, offered):
        return
    metrics.FOLLOWERS_CUT.of(str(closing.code)).inc()
    frame = error_frame(error, None, request_id=request_id, instance=instance)
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await send({"type": "websocket.send", "text": frame.decode()})
            await send({"type": "websocket.close", "code": closing.code, "reason": closing.reason})
    except (TimeoutError, OSError):
        pass  # gone already


async def accept(receive: Receive, send: Send, offered: list[str]) -> bool:
    """Complete the handshake; False if the client did not wait for it."""
    if (await receive())["type"] != "websocket.connect":
        return False
    await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if SUBPROTOCOL in offered else None})
    return True


def read_frame(text: str | None, data: bytes | None) -> dict[str, Any]:
    """The frame's members; ``type`` is one of ours, ``ref`` a short string or an integer.

    Raises:
        BadFrame: anything else.
    """
    raw = text.encode("utf-8", "surrogatepass") if text is not None else data or b""
    if len(raw) > MAX_FRAME_BYTES:
        raise BadFrame(BodyTooLarge(MAX_FRAME_BYTES))
    try:
        frame = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(MalformedBody("a frame is JSON in UTF-8, not nested too deep")) from error
    if not isinstance(frame, dict):
        raise BadFrame(MalformedBody("a frame is an object"))
    ref = frame.get("ref")
    if not (ref is None or (type(ref) is int) or (isinstance(ref, str) and len(ref) <= MAX_REF_CHARS)):
        reason = f"must be an integer or a string of at most {MAX_REF_CHARS} characters"
        raise BadFrame(_invalid("ref", reason))
    kind = frame.get("type")
    if not isinstance(kind, str) or kind not in TYPES:  # a list or an object would not hash
        raise BadFrame(_invalid("type", f"must be one of {', '.join(sorted(TYPES))}"), ref=ref)
    return frame


TYPES: Final = frozenset({"auth", "resume", "message", "heartbeat", "renew", "cancel", "ping"})


def _invalid(name: str, reason: str) -> InvalidInput:
    return InvalidInput(f"Invalid frame: {name} {reason}", [FieldError(name, reason)])


def _text(frame: dict[str, Any], name: str) -> str | None:
    value = frame.get(name)
    if value is not None and not isinstance(value, str):
        raise _invalid(name, "must be a string")
    return value


def _ack(ref: str | int | None, answer: Answer) -> bytes:
    front = f'{{"type":"ack","ref":{_encode(ref).decode()},"status":{answer.status},"data":'
    return front.encode() + answer.body + b"}"


def error_frame(
    error: Exception,
    ref: str | int | None,
    *,
    request_id: str,
    instance: str,
    as_sent: Mapping[str, str] = NOTHING,
) -> bytes:
    """The error envelope of HTTP as a frame."""
    problem = problem_of(error, request_id=request_id, instance=instance, as_sent=as_sent)
    envelope = _envelope.decode(problem.body)
    return _encode(
        {
            "type": "error",
            "ref": ref,
            "status": envelope.status,
            "error": envelope.error,
            "title": envelope.title,
            "detail": envelope.detail,
            "instance": envelope.instance,
        }
    )

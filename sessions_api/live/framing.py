"""The frames of ``sessions.v1``: read within bounds, answered with ``ack`` or ``error``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from sessions_api.errors import BodyTooLarge, FieldError, InvalidInput, MalformedBody, SessionsError
from sessions_api.live.closing import BAD_FRAME, Closing
from sessions_api.live.operations import Answer
from sessions_api.wire.problems import NOTHING, problem_of
from sessions_api.wire.shapes import check_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_FRAME_BYTES: Final = 256 * 1024
MAX_REF_CHARS: Final = 64
FRAMES_PER_S: Final = 20.0
FRAMES_BURST: Final = 60.0
TYPES: Final = frozenset({"auth", "resume", "message", "heartbeat", "renew", "cancel", "ping"})

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


def read_frame(text: str | None, data: bytes | None) -> dict[str, Any]:
    """The frame's members; ``type`` is one of ours, ``ref`` a short string or an integer.

    Raises:
        BadFrame: anything else.
    """
    raw = text.encode("utf-8", "surrogatepass") if text is not None else data or b""
    if len(raw) > MAX_FRAME_BYTES:
        raise BadFrame(BodyTooLarge(MAX_FRAME_BYTES))
    try:
        check_shape(raw)
        frame = _decode(raw)
    except MalformedBody as error:
        raise BadFrame(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(MalformedBody("a frame is JSON in UTF-8, not nested too deep")) from error
    if not isinstance(frame, dict):
        raise BadFrame(MalformedBody("a frame is an object"))
    ref = frame.get("ref")
    if not (ref is None or (type(ref) is int) or (isinstance(ref, str) and len(ref) <= MAX_REF_CHARS)):
        reason = f"must be an integer or a string of at most {MAX_REF_CHARS} characters"
        raise BadFrame(invalid("ref", reason))
    kind = frame.get("type")
    if not isinstance(kind, str) or kind not in TYPES:  # a list or an object would not hash
        raise BadFrame(invalid("type", f"must be one of {', '.join(sorted(TYPES))}"), ref=ref)
    return frame


def invalid(name: str, reason: str) -> InvalidInput:
    """A member of a frame is unusable."""
    return InvalidInput(f"Invalid frame: {name} {reason}", [FieldError(name, reason)])


def text_of(frame: dict[str, Any], name: str) -> str | None:
    """A member that is text, or is not there.

    Raises:
        InvalidInput: it is something else.
    """
    value = frame.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid(name, "must be a string")
    return value


def ack(ref: str | int | None, answer: Answer) -> bytes:
    """What HTTP would have answered, as a frame."""
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

"""The bodies of workers' requests, read strictly: every bad field is named, all at once."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sessions_api.api.bodies import MAX_DEPTH, MAX_METADATA_BYTES, depth_of, read_attachments, read_metadata
from sessions_api.domain.messages import utf16_units
from sessions_api.domain.turns import Answer
from sessions_api.errors import FieldError, InvalidInput
from sessions_api.wire.answers import misfits
from sessions_api.wire.claims import MAX_CAPACITY, MAX_MESSAGE_CHARS
from sessions_api.wire.problems import abbreviated

MAX_FENCE_CHARS: Final = 100
MAX_OFFSET: Final = 2**31
LONGEST_PAUSE_MS: Final = 60_000
_WORKER: Final = re.compile(r"[A-Za-z0-9._:-]{1,100}", re.ASCII)
_CODE: Final = re.compile(r"[A-Z0-9_]{1,64}", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_encode = msgspec.json.Encoder().encode


class ClaimBody(msgspec.Struct, frozen=True):
    """Who asks for a turn."""

    worker: str
    capacity: int


class DeltaBody(msgspec.Struct, frozen=True):
    """More of the running answer, at *offset* UTF-16 units."""

    fence: str
    text: str
    offset: int


class CompleteBody(msgspec.Struct, frozen=True):
    """The end of an answer."""

    fence: str
    answer: Answer


class FailBody(msgspec.Struct, frozen=True):
    """Why an attempt is given up."""

    fence: str
    code: str
    message: str
    retry: bool
    pause_ms: int


def read_claim(body: Any, query: dict[str, str], *, longest_wait_s: float) -> tuple[ClaimBody, float]:
    """A claim, and how many seconds it waits (``?wait=``, 25).

    Raises:
        InvalidInput
    """
    fields = _Fields(body)
    worker = fields.matching("worker", _WORKER, "1..100 of A-Z a-z 0-9 . _ : -")
    capacity = fields.integer("capacity", 0, MAX_CAPACITY, default=1)
    wait_s = fields.wait(query, longest_wait_s, default=25.0)
    fields.check()
    return ClaimBody(worker, capacity), wait_s


def read_delta(body: Any) -> DeltaBody:
    """A delta.

    Raises:
        InvalidInput
    """
    fields = _Fields(body)
    found = DeltaBody(fields.fence(), fields.text("text"), fields.integer("offset", 0, MAX_OFFSET))
    fields.check()
    return found


def read_extend(body: Any, query: dict[str, str], *, longest_wait_s: float) -> tuple[str, float]:
    """The fence, and for how many seconds the reply may stay out (``?wait=``, 0).

    Raises:
        InvalidInput
    """
    fields = _Fields(body)
    found = fields.fence(), fields.wait(query, longest_wait_s, default=0.0)
    fields.check()
    return found


def read_complete(body: Any) -> CompleteBody:
    """An answer; how long it may be is not judged here, since that fails the turn.

    Raises:
        InvalidInput
    """
    fields = _Fields(body)
    fence = fields.fence()
    content = None if fields.given.get("content") is None else fields.text("content")
    metadata = read_metadata(fields.given, fields.faults)
    attachments = read_attachments(fields.given, fields.faults)
    usage = fields.usage()
    fields.fit()
    fields.check()
    return CompleteBody(fence, Answer(content, metadata, attachments, usage))


def read_fail(body: Any) -> FailBody:
    """A failure.

    Raises:
        InvalidInput
    """
    fields = _Fields(body)
    found = FailBody(
        fields.fence(),
        fields.matching("code", _CODE, "1..64 of A-Z 0-9 _"),
        fields.text("message", MAX_MESSAGE_CHARS),
        fields.truth("retry", default=True),
        fields.pause_ms("retryAfterMs"),
    )
    fields.check()
    return found


def read_release(body: Any) -> str:
    """The fence.

    Raises:
        InvalidInput
    """
    fields = _Fields(body)
    fence = fields.fence()
    fields.check()
    return fence


class _Fields:
    """Reads the members of one body; :meth:`check` raises what was wrong with all of them."""

    def __init__(self, body: Any) -> None:
        """Raises InvalidInput: *body* is neither an object nor absent, so it has no members to judge."""
        self.faults: list[InvalidInput] = []
        if body is not None and not isinstance(body, dict):
            self._refuse("body", "must be an object", None, "an object")
            self.check()
        self.given: dict[str, Any] = body or {}

    def check(self) -> None:
        if self.faults:
            first = self.faults[0]
            errors = [bad for fault in self.faults for bad in fault.errors]
            raise InvalidInput(first.message, errors, first.details)

    def text(self, name: str, longest: int | None = None) -> str:
        value = self.given.get(name)
        allowed = "a string" if longest is None else f"0..{longest} characters"
        if not isinstance(value, str):
            self._refuse(name, "must be a string", value, allowed)
            return ""
        if longest is not None and utf16_units(value) > longest:
            self._refuse(name, "is too long", None, allowed)
        return value

    def fence(self) -> str:
        value = self.given.get("fence")
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_FENCE_CHARS:
            self._refuse("fence", "is no fence", None, "as the claim gave it")
            return ""
        return value

    def matching(self, name: str, pattern: re.Pattern[str], allowed: str) -> str:
        value = self.given.get(name)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            reason = "must be a string" if not isinstance(value, str) else "has other characters or length"
            self._refuse(name, reason, value, allowed)
            return ""
        return value

    def integer(self, name: str, low: int, high: int, *, default: int | None = None) -> int:
        value = self.given.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._refuse(name, "is no whole number in range", value, f"{low}..{high}")
            return low
        return value

    def truth(self, name: str, *, default: bool) -> bool:
        value = self.given.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._refuse(name, "must be a boolean", value, "true, false")
            return default
        return value

    def pause_ms(self, name: str) -> int:
        value = self.given.get(name)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            self._refuse(name, "is no number in range", value, "0 or more")
            return 0
        return int(min(value, LONGEST_PAUSE_MS))

    def usage(self) -> bytes | None:
        value = self.given.get("usage")
        if value is None:
            return None
        if not isinstance(value, dict):
            self._refuse("usage", "must be an object", value, "an object")
            return None
        if depth_of(value, MAX_DEPTH) > MAX_DEPTH:
            self._refuse("usage", "is nested too deep", None, f"{MAX_DEPTH} levels")
            return None
        encoded = _encode(value)
        if len(encoded) > MAX_METADATA_BYTES:
            self._refuse("usage", "is too large", None, f"{MAX_METADATA_BYTES} bytes of compact JSON")
        return encoded

    def fit(self) -> None:
        """What an answer says of itself is what its readers expect."""
        for bad in misfits(self.given.get("metadata"), self.given.get("usage")):
            self._refuse(*bad)

    def wait(self, query: dict[str, str], longest_s: float, *, default: float) -> float:
        """``?wait=`` in seconds; fractions are allowed."""
        text = query.get("wait")
        if text is None:
            return default
        if _SECONDS.fullmatch(text) is None or float(text) > longest_s:
            allowed = f"0..{longest_s:g} seconds"
            self._refuse("wait", f"must be {allowed}", text, allowed)
            return default
        return float(text)

    def _refuse(self, name: str, reason: str, value: Any, allowed: str) -> None:
        provided: str | int | float | bool | None = None
        if isinstance(value, str):
            provided = abbreviated(value)
        elif isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
            provided = value
        bad = FieldError(name, reason, provided, allowed)
        self.faults.append(InvalidInput(f"Invalid {name}: {reason}", [bad]))

"""Entries of a session's log: what was said, and the turns that said nothing."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple, cast

import msgspec

from sessions_api.domain.ids import MessageId, TurnId
from sessions_api.domain.traces import NO_TRACE, Trace

EntryKind = Literal["message", "turn.failed", "turn.cancelled"]
AnswerStatus = Literal["complete", "cancelled"]


_HEAD: Final = re.compile(rb'\{"turnId":"([^"]+)"(?:,"status":"([a-z]+)")?')


class LogEntry(NamedTuple):
    """One entry, as stored: bytes, since most of a page is copied on and never looked at.

    *body* is compact JSON of an object: what callers see, but for cursor and createdAt,
    which ``wire/messages.py`` puts in front; so reading a log decodes nothing. It begins
    with the members turnId and status, where there are any.
    """

    position: bytes
    """The cursor, in digits; as all below, what the property of a like name has in Python's words."""
    previous: bytes
    what: bytes
    body: bytes

    @classmethod
    def of(
        cls,
        cursor: int,
        *,
        kind: EntryKind = "message",
        prev: int = 0,
        turn_id: str = "",
        status: AnswerStatus | None = None,
        body: bytes,
    ) -> LogEntry:
        """An entry that comes from elsewhere than the log; *body* without turnId and status."""
        turn = f'"turnId":"{turn_id}",' if turn_id else ""
        outcome = f'"status":"{status}",' if status else ""
        return cls(b"%d" % cursor, b"%d" % prev, kind.encode(), f"{{{turn}{outcome}".encode() + body[1:])

    @property
    def cursor(self) -> int:
        return int(self.position)

    @property
    def prev(self) -> int:
        """The cursor of the entry before it, 0 for the first."""
        return int(self.previous)

    @property
    def kind(self) -> EntryKind:
        return cast("EntryKind", self.what.decode())

    @property
    def turn_id(self) -> TurnId | None:
        found = _HEAD.match(self.body)
        return TurnId(found[1].decode()) if found else None

    @property
    def status(self) -> AnswerStatus | None:
        """Of an answer; None for a user's message, and for what is no message."""
        found = _HEAD.match(self.body)
        return cast("AnswerStatus", found[2].decode()) if found and found[2] else None


class NewMessage(msgspec.Struct, frozen=True):
    """A message to append; *body* as in :class:`LogEntry`."""

    message_id: MessageId
    body: bytes
    trace: Trace = NO_TRACE
    """Of the request that brought it: goes with the turn that it opens, and into no log."""


def utf16_units(text: str) -> int:
    """The length of *text* as JavaScript counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def after_utf16_units(text: str, units: int) -> str:
    """What of *text* comes after so many UTF-16 units; not to be asked for in the middle of a pair."""
    if text.isascii():
        return text[units:]
    return text.encode("utf-16-le", "surrogatepass")[2 * units :].decode("utf-16-le", "surrogatepass")

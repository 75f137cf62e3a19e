"""Entries of a session's log: what was said, and the turns that said nothing."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import msgspec

from sessions_api.domain.ids import MessageId, TurnId
from sessions_api.domain.traces import NO_TRACE, Trace

EntryKind = Literal["message", "turn.failed", "turn.cancelled"]
AnswerStatus = Literal["complete", "cancelled"]


class LogEntry(NamedTuple):
    """One entry, as stored: bytes, since most of a page is copied on and never looked at.

    *body* is compact JSON of an object without the members that position gives
    (cursor, createdAt, turnId, status): ``wire/messages.py`` joins those in front,
    byte by byte, so reading a log decodes nothing.
    """

    position: bytes
    """The cursor, in digits; as all below, what the property of a like name has in Python's words."""
    previous: bytes
    what: bytes
    turn: bytes
    outcome: bytes
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
        """An entry that comes from elsewhere than the log."""
        return cls(
            b"%d" % cursor, b"%d" % prev, kind.encode(), turn_id.encode(), (status or "").encode(), body
        )

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
        return TurnId(self.turn.decode()) if self.turn else None

    @property
    def status(self) -> AnswerStatus | None:
        """Of an answer; None for a user's message, and for what is no message."""
        return cast("AnswerStatus", self.outcome.decode()) if self.outcome else None


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
    return text.encode("utf-16-le", "surrogatepass")[2 * units :].decode("utf-16-le", "surrogatepass")

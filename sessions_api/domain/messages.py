"""Entries of a session's log: what was said, and the turns that said nothing."""

from __future__ import annotations

from typing import Literal

import msgspec

from sessions_api.domain.ids import MessageId, TurnId

EntryKind = Literal["message", "turn.failed", "turn.cancelled"]
AnswerStatus = Literal["complete", "cancelled"]


class LogEntry(msgspec.Struct, frozen=True):
    """One entry, as stored.

    *body* is compact JSON of an object without the members that position gives
    (cursor, createdAt, turnId, status): ``wire/messages.py`` joins those in front,
    byte by byte, so reading a log decodes nothing.
    """

    cursor: int
    prev: int
    kind: EntryKind
    turn_id: TurnId | None
    status: AnswerStatus | None
    """Of an answer; None for a user's message, and for what is no message."""
    body: bytes


class NewMessage(msgspec.Struct, frozen=True):
    """A message to append; *body* as in :class:`LogEntry`."""

    message_id: MessageId
    body: bytes


def utf16_units(text: str) -> int:
    """The length of *text* as JavaScript counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2

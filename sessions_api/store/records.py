"""What scripts reply, read: log entries, turns, drafts."""

from __future__ import annotations

from typing import Any

import msgspec

from sessions_api.domain.messages import LogEntry
from sessions_api.domain.turns import Draft, Turn
from sessions_api.errors import StorageFault

_new = tuple.__new__  # as LogEntry._make has it
_decode_turn = msgspec.msgpack.Decoder(Turn).decode


def turn_of(record: bytes) -> Turn:
    """A turn from its record in its session's hash."""
    return _decode_turn(record)


def entry_of(entry: list[Any]) -> LogEntry:
    """A log entry from the reply of XRANGE."""
    stream_id, fields = entry
    try:
        _, prev, kind, body = fields  # as write() of lua/lib/turns.lua has them
    except ValueError:
        raise StorageFault(f"a log entry has the fields {fields[::2]!r}") from None
    return _new(LogEntry, (stream_id[:-2], prev, kind, body))


def messages_of(page: list[Any]) -> list[LogEntry]:
    """The messages among the entries of a reply of XRANGE."""
    try:
        return [  # as entry_of has it, without a call for each
            _new(LogEntry, (stream_id[:-2], prev, kind, body))
            for stream_id, (_, prev, kind, body) in page
            if kind == b"message"
        ]
    except ValueError:
        return [entry_of(entry) for entry in page]  # which says what is wrong with it


def draft_of(record: bytes, text: bytes) -> Draft:
    turn = turn_of(record)
    return Draft(
        turn_id=turn.turn_id,
        message_id=turn.message_id,
        attempt=turn.attempt,
        index=turn.index,
        text=text.decode(),
        units=turn.units,
    )

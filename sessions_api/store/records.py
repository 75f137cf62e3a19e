"""What scripts reply, read: log entries, turns, drafts."""

from __future__ import annotations

from typing import Any

import msgspec

from sessions_api.domain.ids import TurnId
from sessions_api.domain.messages import LogEntry
from sessions_api.domain.turns import Draft, Turn
from sessions_api.errors import StorageFault

_decode_turn = msgspec.json.Decoder(Turn, strict=False).decode


def turn_of(record: bytes) -> Turn:
    """A turn from its record in ``turns:{t}:<sid>``."""
    return _decode_turn(record)


def entry_of(entry: list[Any]) -> LogEntry:
    """A log entry from the reply of XRANGE."""
    stream_id, fields = entry
    match fields:
        case [b"kind", kind, b"prev", prev, b"turn", turn, b"status", status, b"body", body]:
            return LogEntry(
                cursor=int(stream_id[:-2]),
                prev=int(prev),
                kind=kind.decode(),
                turn_id=TurnId(turn.decode()) if turn else None,
                status=status.decode() or None,
                body=body,
            )
        case _:
            raise StorageFault(f"a log entry has the fields {fields[::2]!r}")


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

"""What followers are told: the events of ``/events`` and ``/ws``."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from sessions_api.domain.agents import AvailabilityState
from sessions_api.wire.instants import iso
from sessions_api.wire.sessions import SessionInfo

EventType = Literal[
    "session.snapshot",
    "message.created",
    "turn.failed",
    "turn.cancelled",
    "session.expiring",
    "session.renewed",
    "session.updated",
    "session.expired",
    "session.ended",
    "turn.queued",
    "turn.started",
    "turn.delta",
    "turn.completed",
    "agent.availability",
    "gap",
    "reconnect",
    "closing",
]
RenewedBy = Literal["message", "heartbeat", "manual", "config", "turn"]


class Event(msgspec.Struct, rename="camel"):
    """One event; ``cursor`` and ``prev`` only on what is in the log."""

    type: EventType
    session_id: str
    time: str
    data: Any
    cursor: int | UnsetType = UNSET
    prev: int | UnsetType = UNSET


class RunningTurn(msgspec.Struct, rename="camel"):
    """The running answer so far; ``offset`` is its length in UTF-16 units."""

    turn_id: str
    message_id: str
    attempt: int
    index: int
    offset: int
    text: str


class Snapshot(SessionInfo, rename="camel", kw_only=True):
    """All there is to know now; it replaces what the client knew of session and running text."""

    turn: RunningTurn | None


class SessionExpiring(msgspec.Struct, rename="camel"):
    """The end is near; *reason* says which end."""

    minutes_remaining: float
    expires_at: str
    reason: Literal["timeout", "max_duration"]


class SessionRenewed(msgspec.Struct, rename="camel"):
    """The deadline moved, and what moved it."""

    expires_at: str
    renewal_count: int
    by: RenewedBy


class SessionOver(msgspec.Struct, rename="camel"):
    """Data of ``session.expired``."""

    expired_at: str
    reason: Literal["timeout", "max_duration"]


class TurnFailed(msgspec.Struct, rename="camel"):
    """A turn ended without an answer."""

    turn_id: str
    code: str
    message: str
    attempts: int


class TurnCancelled(msgspec.Struct, rename="camel"):
    """A turn was stopped; what was said is in the log before this."""

    turn_id: str
    by: Literal["user", "interrupt", "delete", "agent"]
    superseded_by: str | UnsetType = UNSET


class TurnQueued(msgspec.Struct, rename="camel"):
    """A message waits for its answer."""

    turn_id: str


class TurnStarted(msgspec.Struct, rename="camel"):
    """An attempt began: older text of the turn is void."""

    turn_id: str
    attempt: int
    message_id: str


class TurnDelta(msgspec.Struct, rename="camel"):
    """A piece of the answer; ``offset`` is where it goes, in UTF-16 units."""

    turn_id: str
    message_id: str
    text: str
    index: int
    offset: int


class TurnCompleted(msgspec.Struct, rename="camel"):
    """The answer is whole; without a cursor it was empty."""

    turn_id: str
    message_id: str | UnsetType = UNSET
    cursor: int | UnsetType = UNSET


class AgentAvailability(msgspec.Struct, rename="camel"):
    """Whether the session's agent is there; without ``since`` it was never seen."""

    agent_id: str
    state: AvailabilityState
    since: str | UnsetType = UNSET


class Gap(msgspec.Struct):
    """The replay cannot be exact.

    ``trimmed``: go on from *oldest*; ``rewound``: reload the history.
    """

    reason: Literal["trimmed", "rewound"]
    requested: int
    oldest: int
    newest: int


class Reconnect(msgspec.Struct, rename="camel"):
    """Come back in so many milliseconds; another replica answers."""

    after_ms: int


class Closing(msgspec.Struct):
    """The stream's last event; *retry* says whether to come back with the cursor."""

    code: int
    retry: bool


def event_json(
    type_: str, session_id: str, time_ms: int, data: bytes, *, cursor: int = 0, prev: int = 0
) -> bytes:
    """One event as JSON; *data* is JSON and is copied."""
    front = (
        f'{{"cursor":{cursor},"prev":{prev},"type":"{type_}","sessionId":"{session_id}",'
        if cursor
        else f'{{"type":"{type_}","sessionId":"{session_id}",'
    )
    return f'{front}"time":"{iso(time_ms)}","data":'.encode() + data + b"}"

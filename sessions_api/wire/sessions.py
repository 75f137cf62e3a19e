"""SessionInfo: a session as callers see it, and the lists and counts of them."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from sessions_api.domain import timeouts
from sessions_api.domain.sessions import OnBusy, Session, Stage
from sessions_api.wire.instants import iso
from sessions_api.wire.timeouts import TimeoutConfigInfo, TimeoutSources

EMPTY_OBJECT = b"{}"


class WarningState(msgspec.Struct, rename="camel"):
    """That the coming end was announced, and when."""

    sent: bool
    sent_at: str


class ActiveTurn(msgspec.Struct, rename="camel"):
    """The running turn, else the oldest queued one."""

    turn_id: str
    state: Literal["queued", "running"]


class SessionInfo(msgspec.Struct, rename="camel"):
    """A session at one instant; times are RFC 3339 UTC, ``timeRemaining`` is milliseconds."""

    session_id: str
    channel_id: str
    agent_id: str
    user_id: str
    created_at: str
    last_activity: str
    metadata: msgspec.Raw
    expires_at: str
    timeout_config: TimeoutConfigInfo
    renewal_count: int
    time_remaining: int
    is_near_expiration: bool
    stage: Stage
    last_renewed_at: str
    max_expires_at: str
    timeout_sources: TimeoutSources
    heartbeat_after_ms: int
    on_busy: OnBusy
    cursor: int
    held_until: str | UnsetType = UNSET
    warning_state: WarningState | UnsetType = UNSET
    active_turn: ActiveTurn | UnsetType = UNSET
    renewed: bool | UnsetType = UNSET
    """Only in the reply of a heartbeat: whether it moved the deadline."""

    @classmethod
    def of(cls, session: Session, *, renewed: bool | None = None) -> SessionInfo:
        config = session.config
        turn_id = session.turn_id
        remaining_ms = session.remaining_ms
        is_near = 0 < remaining_ms <= config.warning_ms  # as the session says; asked once, not three times
        stage: Stage = "active" if session.cursor else "created"
        if turn_id is not None:
            stage = "waiting"
        elif is_near:
            stage = "expiring"
        return cls(
            session.session_id,
            session.session_id,
            session.agent_id,
            session.user_id,
            iso(session.created_ms),
            iso(session.last_activity_ms),
            msgspec.Raw(session.metadata or EMPTY_OBJECT),
            iso(session.expires_ms),
            TimeoutConfigInfo.of(config),
            session.renewals,
            remaining_ms,
            is_near,
            stage,
            iso(session.last_renewal_ms),
            iso(session.max_expires_ms),
            TimeoutSources.of(config),
            timeouts.heartbeat_after_ms(config),
            session.on_busy,
            session.cursor,
            iso(session.held_until_ms) if session.held_until_ms > session.now_ms else UNSET,
            WarningState(sent=True, sent_at=iso(session.warned_ms)) if session.warned_ms else UNSET,
            UNSET if turn_id is None else ActiveTurn(turn_id=turn_id, state=session.turn_state or "queued"),
            UNSET if renewed is None else renewed,
        )


class SessionStats(msgspec.Struct, rename="camel"):
    """Counts of the caller's sessions; what has expired is never among them."""

    total_sessions: int
    active_sessions: int
    expired_sessions: int


class SessionList(msgspec.Struct, rename="camel"):
    """One page of sessions; go on with ``cursor=nextCursor`` until it is absent."""

    sessions: list[SessionInfo]
    stats: SessionStats
    total: int | UnsetType = UNSET
    next_cursor: str | UnsetType = UNSET


class Health(msgspec.Struct, rename="camel"):
    """How the service is; ``uptime`` is seconds."""

    status: Literal["healthy", "degraded", "unhealthy"]
    active_sessions: int
    expiring_soon: int
    timestamp: str
    uptime: float
    invalid_sessions: int | UnsetType = UNSET


class HealthStatus(msgspec.Struct):
    """What is told of the health to whoever shows no key, where keys are configured."""

    status: Literal["healthy", "degraded", "unhealthy"]


class Deleted(msgspec.Struct):
    """The reply of a delete; ``data`` is for the reference's own client, which unwraps it."""

    success: bool
    message: str
    data: dict[str, bool]


_encode = msgspec.json.Encoder().encode


def session_json(session: Session, *, renewed: bool | None = None) -> bytes:
    """SessionInfo as JSON; the metadata's bytes are copied, not decoded."""
    return _encode(SessionInfo.of(session, renewed=renewed))

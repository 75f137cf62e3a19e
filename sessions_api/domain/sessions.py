"""A session as it stood at one instant of Redis's clock."""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from sessions_api.domain import timeouts
from sessions_api.domain.ids import AgentId, AppName, SessionId, TurnId, UserId
from sessions_api.domain.timeouts import Clock, TimeoutConfig

Stage = Literal["created", "active", "waiting", "expiring"]
OnBusy = Literal["queue", "merge", "interrupt", "reject"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
ON_BUSY: Final[tuple[OnBusy, ...]] = get_args(OnBusy)


class NewSession(msgspec.Struct, frozen=True):
    """What it takes to create a session; *metadata* is compact JSON of an object."""

    session_id: SessionId
    app: AppName
    agent_id: str
    user_id: str
    metadata: bytes
    config: TimeoutConfig
    on_busy: OnBusy
    retention_ms: int


class Session(msgspec.Struct, frozen=True):
    """A live session, with *now_ms*, the instant it was read at (Redis's clock)."""

    session_id: SessionId
    now_ms: int
    app: AppName
    agent_id: str
    """As its creator wrote it; :attr:`agent` is the one to compare."""
    user_id: str
    created_ms: int
    metadata: bytes
    config: TimeoutConfig
    on_busy: OnBusy
    retention_ms: int
    expires_ms: int
    held_until_ms: int
    last_activity_ms: int
    last_renewal_ms: int
    renewals: int
    warned_ms: int
    cursor: int
    """The newest log entry's cursor; 0 while there is none."""
    config_version: int
    rev: int
    """Raised by each live-only fact other than a delta."""
    turn_id: TurnId | None
    """The running turn, else the oldest queued one."""
    turn_state: Literal["queued", "running"] | None
    queued: int
    """Messages that wait in queued turns."""
    token_epoch: int = 0
    """Raised when the session's tokens are revoked; each names the one it was made in."""

    @property
    def agent(self) -> AgentId:
        return AgentId(self.agent_id.lower())

    @property
    def user(self) -> UserId:
        return UserId(self.user_id.lower())

    @property
    def clock(self) -> Clock:
        return Clock(
            created_ms=self.created_ms,
            last_renewal_ms=self.last_renewal_ms,
            expires_ms=self.expires_ms,
            held_until_ms=self.held_until_ms,
            warned_ms=self.warned_ms,
        )

    @property
    def max_expires_ms(self) -> int:
        return self.created_ms + self.config.max_duration_ms

    @property
    def is_near_expiration(self) -> bool:
        return timeouts.is_near_expiration(self.clock, self.config, self.now_ms)

    @property
    def remaining_ms(self) -> int:
        return timeouts.remaining_ms(self.clock, self.now_ms)

    @property
    def stage(self) -> Stage:
        """``waiting`` while a turn is open, else ``expiring`` near the end."""
        if self.turn_id is not None:
            return "waiting"
        if self.is_near_expiration:
            return "expiring"
        return "active" if self.cursor else "created"


class ConfigChange(msgspec.Struct, frozen=True):
    """A PATCH: per field the new value and its source, or None to keep what is.

    ``("s", 300000)`` sets the session's own value; ``("a" | "d", …)`` returns the
    field to the tier below, whose value the caller looked up.
    """

    timeout_ms: tuple[str, int] | None = None
    auto_renew: tuple[str, int] | None = None
    max_duration_ms: tuple[str, int] | None = None
    warning_ms: tuple[str, int] | None = None

"""When a session ends, warns and rings: the policy of time, pure.

The scripts in ``store/lua`` decide with Redis's clock; this module states the
same rules in Python, and the store's contract suite holds the two together.

All instants and durations are milliseconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Source = Literal["session", "agent", "default"]
SOURCE_OF: dict[str, Source] = {"s": "session", "a": "agent", "d": "default"}
MINUTE_MS = 60_000


class TimeoutConfig(msgspec.Struct, frozen=True):
    """The effective configuration of one session, and where each field came from."""

    timeout_ms: int
    auto_renew: bool
    max_duration_ms: int
    warning_ms: int
    sources: str = "dddd"
    """One letter a field, in the order above: ``s`` session, ``a`` agent, ``d`` default."""


class TimeoutChoice(msgspec.Struct, frozen=True):
    """What one tier says: ``None`` leaves the field to the tier below."""

    timeout_ms: int | None = None
    auto_renew: bool | None = None
    max_duration_ms: int | None = None
    warning_ms: int | None = None


def resolve(session: TimeoutChoice, agent: TimeoutChoice, default: TimeoutConfig) -> TimeoutConfig:
    """Session over agent over environment, field by field.

    A warning threshold inherited from below that is not below the timeout is
    reduced to half of it: a threshold nobody chose for this timeout must not
    make the session near its end for ever.
    """
    values: list[int | bool] = []
    sources = ""
    for name in ("timeout_ms", "auto_renew", "max_duration_ms", "warning_ms"):
        for letter, tier in (("s", session), ("a", agent), ("d", default)):
            value = getattr(tier, name)
            if value is not None:
                values.append(value)
                sources += letter
                break
    timeout_ms, auto_renew, max_duration_ms, warning_ms = values
    if sources[3] != "s" and warning_ms >= timeout_ms:
        warning_ms = timeout_ms // 2
    return TimeoutConfig(timeout_ms, bool(auto_renew), max_duration_ms, warning_ms, sources)


class Clock(msgspec.Struct, frozen=True):
    """The instants of one session from which everything about its time follows."""

    created_ms: int
    last_renewal_ms: int
    expires_ms: int
    held_until_ms: int = 0
    warned_ms: int = 0


def deadline_ms(created_ms: int, last_renewal_ms: int, config: TimeoutConfig) -> int:
    """``expiresAt``: the idle timeout after the last renewal, never past the maximum."""
    return min(last_renewal_ms + config.timeout_ms, created_ms + config.max_duration_ms)


def end_ms(clock: Clock) -> int:
    """The instant from which the session is over: the deadline, or the hold's end if later."""
    return max(clock.expires_ms, clock.held_until_ms)


def is_live(clock: Clock, now_ms: int) -> bool:
    return now_ms < end_ms(clock)


def remaining_ms(clock: Clock, now_ms: int) -> int:
    return max(0, end_ms(clock) - now_ms)


def is_near_expiration(clock: Clock, config: TimeoutConfig, now_ms: int) -> bool:
    """Within the warning threshold of its end; from time alone, whatever was sent."""
    return 0 < remaining_ms(clock, now_ms) <= config.warning_ms


def warning_due_ms(clock: Clock, config: TimeoutConfig, now_ms: int) -> int | None:
    """The instant of the warning still to be sent, or None if this approach was warned.

    While a turn holds the session only the maximum duration can end it, so only
    that is warned of; an earlier warning of the idle timeout does not count for it.
    """
    if clock.held_until_ms > now_ms:
        instant = clock.created_ms + config.max_duration_ms - config.warning_ms
        return None if clock.warned_ms >= instant else instant
    return None if clock.warned_ms else clock.expires_ms - config.warning_ms


def renewed(clock: Clock, config: TimeoutConfig, now_ms: int) -> Clock:
    """The clock after a renewal: restarted, the warning taken back if now is before it."""
    expires_ms = deadline_ms(clock.created_ms, now_ms, config)
    return msgspec.structs.replace(
        clock,
        last_renewal_ms=now_ms,
        expires_ms=expires_ms,
        warned_ms=0 if now_ms < expires_ms - config.warning_ms else clock.warned_ms,
    )


def is_capped(clock: Clock, config: TimeoutConfig) -> bool:
    """Whether no renewal can move the deadline: it stands at the maximum duration."""
    return clock.expires_ms >= clock.created_ms + config.max_duration_ms


def reason_of(clock: Clock, config: TimeoutConfig) -> Literal["timeout", "max_duration"]:
    """Why the session ends when it ends."""
    if end_ms(clock) >= clock.created_ms + config.max_duration_ms:
        return "max_duration"
    return "timeout"


def heartbeat_after_ms(config: TimeoutConfig) -> int:
    """The interval clients are advised to keep: a third of the timeout, 1 s to 5 min."""
    return max(1_000, min(config.timeout_ms // 3, 5 * MINUTE_MS))

"""A timeout configuration as callers write it, and the ranges it must keep.

Create, PATCH and the agents' definitions are read by this one reader, so all
three accept and refuse the same.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from sessions_api.domain.timeouts import MINUTE_MS, SOURCE_OF, Source, TimeoutChoice, TimeoutConfig
from sessions_api.errors import FieldError, InvalidInput

FIELDS: Final = ("timeoutMinutes", "autoRenew", "maxDurationMinutes", "warningThresholdMinutes")
_PREFIX: Final = "Invalid timeout configuration: "
FORMAT: Final = "Invalid timeout configuration format"


class TimeoutBounds(msgspec.Struct, frozen=True):
    """What a caller may choose between, in milliseconds."""

    min_ms: int
    max_ms: int


class TimeoutConfigInfo(msgspec.Struct, rename="camel"):
    """The effective timeout configuration of a session, in minutes; fractions are allowed."""

    timeout_minutes: float
    auto_renew: bool
    max_duration_minutes: float
    warning_threshold_minutes: float

    @classmethod
    def of(cls, config: TimeoutConfig) -> TimeoutConfigInfo:
        return cls(
            minutes(config.timeout_ms),
            config.auto_renew,
            minutes(config.max_duration_ms),
            minutes(config.warning_ms),
        )


class TimeoutSources(msgspec.Struct, rename="camel"):
    """Where each field of the configuration came from."""

    timeout_minutes: Source
    auto_renew: Source
    max_duration_minutes: Source
    warning_threshold_minutes: Source

    @classmethod
    def of(cls, config: TimeoutConfig) -> TimeoutSources:
        return cls(*[SOURCE_OF[letter] for letter in config.sources])


def minutes(ms: int) -> float:
    """*ms* in minutes; whole numbers stay integers, so that 30 is written 30."""
    whole, rest = divmod(ms, MINUTE_MS)
    return ms / MINUTE_MS if rest else whole


def plain(minutes_: float) -> str:
    return f"{minutes_:.6g}" if minutes_ != int(minutes_) else str(int(minutes_))


class ChoiceReader:
    """Reads one ``timeoutConfig`` object and collects every bad field of it.

    *prefix* stands before the field's name in the errors (``timeoutConfig.``).
    """

    def __init__(self, bounds: TimeoutBounds, *, prefix: str = "") -> None:
        self._bounds = bounds
        self._prefix = prefix
        self.errors: list[FieldError] = []
        self._reasons: list[tuple[int, str]] = []

    def read(self, given: dict[str, object]) -> TimeoutChoice:
        """What *given* chooses; unknown keys are ignored. Look at :attr:`errors` afterwards."""
        low, high = self._bounds.min_ms, self._bounds.max_ms
        timeout_ms = self._minutes(given, "timeoutMinutes", low, high, "Timeout")
        max_duration_ms = self._minutes(given, "maxDurationMinutes", low, 2 * high, "Maximum duration")
        warning_ms = self._minutes(given, "warningThresholdMinutes", 1, 2 * high, "Warning threshold")
        auto_renew = given.get("autoRenew")
        if "autoRenew" in given and not isinstance(auto_renew, bool):
            self._refuse("autoRenew", "must be a boolean", auto_renew, "true, false", FORMAT)
            auto_renew = None
        return TimeoutChoice(
            timeout_ms, auto_renew if isinstance(auto_renew, bool) else None, max_duration_ms, warning_ms
        )

    def check(self, choice: TimeoutChoice, timeout_ms: int) -> None:
        """Hold what was chosen against the timeout of the configuration it became part of.

        Only a named maximum must not lie below the timeout: a timeout above an
        inherited one is accepted, and the maximum wins.
        """
        if choice.max_duration_ms is not None and choice.max_duration_ms < timeout_ms:
            self._refuse(
                "maxDurationMinutes",
                "must not be below the timeout",
                minutes(choice.max_duration_ms),
                f"at least {plain(minutes(timeout_ms))} minutes",
                "Maximum duration must not be below the timeout",
            )
        if choice.warning_ms is not None and choice.warning_ms >= timeout_ms:
            self._refuse(
                "warningThresholdMinutes",
                "must be below the timeout",
                minutes(choice.warning_ms),
                f"below {plain(minutes(timeout_ms))} minutes",
                "Warning threshold must be below the timeout",
            )

    def error(self, given: dict[str, object]) -> InvalidInput:
        """The error that names every bad field; its message is the reference's for the first."""
        reason = min(self._reasons)[1]
        provided = {key: value for key in FIELDS if _is_short(value := given.get(key))}
        return InvalidInput(
            f"{_PREFIX}{reason}", list(self.errors), {"reason": reason, "providedConfig": provided}
        )

    def _minutes(self, given: dict[str, object], name: str, low: int, high: int, what: str) -> int | None:
        if name not in given:
            return None
        value = given[name]
        number = _number(value)
        low_text, high_text = plain(minutes(low)), plain(minutes(high))
        allowed = f"{low_text}..{high_text} minutes" if low > 1 else "above 0 and below the timeout"
        if number is None:
            self._refuse(name, "must be a number", value, allowed, FORMAT)
            return None
        ms = round(number * MINUTE_MS)
        if not low <= ms <= high:
            reason = (
                f"{what} must be between {low_text} and {high_text} minutes"
                if low > 1
                else f"{what} must be above 0 and below the timeout"
            )
            self._refuse(name, "is out of range", value, allowed, reason)
            return None
        return ms

    def _refuse(self, name: str, reason: str, provided: object, allowed: str, message: str) -> None:
        short = provided if isinstance(provided, str | int | float) and _is_short(provided) else None
        self.errors.append(FieldError(self._prefix + name, reason, short, allowed))
        self._reasons.append((0 if message is FORMAT else 1 + FIELDS.index(name), message))


def wrong_shape(field: str) -> InvalidInput:
    """The error for a configuration that is no object at all."""
    return InvalidInput(
        f"{_PREFIX}{FORMAT}",
        [FieldError(field, "must be an object", None, ", ".join(FIELDS))],
        {"reason": FORMAT},
    )


def _number(value: object) -> float | None:
    """A finite number, or a string of one; booleans, NaN and infinities are none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        if not value.isascii() or len(value) > 32 or "_" in value:
            return None
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of 400 digits
        return 1e18 if value > 0 else -1e18
    return min(max(number, -1e18), 1e18) if math.isfinite(number) else None


def _is_short(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= 100
    return isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63)

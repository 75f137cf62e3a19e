"""What a worker tells the service of its agent at start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

OnBusy = Literal["queue", "merge", "interrupt", "reject"]

_MINUTES: Final = {
    "SESSION_TIMEOUT_MINUTES": "timeoutMinutes",
    "SESSION_MAX_DURATION_MINUTES": "maxDurationMinutes",
    "SESSION_WARNING_THRESHOLD_MINUTES": "warningThresholdMinutes",
}
_AUTO_RENEW: Final = "SESSION_AUTO_RENEW"


def definition(
    name: str,
    session: Mapping[str, Any],
    *,
    on_busy: OnBusy | None,
    history: int | None,
    turn_timeout_s: float | None,
    max_attempts: int | None,
) -> dict[str, Any]:
    """The body of ``PUT /api/agents/{id}``; what is None is left to the service."""
    given = {
        "name": name,
        "kind": "worker",
        "session": dict(session) or None,
        "onBusy": on_busy,
        "history": history,
        "turnTimeoutMs": None if turn_timeout_s is None else round(turn_timeout_s * 1000),
        "maxAttempts": max_attempts,
    }
    return {key: value for key, value in given.items() if value is not None}


def session_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the agent's sessions start with, from the ``SESSION_…`` variables that are set.

    Raises:
        ValueError: a value is no number, or neither true nor false; ranges are the service's to judge.
    """
    found: dict[str, Any] = {}
    for variable, name in _MINUTES.items():
        if text := environment.get(variable, "").strip():
            found[name] = _minutes(variable, text)
    if text := environment.get(_AUTO_RENEW, "").strip().lower():
        if text not in {"true", "false"}:
            raise ValueError(f"{_AUTO_RENEW}={text!r}: write true or false")
        found["autoRenew"] = text == "true"
    return found


def _minutes(variable: str, text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not math.isfinite(minutes):
        raise ValueError(f"{variable}={text!r}: write a number of minutes")
    return int(minutes) if minutes.is_integer() else minutes

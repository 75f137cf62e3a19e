"""How long to wait before the next try."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

FIRST_S: Final = 0.1
LONGEST_ASKED_S: Final = 60.0
"""A service that asks for more is asked again after this anyway."""


class Backoff:
    """Pauses that double up to *last_s*, each shortened by up to half, so that workers don't come in step."""

    def __init__(self, last_s: float) -> None:
        self._last_s = last_s
        self._failures = 0

    @property
    def failures(self) -> int:
        """In a row."""
        return self._failures

    def reset(self) -> None:
        self._failures = 0

    def next_s(self, asked_s: float = 0.0) -> float:
        """The pause after one more failure; never shorter than the service *asked* for."""
        longest_s = min(self._last_s, FIRST_S * 2.0 ** min(self._failures, 20))
        self._failures += 1
        return max(min(asked_s, LONGEST_ASKED_S), longest_s * random.uniform(0.5, 1.0))  # noqa: S311  no secret


def asked_s(retry_after: str | None) -> float:
    """The seconds that a ``Retry-After`` header asks for, as a number or an instant; 0 if it says nothing."""
    if not retry_after:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        instant = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return max(0.0, (instant - datetime.now(UTC)).total_seconds())

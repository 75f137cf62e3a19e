"""Limits on how often: so many in so long a time, counted over all replicas (store/limits.py).

A limit is a GCRA, the leaky bucket as one instant: it admits *quota* at once, and
then one each ``window / quota``. So there is no edge of a window at which twice
the quota passes.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_WRITTEN: Final = re.compile(r"([1-9][0-9]{0,6})/([1-9][0-9]{0,5})", re.ASCII)
FORM: Final = "off, or COUNT/SECONDS with a COUNT of 1..9999999 and SECONDS of 1..86400, like 100/60"
LONGEST_WINDOW_S: Final = 86_400


class Limit(msgspec.Struct, frozen=True):
    """*quota* of something in *window_s* seconds."""

    quota: int
    window_s: int

    @property
    def interval_ms(self) -> float:
        """The time that one of them takes to be had again."""
        return self.window_s * 1000 / self.quota


class Standing(msgspec.Struct, frozen=True):
    """How a caller stands with one limit after a request: what the ``RateLimit`` fields say.

    *left*: how many more are admitted now. *reset_s*: seconds, rounded up, until all of them are.
    """

    policy: str
    limit: Limit
    left: int
    reset_s: int


def parse_limit(text: str) -> Limit | None:
    """A limit as settings write it (:data:`FORM`); None for ``off``.

    Raises:
        ValueError: it is neither.
    """
    if text.lower() == "off":
        return None
    match = _WRITTEN.fullmatch(text)
    if match is None or int(match[2]) > LONGEST_WINDOW_S:
        raise ValueError(text)
    return Limit(int(match[1]), int(match[2]))


class Bucket:
    """Limits on how often within this process: *burst* at once, then *per_s* a second."""

    __slots__ = ("_burst", "_left", "_per_s", "_since_s")

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._since_s = 0.0

    def allows(self, now_s: float) -> bool:
        """Whether there is one more at *now_s*, on a clock that never goes back; then it is taken."""
        self._left = min(self._burst, self._left + (now_s - self._since_s) * self._per_s)
        self._since_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True

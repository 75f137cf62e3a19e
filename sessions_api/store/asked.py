"""What a task asks of Redis, told to who wants to know: the ``debug`` of a reply (``X-Debug``)."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

TRIPS: Final[ContextVar[set[tuple[int, int]] | None]] = ContextVar("redis_trips", default=None)
"""The round trips so far; noted by ``connection.py``, like the next."""
CALLED: Final[ContextVar[list[str] | None]] = ContextVar("redis_scripts", default=None)


@contextmanager
def counted_trips() -> Iterator[set[tuple[int, int]]]:
    """Collect the round trips to Redis made inside: the set has one member for each.

    Commands of one tick share a trip, a NOSCRIPT or a repeat costs one more.
    """
    trips: set[tuple[int, int]] = set()
    token = TRIPS.set(trips)
    try:
        yield trips
    finally:
        TRIPS.reset(token)


@contextmanager
def named_scripts() -> Iterator[list[str]]:
    """Collect the names of the scripts called inside, in their order."""
    names: list[str] = []
    token = CALLED.set(names)
    try:
        yield names
    finally:
        CALLED.reset(token)

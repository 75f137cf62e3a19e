"""Messages of a session's log, read by plain commands.

A script would have Redis turn each entry into a Lua table and back, which takes
it several times as long as all the rest of a claim. And nothing needs one here:
an entry never changes, and none ever enters a log behind its newest. So pages
read one after the other fit together, and fit what a script said before; what
can go missing between them is what :func:`trim` took from the far end, or a
delete all of it.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from sessions_api.store.records import messages_of

if TYPE_CHECKING:
    from sessions_api.domain.messages import LogEntry
    from sessions_api.store.connection import Redis


class Messages(NamedTuple):
    """In the order they were read; *has_more* in that direction."""

    entries: list[LogEntry]
    has_more: bool


async def read_messages(
    redis: Redis,
    log: bytes,
    *,
    limit: int,
    low: bytes = b"-",
    high: bytes = b"+",
    is_forward: bool = False,
    max_bytes: int | None = None,
    page_entries: int | None = None,
) -> Messages:
    """Up to *limit* messages between two stream ids, newest first unless *is_forward*.

    Their bodies have *max_bytes* at most, together. *page_entries*: how many
    entries the first read asks for. It is the only one, unless they were too
    few, or a crowd of turns that failed or were cancelled lies between.
    """
    found: list[LogEntry] = []
    count = page_entries or limit + 1
    while True:
        span = (b"XRANGE", log, low, high) if is_forward else (b"XREVRANGE", log, high, low)
        page = await redis.command(*span, b"COUNT", count, safe=True)
        found += messages_of(page)
        fitting = limit if max_bytes is None else min(limit, _fitting(found, max_bytes))
        if len(found) > fitting:
            return Messages(found[:fitting], has_more=True)
        if len(page) < count:
            return Messages(found, has_more=False)
        edge = b"(" + page[-1][0]
        low, high = (edge, high) if is_forward else (low, edge)
        count *= 2  # so that a log is read to its end in a few trips


def _fitting(entries: list[LogEntry], max_bytes: int) -> int:
    """How many of *entries*, from the first on, have no more than *max_bytes* together."""
    sizes_bytes = accumulate(len(entry.body) for entry in entries)
    return sum(size_bytes <= max_bytes for size_bytes in sizes_bytes)

"""What a follower has still to be told, within bounds."""

from __future__ import annotations

from typing import Final

from sessions_api.live.events import Event

MAX_EVENTS: Final = 256
MAX_BYTES: Final = 1024 * 1024


class Queue:
    """First *page*, which was read and is bounded by the reader; then what came live."""

    __slots__ = ("_live", "bytes", "page")

    def __init__(self) -> None:
        self.page: list[Event] = []
        """Newest first."""
        self._live: list[Event] = []  # oldest first; a deque takes 600 bytes of every idle follower
        self.bytes = 0
        """Of what came live, about."""

    def take(self) -> Event | None:
        """The next event, if there is one."""
        if self.page:
            return self.page.pop()
        if self._live:
            event = self._live.pop(0)
            self.bytes -= event.size
            return event
        return None

    def put(self, event: Event) -> None:
        self._live.append(event)
        self.bytes += event.size

    @property
    def is_too_full(self) -> bool:
        return len(self._live) > MAX_EVENTS or self.bytes > MAX_BYTES

    def leave_out_text(self) -> bool:
        """Make room by the queued deltas; False, and nothing was done, if that makes little room."""
        kept = [event for event in self._live if event.type != "turn.delta"]
        size = sum(event.size for event in kept)
        if len(kept) > MAX_EVENTS // 2 or size > MAX_BYTES // 2:
            return False
        self._live, self.bytes = kept, size
        return True

    def clear(self) -> None:
        self.page.clear()
        self._live.clear()
        self.bytes = 0

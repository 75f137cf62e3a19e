"""Turns at a line: nobody's commands fill it while others want it too.

Redis answers a connection's commands in their order. Whoever puts a hundred on it
at once makes the next caller wait for all of them, in Redis and then in this
process, where the hundred replies come in one piece: a GET that took 1 ms took
15 ms while another key sent 1,000 messages a second. So while several senders are
about, each has only a few commands on the line at a time; its others wait in its
lane, and the lanes take turns. A sender that is alone has the line to itself, since
there every command more in a write makes each cheaper.

"A few" is two, and one more for every quarter of a millisecond that the way to
Redis and back takes: what is on its way keeps nobody waiting. The turns that this
process runs have half of it, since who waits for an answer has waited for an agent.
"""

from __future__ import annotations

from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import asyncio

LANE: Final[ContextVar[str]] = ContextVar("lane", default="")
"""Whose commands a task sends; the service's own (alarms, followers, presence) have the empty name."""
TURN_LANE: Final = ":turns"
"""The lane of the turns that this process runs: the service's own too, apart from the rest of it."""

FEW: Final = 2
OWN_SHARE: Final = 8
"""The service's own work is everybody's, and paced where it is much (keeper/sweep.py): it has more room."""
SCRIPT_S: Final = 0.000_25
MANY: Final = 256
STAY: Final = 4
"""So many looks (of a quarter of the reply timeout) after the last change of senders, one counts as alone."""


class Waiting(NamedTuple):
    """A command that has no room yet, and the look after which it came."""

    packed: bytes
    future: asyncio.Future[Any]
    since: int


class Lanes:
    """Whose turn it is on one line; knows nothing of sockets."""

    __slots__ = ("_last", "_looks", "_shared", "_waiting", "on_line", "room", "waiting")

    def __init__(self) -> None:
        self.room = FEW
        """How many commands a sender may have on the line while it is shared."""
        self.waiting = 0
        self.on_line: dict[str, int] = {}
        """How many each has there."""
        self._waiting: dict[str, deque[Waiting]] = {}
        self._last = ""  # the sender that was here last
        self._shared = 0  # looks until it counts as alone again
        self._looks = 0

    def measured(self, way_s: float) -> None:
        """To Redis and back, on an idle line, takes *way_s* at the quickest."""
        self.room = min(FEW + int(way_s / SCRIPT_S), MANY)

    def enter(self, lane: str) -> bool:
        """Whether a command of *lane* may go onto the line; else it goes to :meth:`wait`."""
        if lane != self._last and lane and lane != TURN_LANE:
            if self._last:
                self._shared = STAY
            self._last = lane
        there = self.on_line.get(lane, 0)
        if lane in self._waiting or (self._shared and there >= self._room_of(lane)):
            return False
        self.on_line[lane] = there + 1
        return True

    def _room_of(self, lane: str) -> int:
        if lane == TURN_LANE:
            return self.room // 2
        return self.room if lane else self.room * OWN_SHARE

    def leave(self, lane: str) -> None:
        """A command of *lane* has its reply."""
        there = self.on_line[lane] - 1
        if there:
            self.on_line[lane] = there
        else:
            del self.on_line[lane]

    def wait(self, lane: str, packed: bytes, future: asyncio.Future[Any]) -> None:
        """Queue a command at the end of *lane*."""
        queue = self._waiting.get(lane)
        if queue is None:
            queue = self._waiting[lane] = deque()
        queue.append(Waiting(packed, future, self._looks))
        self.waiting += 1

    def next(self) -> list[tuple[str, Waiting]]:
        """All for whom there is room now, one of each lane at a time; they are on the line then."""
        admitted = []
        going = list(self._waiting)
        while going:
            for lane in tuple(going):
                queue = self._waiting[lane]
                there = self.on_line.get(lane, 0)
                if there >= self._room_of(lane) and self._shared:
                    going.remove(lane)
                    continue
                command = queue.popleft()
                self.waiting -= 1
                if not queue:
                    del self._waiting[lane]
                    going.remove(lane)
                if not command.future.done():  # else its caller has left
                    self.on_line[lane] = there + 1
                    admitted.append((lane, command))
        return admitted

    def look(self, patience: int) -> list[asyncio.Future[Any]]:
        """Called at intervals: who waits since more than *patience* looks ago waits no longer."""
        self._looks += 1
        self._shared = max(0, self._shared - 1)
        given_up = []
        for lane, queue in list(self._waiting.items()):
            while queue and queue[0].since < self._looks - patience:
                given_up.append(queue.popleft().future)
            if not queue:
                del self._waiting[lane]
        self.waiting -= len(given_up)
        return given_up

    def clear(self) -> list[asyncio.Future[Any]]:
        """All who wait; none does afterwards."""
        waiting, self._waiting = self._waiting, {}
        self.waiting = 0
        return [command.future for queue in waiting.values() for command in queue]

"""Where workers wait for turns: a place for each open claim request, and no call to Redis while it is idle.

An agent's first waiter on this replica opens its trail (``finder.py``), which
looks at all partitions once. The trail stays open for half a minute after the
last waiter left, so that a worker that comes back finds what was announced
meanwhile without another look.

A turn is the waiter's only once the reply can be written: whose client is gone
by then hands it back at once, its attempt uncounted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import structlog

from sessions_api.agents.finder import Finder, Lead, Trail
from sessions_api.agents.presences import Presences
from sessions_api.domain.ids import AgentId, SessionId, TurnId
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.errors import (
    SessionExpired,
    SessionNotFound,
    StorageError,
    TooManyClaims,
    TurnLost,
    TurnNotFound,
)
from sessions_api.store import Store
from sessions_api.telemetry import metrics

MAX_CLAIMS: Final = 10_000
LINGER_S: Final = 30.0
LOOK_S: Final = 2.5
"""Longest time for which a waiter without patience waits for the first look."""

log = structlog.get_logger(__name__)


class _Waiter:
    """One open request for a turn; *turn* gets it, or None when this replica drains."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.turn: asyncio.Future[ClaimedTurn | None] = asyncio.get_running_loop().create_future()
        self.claiming: asyncio.Task[None] | None = None


class Watched(NamedTuple):
    """A turn that somebody holds."""

    stop: asyncio.Event
    heard_s: float
    """Since when hints are heard, by the loop's clock: what came earlier may have been missed."""


class _Counter:
    """Those who wait for turns of one agent, and those who watch a turn that runs."""

    def __init__(self) -> None:
        self.trail: Trail
        self.free: OrderedDict[_Waiter, None] = OrderedDict()  # who waits longest comes first
        self.visitors = 0
        self.stops: set[asyncio.Event] = set()
        self.closing: asyncio.TimerHandle | None = None


class Desk:
    """Hands turns to workers until :meth:`drain`; :meth:`stop` returns when nothing is left in its hands."""

    def __init__(
        self, store: Store, finder: Finder, presences: Presences, *, max_claims: int = MAX_CLAIMS
    ) -> None:
        """*max_claims*: the most that wait here at once, whoever they are."""
        self._store = store
        self._max_claims = max_claims
        self._finder = finder
        self._presences = presences
        self._counters: dict[AgentId, _Counter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._is_draining = False

    def drain(self) -> None:
        """Everyone who waits is answered now, with nothing; so is whoever still comes."""
        self._is_draining = True
        self._presences.drain()
        for counter in self._counters.values():
            for waiter in counter.free:
                if not waiter.turn.done():
                    waiter.turn.set_result(None)
            counter.free.clear()
            for stop in counter.stops:
                stop.set()

    async def stop(self) -> None:
        self.drain()
        while self._tasks:
            await asyncio.wait(self._tasks)
        for agent_id in list(self._counters):
            self._close(agent_id)
        await self._presences.stop()

    # ------------------------------------------------------------ waiting for a turn

    async def claim(
        self, agent_id: AgentId, *, worker: str, capacity: int, wait_s: float
    ) -> ClaimedTurn | None:
        """The next turn for this worker; None if there is none within *wait_s*, or this replica drains.

        A *capacity* of 0 is a goodbye: the worker is there no longer, its other
        waits here end. Cancelled, what was claimed meanwhile is handed back.

        Raises:
            StorageError: a goodbye could not be said.
            TooManyClaims: as many wait here as may.
        """
        if not capacity:
            self._dismiss(agent_id, worker)
            await self._presences.leave(agent_id, worker)
            return None
        if self._is_draining:
            return None
        if self._waiting >= self._max_claims:
            raise TooManyClaims(self._max_claims)
        waiter = _Waiter(worker)
        turn: ClaimedTurn | None = None
        is_gone = True
        self._presences.waits(agent_id, worker, capacity=capacity, wait_s=wait_s)
        self._count(1)
        try:
            async with self._visiting(agent_id) as counter:
                counter.free[waiter] = None
                try:
                    counter.trail.fill()
                    await self._wait(counter.trail, waiter, wait_s)
                finally:
                    counter.free.pop(waiter, None)
            is_gone = False
            turn = waiter.turn.result() if waiter.turn.done() else None
        finally:
            self._count(-1)
            if is_gone:
                self._abandoned(waiter)
            self._presences.waited(agent_id, worker, has_turn=turn is not None, is_gone=is_gone)
        return turn

    async def _wait(self, trail: Trail, waiter: _Waiter, wait_s: float) -> None:
        """Until there is a turn, or time is up, no claim is under way and what waits was looked at."""
        loop = asyncio.get_running_loop()
        look_until_s = loop.time() + LOOK_S
        await asyncio.wait((waiter.turn,), timeout=wait_s)
        while not waiter.turn.done():
            if waiter.claiming is not None:
                await asyncio.wait((waiter.claiming,))
            elif not trail.caught_up.is_set() and loop.time() < look_until_s:
                try:
                    async with asyncio.timeout_at(look_until_s):
                        await trail.caught_up.wait()
                except TimeoutError:
                    return
            else:
                return

    def _abandoned(self, waiter: _Waiter) -> None:
        """Its client is gone: what it has, or is about to get, goes back."""
        if not waiter.turn.done():
            waiter.turn.cancel()
        elif not waiter.turn.cancelled() and (turn := waiter.turn.result()) is not None:
            self.hand_back(turn)

    def _dismiss(self, agent_id: AgentId, worker: str) -> None:
        counter = self._counters.get(agent_id)
        if counter is None:
            return
        for waiter in [waiter for waiter in counter.free if waiter.worker == worker]:
            del counter.free[waiter]
            if not waiter.turn.done():
                waiter.turn.set_result(None)

    def hand_back(self, turn: ClaimedTurn) -> None:
        """Leave the turn to another worker, its attempt uncounted."""
        self._spawn(self._release(turn), f"hand back {turn.turn.turn_id}")

    async def _release(self, claimed: ClaimedTurn) -> None:
        turn = claimed.turn
        try:
            await self._store.turns.release(SessionId(claimed.session_id), turn.turn_id, fence=turn.fence)
        except (TurnLost, TurnNotFound, SessionNotFound, SessionExpired, StorageError) as error:
            log.info(
                "turn_not_released", session_id=claimed.session_id, turn_id=turn.turn_id, code=error.code
            )

    # ------------------------------------------------------------ its side towards the finder

    def has_place(self, agent_id: AgentId) -> bool:
        counter = self._counters.get(agent_id)
        return counter is not None and bool(counter.free) and not self._is_draining

    def take(self, lead: Lead) -> None:
        counter = self._counters[lead.agent_id]
        waiter, _ = counter.free.popitem(last=False)
        waiter.claiming = self._spawn(self._serve(counter, waiter, lead), f"claim of {lead.session_id}")

    async def _serve(self, counter: _Counter, waiter: _Waiter, lead: Lead) -> None:
        """Claim for the waiter; if that brings nothing it waits on, still the first in the row."""
        definition = self._store.agents.get(lead.agent_id)
        turn: ClaimedTurn | None = None
        if definition is not None and definition.kind == "worker":
            turn = await self._finder.claim(counter.trail, lead, definition, worker=waiter.worker)
        waiter.claiming = None
        if turn is not None:
            if waiter.turn.done():
                self.hand_back(turn)
            else:
                waiter.turn.set_result(turn)
        elif not waiter.turn.done():
            if self._is_draining:
                waiter.turn.set_result(None)
                return
            counter.free[waiter] = None
            counter.free.move_to_end(waiter, last=False)
            counter.trail.fill()

    # ------------------------------------------------------------ watching a turn

    @asynccontextmanager
    async def watch(self, agent_id: AgentId, turn_id: TurnId) -> AsyncIterator[Watched]:
        """*stop* is set when a hint says that the turn was ended, or when this replica drains.

        Begins once hints are heard; while Redis is away it begins without.
        """
        stop = asyncio.Event()
        async with self._visiting(agent_id) as counter:
            with self._finder.watch(turn_id, stop.set):
                counter.stops.add(stop)
                try:
                    try:
                        async with asyncio.timeout(LOOK_S):
                            await counter.trail.heard.wait()
                    except TimeoutError:
                        pass
                    if self._is_draining:
                        stop.set()
                    yield Watched(stop, counter.trail.heard_s)
                finally:
                    counter.stops.discard(stop)

    # ------------------------------------------------------------ trails

    @asynccontextmanager
    async def _visiting(self, agent_id: AgentId) -> AsyncIterator[_Counter]:
        counter = self._counters.get(agent_id)
        if counter is None:
            counter = self._counters[agent_id] = _Counter()
            counter.trail = self._finder.join(agent_id, self)
        if counter.closing is not None:
            counter.closing.cancel()
            counter.closing = None
        counter.visitors += 1
        try:
            yield counter
        finally:
            counter.visitors -= 1
            if not counter.visitors and agent_id in self._counters:
                loop = asyncio.get_running_loop()
                counter.closing = loop.call_later(LINGER_S, self._close, agent_id)

    def _close(self, agent_id: AgentId) -> None:
        counter = self._counters.pop(agent_id)
        if counter.closing is not None:
            counter.closing.cancel()
        self._finder.leave(counter.trail)

    # ------------------------------------------------------------ bookkeeping

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _count(self, change: int) -> None:
        self._waiting += change
        metrics.WAITING_WORKERS.set(self._waiting)

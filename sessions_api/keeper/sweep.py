"""The promise: every alarm of the kept partitions is rung, whether or not anybody hints at it.

One loop rings everything: what the sweep of ``due:{t}`` finds, what notifications
hint at, what requests met. So one pace holds for all: a batch of at most ``BATCH``
alarms shares one round trip, and the pause after it is three times as long as Redis
worked on it (more with several keepers: together they take at most a quarter of its
time). That is the time until the replies were there.

Where more is due than one batch, alarms are late already: then keepers take three quarters,
in batches so short that a request waits for a few milliseconds, and what a batch owes
is at most what scripts take on the average by Redis's own clock, since a busy process
is late to read replies. A quarter of Redis is some 1,700 alarms a second, which is all
that the promise asks for and leaves nothing to catch up with.

A partition is looked at when the next alarm known there comes, and twice a
second in any case, because an earlier one may have been set since. Redis's reply
says how long that is; the clock of this machine only measures the span.

An alarm that fails is put 1, 2, 4 … 60 s ahead and counted: it blocks nobody. A
due session that does not exist is a ghost, left by a keeper that was away for
longer than the retention: the partition's indexes are walked once for more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from itertools import chain, zip_longest
from typing import Final, Literal, TypeVar

import msgspec
import structlog

from sessions_api.domain.ids import AgentId, SessionId, partition_of_session
from sessions_api.errors import AgentNotFound, SessionsError, StorageUnavailable
from sessions_api.keeper.leases import Leases
from sessions_api.store import Store
from sessions_api.store.alarms import Due, Rung
from sessions_api.store.parts import from_those_there
from sessions_api.telemetry import metrics

Trigger = Literal["hint", "sweep", "request"]
T = TypeVar("T")

PERIOD_S: Final = 0.5
GAUGES_EVERY_S: Final = 5.0
SHORTEST_REST_S: Final = 0.005
LONGEST_PAUSE_S: Final = 1.0
DUE_PER_PARTITION: Final = 100
BATCH: Final = 64
SHARE: Final = 0.25
SHARE_BEHIND: Final = 0.75
"""Of Redis's time, at most, for all keepers together."""
NOTICED_AT_MOST: Final = 1_000
GHOSTS_BATCH: Final = 500
WALK_EVERY_S: Final = 60.0
LONGEST_DELAY_S: Final = 60
ABANDONED: Final = "The agent no longer exists"
FAILURES_KNOWN: Final = 10_000
INDEXES: Final = ("due", "near", "ready", "running", "users", "agents")
SETTLE_EVERY_S: Final = 1.0
TOLL_EVERY_S: Final = 1.0
ATTENDED_IN: Final = 0
"""The partition whose keeper looks after all agents' attendance, and Redis's memory: one replica does."""

log = structlog.get_logger(__name__)


class Sweep:
    """Rings the alarms of the partitions in ``leases.kept``."""

    def __init__(self, store: Store, leases: Leases) -> None:
        self._alarms = store.alarms
        self._turns = store.turns
        self._ready = store.ready
        self._agents = store.agents
        self._attendance = store.attendance
        self._leases = leases
        self._news = asyncio.Event()
        self._noticed: dict[SessionId, Trigger] = {}
        self._backlog: deque[SessionId] = deque()
        self._look_s: dict[int, float] = {}  # kept partition → when to look at it
        self._owed_s = 0.0
        self._toll = (0, 0)  # scripts that Redis had run when it was asked last, and their microseconds
        self._toll_s = 0.0
        self._script_s = float("inf")  # what one took since the time before
        self._nudge_s = 0.0
        self._settle_s = 0.0
        self._gauges_s = 0.0
        self._has_warned = False  # that Redis may evict
        self._failures: dict[SessionId, int] = {}
        self._walks: deque[tuple[int, str, bytes]] = deque()
        self._walked_s: dict[int, float] = {}

    def notice(self, session_id: SessionId, trigger: Trigger) -> None:
        """Ring the session's alarm soon. In a flood it is left to the sweep, which forgets none."""
        if len(self._noticed) < NOTICED_AT_MOST:
            self._noticed.setdefault(session_id, trigger)
            self._news.set()

    @property
    def _is_behind(self) -> bool:
        return len(self._backlog) + len(self._noticed) > BATCH

    async def step(self) -> None:
        """Wait for the next thing to do, and do one bounded batch of it."""
        await self._rest()
        if not self._backlog:
            await self._look()
        if self._noticed or self._backlog:
            if self._is_behind and self._now_s() >= self._toll_s:
                await self._ask_toll()
            await self._ring(self._take_batch())
        elif self._walks:
            await self._walk_on()
        now_s = self._now_s()
        if now_s >= self._nudge_s:
            self._nudge_s = now_s + PERIOD_S
            await self._nudge()
        if now_s >= self._settle_s and ATTENDED_IN in self._leases.kept:
            self._settle_s = now_s + SETTLE_EVERY_S
            await self._attendance.settle()
        if now_s >= self._gauges_s:
            self._gauges_s = now_s + GAUGES_EVERY_S
            await self._export()

    async def _rest(self) -> None:
        owed_s, self._owed_s = self._owed_s, 0.0
        await asyncio.sleep(min(owed_s, LONGEST_PAUSE_S))
        if self._noticed or self._backlog or self._walks:
            return
        now_s = self._now_s()
        next_s = min((self._look_s.get(p, now_s) for p in self._leases.kept), default=now_s + PERIOD_S)
        try:
            async with asyncio.timeout(max(next_s - now_s, SHORTEST_REST_S)):
                await self._news.wait()
        except TimeoutError:
            pass

    async def _look(self) -> None:
        """Read what is due in the partitions whose time has come, all in one round trip."""
        now_s = self._now_s()
        kept = self._leases.kept
        self._look_s = {p: self._look_s.get(p, now_s) for p in kept}
        partitions = [p for p, look_s in self._look_s.items() if look_s <= now_s]
        if not partitions:
            return
        try:
            found = await self._paced(
                from_those_there(self._alarms.due(p, DUE_PER_PARTITION) for p in partitions)
            )
        except StorageUnavailable:
            if len(partitions) == len(kept):
                raise
            found = [None] * len(partitions)
        looks: list[Due] = []
        for partition, due in zip(partitions, found, strict=True):
            if due is None:
                self._look_s[partition] = now_s + PERIOD_S
                continue
            looks.append(due)
            wait_s = PERIOD_S if due.next_ms is None else (due.next_ms - due.now_ms) / 1000
            if len(due.session_ids) == DUE_PER_PARTITION:
                wait_s = 0.0
            self._look_s[partition] = now_s + min(wait_s, PERIOD_S)
        # Each list is oldest first; so is, nearly, the first of each, then the second of each.
        columns = zip_longest(*(due.session_ids for due in looks))
        self._backlog.extend(sid for sid in chain.from_iterable(columns) if sid is not None)
        metrics.DUE_ALARMS.set(len(self._backlog))

    def _take_batch(self) -> dict[SessionId, Trigger]:
        self._news.clear()
        batch: dict[SessionId, Trigger] = {}
        while self._noticed and len(batch) < BATCH:
            session_id = next(iter(self._noticed))
            batch[session_id] = self._noticed.pop(session_id)
        while self._backlog and len(batch) < BATCH:
            batch.setdefault(self._backlog.popleft(), "sweep")
        if self._noticed:
            self._news.set()
        return batch

    async def _ring(self, batch: dict[SessionId, Trigger]) -> None:
        """Ring a batch; one that fails is postponed, and the others are done all the same.

        Those whose server is away the sweep will find again.

        Raises:
            StorageUnavailable: Redis was away for all.
        """
        calls = asyncio.gather(*map(self._alarms.ring, batch), return_exceptions=True)
        away: StorageUnavailable | None = None
        failed: dict[SessionId, BaseException] = {}
        outcomes = await self._paced(calls, scripts=len(batch))
        for (session_id, trigger), rung in zip(batch.items(), outcomes, strict=True):
            if isinstance(rung, Rung):
                metrics.count_alarm(trigger, rung.outcome, rung.lag_ms)
                self._failures.pop(session_id, None)
                if rung.lapse:
                    log.warning("turn_lapsed", session_id=session_id, **msgspec.structs.asdict(rung.lapse))
                if rung.outcome == "absent" and trigger == "sweep":
                    self._suspect(partition_of_session(session_id))
            elif isinstance(rung, StorageUnavailable):
                away = rung
            else:
                failed[session_id] = rung
        await asyncio.gather(*(self._postpone(sid, error) for sid, error in failed.items()))
        if away is not None and all(isinstance(rung, StorageUnavailable) for rung in outcomes):
            raise away

    async def _postpone(self, session_id: SessionId, error: BaseException) -> None:
        failures = self._failures.pop(session_id, 0) + 1
        self._failures[session_id] = failures
        if len(self._failures) > FAILURES_KNOWN:
            del self._failures[next(iter(self._failures))]
        delay_s = min(2 ** min(failures - 1, 10), LONGEST_DELAY_S)
        metrics.SWEEP_FAILURES.inc()
        log.warning(
            "alarm_postponed", session_id=session_id, failures=failures, delay_s=delay_s, error=repr(error)
        )
        try:
            await self._alarms.postpone(session_id, delay_s * 1000)
        except SessionsError as also:
            log.warning("alarm_not_postponed", session_id=session_id, error=repr(also))

    def _suspect(self, partition: int) -> None:
        """A ghost was met: walk the partition, unless that was done a minute ago."""
        now_s = self._now_s()
        if now_s - self._walked_s.get(partition, -WALK_EVERY_S) >= WALK_EVERY_S:
            self._walked_s[partition] = now_s
            self._walks.extend((partition, index, b"") for index in INDEXES)
            metrics.GHOSTS.inc()
            log.warning("ghost_found", partition=partition)

    async def _walk_on(self) -> None:
        partition, index, after = self._walks.popleft()
        if partition not in self._leases.kept:
            return
        position = await self._paced(self._alarms.prune(partition, index, after, GHOSTS_BATCH))
        if position is not None:
            self._walks.appendleft((partition, index, position))

    async def _nudge(self) -> None:
        """Repeat the wake hint of work that waits: a lost one costs no more than a second.

        One session for each agent and partition is enough: a claim names the next.
        Where nobody is there to hear it, whoever comes looks for himself.
        """
        stale = [
            oldest
            for found in await from_those_there(self._ready.stale_ready(p) for p in self._leases.kept)
            for oldest in found or ()
        ]
        for agent_id, session_id in stale:
            if self._attendance.state(agent_id).state != "offline":
                self._ready.wake(agent_id, session_id)
        orphans = [oldest for oldest in stale if self._agents.get(oldest[0]) is None]
        if orphans:
            await self._abandon(orphans)

    async def _abandon(self, orphans: list[tuple[AgentId, SessionId]]) -> None:
        """Work of agents that are defined no more: fail it, or its session would wait for ever.

        One session for each agent and partition at a time; the next nudge finds the
        next. One without open turns is past its time, or a ghost: ringing it tells.
        """
        await self._agents.refresh()  # it may have been defined since this process last looked
        gone = [session_id for agent_id, session_id in orphans if self._agents.get(agent_id) is None]
        counts = await self._paced(
            asyncio.gather(
                *(self._turns.abandon(sid, code=AgentNotFound.code, message=ABANDONED) for sid in gone)
            )
        )
        for session_id, count in zip(gone, counts, strict=True):
            if not count:
                self.notice(session_id, "sweep")

    async def _export(self) -> None:
        told = await from_those_there(self._alarms.gauges(p) for p in self._leases.kept)
        gauges = [each for each in told if each is not None]
        metrics.LIVE_SESSIONS.set(sum(each.live for each in gauges))
        metrics.NEAR_SESSIONS.set(sum(each.near for each in gauges))
        metrics.READY_SESSIONS.set(sum(each.ready for each in gauges))
        metrics.RUNNING_SESSIONS.set(sum(each.running for each in gauges))
        servers = await self._alarms.memory() if ATTENDED_IN in self._leases.kept else []
        metrics.REDIS_MEMORY.set(max((server.fullness for server in servers), default=0.0))
        evicting = {server.policy for server in servers if server.may_evict}
        metrics.REDIS_EVICTING.set(sum(server.may_evict for server in servers))
        if evicting and not self._has_warned:
            log.error("redis_may_evict", policies=sorted(evicting))
        self._has_warned = bool(evicting)

    async def _ask_toll(self) -> None:
        """Learn what a script costs Redis now."""
        self._toll_s = self._now_s() + TOLL_EVERY_S
        before, self._toll = self._toll, await self._alarms.script_time()
        calls, micros = (now - then for now, then in zip(self._toll, before, strict=True))
        if calls > 0 and micros > 0:
            self._script_s = micros / calls / 1e6

    async def _paced(self, call: Awaitable[T], *, scripts: int = 0) -> T:
        """Await *call*, and owe Redis a pause so long that we take our share of its time.

        The clock starts when the batch has left: packing it is our time, not Redis's.
        *scripts*: what was asked for is so many and nothing else.
        """
        future = asyncio.ensure_future(call)
        try:
            await asyncio.sleep(0)  # its commands are queued …
            await asyncio.sleep(0)  # … and written
            started_s = self._now_s()
            try:
                return await future
            finally:
                worked_s = self._now_s() - started_s
                if scripts and self._is_behind:
                    worked_s = min(worked_s, scripts * self._script_s)
                share = SHARE_BEHIND if self._is_behind else SHARE
                self._owed_s += worked_s * (self._leases.replicas / share - 1)
        finally:
            future.cancel()  # if we were, before we awaited it

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()

    def clear_gauges(self) -> None:
        """Whoever keeps the partitions from now on exports their gauges."""
        for metric in (
            metrics.LIVE_SESSIONS,
            metrics.NEAR_SESSIONS,
            metrics.READY_SESSIONS,
            metrics.RUNNING_SESSIONS,
            metrics.DUE_ALARMS,
            metrics.REDIS_MEMORY,
            metrics.REDIS_EVICTING,
        ):
            metric.set(0)

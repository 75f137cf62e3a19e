"""Runs the turns of agents that have a connector, in every replica, each turn in one.

A replica runs so many turns of one agent (its definition's ``concurrency``), and
so many in all. The latter bound leaves every agent one place of its own, and
places that become free go round: an agent whose endpoint hangs starves no other.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from sessions_api.agents.attempt import Attempt
from sessions_api.agents.connectors import CONNECTORS, Connector
from sessions_api.agents.finder import Finder, Lead, Trail
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import AgentId
from sessions_api.errors import StorageError
from sessions_api.store import Store
from sessions_api.store.attendance import Presence
from sessions_api.store.lanes import LANE, TURN_LANE
from sessions_api.telemetry import metrics
from sessions_api.telemetry.loops import cancelled, run_forever
from sessions_api.telemetry.tracing import OFF, Tracing

PERIOD_S: Final = 0.5
ATTEND_S: Final = 10.0
PRESENCE_MS: Final = 30_000
TURNS: Final = 256

log = structlog.get_logger(__name__)


class Dispatcher:
    """Takes turns from :meth:`start` until :meth:`drain` or :meth:`stop`.

    1. ``start`` returns at once, whether Redis is there or not.
    2. ``attend`` finds work for all agents that are defined now and says that it
       serves them; it does so by itself, too, every ten seconds and when something changed.
    3. ``drain`` takes no more turns and waits for those that run.
    4. ``stop`` hands back what still runs, its attempt uncounted, and ends every task.
    """

    def __init__(
        self,
        store: Store,
        finder: Finder,
        *,
        worker: str,
        turns: int = TURNS,
        connectors: Mapping[str, Connector] = CONNECTORS,
        tracing: Tracing = OFF,
    ) -> None:
        """*worker* names this replica; *turns* is the most that it runs at once, as said above."""
        self._store = store
        self._finder = finder
        self._worker = worker
        self._turns = turns
        self._connectors = connectors
        self._tracing = tracing
        self._trails: dict[AgentId, Trail] = {}
        self._running: dict[asyncio.Task[None], AgentId] = {}
        self._count: Counter[AgentId] = Counter()
        self._claiming: set[asyncio.Task[None]] = set()  # those of them that hold no turn yet
        self._told: dict[AgentId, bool] = {}  # whether it was free, as last attended
        self._attended_s = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []
        self._is_draining = False

    async def start(self) -> None:
        self._tasks.append(asyncio.create_task(run_forever(self._step, loop="dispatcher"), name="dispatcher"))

    async def drain(self, within_s: float) -> None:
        """Take no more turns; return when none runs, or after *within_s*."""
        self._is_draining = True
        await self._say_goodbye()
        if self._running:
            await asyncio.wait(self._running, timeout=within_s)

    async def stop(self) -> None:
        self._is_draining = True
        tasks, self._tasks = self._tasks, []
        await cancelled(*tasks)
        await self._say_goodbye()
        for trail in self._trails.values():
            self._finder.leave(trail)
        self._trails.clear()
        if self._claiming:  # cancelled, a claim might leave a turn with nobody until its lease ends
            await asyncio.wait(self._claiming)
        await cancelled(*self._running)

    # ------------------------------------------------------------ whom it serves

    def _served(self) -> dict[AgentId, AgentDefinition]:
        return {
            definition.agent_id: definition
            for definition in self._store.agents.all()
            if definition.kind in self._connectors
        }

    async def _step(self) -> None:
        """Find work for the agents that are defined now, and say that they are served."""
        served = self._served()
        for agent_id in [agent_id for agent_id in self._trails if agent_id not in served]:
            if not self._count[agent_id]:  # what runs still wants to hear that it is to stop
                self._finder.leave(self._trails.pop(agent_id))
        if not self._is_draining:
            self._join(served)
        is_free = {agent_id: self._is_free(definition) for agent_id, definition in served.items()}
        since_s = asyncio.get_running_loop().time() - self._attended_s
        if since_s >= ATTEND_S or is_free != self._told:
            await self.attend()
        await asyncio.sleep(PERIOD_S)

    def _join(self, served: Iterable[AgentId]) -> None:
        for agent_id in served:
            if agent_id not in self._trails:
                self._trails[agent_id] = self._finder.join(agent_id, self)

    async def attend(self) -> None:
        """Serve the agents that are defined now, and tell all replicas so.

        Raises:
            StorageError
        """
        if self._is_draining:
            return
        served = self._served()
        self._join(served)
        presences = [
            Presence(agent_id, self._worker, definition.concurrency, PRESENCE_MS, self._is_free(definition))
            for agent_id, definition in served.items()
        ]
        self._told = {
            presence.agent_id: presence.is_free for presence in presences
        }  # a goodbye takes it back
        self._attended_s = asyncio.get_running_loop().time()
        try:
            await self._store.attendance.attend(presences)
        except StorageError:
            self._attended_s = float("-inf")
            raise

    async def _say_goodbye(self) -> None:
        told, self._told = self._told, {}
        try:
            await asyncio.gather(*(self._store.attendance.leave(agent_id, self._worker) for agent_id in told))
        except StorageError as error:
            log.info("presence_left_to_lapse", code=error.code)

    # ------------------------------------------------------------ places

    def _is_free(self, definition: AgentDefinition) -> bool:
        return self._count[definition.agent_id] < definition.concurrency

    def has_place(self, agent_id: AgentId) -> bool:
        definition = self._store.agents.get(agent_id)
        if definition is None or self._is_draining:
            return False
        has_room = len(self._running) < self._turns or not self._count[agent_id]
        return has_room and self._is_free(definition)

    def take(self, lead: Lead) -> None:
        task = asyncio.create_task(self._serve(lead), name=f"turn of {lead.session_id}")
        self._running[task] = lead.agent_id
        self._count[lead.agent_id] += 1
        self._claiming.add(task)
        task.add_done_callback(self._left)
        metrics.RUNNING_TURNS.set(len(self._running))

    def _left(self, task: asyncio.Task[None]) -> None:
        """A place is free: the others' turn first, so that a backlog of one does not keep it."""
        agent_id = self._running.pop(task)
        self._claiming.discard(task)
        self._count[agent_id] -= 1
        if not self._count[agent_id]:
            del self._count[agent_id]
        metrics.RUNNING_TURNS.set(len(self._running))
        own = self._trails.pop(agent_id, None)
        if len(self._running) + 1 >= self._turns:
            for trail in [trail for trail in self._trails.values() if trail.has_leads]:
                trail.fill()
        if own is not None:
            self._trails[agent_id] = own
            own.fill()

    async def _serve(self, lead: Lead) -> None:
        """Claim the session's next turn and answer it; the next session goes to another place."""
        LANE.set(TURN_LANE)
        definition = self._store.agents.get(lead.agent_id)
        trail = self._trails.get(lead.agent_id)
        if definition is None or trail is None:
            return
        connector = self._connectors.get(definition.kind)
        if connector is None:
            return
        turn = await self._finder.claim(trail, lead, definition, worker=self._worker)
        if turn is None:
            return
        attempt = Attempt(self._store, self._finder, turn, definition, connector, self._tracing)
        if self._is_draining:
            await attempt.hand_back()
            return
        task = asyncio.current_task()
        if task is not None:
            self._claiming.discard(task)
        await attempt.run()

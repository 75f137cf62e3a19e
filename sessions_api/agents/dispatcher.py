"""Runs the turns of agents that have a connector, in every replica, each turn in one.

Work is announced on an agent's wake channel; each replica with a free place then
claims, and Redis gives the turn to one of them. A claim's reply names the agent's
next session with work, so a backlog drains without further hints. Hints may get
lost: after each (re)subscription all partitions are looked at once, and the
keeper repeats the hint of what waits for longer than half a second.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Final

import structlog

from sessions_api.agents.attempt import Attempt
from sessions_api.agents.connectors import CONNECTORS, Connector
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import AgentId, SessionId, new_message_id
from sessions_api.store import Store
from sessions_api.store.pubsub import Subscriber
from sessions_api.store.turns import Claim
from sessions_api.telemetry import metrics
from sessions_api.telemetry.loops import cancelled, run_forever

PERIOD_S: Final = 0.5
REMEMBERED: Final = 10_000
MISSES: Final = 8

log = structlog.get_logger(__name__)


class Dispatcher:
    """Takes turns from :meth:`start` until :meth:`drain` or :meth:`stop`.

    1. ``start`` returns at once, whether Redis is there or not.
    2. ``drain`` takes no more turns and waits for those that run.
    3. ``stop`` hands back what still runs, its attempt uncounted, and ends every task.
    """

    def __init__(
        self,
        store: Store,
        *,
        worker: str,
        concurrency: int = 64,
        connectors: Mapping[str, Connector] = CONNECTORS,
    ) -> None:
        self._store = store
        self._worker = worker
        self._concurrency = concurrency
        self._connectors = connectors
        self._subscriber = Subscriber(
            store.redis,
            on_message=self._woken,
            on_resubscribed=self._look_again,
            key_prefix=store.keyspace.prefix.encode(),
        )
        self._agents: dict[bytes, AgentId] = {}  # wake channel → agent, of those we listen for
        self._unseen: set[AgentId] = set()  # agents whose partitions are still to be looked at
        # Sessions that may have work, oldest hint first → agent, and how many claims in a row
        # led here and found nothing. Their number is bounded: two members of `ready` that cannot
        # be claimed (their sessions lost with a failover) would name each other for ever.
        self._todo: dict[SessionId, tuple[AgentId, int]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._claiming: set[asyncio.Task[None]] = set()  # those of them that hold no turn yet
        self._tasks: list[asyncio.Task[None]] = []
        self._is_draining = False

    async def start(self) -> None:
        self._unfollow = metrics.follow_redis(self._subscriber.stats, line="pubsub")
        await self._subscriber.start()
        self._tasks.append(asyncio.create_task(run_forever(self._step, loop="dispatcher"), name="dispatcher"))

    async def drain(self, within_s: float) -> None:
        """Take no more turns; return when none runs, or after *within_s*."""
        self._is_draining = True
        self._todo.clear()
        if self._running:
            await asyncio.wait(self._running, timeout=within_s)

    async def stop(self) -> None:
        self._is_draining = True
        tasks, self._tasks = self._tasks, []
        await cancelled(*tasks)
        await self._subscriber.stop()
        self._unfollow()
        if self._claiming:  # cancelled, a claim might leave a turn with nobody until its lease ends
            await asyncio.wait(self._claiming)
        await cancelled(*self._running)

    async def _step(self) -> None:
        """Listen for the agents that are defined now, and look once at what they have already."""
        wanted = {
            self._store.keyspace.wake(definition.agent_id): definition.agent_id
            for definition in self._store.agents.all()
            if definition.kind in self._connectors
        }
        for channel in self._agents.keys() - wanted.keys():
            del self._agents[channel]
            self._subscriber.unsubscribe(channel)
        for channel in wanted.keys() - self._agents.keys():
            await self._subscriber.subscribe(channel)
            self._agents[channel] = wanted[channel]
            self._unseen.add(wanted[channel])
        for agent_id in list(self._unseen):
            for session_id in await self._store.turns.next_ready(agent_id):
                self._note(session_id, agent_id)
            self._unseen.discard(agent_id)
        await asyncio.sleep(PERIOD_S)

    def _look_again(self) -> None:
        self._unseen.update(self._agents.values())

    def _woken(self, channel: bytes, payload: bytes) -> None:
        agent_id = self._agents.get(channel)
        if agent_id is not None:
            self._note(SessionId(payload.decode()), agent_id)

    def _note(self, session_id: SessionId, agent_id: AgentId, *, misses: int = 0) -> None:
        """The session may have work: claim it now, or when a place is free.

        Beyond what can be remembered it is left to the keeper's repeated hints.
        """
        if self._is_draining or len(self._todo) >= REMEMBERED or misses > MISSES:
            return
        self._todo.setdefault(session_id, (agent_id, misses))
        self._fill()

    def _fill(self) -> None:
        while self._todo and len(self._running) < self._concurrency and not self._is_draining:
            session_id = next(iter(self._todo))
            agent_id, misses = self._todo.pop(session_id)
            serving = self._serve(session_id, agent_id, misses)
            task = asyncio.create_task(serving, name=f"turn of {session_id}")
            self._running.add(task)
            self._claiming.add(task)
            task.add_done_callback(self._served)
        metrics.RUNNING_TURNS.set(len(self._running))

    def _served(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._claiming.discard(task)
        self._fill()

    async def _serve(self, session_id: SessionId, agent_id: AgentId, misses: int) -> None:
        """Claim the session's next turn and answer it; the next session goes to another place."""
        definition = self._store.agents.get(agent_id)
        if definition is None or (connector := self._connectors.get(definition.kind)) is None:
            return
        try:
            claim = await self._claim(session_id, definition)
        except Exception as error:  # noqa: BLE001  the turn stays ready, and the keeper repeats its hint
            metrics.LOOP_FAILURES.of("claim").inc()
            log.warning("claim_failed", session_id=session_id, agent_id=agent_id, error=repr(error))
            return
        metrics.CLAIMS.of("taken" if claim.turn is None else "claimed").inc()
        if claim.next is not None:
            self._note(claim.next, agent_id, misses=misses + 1 if claim.turn is None else 0)
        if claim.turn is None:
            return
        attempt = Attempt(self._store, claim.turn, definition, connector)
        if self._is_draining:
            await attempt.hand_back()
            return
        task = asyncio.current_task()
        if task is not None:
            self._claiming.discard(task)
        await attempt.run()

    async def _claim(self, session_id: SessionId, definition: AgentDefinition) -> Claim:
        return await self._store.turns.claim(
            session_id,
            agent_id=definition.agent_id,
            worker=self._worker,
            fence_bits=secrets.token_hex(8),
            message_id=new_message_id(),
            turn_ms=definition.turn_timeout_ms,
            max_attempts=definition.max_attempts,
            history=definition.history,
        )

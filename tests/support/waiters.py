"""A replica's parts that hand out turns, without its HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from sessions_api.agents.desk import Desk
from sessions_api.agents.finder import Finder
from sessions_api.agents.presences import Presences
from sessions_api.agents.work import Work
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import SessionId
from sessions_api.domain.turns import ClaimedTurn, Turn
from sessions_api.store import Store
from sessions_api.telemetry import instruments
from tests.support.stores import AGENT, opened
from tests.support.waiting import eventually, until

WORKER = "worker-1"


class Replica(NamedTuple):
    """The parts of one."""

    store: Store
    finder: Finder
    desk: Desk
    work: Work

    async def claim(
        self, *, worker: str = WORKER, capacity: int = 1, wait_s: float = 20
    ) -> ClaimedTurn | None:
        return await self.desk.claim(AGENT, worker=worker, capacity=capacity, wait_s=wait_s)

    async def claimed(self, **settings: Any) -> ClaimedTurn:
        turn = await self.claim(**settings)
        assert turn is not None
        return turn


def worker_agent(**settings: Any) -> AgentDefinition:
    return AgentDefinition(AGENT, "Worker", "worker", **settings)


@asynccontextmanager
async def replica(store: Store, **settings: Any) -> AsyncIterator[Replica]:
    """The parts, started, for one agent of workers."""
    await store.agents.put(worker_agent(**settings))
    finder = Finder(store)
    presences = Presences(store.attendance)
    desk = Desk(store, finder, presences)
    work = Work(store, desk, presences)
    await finder.start()
    try:
        yield Replica(store, finder, desk, work)
    finally:
        await desk.stop()
        await finder.stop()


async def is_waiting(here: Replica, number: int = 1) -> None:
    """So many wait, and hear of new work."""

    def is_so() -> bool:
        counter = here.desk._counters.get(AGENT)
        return counter is not None and len(counter.free) >= number and counter.trail.caught_up.is_set()

    await until(is_so)


async def session_of(store: Store) -> SessionId:
    return (await opened(store)).session_id


async def became(store: Store, claimed: ClaimedTurn, state: str) -> Turn:
    """The turn, once it is in *state*."""
    found: list[Turn] = []

    async def is_so() -> bool:
        found.append(
            await store.turns.read(SessionId(claimed.session_id), claimed.turn.turn_id, grant=EVERYTHING)
        )
        return found[-1].state == state

    await eventually(is_so)
    return found[-1]


def metric(name: str, **labels: str) -> float:
    """What this process exports."""
    instruments.flush()
    value = instruments.REGISTRY.get_sample_value(name, labels)
    return 0.0 if value is None else value


class Calls:
    """How often scripts and commands were sent since."""

    def __init__(self, *stores: Store) -> None:
        self._stores = stores
        self._scripts = [dict(store.redis.stats.scripts) for store in stores]
        self._commands = sum(store.redis.stats.commands for store in stores)

    def of(self, script: str) -> int:
        return sum(
            store.redis.stats.scripts.get(script, 0) - before.get(script, 0)
            for store, before in zip(self._stores, self._scripts, strict=True)
        )

    @property
    def commands(self) -> int:
        return sum(store.redis.stats.commands for store in self._stores) - self._commands

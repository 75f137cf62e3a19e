"""One schedule from beginning to end: a world, its people, its faults, and the verdict."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import httpx2

from tests.chaos.asking import Service
from tests.chaos.checker import check
from tests.chaos.clients import Client
from tests.chaos.faults import Striker
from tests.chaos.hearing import Lag, Stall, lags, stalls
from tests.chaos.history import History
from tests.chaos.reading import Reader
from tests.chaos.schedule import LOSING, Schedule
from tests.chaos.violations import Violation
from tests.chaos.visits import PATIENCE_S
from tests.chaos.world import AGENTS, World, until

CLIENTS = 8
BEGUN_S = 10.0
"""Until most clients have been acknowledged something, and faults may begin."""


class Outcome(NamedTuple):
    schedule: Schedule
    violations: list[Violation]
    counts: Counter[str]
    faults: Counter[str]
    lags: list[Lag]
    stalls: list[Stall]
    history: History

    def write(self, folder: Path) -> None:
        """What is needed to understand it, beside the logs of its processes."""
        self.schedule.write(folder / "schedule.json")
        (folder / "history.json").write_text(json.dumps(self.history.as_json(), indent=1))
        (folder / "violations.txt").write_text("".join(f"{each}\n" for each in self.violations))


async def run(schedule: Schedule, folder: Path) -> Outcome:
    """Do *schedule*, with all files in *folder*, and check what came of it."""
    history = History()
    violations: list[Violation] = []
    try:
        async with World(folder, schedule) as world:
            await _play(schedule, world, history)
    except* (AssertionError, OSError, TimeoutError, httpx2.HTTPError) as group:
        violations += [Violation("broke off", "", repr(error)[:3000]) for error in group.exceptions]
    history.is_replicated = schedule.is_replicated
    history.may_rewind = any(struck.kind in LOSING for struck in history.struck)
    violations += check(history)
    faults = Counter(struck.kind for struck in history.struck)
    return Outcome(
        schedule, violations, counted(history), faults, list(lags(history)), list(stalls(history)), history
    )


async def _play(schedule: Schedule, world: World, history: History) -> None:
    limits = httpx2.Limits(max_connections=200, max_keepalive_connections=200, keepalive_expiry=3)
    async with httpx2.AsyncClient(timeout=None, limits=limits, trust_env=False) as http:
        service = Service(world.urls, http, history, schedule.seed)
        clients = [Client(number, schedule.seed, service, AGENTS) for number in range(CLIENTS)]
        try:
            await _act(schedule, world, service, clients)
            reader = Reader(world, service, history)
            await reader.recovered()
            await reader.read_all()
            await reader.caught_up(clients)
        finally:
            for client in clients:
                for follower in client.followers:
                    await follower.stop()
        await reader.erase()
    await reader.released()
    history.left += await world.stop_in_order()
    history.left += [bug for replica in world.replicas for bug in replica.bugs()]


async def _act(schedule: Schedule, world: World, service: Service, clients: Sequence[Client]) -> None:
    """Clients and faults, until the time is over, all is mended, and every client has had its last answer."""
    history = service.history
    async with asyncio.timeout(None) as patience, asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run())

        async def has_begun() -> bool:
            return len({said.who for said in history.said if said.acks}) > len(clients) // 2

        assert await until(has_begun, within_s=BEGUN_S), "nobody was acknowledged anything"
        await asyncio.gather(Striker(world, service, history).run(schedule), asyncio.sleep(schedule.seconds))
        for client in clients:
            client.stop()
        patience.reschedule(asyncio.get_running_loop().time() + 2 * PATIENCE_S)


def counted(history: History) -> Counter[str]:
    """The numbers of the report."""
    counts: Counter[str] = Counter()
    counts["sessions"] = len(history.lives)
    counts["expired"] = sum(read.status == 410 for read in history.found.values())
    counts["deleted"] = sum(read.status == 404 for read in history.found.values())
    counts["requests"] = len(history.asked)
    counts["messages"] = len(history.said)
    counts["acknowledged"] = sum(bool(said.acks) for said in history.said)
    counts["retries"] = sum(max(0, said.tries - max(1, len(said.acks))) for said in history.said)
    counts["replays"] = sum(max(0, len(said.acks) - 1) for said in history.said)
    counts["503"] = sum(asked.status == 503 for asked in history.asked)
    counts["no reply"] = sum(not asked.status and not asked.gave_up for asked in history.asked)
    counts["given up"] = sum(asked.gave_up for asked in history.asked)
    counts["followers"] = len(history.followings)
    counts["reconnects"] = sum(max(0, f.connections - 1) for f in history.followings)
    counts["events"] = sum(len(following.events) for following in history.followings)
    for following in history.followings:
        for event in following.events:
            counts["gaps"] += event.type == "gap"
            counts["warnings"] += event.type == "session.expiring"
            counts["ends"] += event.type == "session.expired"
    return counts

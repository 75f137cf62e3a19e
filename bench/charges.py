"""What one request costs the worker and Redis, at several sizes of something that grows.

A batch of requests is short, and all sizes of an operation take turns, so that a
disturbance of the machine meets them alike. Of each size the quiet batches count
(``scripts.quiet``). CPU is the scheduler's account of the processes. Redis's
``commandstats`` are kept beside it: the scripts alone, but by a clock that goes on while
another process has the core, which Redis shares here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count as counting
from itertools import islice
from typing import NamedTuple

import msgspec

from bench.figures import Figure, shown
from bench.links import Link, closing
from bench.machine import cpu_s
from bench.processes import Server, Service
from bench.scripts import quiet
from bench.speaking import Ran, commands
from sessions_api.store import Store

CONNECTIONS = 4
FLAT = 1.25
ALL = ("worker_us", "redis_us")
TRACED = 5
_DEBUG = {"X-Debug": "true"}
Act = Callable[[Link, int], Awaitable[bytes]]


class Place(NamedTuple):
    """A Redis, and what this program speaks to it with."""

    redis: Server
    store: Store


class Batch(NamedTuple):
    """Microseconds a request, and how many commands Redis ran for it."""

    worker_us: float
    redis_us: float
    script_us: float
    commands: float


class Case:
    """An operation at one *size*; *act* carries it out, by connection and number, and gives the reply."""

    def __init__(self, size: int, place: Place, workers: Sequence[Service], act: Act) -> None:
        self.size = size
        self._place = place
        self._workers = workers
        self._act = act
        self._numbers = counting()
        self._batches: list[Batch] = []
        self.trips: float | None = None

    async def trace(self) -> None:
        """Round trips to Redis, as the service counts them itself, of a few requests one by one."""
        trips: list[int] = []
        link = await Link.open(self._workers[0], _DEBUG)
        with closing([link]):
            for number in islice(self._numbers, TRACED + 1):
                reply = await self._act(link, number)
                if not reply.startswith(b"{"):
                    return
                trips.append(msgspec.json.decode(reply)["debug"]["redisTrips"])
        self.trips = sum(trips[1:]) / TRACED  # Redis may have learned a script by the first

    async def measure(self, count: int) -> None:
        """A batch of *count* requests to one worker after the other; what counts is what it costs them all.

        Not to all at once: on one core they would drive each other out of its caches.
        """
        worker = self._workers[len(self._batches) % len(self._workers)]
        links = [await Link.open(worker) for _ in range(CONNECTIONS)]
        numbers = islice(self._numbers, count)

        async def ask_on(link: Link) -> None:
            for number in numbers:
                await self._act(link, number)

        with closing(links):
            ran = await _ran(self._place.store)
            before_us = self._cpu_us()
            await asyncio.gather(*map(ask_on, links))
            after_us = self._cpu_us()
            before, after = (*before_us, *ran), (*after_us, *await _ran(self._place.store))
        self._batches.append(Batch(*((b - a) / count for a, b in zip(before, after, strict=True))))

    def _cpu_us(self) -> tuple[float, float]:
        return sum(cpu_s(each.pid) for each in self._workers) * 1e6, cpu_s(self._place.redis.pid) * 1e6

    @property
    def cost(self) -> Batch:
        return Batch(*(quiet(list(values)) for values in zip(*self._batches, strict=True)))


async def _ran(store: Store) -> tuple[int, int]:
    """Microseconds in scripts, and commands by whomever."""
    ran = await commands(store)
    return ran.get("evalsha", Ran()).us, sum(each.calls for name, each in ran.items() if name != "info")


class Study:
    """How an operation's cost goes with something that grows, *by*."""

    def __init__(self, operation: str, cases: Sequence[Case], *, flat: Sequence[str] = ALL) -> None:
        """*flat*: whose share is to stay as it is."""
        self.operation = operation
        self._cases = cases
        self._flat = flat

    async def measure(self, *, rounds: int, batch: int) -> None:
        for case in self._cases:
            await case.trace()
        for _ in range(rounds):
            for case in self._cases:
                await case.measure(batch)

    def figures(self, part: str) -> list[Figure]:
        """The greatest size's cost by the smallest's."""
        names = [("worker's CPU", "worker_us", "µs"), ("Redis's CPU", "redis_us", "µs")]
        if "commands" in self._flat:
            names.append(("commands of Redis", "commands", ""))
        figures = [self._ratio(part, *name) for name in names]
        trips = [case.trips for case in self._cases if case.trips is not None]
        if trips:
            what = f"{self.operation}: round trips to Redis"
            figures.append(Figure(part, what, max(trips), budget=trips[0]))
        return figures

    def _ratio(self, part: str, what: str, member: str, unit: str) -> Figure:
        costs = {case.size: getattr(case.cost, member) for case in self._cases}
        values = [*costs.values()]
        return Figure(
            part,
            f"{self.operation}: {what}",
            values[-1] / values[0],
            "×",
            budget=FLAT if member in self._flat else None,
            note="; ".join(f"{size:,}: {shown(cost)} {unit}".rstrip() for size, cost in costs.items()),
        )

    def details(self) -> dict[str, list[float]]:
        """For the plots: sizes, and what each costs."""
        return {
            "sizes": [case.size for case in self._cases],
            "worker_us": [round(case.cost.worker_us, 2) for case in self._cases],
            "redis_us": [round(case.cost.redis_us, 2) for case in self._cases],
            "script_us": [round(case.cost.script_us, 2) for case in self._cases],
        }

"""Who is there while a service has much else to do: a client that asks at its own pace, and followers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from bench.links import Ear, Link, closing
from bench.processes import Service
from bench.speaking import QUESTION
from bench.workers import BASE

AT_ONCE = 20


class GoodClient:
    """Reads sessions on one connection and posts to sessions on another, *per_s* times a second each.

    What a request took counts from the instant at which it was to be sent, so a stall
    counts for every request that came into it.
    """

    def __init__(self, sessions: Sequence[str], per_s: float) -> None:
        self._sessions = sessions
        self._per_s = per_s
        self._took: dict[str, list[tuple[float, float]]] = {}
        self.tasks: list[asyncio.Task[None]] = []
        """Which end by failing only."""

    @classmethod
    @asynccontextmanager
    async def asking(
        cls, target: Service, sessions: Sequence[str], *, per_s: float
    ) -> AsyncIterator[GoodClient]:
        client = cls(sessions, per_s)
        links = [await Link.open(target) for _ in range(2)]

        def read(session: str) -> Awaitable[object]:
            return links[0].ask("GET", f"{BASE}/{session}")

        def post(session: str) -> Awaitable[object]:
            return links[1].ask("POST", f"{BASE}/{session}/messages", {"content": QUESTION})

        with closing(links):
            client.tasks = [
                asyncio.create_task(client.go_on("GET session", read)),
                asyncio.create_task(client.go_on("POST message", post)),
            ]
            try:
                yield client
            finally:
                for task in client.tasks:
                    task.cancel()
                await asyncio.wait(client.tasks)

    async def go_on(self, name: str, ask: Callable[[str], Awaitable[object]]) -> None:
        """Ask again and again, until cancelled."""
        took = self._took[name] = []
        due_s = time.time()
        while True:
            await asyncio.sleep(due_s - time.time())
            await ask(random.choice(self._sessions))
            took.append((due_s, (time.time() - due_s) * 1000))
            due_s += 1 / self._per_s

    def between(self, start_s: float, end_s: float) -> dict[str, list[float]]:
        """By what was asked: the milliseconds that requests took which were due from *start_s* to *end_s*.

        Raises:
            RuntimeError: there were fewer than two.
        """
        spans = {
            name: [ms for due_s, ms in took if start_s <= due_s <= end_s] for name, took in self._took.items()
        }
        if any(len(values) < 2 for values in spans.values()):
            raise RuntimeError(f"nobody asked in {end_s - start_s:.2f} s")
        return spans


class Followers:
    """One for each of some sessions; notes when events come whose names begin alike."""

    def __init__(self) -> None:
        self.came_ms: dict[str, list[float]] = {}
        """By session, in their order, by this machine's clock."""

    @classmethod
    @asynccontextmanager
    async def of(cls, target: Service, sessions: Sequence[str], *, mark: bytes) -> AsyncIterator[Followers]:
        followers = cls()
        ears: list[Ear] = []

        async def follow(session: str) -> None:
            came_ms = followers.came_ms[session] = []

            def note(count: int) -> None:
                came_ms.extend([time.time() * 1000] * count)

            ears.append(await Ear.open(target, f"{BASE}/{session}/events", mark, note))

        with closing(ears):
            for start in range(0, len(sessions), AT_ONCE):
                await asyncio.gather(*map(follow, sessions[start : start + AT_ONCE]))
            yield followers

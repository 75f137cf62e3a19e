"""One worker under a mixed hostile load: what it keeps in memory, and what a good client feels of it.

Garbage, slow requests, oversized ones, floods of refusals and followers that come
and go (``attacks.py``), from other addresses than the good client's. What is
looked for is not how much the worker takes, but that nothing of it stays. The
attackers, Redis and the good client share the load's core.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path
from statistics import linear_regression, quantiles

import msgspec

from bench.attacks import BASE
from bench.figures import Figure, progress
from bench.links import Link, closing
from bench.machine import CORES
from bench.processes import DEPLOYED, DURABLE, Service, process, redis_server, service
from bench.speaking import open_sessions, open_store

PART = "Hostile load"
SESSIONS = 50
ASKS_PER_S = 50.0
WARM = 0.2
"""The part of the run in which caches fill; its end is what memory is held against."""
MOST_GROWTH = 1.05
LAST_S = 2.0
"""How much longer the attackers go on than the good client asks."""


async def run(folder: Path, *, seconds: int) -> tuple[list[Figure], dict[str, object]]:
    """*seconds* of attack, after a third of them (at most 10) in quiet."""
    with (
        redis_server(folder / "redis", {**DEPLOYED, **DURABLE}) as redis,
        service(folder, redis.url) as target,
    ):
        async with open_store(redis.url) as store:
            sessions = [str(each) for each in await open_sessions(store, SESSIONS)]
        progress(f"hostile: a good client alone, then {seconds} s of attack")
        quiet_ms = await _good_client(target, sessions, min(10.0, seconds / 3))
        memory = Memory(target.pid)
        watching = asyncio.create_task(memory.watch())
        said = folder / "attacks.json"
        command = [sys.executable, "-m", "bench.attacks", str(target.port), str(seconds + LAST_S), *sessions]
        try:
            with process(command, said, core=CORES.load) as pid:
                flood_ms = await _good_client(target, sessions, float(seconds))
                memory.sample()
                await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        finally:
            watching.cancel()
    return _figures(memory, quiet_ms, flood_ms, seconds), {
        "attacks": msgspec.json.decode(said.read_bytes()),
        "memory_mb": [round(each, 1) for each in memory.mb],
    }


async def _good_client(target: Service, sessions: list[str], seconds: float) -> list[float]:
    """How long each of its requests took, in ms."""
    took: list[float] = []
    link = await Link.open(target)
    with closing([link]):
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            started_s = time.perf_counter()
            await link.ask("GET", f"{BASE}/{random.choice(sessions)}")
            took.append((time.perf_counter() - started_s) * 1000)
            await asyncio.sleep(1 / ASKS_PER_S)
    return took


class Memory:
    """The resident memory of a process, each second."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/statm")
        self.mb: list[float] = []
        self.sample()

    def sample(self) -> None:
        pages = int(self._path.read_text().split()[1])
        self.mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.sample()

    @property
    def warm(self) -> list[float]:
        return self.mb[int(len(self.mb) * WARM) :]

    @property
    def slope_mb_per_min(self) -> float:
        """Of a straight line through what was sampled after the warm-up."""
        return linear_regression(range(len(self.warm)), self.warm).slope * 60


def _figures(memory: Memory, quiet_ms: list[float], flood_ms: list[float], seconds: int) -> list[Figure]:
    warm, last = memory.warm[0], memory.mb[-1]
    return [
        Figure(PART, "memory at the start", memory.mb[0], "MB"),
        Figure(PART, "memory after the warm-up", warm, "MB"),
        Figure(PART, f"memory after {seconds} s", last, "MB", note=f"most {max(memory.mb):.1f} MB"),
        Figure(
            PART,
            "memory at the end : after the warm-up",
            last / warm,
            "×",
            budget=MOST_GROWTH,
            note=f"slope {memory.slope_mb_per_min:+.3f} MB/min",
        ),
        Figure(PART, "a good client's p99, quiet", _p99(quiet_ms), "ms"),
        Figure(
            PART,
            "a good client's p99, under attack",
            _p99(flood_ms),
            "ms",
            note=f"of {len(flood_ms)}; median {sorted(flood_ms)[len(flood_ms) // 2]:.1f} ms",
        ),
    ]


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]

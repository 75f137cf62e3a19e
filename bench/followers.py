"""Ten thousand followers on one worker: what each costs, and how soon all have a message.

They are spread in two ways: a hundred on each of a hundred sessions, and one on each
of ten thousand. Each spread has a service of its own, and the followers a program of
their own (``crowd.py``), which shares the load's core with Redis and this program.
The instant at which a message was accepted is its cursor, Redis's clock in whole
milliseconds, so latencies are upper bounds.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from bench.crowd import BASE, Heard
from bench.figures import Figure, percentile, percentiles, progress
from bench.links import Link, closing
from bench.machine import CORES, cpu_s, resident_bytes
from bench.processes import DEPLOYED, DURABLE, Service, process, redis_server, service
from bench.speaking import QUESTION, open_sessions, open_store
from bench.workers import gauge

PART = "Followers"
KINDS = {"sse": "SSE", "ws": "WebSocket"}
MOST_KIB_EACH = 25.0
POSTERS = 8
WARM = 20
BASELINE_S = 2.0
POLL_S = 0.01
PATIENCE_S = 300.0
TAIL_CHARS = 2000


class Spread(msgspec.Struct, frozen=True):
    """*followers* in all, *each* on a session; *messages* come at *per_s*, one to each session in turn."""

    followers: int
    each: int
    messages: int
    per_s: int
    burst: int = 0
    """Then so many messages at once."""
    idle_s: float = 0
    """How long they are left in silence before."""

    @property
    def sessions(self) -> int:
        return self.followers // self.each

    @property
    def name(self) -> str:
        return f"{self.each:,} on each of {self.sessions:,} sessions"


SPREADS = (
    Spread(followers=10_000, each=100, messages=50, per_s=10, burst=100),
    Spread(followers=10_000, each=1, messages=2_000, per_s=500, idle_s=15),
)
SMALL = (Spread(followers=200, each=10, messages=10, per_s=50, burst=20, idle_s=0.3),)


async def run(folder: Path, *, spreads: Sequence[Spread]) -> tuple[list[Figure], dict[str, object]]:
    figures: list[Figure] = []
    details: dict[str, object] = {}
    with redis_server(folder / "redis", {**DEPLOYED, **DURABLE}) as redis:
        for kind, word in KINDS.items():
            for spread in spreads:
                async with open_store(redis.url) as store:
                    sessions = [str(each) for each in await open_sessions(store, spread.sessions)]
                with service(
                    folder,
                    redis.url,
                    SESSIONS_DISPATCHER="off",
                    SESSIONS_MAX_FOLLOWERS=str(spread.followers + WARM),
                    SESSIONS_MAX_FOLLOWERS_PER_SESSION=str(max(spread.each, WARM)),
                ) as target:
                    progress(f"followers: {spread.followers:,} by {word}, {spread.name}")
                    stage = Stage(folder, kind, target, sessions, spread)
                    figures += await stage.play()
                    details[f"{word}, {spread.name}"] = stage.details
    return figures, details


class Stage:
    """One crowd before one service."""

    def __init__(self, folder: Path, kind: str, target: Service, sessions: list[str], spread: Spread) -> None:
        self._folder = folder
        self._kind = kind
        self._target = target
        self._sessions = sessions
        self._spread = spread
        self.details: dict[str, object] = {}

    async def play(self) -> list[Figure]:
        spread, pid = self._spread, self._target.pid
        async with self._crowd("warm", WARM):
            pass  # what a first follower makes the process load is not the followers'
        while await gauge(self._target, "sessions_followers"):  # noqa: ASYNC110  another process's
            await asyncio.sleep(POLL_S)
        alone = await self._busy(min(BASELINE_S, spread.idle_s))
        before, opened_s = resident_bytes(pid), time.monotonic()
        async with self._crowd("crowd", spread.followers) as crowd:
            opened_s = time.monotonic() - opened_s
            each_kib = (resident_bytes(pid) - before) / spread.followers / 1024
            idle = await self._busy(spread.idle_s)
            paced_us = await self._post(crowd, spread.messages, spread.per_s)
            paced = crowd.expected
            await self._post(crowd, spread.burst, None)
        heard = crowd.read()
        if heard.lost or len(heard.cursors) != crowd.expected:
            raise RuntimeError(f"{heard.lost} lost; heard {len(heard.cursors)} of {crowd.expected}")
        each, last = latencies(heard, 0, paced, spread.each)
        self.details = {
            "opened_per_s": round(spread.followers / opened_s),
            "refused_at_first": heard.refused,
            "each_ms": percentiles(each),
            "last_ms": percentiles(last),
        }
        part = f"{PART}: {spread.followers:,} by {KINDS[self._kind]}, {spread.name}"
        figures = [
            Figure(part, "memory of each", each_kib, "KiB", budget=MOST_KIB_EACH),
            Figure(
                part,
                "worker's CPU for each delivery",
                paced_us / paced,
                "µs",
                note=f"its share of accepting the message included; {spread.per_s} messages/s",
            ),
            *_percentiles(part, "message accepted → each follower", each),
        ]
        if spread.idle_s:
            note = f"{100 * alone:.2g} % without followers; over {spread.idle_s:g} s"
            idling = Figure(part, "worker's CPU while nobody speaks", 100 * idle, "% of a core", note=note)
            figures.insert(1, idling)
        if spread.each > 1:
            figures += _percentiles(part, f"message accepted → the last of {spread.each}", last)
        if spread.burst:
            burst, _ = latencies(heard, paced, crowd.expected, spread.each)
            what = f"{spread.burst} messages at once → the last of {len(burst):,} deliveries"
            figures.append(Figure(part, what, max(burst), "ms"))
        return figures

    @asynccontextmanager
    async def _crowd(self, name: str, count: int) -> AsyncIterator[Listening]:
        """*count* followers that have their snapshots."""
        path = self._folder / f"{self._kind}-{self._spread.sessions}"
        listed, log, file = (path.with_suffix(f".{name}.{kind}") for kind in ("sessions", "log", "json"))
        listed.write_text("\n".join(self._sessions))
        words = [str(self._target.port), self._kind, str(count), str(listed), str(file)]
        with process([sys.executable, "-m", "bench.crowd", *words], log, core=CORES.load) as pid:
            listening = Listening(pid, log, file)
            await listening.said("told", count)
            yield listening

    async def _busy(self, seconds: float) -> float:
        """The share of a core that the worker takes meanwhile; 0 if that is no time."""
        if not seconds:
            return 0.0
        spent_s, started_s = cpu_s(self._target.pid), time.monotonic()
        await asyncio.sleep(seconds)
        return (cpu_s(self._target.pid) - spent_s) / (time.monotonic() - started_s)

    async def _post(self, crowd: Listening, count: int, per_s: int | None) -> float:
        """Post to one session after the other, and wait until all have heard; CPU microseconds of the worker.

        *per_s*: None posts as fast as the service takes it.
        """
        spent_s = cpu_s(self._target.pid)
        links = [await Link.open(self._target) for _ in range(POSTERS)]
        numbers = iter(range(count))
        started_s = time.monotonic()

        async def post_some(link: Link) -> None:
            for number in numbers:
                if per_s is not None:
                    await asyncio.sleep(max(0.0, started_s + number / per_s - time.monotonic()))
                session = self._sessions[number % len(self._sessions)]
                await link.ask("POST", f"{BASE}/{session}/messages", {"content": QUESTION})

        with closing(links):
            await asyncio.gather(*(post_some(link) for link in links))
        crowd.expected += count * self._spread.each
        await crowd.said("heard", crowd.expected)
        return (cpu_s(self._target.pid) - spent_s) * 1e6


class Listening:
    """A crowd, as this program hears of it: by what it prints, and by the file that it leaves."""

    def __init__(self, pid: int, log: Path, file: Path) -> None:
        self._pid = pid
        self._log = log
        self._file = file
        self.expected = 0

    async def said(self, word: str, count: int) -> None:
        """Return when its last line is *word* with at least *count*.

        Raises:
            RuntimeError: it is not so in time; the end of what it said is in the message.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while not self._has_said(word, count):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"waited {PATIENCE_S:g} s for '{word} {count}'\n{self._tail}")
            await asyncio.sleep(POLL_S)

    def _has_said(self, word: str, count: int) -> bool:
        if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            raise RuntimeError(f"the followers' program ended\n{self._tail}")
        lines = self._log.read_text(errors="replace").splitlines()
        said, _, number = lines[-1].partition(" ") if lines else ("", "", "")
        return word == said and number.isdigit() and int(number) >= count

    @property
    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-TAIL_CHARS:]

    def read(self) -> Heard:
        return msgspec.json.decode(self._file.read_bytes(), type=Heard)


def latencies(heard: Heard, start: int, end: int, each: int) -> tuple[list[float], list[float]]:
    """Of what was heard from *start* to *end*: each follower's latency in ms, and the last one's per message.

    Raises:
        RuntimeError: a message did not come to all *each* followers of its session, or twice to one.
    """
    came_ms: dict[tuple[int, int], list[float]] = defaultdict(list)
    for number in range(start, end):
        message = heard.sessions[number], heard.cursors[number]
        came_ms[message].append(heard.at_ms[number] - message[1])
    if any(len(times) != each for times in came_ms.values()):
        raise RuntimeError("a message did not come once to each follower")
    return [ms for times in came_ms.values() for ms in times], [max(times) for times in came_ms.values()]


def _percentiles(part: str, what: str, values: list[float]) -> list[Figure]:
    note = f"of {len(values):,}"
    named = (("p50", 50), ("p99", 99), ("max", 100))
    return [
        Figure(part, f"{what}, {name}", percentile(values, percent), "ms", note=note)
        for name, percent in named
    ]

"""The rounds: each kind of work, on each system in turn."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import quantiles

import msgspec

from bench.figures import progress
from bench.peers.dialects import ANSWER, METADATA, QUESTION
from bench.peers.systems import Running, System
from bench.peers.wire import Line, Seen, storm

KINDS = {
    "create": "create a session",
    "get": "GET a session",
    "send": "send a message and get its answer",
    "history": "read a history of 50 messages",
    "stream": "send a message and get its answer as a stream",
}
CONNECTIONS = (1, 32)
READ = 64
"""Sessions that are read in turn."""
LONG = 4
"""Sessions with a history of 50 messages."""
EXCHANGES = 10
"""At most so many in one session: what an exchange costs grows with the conversation in some systems."""
WARM_S = 0.7
_READY = 1000

encode = msgspec.json.encode


class Round(msgspec.Struct, frozen=True):
    """One kind of work on one system for a moment."""

    requests: int
    elapsed_s: float
    cpu_us: float
    """Per request, of all the system's processes."""
    p50_ms: float
    p99_ms: float
    load_busy: float
    """Share of its core that the load took: near 1, it is the load that was measured."""
    broken: int = 0
    """Connections that ended before their answer."""

    @property
    def per_s(self) -> float:
        return self.requests / self.elapsed_s


class Site:
    """A running system with what is asked of it prepared."""

    def __init__(self, system: System, running: Running) -> None:
        self.system = system
        self.running = running
        self.started_mb = running.rss_mb()
        self.grown_mb = self.started_mb
        self.rounds: dict[str, dict[int, list[Round]]] = {
            kind: {connections: [] for connections in CONNECTIONS} for kind in KINDS
        }
        self._dialect = system.dialect
        self._lines = [Line(running.port) for _ in range(max(CONNECTIONS))]
        self._read: list[str] = []
        self._long: list[str] = []
        self._creates: list[bytes] = []
        self._rates: dict[tuple[str, int], float] = {}

    def close(self) -> None:
        for line in self._lines:
            line.close()

    async def prepare(self, warm_s: float) -> None:
        """Sessions to read, and each kind of work once, so that all of it has run before it is measured."""
        port = self.running.port
        self._creates = [self._dialect.create().encode(port) for _ in range(_READY)]
        self._read = await self._open(READ)
        self._long = await self._open(LONG)
        sends = [[self._dialect.send(key).encode(port)] * self._dialect.sends_per_page for key in self._long]
        await self._storm(LONG, [iter(each) for each in sends], 60.0, _has(ANSWER.encode()))
        for kind in KINDS:
            for connections in CONNECTIONS[::-1]:
                await self.measure(kind, connections, warm_s if connections > 1 else warm_s / 2)

    async def measure(self, kind: str, connections: int, seconds: float) -> Round:
        requests, check = await self._work(kind, connections, seconds)
        spent_s, own_s = self.running.cpu_s(), time.process_time()
        seen = await self._storm(connections, requests, seconds, check)
        own_s, spent_s = time.process_time() - own_s, self.running.cpu_s() - spent_s
        elapsed_s, times_ms, broken = seen
        self._rates[kind, connections] = len(times_ms) / elapsed_s
        cuts = quantiles(times_ms, n=100, method="inclusive") if len(times_ms) > 1 else times_ms * 99
        return Round(
            len(times_ms),
            elapsed_s,
            spent_s / len(times_ms) * 1e6,
            cuts[49],
            cuts[98],
            own_s / elapsed_s,
            broken,
        )

    async def _storm(
        self,
        connections: int,
        requests: Sequence[Iterator[bytes]],
        seconds: float,
        check: Callable[[bytes], None],
    ) -> Seen:
        return await storm(self._lines[:connections], requests, seconds=seconds, check=check)

    async def _work(
        self, kind: str, connections: int, seconds: float
    ) -> tuple[list[Iterator[bytes]], Callable[[bytes], None]]:
        """For each connection its requests without end, and the test of a reply."""
        dialect, port = self._dialect, self.running.port
        told = _has(encode(METADATA)[1:-1])
        match kind:
            case "create":
                return _dealt(self._creates, connections), told
            case "get":
                return _dealt([dialect.get(key).encode(port) for key in self._read], connections), told
            case "history":
                raws = [dialect.history(key).encode(port) for key in self._long]
                return _dealt(raws, connections), _has_messages
            case _:
                rate = self._rates.get((kind, connections), 0.0)
                count = max(connections, math.ceil(rate * seconds * 1.3 / EXCHANGES))
                keys = await self._open(count)
                request = dialect.send if kind == "send" else dialect.stream
                raws = [request(key).encode(port) for key in keys]
                own = [raws[number::connections] for number in range(connections)]
                check = _has(ANSWER.encode() if kind == "send" else dialect.streamed)
                return [
                    itertools.cycle([raw for raw in mine for _ in range(EXCHANGES)]) for mine in own
                ], check

    async def _open(self, count: int) -> list[str]:
        """The keys of *count* new sessions."""
        keys: list[str] = []
        raws = (self._dialect.create().encode(self.running.port) for _ in range(count))
        await self._storm(
            len(self._lines),
            [raws] * len(self._lines),
            60.0,
            lambda body: keys.append(self._dialect.key(body)),
        )
        return keys


def _dealt(raws: Sequence[bytes], connections: int) -> list[Iterator[bytes]]:
    """Each connection begins elsewhere in *raws*."""
    step = max(1, len(raws) // connections)
    return [
        itertools.cycle([*raws[number * step % len(raws) :], *raws[: number * step % len(raws)]])
        for number in range(connections)
    ]


def _has(proof: bytes) -> Callable[[bytes], None]:
    def check(body: bytes) -> None:
        if proof not in body:
            raise RuntimeError(f"not the reply that was asked for: {body[:500]!r}")

    return check


def _has_messages(body: bytes) -> None:
    if body.count(QUESTION.encode()) < 50:
        raise RuntimeError(f"fewer than 50 messages: {body[:500]!r}")


async def run(sites: Sequence[Site], *, rounds: int, seconds: float) -> dict[str, str]:
    """Measure all *sites*; one that fails is left out from then on: its name → why."""
    failed: dict[str, str] = {}
    try:
        await _run(sites, failed, rounds, seconds)
    finally:
        for site in sites:
            site.close()
    for site in sites:
        if site.system.name not in failed:
            site.grown_mb = site.running.rss_mb()
    return failed


async def _run(sites: Sequence[Site], failed: dict[str, str], rounds: int, seconds: float) -> None:
    for site in sites:
        progress(f"{site.system.name}: preparing")
        with _noting(site, "preparing", failed):
            await site.prepare(min(WARM_S, seconds))
    for kind, connections in itertools.product(KINDS, CONNECTIONS):
        for number in range(rounds):
            progress(f"{KINDS[kind]}, connections: {connections}, round {number + 1} of {rounds}")
            first = number % len(sites)
            for site in [*sites[first:], *sites[:first]]:
                if site.system.name not in failed:
                    with _noting(site, KINDS[kind], failed):
                        site.rounds[kind][connections].append(await site.measure(kind, connections, seconds))


@contextmanager
def _noting(site: Site, what: str, failed: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except ExceptionGroup as errors:  # of a storm's connections; the first says it
        failed[site.system.name] = f"{what}: {errors.exceptions[0]!r}"
    except (OSError, RuntimeError) as error:
        failed[site.system.name] = f"{what}: {error!r}"

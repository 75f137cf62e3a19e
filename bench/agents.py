"""Turns answered by workers over HTTP: how soon, at what cost, how many, and what waiting costs.

Workers, posters and followers are this program, on the core of the load, with
Redis; all replicas share the service's core.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import msgspec

from bench import costs, idling
from bench.figures import Figure, progress
from bench.latency import Event, Talk, figures_of, post_at_rate
from bench.links import Link, closing, unless_failed
from bench.machine import cpu_s
from bench.processes import DEPLOYED, DURABLE, Server, Service, redis_server, service
from bench.speaking import QUESTION, open_sessions, open_store, scripts_of
from bench.workers import BASE, WORKER_ID, Journal, at_work, define, waiting
from sessions_api.domain.agents import ECHO_ID
from sessions_api.domain.ids import AgentId, SessionId
from sessions_api.store import Store

PART = "Agents"
SESSIONS = 200
PLACES = 32
"""Open claims of the worker: as many turns as it answers at once."""
POSTERS = 32
ROWS = (
    ("handed", "message accepted → a worker has the turn", True),
    ("written", "a worker's first delta → follower on another replica", True),
    ("accepted", "message posted → 201", False),
    ("first delta", "message posted → first words at that follower", False),
    ("answer", "message posted → whole answer at that follower", False),
)


async def run(
    folder: Path, *, rates: list[int], seconds: int, rounds: int, round_s: int, turns: int, waiters: int
) -> tuple[list[Figure], dict[str, object]]:
    """*rates*: messages per second, for *seconds* each; *turns*: of which costs are a mean."""
    figures: list[Figure] = []
    details: dict[str, object] = {}
    for measured, more in (
        await _latency(folder / "latency", rates=rates, seconds=seconds),
        await costs.run(folder / "costs", turns=turns, rounds=rounds),
        await _throughput(folder / "throughput", rounds=rounds, seconds=round_s),
        await idling.run(folder / "idling", waiters=waiters, seconds=seconds),
    ):
        figures += measured
        details |= more
    return figures, details


# ---------------------------------------------------------------- how soon


class WorkedTalk(Talk):
    """A session whose answers come from a worker of this program."""

    journal: Journal

    def take(self, event: Event) -> None:
        if event.type == "turn.delta" and event.data.get("index") == 0:
            self.note("written", self.journal.written_s.pop(str(event.data["turnId"])))
        super().take(event)


async def _latency(folder: Path, *, rates: list[int], seconds: int) -> tuple[list[Figure], dict[str, object]]:
    """The worker at one replica, posters and followers at the other."""
    figures: list[Figure] = []
    details: dict[str, object] = {}
    with (
        redis_server(folder / "redis", {**DEPLOYED, **DURABLE}) as redis,
        service(folder, redis.url, SESSIONS_DISPATCHER="off") as working,
        service(folder, redis.url, SESSIONS_DISPATCHER="off") as followed,
    ):
        async with open_store(redis.url) as store:
            await define(store)
            sessions = await open_sessions(store, SESSIONS, agent_id=WORKER_ID)
        journal = Journal()
        async with at_work([working], places=PLACES, journal=journal) as tasks:
            await waiting([working], PLACES, tasks)
            for per_s in rates:
                progress(f"agents: {per_s} messages/s for {seconds} s over {SESSIONS} sessions")
                journal.clear()
                times_ms: dict[str, list[float]] = defaultdict(list)
                talks = [WorkedTalk(sid, followed, followed, times_ms) for sid in sessions]
                for talk in talks:
                    talk.journal = journal
                await asyncio.gather(*(talk.open() for talk in talks))
                try:
                    await unless_failed(tasks, post_at_rate(talks, per_s=per_s, count=per_s * seconds))
                finally:
                    await asyncio.gather(*(talk.close() for talk in talks))
                times_ms["handed"] = journal.handed_ms.copy()
                figures += figures_of(f"{PART}: latency at {per_s} messages/s", ROWS, times_ms)
                details[f"{per_s}/s"] = {name: len(values) for name, values in times_ms.items()}
    return figures, details


# ---------------------------------------------------------------- how many


class Round(msgspec.Struct, frozen=True):
    """A closed loop for a while; costs are per turn, in microseconds but for *scripts*."""

    per_s: float
    replica_us: float
    redis_us: float
    script_us: float
    scripts: float


async def _throughput(folder: Path, *, rounds: int, seconds: int) -> tuple[list[Figure], dict[str, object]]:
    """Echo and one worker in alternating rounds; each poster waits for its answer (``transport: http``)."""
    taken: dict[str, list[Round]] = {"Echo": [], "a worker": []}
    with (
        redis_server(folder / "redis", {**DEPLOYED, **DURABLE}) as redis,
        service(folder, redis.url) as ours,
    ):
        async with open_store(redis.url) as store:
            await define(store)
            who: dict[str, AgentId] = {"Echo": ECHO_ID, "a worker": WORKER_ID}
            sessions = {
                name: await open_sessions(store, SESSIONS, agent_id=agent_id)
                for name, agent_id in who.items()
            }
            async with at_work([ours], places=PLACES, journal=Journal()) as tasks:
                await waiting([ours], PLACES, tasks)
                for sids in sessions.values():  # warm: 3.11 specialises what runs often
                    await _closed_loop(ours, redis, store, sids, tasks, seconds=1)
                for number in range(rounds):
                    progress(f"agents: send and answer, round {number + 1} of {rounds}")
                    for name, sids in sessions.items():
                        taken[name].append(
                            await _closed_loop(ours, redis, store, sids, tasks, seconds=seconds)
                        )
    return [_figure(name, measured) for name, measured in taken.items()], {"send and answer": taken}


async def _closed_loop(
    ours: Service,
    redis: Server,
    store: Store,
    sessions: list[SessionId],
    tasks: list[asyncio.Task[None]],
    *,
    seconds: int,
) -> Round:
    links: list[Link] = []
    with closing(links):
        links.extend([await Link.open(ours) for _ in range(POSTERS)])
        ends_s = time.perf_counter() + seconds
        before = await _spent(ours, redis, store)
        counts = asyncio.gather(
            *(_exchanges(link, sessions[number::POSTERS], ends_s) for number, link in enumerate(links))
        )
        turns = sum(await unless_failed(tasks, counts))
        after = await _spent(ours, redis, store)
    elapsed_s, replica_s, redis_s, script_us, scripts = (b - a for a, b in zip(before, after, strict=True))
    per_us = 1e6 / turns
    return Round(turns / elapsed_s, replica_s * per_us, redis_s * per_us, script_us / turns, scripts / turns)


async def _exchanges(link: Link, sessions: list[SessionId], ends_s: float) -> int:
    """Messages sent and answered until it is time, in each of *sessions* in turn."""
    count = 0
    while time.perf_counter() < ends_s:
        path = f"{BASE}/{sessions[count % len(sessions)]}/messages"
        _, text = await link.ask("POST", path, {"content": QUESTION, "transport": "http"})
        if b'"agentResponse":{' not in text:
            raise RuntimeError(f"a message was not answered: {text[:300]!r}")
        count += 1
    return count


async def _spent(ours: Service, redis: Server, store: Store) -> tuple[float, float, float, float, float]:
    """Seconds of the clock, of the replica and of Redis; microseconds in scripts, and their number."""
    ran = await scripts_of(store)
    return time.perf_counter(), cpu_s(ours.pid), cpu_s(redis.pid), ran.us, ran.calls


def _figure(name: str, rounds: list[Round]) -> Figure:
    per_s, replica_us, redis_us, script_us, scripts = (
        median(getattr(each, field) for each in rounds)
        for field in ("per_s", "replica_us", "redis_us", "script_us", "scripts")
    )
    return Figure(
        f"{PART}: send and answer on one replica",
        f"messages answered by {name}",
        per_s,
        "/s",
        note=f"{POSTERS} posters that wait; a turn: {replica_us:.0f} µs of the replica, {redis_us:.0f} µs of"
        f" Redis, of which {script_us:.0f} µs in {scripts:.1f} scripts; the replica's core was"
        f" {replica_us * per_s / 1e4:.0f} % busy",
    )

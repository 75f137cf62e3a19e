"""Redis's time for each script, as a multiple of a script that reads TIME and one key.

From ``commandstats``: the server's own clock around EVALSHA, so neither the
network nor Python is in it, and Redis has a core of its own here. That clock
goes on while another process has the core, so calls are taken in short batches,
of which the quickest tenth's limit counts, for the yardstick and for scripts alike.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable
from importlib.resources import files
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from bench.figures import Figure, progress
from bench.machine import CORES
from bench.processes import DEPLOYED, DURABLE, redis_server
from bench.speaking import (
    answer,
    claim,
    each,
    open_sessions,
    open_store,
    say,
    scripts_of,
    until_over,
)
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, new_op_id
from sessions_api.domain.sessions import ConfigChange
from sessions_api.domain.timeouts import MINUTE_MS, TimeoutConfig
from sessions_api.embedded import find_server
from sessions_api.store import Store
from sessions_api.store.connection import Script
from sessions_api.store.loader import load

PART = "Redis time per script"
BUDGET = 15.0
BATCH = 20
MESSAGE_TRANSITIONS = ("append", "claim", "delta", "complete")
YARDSTICK = Script("yardstick", "local t = redis.call('TIME') return {t[1], redis.call('GET', KEYS[1])}")


class Meter:
    """Collects, per name, microseconds of Redis and of Python per call."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.redis_us: dict[str, list[float]] = defaultdict(list)
        self.python_us: dict[str, list[float]] = defaultdict(list)

    async def measure(self, name: str, calls: Iterable[Awaitable[Any]]) -> list[Any]:
        """Await *calls*, each of which runs one script, a few at a time."""
        pending = iter(calls)
        results: list[Any] = []
        before = await scripts_of(self._store)
        while batch := list(islice(pending, BATCH)):
            cpu_s = time.process_time()
            results += await asyncio.gather(*batch)
            cpu_s = time.process_time() - cpu_s
            after = await scripts_of(self._store)
            if after.calls - before.calls != len(batch):
                raise RuntimeError(f"{name}: {after.calls - before.calls} scripts ran for {len(batch)} calls")
            self.redis_us[name].append((after.us - before.us) / len(batch))
            self.python_us[name].append(cpu_s / len(batch) * 1e6)
            before = after
        return results


async def run(folder: Path, *, sessions: int, rounds: int) -> tuple[list[Figure], dict[str, object]]:
    with redis_server(folder, {**DEPLOYED, **DURABLE}, core=CORES.service, binary=find_server()) as server:
        async with open_store(server.url) as store:
            for path in (files("sessions_api.store") / "lua").iterdir():
                if path.name.endswith(".lua"):
                    await store.redis.command(b"SCRIPT", b"LOAD", load(path.name.removesuffix(".lua")).source)
            await store.redis.command(b"SCRIPT", b"LOAD", YARDSTICK.source)
            meter = Meter(store)
            for number in range(rounds):
                progress(f"scripts: round {number + 1} of {rounds}")
                await _round(store, meter, sessions)
    return _figures(meter)


async def _round(store: Store, meter: Meter, count: int) -> None:
    """One of everything that happens to a session, *count* times."""
    await yardstick(store, meter, count)
    sessions = await _create(store, meter, count)
    await meter.measure("read", (store.sessions.read(sid, grant=LOCAL_APP) for sid in sessions))
    await meter.measure(
        "heartbeat", (store.sessions.heartbeat(sid, grant=LOCAL_APP, op=new_op_id()) for sid in sessions)
    )
    await meter.measure(
        "renew", (store.sessions.renew(sid, grant=LOCAL_APP, op=new_op_id()) for sid in sessions)
    )
    change = ConfigChange(timeout_ms=("s", 45 * MINUTE_MS))
    await meter.measure(
        "configure",
        (store.sessions.configure(sid, grant=LOCAL_APP, op=new_op_id(), change=change) for sid in sessions),
    )
    await meter.measure("append, first", (say(store, sid) for sid in sessions))
    await each(sessions, lambda sid: answer(store, sid))
    await yardstick(store, meter, count)
    await meter.measure("append", (say(store, sid) for sid in sessions))
    claims = await meter.measure("claim", (claim(store, sid) for sid in sessions))
    turns = [(claimed.turn.session_id, claimed.turn.turn) for claimed in claims]
    for offset, name in ((0, "delta, first"), (12, "delta")):
        await meter.measure(
            name,
            (
                store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="hello world ", offset=offset)
                for sid, turn in turns
            ),
        )
    reply = b'{"content":"hello world hello world ","metadata":{}}'
    await meter.measure(
        "complete",
        (store.turns.complete(sid, turn.turn_id, fence=turn.fence, body=reply) for sid, turn in turns),
    )
    await yardstick(store, meter, count)
    await meter.measure(
        "turn", (store.turns.read(sid, turn.turn_id, grant=EVERYTHING) for sid, turn in turns)
    )
    await meter.measure("replay", (store.log.replay(sid, grant=LOCAL_APP, after=0) for sid in sessions))
    await _long_histories(store, meter, sessions[: count // 4])
    await meter.measure("alarm, nothing due", (store.alarms.ring(sid) for sid in sessions))
    await meter.measure("end", (store.sessions.end(sid, grant=LOCAL_APP) for sid in sessions))
    await yardstick(store, meter, count)
    await _expire(store, meter, count)


async def _long_histories(store: Store, meter: Meter, sessions: list[Any]) -> None:
    for _ in range(23):
        await each(sessions, lambda sid: say(store, sid))
        await each(sessions, lambda sid: answer(store, sid))
    await meter.measure(
        "history of 50", (store.log.history(sid, grant=EVERYTHING, limit=50) for sid in sessions)
    )
    await each(sessions, lambda sid: say(store, sid))
    claims = await meter.measure("claim + history of 50", (claim(store, sid) for sid in sessions))
    for claimed in claims:
        turn = claimed.turn.turn
        await store.turns.complete(claimed.turn.session_id, turn.turn_id, fence=turn.fence)


async def yardstick(store: Store, meter: Meter, count: int) -> None:
    await store.redis.command(b"SET", b"yardstick", b"x")
    await meter.measure("yardstick", (store.redis.script(YARDSTICK, [b"yardstick"]) for _ in range(count)))


async def _create(store: Store, meter: Meter, count: int) -> list[Any]:
    batches = await meter.measure("create", (open_sessions(store, 1) for _ in range(count)))
    return [sid for batch in batches for sid in batch]


async def _expire(store: Store, meter: Meter, count: int) -> None:
    """Sessions whose end has come, none of them settled yet: what a keeper's sweep finds."""
    short = TimeoutConfig(400, True, 720 * MINUTE_MS, 1)
    sessions = await open_sessions(store, count, config=short)
    await until_over(store, sessions[-1])
    await meter.measure("alarm, expiring", (store.alarms.ring(sid) for sid in sessions))


def quiet(values: list[float]) -> float:
    """What one in ten batches stayed below: the quiet moments of a machine that others use too."""
    return sorted(values)[len(values) // 10]


def _figures(meter: Meter) -> tuple[list[Figure], dict[str, object]]:
    base = quiet(meter.redis_us["yardstick"])
    figures = [Figure(PART, "TIME and one GET (the yardstick)", base, "µs")]
    for name, spent in meter.redis_us.items():
        if name == "yardstick":
            continue
        us = quiet(spent)
        is_message = name.split(",")[0] in MESSAGE_TRANSITIONS
        figures.append(
            Figure(
                PART,
                name,
                us / base,
                "×",
                budget=BUDGET if is_message else None,
                note=f"{us:.1f} µs of Redis, {quiet(meter.python_us[name]):.0f} µs of Python",
            )
        )
    return figures, {"median_us": {name: round(median(spent), 1) for name, spent in meter.redis_us.items()}}

"""Bytes of Redis per idle session, per ended session and per message, at several sizes.

Sessions are created through the store, in big tick batches; a figure is the
growth of ``used_memory`` by their number. The append-only file is off here: its
buffers would be counted, and it costs no memory per session.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from bench.figures import Figure, progress
from bench.machine import CORES
from bench.processes import DEFAULTS, DEPLOYED, redis_server
from bench.speaking import answer, each, info, open_sessions, open_store, say, until_over
from sessions_api.domain.ids import SessionId
from sessions_api.domain.timeouts import MINUTE_MS, TimeoutConfig
from sessions_api.embedded import find_server
from sessions_api.store import Store

PART = "Redis memory"
SETTINGS: Mapping[str, Mapping[str, str]] = {"deployed": DEPLOYED, "defaults": DEFAULTS}
IDLE_BUDGET_BYTES = {"deployed": 1536.0, "defaults": 2560.0}
FURTHER = 9
BATCH = 5_000


async def run(folder: Path, *, sizes: list[int], talking: int) -> tuple[list[Figure], dict[str, object]]:
    """*sizes*: numbers of sessions; *talking*: how many have a conversation, measured apart."""
    figures: list[Figure] = []
    details: dict[str, object] = {}
    for name, settings in SETTINGS.items():
        with redis_server(
            folder / f"{name}-talking", settings, core=CORES.service, binary=find_server()
        ) as server:
            async with open_store(server.url) as store:
                figures += await _conversations(store, name, talking)
    for size in sizes:
        for name, settings in SETTINGS.items():
            with redis_server(
                folder / f"{name}-{size}", settings, core=CORES.service, binary=find_server()
            ) as server:
                async with open_store(server.url) as store:
                    measured, times = await _life(store, name, size)
                    figures += measured
                    details[f"{name}, {size} sessions"] = times
    return figures, details


async def _used(store: Store) -> int:
    return int((await info(store, "memory"))["used_memory"])


async def _conversations(store: Store, name: str, count: int) -> list[Figure]:
    progress(f"memory: conversations of {count:,} sessions, {name} settings")
    sessions = await open_sessions(store, count)
    marks = [await _used(store)]
    await each(sessions, lambda sid: say(store, sid))
    marks.append(await _used(store))
    await each(sessions, lambda sid: answer(store, sid))
    marks.append(await _used(store))
    for _ in range(FURTHER):
        await each(sessions, lambda sid: say(store, sid))
        await each(sessions, lambda sid: answer(store, sid))
    marks.append(await _used(store))
    first, answered, further = ((after - before) / count for before, after in pairwise(marks))
    return [
        Figure(PART, f"first message, {name}", first, "bytes", note="its stream and its turn with it"),
        Figure(PART, f"its answer, {name}", answered, "bytes"),
        Figure(
            PART,
            f"each further message, {name}",
            further / (2 * FURTHER),
            "bytes",
            note=f"mean of question and answer over {FURTHER} exchanges, the turn's record with them",
        ),
    ]


async def _life(store: Store, name: str, size: int) -> tuple[list[Figure], dict[str, float]]:
    """*size* sessions are opened, lie idle, and end."""
    started_s = time.monotonic()
    probe = min(size, BATCH)
    await open_sessions(store, probe)
    rate = probe / (time.monotonic() - started_s)
    await store.redis.command(b"FLUSHALL", b"SYNC")
    before = await _used(store)
    # They must outlive their creation, and should not have to be waited for long.
    timeout_ms = int((0.5 + 2 * size / rate) * 1000)
    config = TimeoutConfig(timeout_ms, True, 720 * MINUTE_MS, 1)
    started_s = time.monotonic()
    sessions: list[SessionId] = []
    while len(sessions) < size:
        sessions += await open_sessions(store, min(BATCH, size - len(sessions)), config=config)
        if len(sessions) % 100_000 == 0:
            progress(f"memory: {len(sessions):,} of {size:,} sessions opened, {name} settings")
    created_s = time.monotonic() - started_s
    if created_s * 1000 > timeout_ms:
        raise RuntimeError(f"{size} sessions took {created_s:.0f} s: the first ones ended meanwhile")
    idle = (await _used(store) - before) / size
    await until_over(store, sessions[-1])
    started_s = time.monotonic()
    outcomes = await each(sessions, store.alarms.ring)
    ended_s = time.monotonic() - started_s
    if any(rung.outcome != "expired" for rung in outcomes):
        raise RuntimeError("a session did not expire")
    ended = (await _used(store) - before) / size
    figures = [
        Figure(PART, f"idle session, {size:,}, {name}", idle, "bytes", budget=IDLE_BUDGET_BYTES[name]),
        Figure(
            PART, f"ended session, {size:,}, {name}", ended, "bytes", note="its tombstone, for the retention"
        ),
    ]
    return figures, {"opened_per_s": round(size / created_s), "expired_per_s": round(size / ended_s)}

"""What workers cost that have nothing to do, and how many claims one message sets off among them."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

from bench.figures import Figure, progress
from bench.links import Link, closing, unless_failed
from bench.machine import cpu_s
from bench.processes import DEPLOYED, DURABLE, Service, redis_server, service
from bench.speaking import QUESTION, Ran, commands, open_sessions, open_store
from bench.workers import BASE, WORKER_ID, Journal, at_work, define, gauge, waiting
from sessions_api.store import Store

REPLICAS = 3
MESSAGES = 20
QUIET_S = 0.1
SETTLED_S = 2.0


async def run(folder: Path, *, waiters: int, seconds: int) -> tuple[list[Figure], dict[str, object]]:
    """No keeper runs: what it calls, it calls for sessions, not for workers."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder / "redis", {**DEPLOYED, **DURABLE}))
        replicas = [
            stack.enter_context(service(folder, redis.url, SESSIONS_DISPATCHER="off", SESSIONS_KEEPER="off"))
            for _ in range(REPLICAS)
        ]
        async with open_store(redis.url) as store:
            await define(store)
            sessions = await open_sessions(store, MESSAGES, agent_id=WORKER_ID)
            progress(f"agents: {REPLICAS} replicas without workers")
            alone, _ = await _idle(store, replicas, seconds)
            progress(f"agents: {waiters:,} workers begin to wait on {REPLICAS} replicas")
            journal = Journal()
            names = "bench-{}".format
            async with at_work(replicas, places=waiters, journal=journal, name=names) as tasks:
                await waiting(replicas, waiters, tasks)
                await asyncio.sleep(SETTLED_S)  # what they are told of is told by then
                made, spent_s = await _idle(store, replicas, seconds)
                claims = await unless_failed(
                    tasks, _claims_per_message(replicas, [f"{BASE}/{sid}/messages" for sid in sessions])
                )
    part = f"Agents: {waiters:,} waiting workers on {REPLICAS} replicas"
    figures = [
        Figure(
            part,
            f"Redis calls in {seconds} idle seconds, of those without workers",
            sum(made.values()) / sum(alone.values()),
            "×",
            budget=1.05,
            note=f"{sum(made.values())} and {sum(alone.values())}, each command in a script counted;"
            f" CPU of each replica: {spent_s / REPLICAS / seconds:.1%} of a core",
        ),
        Figure(
            part,
            "most claims for one message",
            max(claims),
            budget=REPLICAS,
            note=f"mean {sum(claims) / len(claims):.2f} of {len(claims)} messages",
        ),
    ]
    return figures, {"claims": claims, "idle calls": made, "idle calls without workers": alone}


async def _idle(store: Store, replicas: list[Service], seconds: int) -> tuple[dict[str, int], float]:
    """What Redis is called for meanwhile, and the CPU seconds of all replicas."""
    before, spent_s = await commands(store), sum(cpu_s(each.pid) for each in replicas)
    await asyncio.sleep(seconds)
    after = await commands(store)
    made = {name: ran.calls - before.get(name, Ran()).calls for name, ran in after.items()}
    return {name: count for name, count in made.items() if count}, (
        sum(cpu_s(each.pid) for each in replicas) - spent_s
    )


async def _claims_per_message(replicas: list[Service], paths: list[str]) -> list[int]:
    """How many claims the replicas sent for each message; the next one is posted when they are quiet."""
    counts: list[int] = []
    link = await Link.open(replicas[0])
    with closing([link]):
        before = await _claims(replicas)
        for path in paths:
            await link.ask("POST", path, {"content": QUESTION, "transport": "http"})
            after = await _claims(replicas)
            while True:
                await asyncio.sleep(QUIET_S)
                again = await _claims(replicas)
                if again == after:
                    break
                after = again
            counts.append(round(after - before))
            before = after
    return counts


async def _claims(replicas: list[Service]) -> float:
    return sum([await gauge(replica, "sessions_claims_total") for replica in replicas])

"""What a good client feels while one access key floods the same worker.

The flood is wrk on 32 connections as fast as it can; its key has the limits of the
default settings, so of messages about 1,000 a second are taken and answered by
Echo, and the rest is refused. The good client, with a key of its own, reads a
session a hundred times a second. Quiet and flooded seconds take turns. The first of
a flood is apart, since a key may use the whole quota of a second at once: 1,000
messages then come as fast as they are taken.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from statistics import median, quantiles

from bench.figures import Figure, progress
from bench.links import Link, closing
from bench.load import Load, Request
from bench.processes import DEPLOYED, DURABLE, Service, redis_server, service
from sessions_api.access.keyring import mint
from sessions_api.domain.agents import ECHO_ID

PART = "One key floods a worker"
BASE = "/api/messaging/sessions"
ASKS_PER_S = 100.0
SPREAD = 64
NICE = 10
AT_MOST = 2.0
BURST_S = 1


async def run(folder: Path, *, rounds: int, seconds: int) -> tuple[list[Figure], dict[str, object]]:
    """*rounds* of *seconds* in quiet and *seconds* of each flood."""
    flood_line, flood_key = mint("flood", ["app"])
    good_line, good_key = mint("good", ["app"])
    keys = f"{flood_line};{good_line}"
    with (
        # Redis on whichever core is free: beside the good client and the flood, it would be their load.
        redis_server(folder / "redis", {**DEPLOYED, **DURABLE}, core=None) as redis,
        service(folder, redis.url, SESSIONS_KEYS=keys) as target,
    ):
        link = await Link.open(target, {"X-API-KEY": good_key})
        other = await Link.open(target, {"X-API-KEY": flood_key})
        with closing([link, other]):
            sessions = [await _create(other) for _ in range(SPREAD)]
            good = f"{BASE}/{await _create(link)}"
            floods = _floods(folder, target, flood_key, sessions)
            took: dict[str, list[tuple[float, float, float]]] = {name: [] for name in floods}
            for number in range(rounds):
                for name, load in floods.items():
                    progress(f"floods: round {number + 1} of {rounds}, {name}")
                    quiet_ms = await _p99(link, good, seconds)
                    flooding = asyncio.create_task(
                        asyncio.to_thread(load.run, seconds + 2 * BURST_S, takes_refusals=True)
                    )
                    burst_ms = await _p99(link, good, BURST_S)
                    await asyncio.sleep(BURST_S)  # what it brought is answered by then
                    took[name].append((quiet_ms, burst_ms, await _p99(link, good, seconds)))
                    await flooding
    return [figure for name, pairs in took.items() for figure in _figures(name, pairs)], {
        "p99_ms_quiet_first_second_flooded": took
    }


async def _create(link: Link) -> str:
    _, body = await link.ask("POST", BASE, {"agentId": ECHO_ID, "userId": ECHO_ID})
    return body.split(b'"sessionId":"')[1][:36].decode()


def _floods(folder: Path, target: Service, key: str, sessions: list[str]) -> dict[str, Load]:
    headers = {"X-API-KEY": key}
    message = b'{"content":"x","onBusy":"merge"}'
    posts = [Request("POST", f"{BASE}/{session}/messages", message, headers) for session in sessions]
    reads = [Request("GET", f"{BASE}/{sessions[0]}", headers=headers)]
    return {
        "reads": Load(folder, "reads", target, reads, nice=NICE),
        "messages to one session": Load(folder, "one", target, posts[:1], nice=NICE),
        f"messages to {SPREAD} sessions": Load(folder, "spread", target, posts, nice=NICE),
    }


async def _p99(link: Link, path: str, seconds: float) -> float:
    """Of its requests, in ms."""
    took: list[float] = []
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        started_s = time.perf_counter()
        await link.ask("GET", path)
        took.append((time.perf_counter() - started_s) * 1000)
        await asyncio.sleep(1 / ASKS_PER_S)
    return quantiles(took, n=100)[98]


def _figures(name: str, rounds: list[tuple[float, float, float]]) -> list[Figure]:
    quiet, burst, flooded = (median(values) for values in zip(*rounds, strict=True))
    return [
        Figure(
            PART,
            f"another key's p99 : its quiet value, {name}",
            median(under / alone for alone, _, under in rounds),
            "×",
            budget=AT_MOST,
            note=f"{quiet:.2f} → {flooded:.2f} ms; in the flood's first second {burst:.1f} ms",
        )
    ]

"""Measure, print the table, write the JSON file."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from bench import (
    agents,
    endpoints,
    expiry,
    floods,
    followers,
    growth,
    hostile,
    latency,
    memory,
    page,
    scripts,
    sizing,
    starting,
)
from bench.figures import PUBLISHED, Figure, Run, progress, read, table, write
from bench.machine import ALL_CORES, CORES, describe, others_busy
from bench.processes import operators_server, redis_server
from bench.speaking import info, open_store
from sessions_api.embedded import find_server
from sessions_api.telemetry import logs

RESULTS = Path(__file__).parent / "results"
Measured = tuple[list[Figure], dict[str, object]]
NEEDS_WRK = ("http", "floods")
NEWEST = ("scripts", "memory", "start")
"""Parts measured with the server that comes with the service, a newer one than distributions have."""


def main(words: list[str]) -> int:
    args = _arguments(words)
    parts = _parts(args)
    chosen = args.only.split(",") if args.only else list(parts)
    unknown = set(chosen) - set(parts)
    if unknown:
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}", file=sys.stderr)
        return 2
    logs.configure("warning", "console")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every `finally`
    os.sched_setaffinity(0, {CORES.load})  # and all that is started here, unless it is told otherwise
    print(CORES)
    if busy := others_busy():
        print(busy)
    with tempfile.TemporaryDirectory(prefix="sessions-bench-") as scratch:
        runs, skipped = _run(Path(scratch), {name: parts[name] for name in chosen}, words)
    out = args.out or RESULTS / "last.json"
    write(out, runs)
    if args.publish:
        write(PUBLISHED, runs)
        page.write(read(PUBLISHED))
        sizing.write(read(PUBLISHED))
        print("published; `make bench-report` draws the plots anew")
    figures = [figure for run in runs.values() for figure in run.figures]
    print(table(figures))
    for name, reason in skipped.items():
        print(f"\nSKIPPED {name}: {reason}")
    short = [figure.what for figure in figures if figure.verdict == "short"]
    print(f"\n{len(short)} short of budget{': ' + '; '.join(short) if short else ''}\nwrote {out}")
    return 0


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only",
        metavar="PARTS",
        help="comma-separated: http, scripts, memory, start, latency, agents, floods, hostile, followers, "
        "expiry, growth",
    )
    parser.add_argument(
        "--million",
        action="store_true",
        help="memory and growth also at 1,000,000 sessions, expiry among as many (3 GB, minutes)",
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="of attack, in the part hostile (1)")
    parser.add_argument("--smoke", action="store_true", help="tiny numbers: that it works, not how fast")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (5)")
    parser.add_argument("--seconds", type=int, default=2, help="of load in each round (2)")
    parser.add_argument(
        "--endpoints", metavar="NAMES", help="of part http, by the words of its table: get,post"
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="also into bench/results/published.json and docs/performance.md",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes")
    return parser.parse_args(words)


def _parts(args: argparse.Namespace) -> dict[str, Callable[[Path], Coroutine[Any, Any, Measured]]]:
    """Name of a part → what measures it in a folder."""
    smoke: bool = args.smoke
    rounds = 1 if smoke else args.rounds
    seconds = 1 if smoke else args.seconds
    sizes = [500] if smoke else [100_000, *([1_000_000] if args.million else [])]
    names = args.endpoints.split(",") if args.endpoints else (["get", "post"] if smoke else [])
    return {
        "http": lambda folder: endpoints.run(
            folder, rounds=rounds, seconds=seconds, sessions=800 if smoke else 8_000, only=names
        ),
        "scripts": lambda folder: scripts.run(folder, sessions=20 if smoke else 200, rounds=rounds),
        "memory": lambda folder: memory.run(folder, sizes=sizes, talking=100 if smoke else 10_000),
        "start": lambda folder: starting.run(folder, rounds=rounds),
        "latency": lambda folder: latency.run(
            folder, rates=[20] if smoke else [100, 500], seconds=1 if smoke else 10
        ),
        "agents": lambda folder: agents.run(
            folder,
            rates=[20] if smoke else [100, 500],
            seconds=1 if smoke else 10,
            rounds=rounds,
            round_s=seconds,
            turns=20 if smoke else 200,
            waiters=60 if smoke else 1000,
        ),
        "floods": lambda folder: floods.run(folder, rounds=rounds, seconds=1 if smoke else 4),
        "hostile": lambda folder: hostile.run(folder, seconds=4 if smoke else round(args.minutes * 60)),
        "followers": lambda folder: followers.run(
            folder, spreads=followers.SMALL if smoke else followers.SPREADS
        ),
        "expiry": lambda folder: expiry.run(
            folder,
            plans=expiry.SMALL if smoke else expiry.PLANS,
            standing=1_000_000 if args.million else 0,
        ),
        "growth": lambda folder: growth.run(
            folder, scale=growth.SMALL if smoke else growth.scale(is_million=args.million)
        ),
    }


def _run(
    scratch: Path, parts: dict[str, Callable[[Path], Coroutine[Any, Any, Measured]]], words: list[str]
) -> tuple[dict[str, Run], dict[str, str]]:
    """The runs by part, and why a part was skipped."""
    runs: dict[str, Run] = {}
    skipped: dict[str, str] = {}
    command = " ".join(["python -m bench", *words])
    for name, measure in parts.items():
        if name in NEEDS_WRK and shutil.which("wrk") is None:
            skipped[name] = "the load generator wrk is missing; as root: apt-get install wrk"
            continue
        progress(f"{name}: begins")
        folder = scratch / name
        folder.mkdir()
        taken = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        machine = describe()
        redis = uvloop.run(_redis(folder / "asked", find_server() if name in NEWEST else operators_server()))
        figures, details = uvloop.run(measure(folder))
        runs[name] = Run(taken, command, machine, redis, figures, details)
    return runs, skipped


async def _redis(folder: Path, binary: Path) -> dict[str, str]:
    with redis_server(folder, {}, binary=binary) as server:
        async with open_store(server.url) as store:
            told = await info(store, "server") | await info(store, "memory")
    names = ("server_name", "valkey_version", "redis_version", "mem_allocator", "os")
    return {name: told[name] for name in names if name in told}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        os.sched_setaffinity(0, ALL_CORES)

"""Install, start, measure, kill; write the JSON file and the tables."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import uvloop

from bench.figures import Run, progress, write
from bench.machine import ALL_CORES, CORES, describe, others_busy
from bench.peers import measuring, report
from bench.peers.installing import HERE, INSTALLED, NotInstallableError
from bench.peers.measuring import Site
from bench.peers.surviving import survivals
from bench.peers.systems import System, running, systems
from bench.processes import operators_server
from sessions_api.telemetry import logs

ROUNDS = 5
SECONDS = 0.5


def main(words: list[str]) -> int:
    args = _arguments(words)
    known = systems()
    chosen = args.only.split(",") if args.only else list(known)
    if unknown := set(chosen) - set(known):
        print(f"no such system: {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    logs.configure("warning", "console")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every `finally`
    missing: dict[str, str] = {}
    found: list[System] = []
    for word in chosen:
        try:
            found.append(known[word]())
        except NotInstallableError as error:
            missing[word] = f"not installed: {error}"
    if args.install:
        return _end(missing)
    os.sched_setaffinity(0, {CORES.load})  # and all that is started here, unless it is told otherwise
    if busy := others_busy():
        print(busy)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sessions-peers-") as scratch:
        run = _measure(found, Path(scratch), args, words, missing)
    out = args.out or INSTALLED / "last.json"
    for path in [out, *([HERE / "results.json"] if args.publish else [])]:
        write(path, {"peers": run})
        path.with_suffix(".md").write_text(report.markdown(run))
    print(report.markdown(run))
    print(f"wrote {out}; {time.monotonic() - started_s:.0f} s")
    return _end(missing)


def _end(missing: dict[str, str]) -> int:
    """1 if a system that was asked for is missing: the table would not say what it is thought to."""
    for name, why in missing.items():
        print(f"\nMISSING {name}: {why}", file=sys.stderr)
    return 1 if missing else 0


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--only", metavar="SYSTEMS", help=f"comma-separated: {', '.join(systems())}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each comparison ({ROUNDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of load in each round ({SECONDS:g})")
    parser.add_argument("--install", action="store_true", help="install the peers, and no more")
    parser.add_argument("--no-kill", action="store_true", help="leave out what survives a SIGKILL")
    parser.add_argument(
        "--publish", action="store_true", help="also into bench/peers/results.json and results.md"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where the JSON goes, and the tables beside it"
    )
    return parser.parse_args(words)


def _measure(
    found: list[System], scratch: Path, args: argparse.Namespace, words: list[str], missing: dict[str, str]
) -> Run:
    taken = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    machine = describe()
    sites: list[Site] = []
    with ExitStack() as stack:
        for number, system in enumerate(found):
            progress(f"{system.name}: starting")
            try:
                sites.append(Site(system, stack.enter_context(running(system, scratch / f"load-{number}"))))
            except RuntimeError as error:
                missing[system.name] = f"not started: {error}"
        missing |= uvloop.run(measuring.run(sites, rounds=args.rounds, seconds=args.seconds))
    sites = [site for site in sites if site.system.name not in missing]
    survived = {} if args.no_kill else survivals([site.system for site in sites], scratch)
    machine |= {"rounds": args.rounds, "seconds": args.seconds}
    machine["load_average_after"] = [round(value, 2) for value in os.getloadavg()]
    told = {site.system.name: report.told(site, survived.get(site.system.name)) for site in sites}
    command = " ".join(["python -m bench.peers", *words])
    return Run(
        taken,
        command,
        machine,
        _redis(),
        report.figures(told),
        report.details(told, missing),
    )


def _redis() -> dict[str, str]:
    """``Valkey server v=9.1.2 …``, in the words of INFO."""
    told = subprocess.run([str(operators_server()), "--version"], capture_output=True, text=True, check=True)
    name, _, version = told.stdout.lower().split()[:3]
    return {"server_name": name, f"{name}_version": version.removeprefix("v=")}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        os.sched_setaffinity(0, ALL_CORES)

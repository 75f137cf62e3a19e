"""``make chaos``: random faults against real processes, and a checker of all that was promised meanwhile.

    make chaos                                   # seeds 1 to 100
    make chaos C="--seed 17"                     # one of them again
    make chaos C="--seeds 1-20 --seconds 10"
    make chaos C="--schedule .chaos/seed-17/schedule.json"

Each schedule has a world of its own: 2 to 4 replicas of ``sessions-api serve``,
two worker processes of the SDK, a webhook, and a Redis behind a proxy for each
replica (``world.py``). Eight people create sessions, talk, follow, renew, cancel
and delete, and write down all that they are told (``clients.py``, ``visits.py``,
``followers.py``); meanwhile faults happen to everything (``schedule.py`` draws
them from the seed, ``faults.py`` does them). When all is mended and quiet, every
session is read back (``reading.py``) and compared with what everybody was told
(``checker.py``). A schedule that broke a promise leaves itself, its history and
the logs of its processes in ``.chaos/seed-N``; the others leave counts.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

import uvloop

from tests.chaos import report
from tests.chaos.run import Outcome, run
from tests.chaos.schedule import TOPOLOGIES, Schedule, draw, read

SECONDS = 6.0


def main(words: list[str]) -> int:
    args = _arguments(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every `finally`
    args.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    began_s = time.monotonic()
    for schedule in _schedules(args):
        print(schedule, flush=True)
        outcomes.append(_done(schedule, args.out))
        report.write(args.out / "last.json", report.as_json(outcomes, _told(args, words)))
    body = report.as_json(outcomes, _told(args, words))
    print(f"\n{report.table(body)}\n\n{time.monotonic() - began_s:.0f} s; wrote {args.out / 'last.json'}")
    if args.publish:
        report.publish(body)
    broken = [outcome.schedule for outcome in outcomes if outcome.violations]
    for schedule in broken:
        print(f'again: make chaos C="--schedule {args.out}/seed-{schedule.seed}/schedule.json"')
    return 1 if broken else 0


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", default="1-100", help="a range of seeds: 1-100")
    which.add_argument("--seed", type=int, help="one seed")
    which.add_argument("--schedule", type=Path, help="a schedule that a failed run left")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of load and faults ({SECONDS:g})")
    parser.add_argument("--topology", choices=TOPOLOGIES, default="single")
    parser.add_argument(
        "--replicated", action="store_true", help="SESSIONS_DURABILITY=replicated; not with single"
    )
    parser.add_argument("--out", type=Path, default=Path(".chaos"), help="folder of the results")
    parser.add_argument("--publish", action="store_true", help="put the counts into docs/faults.md")
    args = parser.parse_args(words)
    if args.replicated and args.topology == "single":
        parser.error("--replicated wants --topology sentinel or cluster: one server has no replicas")
    return args


def _told(args: argparse.Namespace, words: list[str]) -> list[str]:
    """What of the command line decides what is run: not where the results go."""
    return [word for word in words if word not in {"--publish", "--out", str(args.out), f"--out={args.out}"}]


def _schedules(args: argparse.Namespace) -> list[Schedule]:
    if args.schedule is not None:
        return [read(args.schedule)]
    first, _, last = (str(args.seed) if args.seed is not None else args.seeds).partition("-")
    seeds = range(int(first), int(last or first) + 1)
    return [
        draw(seed, seconds=args.seconds, topology=args.topology, is_replicated=args.replicated)
        for seed in seeds
    ]


def _done(schedule: Schedule, out: Path) -> Outcome:
    """Run it; what it leaves stays only where a promise was broken."""
    folder = out / f"seed-{schedule.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    schedule.write(folder / "schedule.json")
    began_s = time.monotonic()
    outcome = uvloop.run(run(schedule, folder))
    for violation in outcome.violations[:10]:
        print(f"  VIOLATION {violation}")
    counts = outcome.counts
    print(
        f"  {time.monotonic() - began_s:.0f} s, {counts['acknowledged']} acknowledged, {counts['503']} 503s, "
        f"{counts['expired']} expired, {len(outcome.violations)} violations",
        flush=True,
    )
    if outcome.violations:
        outcome.write(folder)
    else:
        shutil.rmtree(folder)
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

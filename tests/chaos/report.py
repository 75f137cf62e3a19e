"""What a run was and what came of it: as JSON, as a table on the terminal, and in docs/faults.md."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.machine import code
from tests.chaos.history import Struck
from tests.chaos.run import Outcome
from tests.chaos.schedule import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
COUNTS = {
    "sessions": "created",
    "requests": "sent, each with its reply or its absence noted",
    "messages": "said, each under an idempotency key",
    "acknowledged": "of these; the others met the end of their session or a busy one",
    "retries": "further tries until then",
    "replays": "acknowledged messages sent once more, on purpose",
    "503": "with `Retry-After`",
    "no reply": "from a replica that was killed, stopped or away",
    "given up": "requests that the client cancelled in mid-flight",
    "followers": "by SSE and WebSocket",
    "reconnects": "with a cursor",
    "events": "heard by followers",
    "gaps": "told to followers",
    "warnings": "heard",
    "expired": "sessions",
    "deleted": "sessions",
}
CALM = "none"
Body = dict[str, Any]


def as_json(outcomes: Sequence[Outcome], words: Sequence[str]) -> Body:
    return {
        "command": " ".join(["make chaos", *([f'C="{" ".join(words)}"'] if words else [])]),
        "taken": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"code {code()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}",
        "schedules": [_line(outcome) for outcome in outcomes],
    }


def _line(outcome: Outcome) -> Body:
    return {
        "seed": outcome.schedule.seed,
        "setting": outcome.schedule.setting,
        "replicas": outcome.schedule.replicas,
        "counts": dict(outcome.counts),
        "faults": dict(outcome.faults),
        "endsToldMs": sorted(lag.late_ms for lag in outcome.lags),
        "endsToldMsDuring": _by_fault((lag.late_ms, lag.faults, not lag.faults) for lag in outcome.lags),
        "acknowledgedMs": sorted(stall.took_ms for stall in outcome.stalls),
        "acknowledgedMsDuring": _by_fault(outcome.stalls),
        "violations": [str(violation) for violation in outcome.violations],
    }


def _by_fault(times: Iterable[tuple[int, list[Struck], bool]]) -> dict[str, list[int]]:
    """Milliseconds by the kinds of fault that were about then."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for time_ms, faults, is_calm in times:
        for kind in {CALM} if is_calm else {struck.kind for struck in faults}:
            found[kind].append(time_ms)
    return {kind: sorted(times_ms) for kind, times_ms in found.items()}


def table(body: Body) -> str:
    """For the terminal: what there was of everything, and which kinds of fault it went through."""
    counts, faults, violations = _sums(body)
    lines = [f"{'schedules':<20}{len(body['schedules']):>10}"]
    lines += [f"{name:<20}{counts[name]:>10}  {what.replace('`', '')}" for name, what in COUNTS.items()]
    lines += [f"{name:<20}{count:>10}  {told}" for name, count, told in _lateness(body)]
    lines += ["", "faults"]
    lines += [f"  {name:<18}{faults[name]:>10}  {KINDS[name].what}" for name in KINDS if faults[name]]
    lines += ["", f"{'':<20}{'acknowledged after ms':>26}{'told of an end, ms late':>26}"]
    lines += [f"{'fault under way':<20}" + f"{'p50':>10}{'p99':>8}{'max':>8}" * 2]
    for name, _, acknowledged, told in _during(body):
        cells = "".join(
            f"{p50:>10}{p99:>8}{longest:>8}" for p50, p99, longest in map(_spread, (acknowledged, told))
        )
        lines.append(f"  {name:<18}{cells}")
    lines += ["", f"{'violations':<20}{violations.total():>10}"]
    lines += [f"  {name:<18}{count:>10}" for name, count in violations.most_common()]
    return "\n".join(lines)


def publish(body: Body) -> None:
    """Write the counts of a run into the page, in place of the last ones of its setting."""
    setting = body["schedules"][0]["setting"]
    block = re.compile(rf"(<!-- counts: {setting} -->\n).*?(<!-- end -->)", re.DOTALL)
    PAGE.write_text(block.sub(lambda found: found[1] + _block(body) + found[2], PAGE.read_text()))


def _block(body: Body) -> str:
    counts, faults, violations = _sums(body)
    lines = [
        f"`{body['command']}`, {body['taken']}: {body['machine']}",
        "",
        "| | | |",
        "|---|---:|---|",
        f"| schedules | {len(body['schedules'])} | |",
        f"| **violations** | **{violations.total()}** | {_listed(violations)} |",
    ]
    lines += [f"| {name} | {counts[name]:,} | {what} |" for name, what in COUNTS.items()]
    lines += [f"| {name} | {count:,} | {told} |" for name, count, told in _lateness(body)]
    lines += [
        f"| faults | {faults.total()} | |",
        "",
        "| fault under way | times | messages | ms p50 | p99 | max | ends | ms p50 | p99 | max |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, times, acknowledged, told in _during(body):
        cells = (
            f"{times or ''}",
            f"{len(acknowledged):,}",
            *_spread(acknowledged),
            f"{len(told):,}",
            *_spread(told),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _listed(counts: Counter[str]) -> str:
    return " · ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _sums(body: Body) -> tuple[Counter[str], Counter[str], Counter[str]]:
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    violations: Counter[str] = Counter()
    for schedule in body["schedules"]:
        counts.update(schedule["counts"])
        faults.update(schedule["faults"])
        violations.update(each.partition(":")[0] for each in schedule["violations"])
    return counts, faults, violations


def _lateness(body: Body) -> list[tuple[str, int, str]]:
    """How long acknowledgements took, and how late followers heard of an end, by this machine's clock."""
    rows = []
    for name, key, what in (
        ("acknowledged after", "acknowledgedMs", "from the first try, those that did not wait for an answer"),
        ("told of an end", "endsToldMs", "after it"),
    ):
        times_ms = sorted(time_ms for schedule in body["schedules"] for time_ms in schedule[key])
        p50, p99, longest = _spread(times_ms)
        rows.append(
            (name, len(times_ms), f"p50 {p50} ms, p99 {p99} ms, max {longest} ms {what}" if times_ms else "")
        )
    return rows


def _during(body: Body) -> Iterator[tuple[str, int, list[int], list[int]]]:
    """Of none, then each kind of fault: how often it was, how long messages took, how late ends were told."""
    _, faults, _ = _sums(body)
    for kind in (CALM, *sorted(faults)):
        acknowledged, told = (
            sorted(time_ms for schedule in body["schedules"] for time_ms in schedule[key].get(kind, ()))
            for key in ("acknowledgedMsDuring", "endsToldMsDuring")
        )
        yield kind, faults[kind], acknowledged, told


def _spread(times_ms: Sequence[int]) -> tuple[str, str, str]:
    """Median, 99th percentile and longest; of none nothing."""
    if not times_ms:
        return "", "", ""
    return f"{percentile(times_ms, 0.5):,}", f"{percentile(times_ms, 0.99):,}", f"{times_ms[-1]:,}"


def percentile(ordered: Sequence[int], share: float) -> int:
    """Nearest rank, of one at least."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def write(path: Path, body: Body) -> None:
    path.write_text(json.dumps(body, indent=1) + "\n")

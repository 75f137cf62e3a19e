"""What a run was and what came of it: as JSON, as a table on the terminal, and in docs/faults.md."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
Body = dict[str, Any]


def as_json(outcomes: Sequence[Outcome], words: Sequence[str]) -> Body:
    return {
        "command": " ".join(["make chaos", *([f'C="{" ".join(words)}"'] if words else [])]),
        "taken": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "schedules": [_line(outcome) for outcome in outcomes],
    }


def _line(outcome: Outcome) -> Body:
    return {
        "seed": outcome.schedule.seed,
        "topology": outcome.schedule.topology,
        "replicas": outcome.schedule.replicas,
        "counts": dict(outcome.counts),
        "faults": dict(outcome.faults),
        "expiryLagsMs": sorted(lag.late_ms for lag in outcome.lags),
        "expiryLagsMsWithoutFault": sorted(lag.late_ms for lag in outcome.lags if not lag.faults),
        "violations": [str(violation) for violation in outcome.violations],
    }


def table(body: Body) -> str:
    """For the terminal: what there was of everything, and which kinds of fault it went through."""
    counts, faults, violations = _sums(body)
    lines = [f"{'schedules':<20}{len(body['schedules']):>10}"]
    lines += [f"{name:<20}{counts[name]:>10}  {what.replace('`', '')}" for name, what in COUNTS.items()]
    lines += [f"{name:<20}{count:>10}  {told}" for name, count, told in _lateness(body)]
    lines += ["", "faults"]
    lines += [f"  {name:<18}{faults[name]:>10}  {KINDS[name].what}" for name in KINDS if faults[name]]
    lines += ["", f"{'violations':<20}{violations.total():>10}"]
    lines += [f"  {name:<18}{count:>10}" for name, count in violations.most_common()]
    return "\n".join(lines)


def publish(body: Body) -> None:
    """Write the counts of a run into the page, in place of the last ones of its topology."""
    topology = body["schedules"][0]["topology"]
    block = re.compile(rf"(<!-- counts: {topology} -->\n).*?(<!-- end -->)", re.DOTALL)
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
    lines += [f"| {name.strip()} | {count:,} | {told} |" for name, count, told in _lateness(body)]
    lines += [f"| faults | {faults.total()} | {_listed(faults)} |"]
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
    """How late followers heard of an end, by this machine's clock; then those with no fault about."""
    rows = []
    for name, key in (("told of an end", "expiryLagsMs"), ("  without a fault", "expiryLagsMsWithoutFault")):
        late_ms = sorted(lag_ms for schedule in body["schedules"] for lag_ms in schedule[key])
        rows.append((name, len(late_ms), _spread(late_ms) if late_ms else ""))
    return rows


def _spread(late_ms: Sequence[int]) -> str:
    p50, p99 = (percentile(late_ms, share) for share in (0.5, 0.99))
    return f"p50 {p50} ms, p99 {p99} ms, max {late_ms[-1]} ms after it"


def percentile(ordered: Sequence[int], share: float) -> int:
    """Nearest rank, of one at least."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def write(path: Path, body: Body) -> None:
    path.write_text(json.dumps(body, indent=1) + "\n")

"""What an operator plans by: the tables under *Sizing* in docs/operations.md, from the published figures.

``python -m bench.sizing`` shows them; publishing puts them into the page, and a
test compares it with the figures. Every number there is a measured cost, or a
product of such costs whose factors stand beside it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from bench.figures import Run, read, shown

PAGE: Final = Path(__file__).parents[1] / "docs" / "operations.md"
PUBLISHED: Final = Path(__file__).parent / "results" / "published.json"
_BLOCK: Final = re.compile(r"(<!-- sizing: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

PRIMARIES: Final = 64
"""No more are of use: that many partitions there are."""
BUSY: Final = 0.6
"""Share of a core that is planned for; the rest is for peaks and for a lost neighbour's work."""
PRIMARY_GB: Final = 24
"""Of sessions on one primary: a fork or a full copy of more takes too long."""
DELTAS: Final = 2
"""Of a turn, as it was measured."""


class Costs(NamedTuple):
    """What was measured: bytes of Redis; microseconds of CPU of Redis and of the service."""

    idle: float
    ended: float
    first: float
    answer: float
    further: float
    create: tuple[float, float]
    read: tuple[float, float]
    beat: tuple[float, float]
    history: tuple[float, float]
    turn: tuple[float, float]
    delta: tuple[float, float]
    follower: float
    alarm: float


class Use(NamedTuple):
    """How people use it; minutes, and counts for each session."""

    name: str
    life: float
    retention: float
    turns: int
    deltas: int


USES: Final = (
    Use("A support chat: 10 minutes of talk and 30 of silence", 40, 60, 5, 20),
    Use("A companion: a session a day, five turns in it", 1440, 60, 5, 20),
)
SIZES: Final = (1_000_000, 10_000_000, 100_000_000)


def costs(runs: dict[str, Run]) -> Costs:
    """Of the published figures; KeyError names one that is missing."""

    def figure(part: str, what: str) -> Any:
        for each in runs[part].figures:
            if each.what == what:
                return each
        raise KeyError(f"{part}: {what}")

    def of_request(what: str) -> tuple[float, float]:
        rounds: Any = runs["http"].details[what]
        return median(rounds["redis_cpu_us"]), median(each["cpu_us"] for each in rounds["ours"])

    def noted(pattern: str, note: str) -> list[float]:
        found = re.search(pattern, note)
        if found is None:
            raise KeyError(f"{pattern} in {note!r}")
        return [float(word.replace(",", "")) for word in found.groups()]

    per_turn = noted(
        r"a turn: ([\d,]+) µs of the replica, ([\d,]+) µs of Redis",
        figure("agents", "messages answered by a worker").note,
    )
    per_delta = noted(
        r"Redis ([\d,]+) .*the worker's replica ([\d,]+), the followers' ([\d,]+)",
        figure("agents", "with 1 followers on another replica").note,
    )
    crowd = noted(r"the followers' ([\d,]+)", figure("agents", "with 100 followers on another replica").note)
    expiring = noted(r"([\d.]+) µs of Redis", figure("scripts", "alarm, expiring").note)
    return Costs(
        idle=figure("memory", "idle session, 1,000,000, deployed").value,
        ended=figure("memory", "ended session, 1,000,000, deployed").value,
        first=figure("memory", "first message, deployed").value,
        answer=figure("memory", "its answer, deployed").value,
        further=figure("memory", "each further message, deployed").value,
        create=of_request("create session"),
        read=of_request("GET session"),
        beat=of_request("heartbeat"),
        history=of_request("GET 50 messages"),
        turn=(per_turn[1], per_turn[0]),
        delta=(per_delta[0], per_delta[1] + per_delta[2]),
        follower=crowd[0] / 100,
        alarm=expiring[0],
    )


def measured(runs: dict[str, Run]) -> Iterator[str]:
    """The table of costs."""
    c = costs(runs)
    yield "| what | Redis memory | Redis CPU | service CPU | part of the bench |"
    yield "|---|---:|---:|---:|---|"
    rows: list[tuple[str, float, float, float, str]] = [
        ("a live session, 100 bytes of metadata", c.idle, 0, 0, "memory"),
        ("its first message, with the log that begins", c.first, 0, 0, "memory"),
        ("the answer to it", c.answer, 0, 0, "memory"),
        ("each further message, question or answer", c.further, 0, 0, "memory"),
        ("an ended session, until its retention is over (its log stays as well)", c.ended, 0, 0, "memory"),
        ("create", 0, *c.create, "http"),
        ("read a session", 0, *c.read, "http"),
        ("heartbeat", 0, *c.beat, "http"),
        ("read 50 messages", 0, *c.history, "http"),
        (f"a message and its turn by a worker: claim, {DELTAS} deltas, completion", 0, *c.turn, "agents"),
        ("each further delta, with one follower on another replica", 0, *c.delta, "agents"),
        ("each further follower of a delta", 0, 0, c.follower, "agents"),
        ("a warning, an end", 0, c.alarm, 0, "scripts"),
    ]
    for what, memory, redis_us, ours_us, part in rows:
        cells = (f"{memory:,.0f} B" if memory else "", _us(redis_us), _us(ours_us))
        yield f"| {what} | {' | '.join(cells)} | `{part}` |"
    machine = runs["http"].machine
    yield ""
    where = f"{machine['cores']} × {machine['cpu']}"
    yield f"On {where}; [performance.md](performance.md) has each part's command, date and load."


def planned(runs: dict[str, Run]) -> Iterator[str]:
    """Each use at each size, then what the largest cluster takes."""
    c = costs(runs)
    for use in USES:
        log = c.first + c.answer + (2 * use.turns - 2) * c.further
        ended = use.retention / use.life
        each = c.idle + log + ended * (c.ended + log)
        more = use.deltas - DELTAS
        redis_us = c.create[0] + use.turns * (c.turn[0] + more * c.delta[0]) + 2 * c.alarm
        ours_us = c.create[1] + use.turns * (c.turn[1] + more * c.delta[1])
        messages = f"{c.first:,.0f} + {c.answer:,.0f} + {2 * use.turns - 2} × {c.further:,.0f}"
        yield f"**{use.name}**, {use.turns} turns of {use.deltas} deltas, one follower."
        yield ""
        yield f"- its log: {messages} = {log:,.0f} B"
        yield (
            f"- memory for each live one: {c.idle:,.0f} + {log:,.0f}, and {ended:.2g} ended ones "
            f"({use.retention:g} min of {use.life:g}) of {c.ended:,.0f} + {log:,.0f} = **{each:,.0f} B**"
        )
        yield (
            f"- Redis for each: {_sum(c.create[0], use.turns, c.turn[0], more, c.delta[0])} + "
            f"2 × {c.alarm:,.0f} = **{redis_us / 1000:,.1f} ms**; the service: "
            f"{_sum(c.create[1], use.turns, c.turn[1], more, c.delta[1])} = **{ours_us / 1000:,.1f} ms**"
        )
        yield ""
        yield "| live | created/s | turns/s | memory | Redis cores | primaries | service cores | workers |"
        yield "|---:|---:|---:|---:|---:|---:|---:|---:|"
        for live in SIZES:
            per_s = live / use.life / 60
            memory_gb, cores, ours = live * each / 1e9, per_s * redis_us / 1e6, per_s * ours_us / 1e6
            primaries = max(1, ceil(memory_gb / PRIMARY_GB), ceil(cores / BUSY))
            many = f"{primaries:,}" if primaries <= PRIMARIES else f"{primaries:,}: too many"
            workers = max(2, ceil(ours / BUSY))
            cells = (
                f"{live:,}", f"{per_s:,.0f}", f"{per_s * use.turns:,.0f}", f"{memory_gb:,.0f} GB",
                f"{cores:,.1f}", many, f"{ours:,.1f}", f"{workers:,}",
            )  # fmt: skip
            yield f"| {' | '.join(cells)} |"
        most = min(PRIMARIES * PRIMARY_GB * 1e9 / each, PRIMARIES * BUSY * use.life * 60 * 1e6 / redis_us)
        yield ""
        yield f"{PRIMARIES} primaries take {shown(most / 1e6)} million of them."
        yield ""


def _sum(create: float, turns: int, turn: float, more: int, delta: float) -> str:
    return f"{create:,.0f} + {turns} × ({turn:,.0f} + {more} × {delta:,.0f})"


def _us(number: float) -> str:
    return f"{number:,.0f} µs" if number else ""


def filled(text: str, runs: dict[str, Run]) -> str:
    """*text* with its blocks written anew."""
    blocks = {"measured": measured, "planned": planned}

    def block(found: re.Match[str]) -> str:
        return found[1] + "\n".join(blocks[found[2]](runs)).rstrip() + "\n" + found[3]

    return _BLOCK.sub(block, text)


def write(runs: dict[str, Run]) -> None:
    """Put the tables into the page."""
    PAGE.write_text(filled(PAGE.read_text(), runs))


def main() -> int:
    runs = read(PUBLISHED)
    print("\n".join([*measured(runs), "", *planned(runs)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

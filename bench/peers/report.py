"""The figures against their budgets, and the tables that a reader sees."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import median

import msgspec

from bench.figures import Figure, Run, shown
from bench.peers.measuring import CONNECTIONS, KINDS, Round, Site
from bench.peers.surviving import Left, Survival
from bench.peers.systems import ADK_IN_MEMORY, ELIZAOS, EXPRESS, OURS

FEW, MANY = CONNECTIONS
BUDGETS = {"send": 10.0, "create": 4.0, "get": 4.0}
"""At many connections, beside a peer that asks its storage for it (docs/adr/0019)."""
AHEAD = 1.0
"""The budget of all other work."""
FROM_MEMORY: Mapping[str, Collection[str]] = {
    EXPRESS: KINDS,
    ADK_IN_MEMORY: KINDS,
    ELIZAOS: ("create", "get"),
}
"""The work for which a peer asks its own process's memory alone."""
SATURATED = 0.9
ANSWERED = ("send", "stream")
_NOTES = (
    "CPU: of all processes of the system, Redis included, at 32 connections. † the load's core was more"
    " than 90 % busy: the system may do more. ‡ connections broke before their answer; the file has how many."
)


class Told(msgspec.Struct, frozen=True):
    """A system's part of the file."""

    version: str
    mode: str
    rss_mb: tuple[float, float]
    """When it had started, and when all rounds were over."""
    survived: Survival | None
    rounds: dict[str, dict[str, list[Round]]]
    """By kind of work and number of connections."""

    def taken(self, kind: str, connections: int) -> list[Round]:
        return self.rounds[kind][str(connections)]


def told(site: Site, survived: Survival | None) -> Told:
    rounds = {kind: {str(number): taken for number, taken in by.items()} for kind, by in site.rounds.items()}
    sizes = (round(site.started_mb), round(site.grown_mb))
    return Told(site.system.version, site.system.mode, sizes, survived, rounds)


def figures(systems: Mapping[str, Told]) -> list[Figure]:
    """How many times as much we do in the same time as each peer, round by round."""
    if OURS not in systems:
        return []
    return [
        _figure(systems[OURS], name, system, kind, connections)
        for kind in KINDS
        for name, system in systems.items()
        if name != OURS
        for connections in CONNECTIONS
    ]


def _figure(ours: Told, name: str, peer: Told, kind: str, connections: int) -> Figure:
    mine, theirs = ours.taken(kind, connections), peer.taken(kind, connections)
    return Figure(
        f"Peers: {KINDS[kind]}",
        f"{name}, {_connections(connections)}",
        _faster(mine, theirs),
        "×",
        budget=_budget(name, kind, connections),
        is_floor=True,
        note=f"{_per_s(mine):,.0f}/s to {_per_s(theirs):,.0f}/s;"
        f" CPU {_cpu_us(mine):,.0f} µs to {_cpu_us(theirs):,.0f} µs",
    )


def _budget(name: str, kind: str, connections: int) -> float | None:
    """None: what a turn takes here, in steps that outlive a process, is one call of a function there."""
    if name == EXPRESS and kind in ANSWERED:
        return None
    if connections == MANY and kind not in FROM_MEMORY.get(name, ()):
        return BUDGETS.get(kind, AHEAD)
    return AHEAD


def details(systems: Mapping[str, Told], missing: Mapping[str, str]) -> dict[str, object]:
    return {"systems": dict(systems), "missing": dict(missing)}


# ---------------------------------------------------------------- the page


def markdown(run: Run) -> str:
    """The tables of a run; the same from its file."""
    plain = msgspec.to_builtins(run.details)
    systems = msgspec.convert(plain["systems"], type=dict[str, Told])
    lines = [_where(run), ""]
    for kind, title in KINDS.items():
        lines += [f"### {title[0].upper()}{title[1:]}", "", *_table(systems, kind), ""]
    lines += [f"{_NOTES}\n"]
    lines += ["### What they are, and what is left of them", "", *_standing(systems), ""]
    lines += ["### Budgets", "", *_budgets(run.figures), ""]
    lines += [f"MISSING {name}: {why}\n" for name, why in plain["missing"].items()]
    return "\n".join(lines)


def _where(run: Run) -> str:
    machine = run.machine
    return (
        f"`{run.command}`, {run.taken[:10]}: {machine['cores']} × {machine['cpu']},"
        f" {machine['memory_gb']} GB, {machine['system']}, Python {machine['python']},"
        f" {' '.join(run.redis.values())}; load averages {machine['load_average']} before"
        f" and {machine['load_average_after']} after."
        f" Medians of {machine['rounds']} rounds of {machine['seconds']} s, in alternation."
    )


def _table(systems: Mapping[str, Told], kind: str) -> list[str]:
    times = "p50, p99 ms"
    heads = [f"requests/s, {FEW}", times, f"requests/s, {MANY}", times, "CPU µs a request"]
    heads += [f"we are faster, {FEW}", f"{MANY}", "and cheaper"]
    lines = [_row("", *heads), "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    ours = systems.get(OURS)
    for name, system in systems.items():
        few, many = system.taken(kind, FEW), system.taken(kind, MANY)
        cells = [name]
        for taken in (few, many):
            busy = median(round_.load_busy for round_ in taken)
            mark = " †" if busy > SATURATED else ""
            mark += " ‡" if any(round_.broken for round_ in taken) else ""
            cells += [
                f"{shown(_per_s(taken))}{mark}",
                f"{_median(taken, 'p50_ms')}, {_median(taken, 'p99_ms')}",
            ]
        cells.append(f"{_cpu_us(many):,.0f}")
        if ours is not None and system is not ours:
            cells += [
                f"{shown(_faster(ours.taken(kind, number), system.taken(kind, number)))} ×"
                for number in CONNECTIONS
            ]
            cells.append(f"{shown(_cpu_us(many) / _cpu_us(ours.taken(kind, MANY)))} ×")
        else:
            cells += ["", "", ""]
        lines.append(_row(*cells))
    return lines


def _standing(systems: Mapping[str, Told]) -> list[str]:
    heads = ["version", "how it runs, what it keeps where", "MB at the start, at the end"]
    heads += ["left by SIGKILL of what ended 12 s before", "of what was answered just before"]
    lines = [_row("", *heads), "|---|---|---|---:|---|---|"]
    for name, system in systems.items():
        left = system.survived
        sizes = ", ".join(f"{size:,.0f}" for size in system.rss_mb)
        kept = (_left(left.settled), _left(left.last)) if left else ("", "")
        lines.append(_row(name, system.version, system.mode, sizes, *kept))
    return lines


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _left(left: Left) -> str:
    parts = {"session": left.session, "message": left.question, "answer": left.answer}
    if all(parts.values()):
        return "all"
    return ", ".join(name for name, is_left in parts.items() if is_left) or "nothing"


def _budgets(found: Sequence[Figure]) -> list[str]:
    bound = [figure for figure in found if figure.budget is not None]
    short = [figure for figure in bound if figure.verdict == "short"]
    lines = [f"{len(bound) - len(short)} of {len(bound)} met."]
    lines += [
        f"- **short**: {figure.part.removeprefix('Peers: ')}, {figure.what}: {shown(figure.value)} ×"
        f" of {figure.bound}; {figure.note}"
        for figure in short
    ]
    return lines


def _connections(number: int) -> str:
    return f"{number} connection" if number == 1 else f"{number} connections"


def _faster(mine: Sequence[Round], theirs: Sequence[Round]) -> float:
    return median(one.per_s / other.per_s for one, other in zip(mine, theirs, strict=True))


def _per_s(taken: Sequence[Round]) -> float:
    return median(round_.per_s for round_ in taken)


def _cpu_us(taken: Sequence[Round]) -> float:
    return median(round_.cpu_us for round_ in taken)


def _median(taken: Sequence[Round], name: str) -> str:
    return shown(median(getattr(round_, name) for round_ in taken))

"""Puts the published figures into docs/performance.md, between the marks that name a part."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from bench import plots
from bench.figures import Figure, Run, shown

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write(runs: dict[str, Run]) -> None:
    PAGE.write_text(filled(PAGE.read_text(), runs))


def filled(text: str, runs: dict[str, Run]) -> str:
    """*text* with each part's block written anew: its plots and its tables."""
    pictures: dict[str, list[str]] = defaultdict(list)
    for plot, _ in plots.shown(runs).values():
        pictures[plot.part].append(plot.link)

    def block(found: re.Match[str]) -> str:
        part = found[2]
        if part not in runs:
            return f"{found[1]}Not published yet: `python -m bench --only {part}` measures it.\n{found[3]}"
        return found[1] + _block(runs[part], pictures[part]) + found[3]

    return _BLOCK.sub(block, text)


def _block(run: Run, pictures: list[str]) -> str:
    redis = " ".join(run.redis[name] for name in ("server_name", "valkey_version") if name in run.redis)
    server = redis or f"redis {run.redis.get('redis_version')}"
    server += f" ({run.redis['mem_allocator']})" if "mem_allocator" in run.redis else ""
    cores, cpu, python, load = (run.machine[name] for name in ("cores", "cpu", "python", "load_average"))
    code = f"code {commit}, " if (commit := run.machine.get("code")) else ""
    machine = f"{code}{cores} × {cpu}, Python {python}, {server}; load averages before it: {load}"
    lines = [
        f"`{run.command}`, {run.taken[:10]}: {machine}",
        "",
        *(line for picture in pictures for line in (picture, "")),
    ]
    part = ""
    for figure in run.figures:
        if figure.part != part:
            part = figure.part
            lines += [] if lines[-1] == "" else [""]
            lines += [f"| {part} | | budget | | |", "|---|---:|---:|---|---|"]
        lines.append(_row(figure))
    return "\n".join(lines) + "\n"


def _row(figure: Figure) -> str:
    value = f"{shown(figure.value)} {figure.unit}".rstrip()
    verdict = "**short**" if figure.verdict == "short" else figure.verdict
    return f"| {figure.what} | {value} | {figure.bound} | {verdict} | {figure.note} |"

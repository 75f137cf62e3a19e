"""Figures with their budgets: the table on the terminal and the JSON file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Literal

import msgspec

PUBLISHED = Path(__file__).parent / "results" / "published.json"


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measured value; *budget*, where there is one, is its floor or its ceiling."""

    part: str
    what: str
    value: float
    unit: str = ""
    budget: float | None = None
    is_floor: bool = False
    note: str = ""

    @property
    def verdict(self) -> Literal["met", "short", ""]:
        if self.budget is None:
            return ""
        return (
            "met" if (self.value >= self.budget if self.is_floor else self.value <= self.budget) else "short"
        )

    @property
    def bound(self) -> str:
        """The budget, as people write it; empty where there is none."""
        return "" if self.budget is None else f"{'≥' if self.is_floor else '≤'} {shown(self.budget)}"


class Run(msgspec.Struct, frozen=True):
    """One part, measured: when and where, its figures, and what lay behind them."""

    taken: str
    command: str
    machine: dict[str, object]
    redis: dict[str, str]
    figures: list[Figure]
    details: dict[str, object]


def read(path: Path) -> dict[str, Run]:
    """The runs in a file, by part; none if there is no such file."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Run]) if path.exists() else {}


def write(path: Path, runs: dict[str, Run]) -> None:
    """Keep *runs* in a file; parts that were not run now stay as they were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {**read(path), **runs}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")


def progress(text: str) -> None:
    """A sign of life, apart from the table."""
    print(f"· {text}", file=sys.stderr, flush=True)


def table(figures: list[Figure]) -> str:
    """All figures under the names of their parts."""
    lines: list[str] = []
    width = max((len(figure.what) for figure in figures), default=0)
    part = ""
    for figure in figures:
        if figure.part != part:
            part = figure.part
            lines += ["", f"{part}"]
        value = f"{shown(figure.value)} {figure.unit}".rstrip()
        row = f"  {figure.what:<{width}}  {value:>14}  {figure.bound:>9}  {figure.verdict:<5}  {figure.note}"
        lines.append(row.rstrip())
    return "\n".join(lines)


def shown(value: float) -> str:
    """Three digits that matter."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


PERCENTILES = (0, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
"""Those that are kept for plots."""


def percentile(values: Sequence[float], percent: float) -> float:
    """What *percent* of *values* do not exceed; 0 and 100: the least and the greatest."""
    if len(values) < 2 or percent in {0, 100}:
        return min(values) if percent == 0 else max(values)
    return quantiles(values, n=1000, method="inclusive")[round(percent * 10) - 1]


def percentiles(values: Sequence[float], which: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """By the percent, rounded: as *details* keep them."""
    return {str(percent): round(percentile(values, percent), 3) for percent in which}

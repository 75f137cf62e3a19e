"""The plots of docs/performance.md: what each shows of the published figures.

A picture carries a digest of its data, so a test tells one that belongs to other
figures than the published ones. Only :func:`render` needs matplotlib (``drawing.py``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from bench import drawing
from bench.drawing import Data
from bench.figures import Run

FOLDER = Path(__file__).parents[1] / "docs" / "performance"
_DIGEST = re.compile(r"<dc:identifier>(\w+)</dc:identifier>")


class Plot(msgspec.Struct, frozen=True):
    """A picture of a part: *data* is what it shows of a run, empty if the run has nothing to show."""

    name: str
    part: str
    alt: str
    data: Callable[[Run], Data]
    draw: Callable[[Data], Any]

    @property
    def link(self) -> str:
        """For a page in docs/."""
        return f"![{self.alt}]({FOLDER.name}/{self.name}.svg)"


def shown(runs: dict[str, Run]) -> dict[str, tuple[Plot, Data]]:
    """The plots that there is data for, by name."""
    pairs = ((plot, plot.data(runs[plot.part])) for plot in PLOTS if plot.part in runs)
    return {plot.name: (plot, data) for plot, data in pairs if data}


def digest(data: Data) -> str:
    return hashlib.sha256(msgspec.json.encode(data, order="deterministic")).hexdigest()


def digest_in(svg: str) -> str:
    """Of the data that a picture was made from; empty if it does not say."""
    found = _DIGEST.search(svg)
    return found[1] if found else ""


def render(runs: dict[str, Run], folder: Path = FOLDER) -> list[str]:
    """Draw all that there is data for, and remove other pictures; the names of those drawn."""
    drawn = shown(runs)
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.svg"):
        if stale.stem not in drawn:
            stale.unlink()
    for name, (plot, data) in drawn.items():
        with drawing.styled():
            figure = plot.draw(data)
            drawing.save(figure, folder / f"{name}.svg", title=plot.alt, identifier=digest(data))
    return [*drawn]


# ---------------------------------------------------------------- what they show


def _shares(run: Run) -> Data:
    bars: Data = {}
    for figure in run.figures:
        name, _, measure = figure.what.rpartition(": ")
        if name and measure in {"requests/s", "CPU"}:
            bars.setdefault(name, {})[measure] = [figure.value, figure.budget]
    return bars


def _multiples(run: Run) -> Data:
    return {figure.what: [figure.value, figure.budget] for figure in run.figures if figure.unit == "×"}


def _followers(run: Run) -> Data:
    """A panel for each way in which they are spread."""
    panels: Data = {}
    for name, detail in run.details.items():
        kind, _, spread = name.partition(", ")
        panels.setdefault(spread, {})[kind] = _mapping(detail)["each_ms"]
    return panels


def _lags(run: Run) -> Data:
    """A panel for what is warned and one for what expires."""
    panels: Data = {}
    for name, detail in run.details.items():
        word = "warnings" if "warned" in name else "expirations"
        what, _, notifications = name.partition(", notifications ")
        count, _, window = what.replace("warned ", "").replace("expired ", "").partition(" within ")
        series = f"{count} in {window}, notifications {notifications}"
        panels.setdefault(word, {})[series] = _mapping(detail)["lag_ms"]
    return panels


def _costs(run: Run, dimension: str) -> Data:
    return _mapping(run.details.get(dimension, {}))


def _mapping(value: object) -> Data:
    if not isinstance(value, dict):
        raise TypeError(f"published figures hold no such details: {value!r}")
    return value


def _growth(name: str, dimension: str, by: str, *, is_logarithmic: bool = True) -> Plot:
    return Plot(
        f"growth-{name}",
        "growth",
        f"Cost of a request {dimension}",
        partial(_costs, dimension=dimension),
        partial(drawing.costs, by=by, is_logarithmic=is_logarithmic),
    )


PLOTS = (
    Plot(
        "http",
        "http",
        "Requests a second and CPU of each endpoint as a share of a bare Starlette route, with the budgets",
        _shares,
        drawing.shares,
    ),
    Plot(
        "scripts",
        "scripts",
        "Redis time of each script in multiples of the yardstick, with the budget",
        _multiples,
        drawing.multiples,
    ),
    Plot(
        "followers",
        "followers",
        "Latency from an accepted message to each follower, by percentile",
        _followers,
        partial(drawing.tails, what="message accepted → follower has it"),
    ),
    Plot(
        "expiry",
        "expiry",
        "How late warnings and expirations were published, by percentile",
        _lags,
        partial(drawing.tails, what="due → published"),
    ),
    _growth("sessions", "with sessions in Redis", "sessions in Redis"),
    _growth("messages", "with messages in a session", "messages in the session"),
    _growth("open-sessions", "with a user's open sessions", "open sessions of the user"),
    _growth("followers", "with followers of a session", "followers of the session"),
    _growth("replicas", "with replicas", "replicas", is_logarithmic=False),
)

"""How data becomes a picture: the only module that needs matplotlib, and only once something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's: told apart by everybody."""
MARKERS = "os^Dvp"
GREY = "#666666"
PATCH = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
STYLE = {
    "svg.hashsalt": "sessions-api",  # the same data gives the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}
WIDTH_IN = 8.4
TAIL = ("50", "75", "90", "95", "99", "99.9", "100")
"""Percentiles on the axis, evenly spaced: the tail is what matters."""

Data = dict[str, Any]


def save(figure: Any, path: Path, *, title: str, identifier: str) -> None:
    """Write *figure* with what it is and whose data it shows, and with nothing that changes by itself."""
    about = {"Title": title, "Identifier": identifier, "Date": None, "Creator": None}
    figure.savefig(path, metadata=about, facecolor="white")
    # matplotlib leaves blanks at the ends of lines, which people's editors take away.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def styled() -> Any:
    """The context to draw and save in."""
    import matplotlib as mpl  # noqa: PLC0415  of `make bench-report` alone

    mpl.use("svg")
    return mpl.rc_context(STYLE)


def shares(bars: Data) -> Any:
    """Per name and measure a value and its budget: horizontal bars from 0 to 1, budgets as ticks."""
    figure, (axes,) = _canvas(1, 0.7 + 0.46 * len(bars))
    names = [*bars][::-1]
    for number, (measure, offset) in enumerate((("requests/s", 0.19), ("CPU", -0.19))):
        values = [bars[name][measure][0] for name in names]
        places = [place + offset for place in range(len(names))]
        axes.barh(places, values, 0.36, color=COLOURS[number], label=measure)
        for place, value in zip(places, values, strict=True):
            axes.text(value + 0.008, place, f"{value:.2f}", va="center", fontsize=7.5)
    label: str | None = "budget of both"
    for place, name in enumerate(names):
        budget = bars[name]["CPU"][1]
        if budget is not None:
            axes.plot([budget] * 2, [place - 0.42, place + 0.42], color=GREY, lw=1.8, label=label)
            label = None
    _name_bars(axes, names)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of a bare Starlette route; 1 is as many, or as cheap")
    axes.legend(loc="lower right")
    return figure


def multiples(bars: Data) -> Any:
    """Per name a value and its budget: horizontal bars, one line where the budget is."""
    figure, (axes,) = _canvas(1, 0.7 + 0.22 * len(bars))
    names = [*bars][::-1]
    values = [bars[name][0] for name in names]
    colours = [COLOURS[4] if bars[name][1] is None else COLOURS[0] for name in names]
    axes.barh(range(len(names)), values, 0.7, color=colours)
    for place, value in enumerate(values):
        beside = value + max(values) * 0.008
        axes.text(beside, place, f"{value:.1f}", va="center", fontsize=7.5, bbox=PATCH)
    budgets = {budget for _, budget in bars.values() if budget is not None}
    for budget in budgets:
        axes.axvline(budget, color=GREY, lw=1.6, label=f"budget of the dark ones: {budget:g}")
        axes.legend(loc="lower right")
    _name_bars(axes, names)
    axes.set_xlabel("Redis's time, in multiples of a script that reads TIME and one key")
    return figure


def tails(panels: Data, *, what: str) -> Any:
    """Per panel and series the percentiles of a latency in ms: curves towards the slowest."""
    figure, all_axes = _canvas(len(panels), 3.4)
    for axes, (title, series) in zip(all_axes, panels.items(), strict=True):
        for number, (name, values) in enumerate(series.items()):
            marks = [max(values[percent], 0.1) for percent in TAIL]
            axes.plot(TAIL, marks, color=COLOURS[number], marker=MARKERS[number], ms=4, label=name)
        axes.set_yscale("log")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("percentile (100: the slowest)")
        axes.legend(fontsize=8)
        _plain(axes.yaxis)
    _alike(all_axes)
    all_axes[0].set_ylabel(f"{what}, ms")
    return figure


def costs(series: Data, *, by: str, is_logarithmic: bool) -> Any:
    """Per operation its cost to the worker and to Redis, at several sizes of *by*."""
    figure, all_axes = _canvas(2, 3.2)
    panels = (("worker's CPU", "worker_us"), ("Redis's CPU", "redis_us"))
    for axes, (title, member) in zip(all_axes, panels, strict=True):
        for number, (operation, its) in enumerate(series.items()):
            style = {"color": COLOURS[number], "marker": MARKERS[number], "ms": 4}
            axes.plot(its["sizes"], its[member], label=operation, **style)
        if is_logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(sorted({size for its in series.values() for size in its["sizes"]}))
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(by)
        axes.set_ylabel("µs a request")
        _plain(axes.xaxis)
        axes.minorticks_off()
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)
    return figure


def _canvas(panels: int, height_in: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # noqa: PLC0415  as above

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, [figure.add_subplot(1, panels, number + 1) for number in range(panels)]


def _name_bars(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(-0.6, len(names) - 0.4)


def _alike(all_axes: Sequence[Any]) -> None:
    """The same scale for all panels, whose values people compare."""
    limits = [limit for axes in all_axes for limit in axes.get_ylim()]
    for axes in all_axes:
        axes.set_ylim(min(limits), max(limits))


def _plain(axis: Any) -> None:
    """Numbers as people write them, also on a logarithmic scale."""
    from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: PLC0415  as above

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())

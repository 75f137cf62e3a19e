"""The instruments that ``metrics.py`` is made of: cheap to touch, right over several workers.

A request may touch an instrument several times, so touching one is an addition
in plain Python (0.1 µs; prometheus_client's own children cost 0.5 to 3 µs, more
with several workers). :func:`flush` carries what was added over to
prometheus_client: at each :func:`render`, and every second by
:func:`flush_forever` where several workers share one ``/metrics``. A killed
worker takes its last second along.

With ``PROMETHEUS_MULTIPROC_DIR`` set before the first import, prometheus_client
keeps each worker's values in files there and any worker renders the sum of all.
A dead worker's counters stay, its gauges go.
"""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import prometheus_client as prometheus
from prometheus_client import multiprocess

GaugeMode = Literal["livesum", "livemax"]

# A `_created` series beside every counter doubles the page, and Prometheus does not read it.
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY: Final = prometheus.CollectorRegistry()
OTHER: Final = "other"
_MULTIPROC_DIR: Final = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
_REVIEW_S: Final = 60.0

if not _MULTIPROC_DIR:  # with several workers it would be the one that happens to answer
    prometheus.ProcessCollector(registry=REGISTRY)

_flushed: list[Counter | Histogram] = []
_sources: list[Callable[[], None]] = []


class Count:
    """One counter with its labels bound."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending: float = 0

    def inc(self, amount: float = 1) -> None:
        self.pending += amount


class Counter:
    """A number that only rises. Keep what :meth:`of` returns, or call it each time: one dict look-up."""

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        self.name, self.labels = name, labels
        self._metric = prometheus.Counter(name, meaning, labels, registry=REGISTRY)
        self._children: dict[tuple[str, ...], Count] = {}
        if not labels:
            self._children[()] = Count()
        _flushed.append(self)

    def of(self, *values: str) -> Count:
        """The counter of these label values, in the order of the table."""
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self.labels):
                raise TypeError(f"{self.name} has the labels {self.labels}, not {values}")
            child = self._children[values] = Count()
        return child

    def begin(self, *values: str) -> None:
        """Export the counter of these label values at 0, before there is anything to count.

        Prometheus sees an increase between two samples: of what begins with 1 it never sees the 1.
        """
        self._metric.labels(*values)

    def inc(self, amount: float = 1) -> None:
        """Count on, where there are no labels."""
        self._children[()].pending += amount

    def flush(self) -> None:
        for values, child in self._children.items():
            if child.pending:
                (self._metric.labels(*values) if values else self._metric).inc(child.pending)
                child.pending = 0

    def forget(self, label: str, value: str) -> None:
        """Drop every child whose *label* has this *value*."""
        _forget(self._metric, self._children, self.labels, label, value)


class _BulkHistogram(prometheus.Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Sequence[int], total: float) -> None:
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class Observations:
    """One histogram with its labels bound."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def take(self) -> tuple[list[int], float]:
        """What was observed since the last call."""
        taken = self.counts, self.total
        self.counts, self.total = [0] * len(self.counts), 0.0
        return taken


class Histogram:
    """How a quantity spreads over *buckets*, upper bounds in its unit; +Inf is added."""

    def __init__(self, name: str, meaning: str, *labels: str, buckets: tuple[float, ...]) -> None:
        self.name, self.labels, self.buckets = name, labels, buckets
        self._metric = _BulkHistogram(name, meaning, labels, registry=REGISTRY, buckets=buckets)
        self._children: dict[tuple[str, ...], Observations] = {}
        if not labels:
            self._children[()] = Observations(buckets)
        _flushed.append(self)

    def of(self, *values: str) -> Observations:
        """The histogram of these label values, in the order of the table."""
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self.labels):
                raise TypeError(f"{self.name} has the labels {self.labels}, not {values}")
            child = self._children[values] = Observations(self.buckets)
        return child

    def observe(self, value: float) -> None:
        """Observe, where there are no labels."""
        self._children[()].observe(value)

    def flush(self) -> None:
        for values, child in self._children.items():
            counts, total = child.take()
            if any(counts):
                (self._metric.labels(*values) if values else self._metric).add(counts, total)

    def forget(self, label: str, value: str) -> None:
        """Drop every child whose *label* has this *value*."""
        _forget(self._metric, self._children, self.labels, label, value)


def _forget(
    metric: prometheus.Counter | prometheus.Histogram,
    children: dict[tuple[str, ...], Count] | dict[tuple[str, ...], Observations],
    labels: tuple[str, ...],
    label: str,
    value: str,
) -> None:
    if label not in labels:
        return
    position = labels.index(label)
    for values in [values for values in children if values[position] == value]:
        del children[values]
        if not _MULTIPROC_DIR:  # prometheus_client's files cannot forget: there the series just stops
            metric.remove(*values)


def gauge(name: str, meaning: str, *labels: str, mode: GaugeMode = "livesum") -> prometheus.Gauge:
    """A number that rises and falls; *mode* says how the workers' values become one."""
    return prometheus.Gauge(name, meaning, labels, registry=REGISTRY, multiprocess_mode=mode)


class BusiestLabels:
    """Label values for a set without an end: the *limit* busiest by name, the rest as ``other``.

    Once a minute at most ten of the rest that are twice as busy as the laziest
    named ones take their places; half of what was counted is forgotten then, so
    that the past fades. A value that loses its name loses its series too.
    """

    def __init__(self, label: str, *, limit: int = 100) -> None:
        self._label = label
        self._limit = limit
        self._named: set[str] = set()
        self._seen: dict[str, int] = {}

    def of(self, value: str) -> str:
        """Count *value* and return what to put in its label."""
        self._seen[value] = self._seen.get(value, 0) + 1
        if value in self._named:
            return value
        if len(self._named) < self._limit:
            self._named.add(value)
            return value
        return OTHER

    def review(self) -> None:
        """Give the names to the busiest of late."""
        seen = self._seen
        rest = sorted(seen.keys() - self._named, key=seen.__getitem__, reverse=True)[:10]
        lazy = sorted(self._named, key=lambda value: seen.get(value, 0))[: len(rest)]
        for busy, idle in zip(rest, lazy, strict=False):
            if seen[busy] <= 2 * seen.get(idle, 0):
                break
            for metric in _flushed:
                metric.forget(self._label, idle)
            self._named.remove(idle)
            self._named.add(busy)
        self._seen = {value: count // 2 for value, count in seen.items() if count > 1}


class _Reviews:
    def __init__(self) -> None:
        self.labels: list[BusiestLabels] = []
        self.last_s = time.monotonic()

    def run_if_due(self) -> None:
        if time.monotonic() - self.last_s >= _REVIEW_S:
            self.last_s = time.monotonic()
            for labels in self.labels:
                labels.review()


_reviews = _Reviews()


def busiest(label: str, *, limit: int = 100) -> BusiestLabels:
    """The values of one label, reviewed at each flush that comes a minute after the last review."""
    labels = BusiestLabels(label, limit=limit)
    _reviews.labels.append(labels)
    return labels


def add_source(source: Callable[[], None]) -> Callable[[], None]:
    """Call *source* before each flush, to fetch what is counted elsewhere; returns its removal."""
    _sources.append(source)

    def remove() -> None:
        if source in _sources:
            source()  # the last counts
            _sources.remove(source)

    return remove


def flush() -> None:
    """Carry all that was counted over to prometheus_client."""
    for source in _sources:
        source()
    for metric in _flushed:
        metric.flush()
    _reviews.run_if_due()


async def flush_forever(every_s: float = 1.0) -> None:
    """With several workers: let the others' ``/metrics`` see ours. With one: return at once."""
    if not _MULTIPROC_DIR:
        return
    try:
        while True:
            await asyncio.sleep(every_s)
            flush()
    finally:
        flush()


def render() -> tuple[bytes, str]:
    """What ``/metrics`` answers: body and content type, of all workers of this server."""
    flush()
    registry = REGISTRY
    if _MULTIPROC_DIR:
        _bury_dead_workers(_MULTIPROC_DIR)
        registry = prometheus.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=_MULTIPROC_DIR)  # type: ignore[no-untyped-call]
    return prometheus.generate_latest(registry), prometheus.CONTENT_TYPE_LATEST


def _bury_dead_workers(folder: str) -> None:
    """Remove the gauges of workers that are gone: what they followed and kept, they no longer do."""
    for path in Path(folder).glob("gauge_live*.db"):
        try:
            os.kill(int(path.stem.rpartition("_")[2]), 0)
        except (
            ProcessLookupError,
            PermissionError,
        ):  # the latter: somebody else's process has the number now
            path.unlink(missing_ok=True)

"""docs/metrics.md and /metrics say the same, and several workers are one server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from sessions_api.telemetry import instruments, metrics

DOC = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(sessions_\w+)` \| (counter|gauge|histogram) \|([^|]*)\|", re.MULTILINE)
BUCKETS = re.compile(r"^\| `(sessions_\w+)` \| ([0-9., ]+) \|", re.MULTILINE)


def exported() -> dict[str, MetricWrapperBase]:
    """Every metric of ours by its name in /metrics."""
    names: dict[str, MetricWrapperBase] = {}
    for metric in set(instruments.REGISTRY._collector_to_names):
        if isinstance(metric, MetricWrapperBase):
            family = next(iter(metric.describe()))
            names[family.name + ("_total" if family.type == "counter" else "")] = metric
    return names


class TestTheDocument:
    def test_names_every_metric_with_its_type_and_labels_and_no_other(self) -> None:
        documented = {
            name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(DOC)
        }

        found = {name: (metric._type, tuple(metric._labelnames)) for name, metric in exported().items()}

        assert documented == found

    def test_names_the_buckets_of_every_histogram(self) -> None:
        documented = {name: [float(x) for x in text.split(",")] for name, text in BUCKETS.findall(DOC)}

        found = {
            name: list(metric._upper_bounds[:-1])
            for name, metric in exported().items()
            if isinstance(metric, Histogram)
        }

        assert documented == found

    def test_every_gauge_says_how_workers_add_up(self) -> None:
        gauges = [metric for metric in exported().values() if isinstance(metric, Gauge)]

        assert gauges
        assert {metric._multiprocess_mode for metric in gauges} <= {"livesum", "livemax"}

    def test_every_name_ends_in_its_unit_or_total(self) -> None:
        for name, metric in exported().items():
            assert name.endswith("_total") == (metric._type == "counter"), name
            assert name.endswith("_seconds") or metric._type != "histogram", name


class TestAnInstrument:
    def test_refuses_labels_that_are_not_in_the_table(self) -> None:
        with pytest.raises(TypeError, match="route"):
            metrics.REQUESTS.of("only-one")

    def test_counts_each_observation_in_its_bucket_once(self) -> None:
        instrument = instruments.Histogram("test_edge_seconds", "On the edges.", buckets=(1.0, 2.0))
        try:
            for value in (1.0, 1.5, 2.0, 99.0):
                instrument.observe(value)

            body = metrics.render()[0].decode()
        finally:
            instruments._flushed.remove(instrument)
            instruments.REGISTRY.unregister(instrument._metric)

        assert 'test_edge_seconds_bucket{le="1.0"} 1.0' in body
        assert 'test_edge_seconds_bucket{le="2.0"} 3.0' in body
        assert 'test_edge_seconds_bucket{le="+Inf"} 4.0' in body
        assert "test_edge_seconds_sum 103.5" in body

    def test_what_is_counted_elsewhere_is_fetched_and_never_counted_twice(self) -> None:
        class Stats:
            round_trips = commands = connects = failed_connects = losses = dirty = timeouts = repeats = 0
            scripts: dict[str, int] = {}  # noqa: RUF012  a stand-in for the connection's own counts

        stats = Stats()
        stop = metrics.follow_redis(stats, line="test")
        stats.commands, stats.scripts = 3, {"test_script": 2}
        metrics.render()
        stats.commands = 5
        body = metrics.render()[0].decode()
        stop()

        assert 'sessions_redis_commands_total{line="test"} 5.0' in body
        assert 'sessions_redis_scripts_total{script="test_script"} 2.0' in body


class TestTheBusiest:
    def test_have_their_name_and_the_rest_is_other(self) -> None:
        labels = instruments.BusiestLabels("test", limit=2)

        assert [labels.of(value) for value in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]

    def test_change_when_another_gets_busier(self) -> None:
        labels = instruments.BusiestLabels("test", limit=1)
        labels.of("lazy")
        for _ in range(10):
            labels.of("busy")

        labels.review()

        assert [labels.of("busy"), labels.of("lazy")] == ["busy", "other"]

    def test_keep_their_place_against_one_that_is_hardly_busier(self) -> None:
        labels = instruments.BusiestLabels("test", limit=1)
        for value in ("a", "a", "b", "b", "b"):
            labels.of(value)

        labels.review()

        assert labels.of("a") == "a"


WORKER = """
import sys
from sessions_api.telemetry import metrics
from sessions_api.telemetry.instruments import flush
metrics.REQUESTS.of("/livez", "GET", "200").inc(2)
metrics.REQUEST_SECONDS.of("/livez", "GET").observe(0.004)
metrics.LIVE_SESSIONS.set(10)
flush()
print("counted", flush=True)
sys.stdin.readline()
sys.stdout.write(metrics.render()[0].decode())
"""


class TestSeveralWorkers:
    def test_are_added_up_and_a_dead_ones_gauges_go_while_its_counts_stay(self, tmp_path: Path) -> None:
        env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "counted\n"

        workers[0].kill()
        workers[0].wait()
        alive, _ = workers[1].communicate("\n")
        workers[2].communicate("\n")

        assert 'sessions_requests_total{method="GET",route="/livez",status="200"} 6.0' in alive
        assert 'sessions_request_seconds_count{method="GET",route="/livez"} 3.0' in alive
        assert "sessions_live_sessions 20.0" in alive
        for worker in workers:
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    pipe.close()

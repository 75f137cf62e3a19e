"""deploy/prometheus/: valid, every alert shown to fire and to be quiet, every metric a real one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sessions_api.wire.problems import TABLE
from tests.deploy.compose import services
from tests.deploy.deployed import CHECKOUT, DEPLOY
from tests.deploy.labels import documented, grouped_by_nothing, strange
from tests.deploy.programs import checked, edited, missing

FOLDER = DEPLOY / "prometheus"
METRIC = re.compile(r"\b((?:sessions|process|haproxy)_\w+)\b")
NOT_OURS = {"DRAINING", "AGENT_UNAVAILABLE", "AGENT_FAILED", "AGENT_TIMEOUT"}
"""Of 500 and more, and no fault of the service: another replica answers, or the agent does not."""
OTHERS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"}
"""Of the Python client; the stack's test sees each of them, and HAProxy's, with values."""
needs_promtool = pytest.mark.skipif(bool(missing("promtool")), reason=missing("promtool"))


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules("alerts.yml")}


def scenarios() -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    return tests


def unknown(expression: str) -> set[str]:
    """The metrics in it that nobody exports."""
    named = {name for name in METRIC.findall(expression) if not name.startswith("haproxy_")}
    return named - documented().keys() - OTHERS


class TestTheFiles:
    @needs_promtool
    def test_are_valid(self) -> None:
        result = checked("promtool", "check", "config", FOLDER / "prometheus.yml")

        assert result.returncode == 0, result.stdout + result.stderr

    @needs_promtool
    def test_fire_when_they_should_and_only_then(self) -> None:
        """Prometheus' own unit tests, in alerts_test.yml."""
        result = checked("promtool", "test", "rules", "alerts_test.yml", cwd=FOLDER)

        assert result.returncode == 0, result.stdout + result.stderr

    @needs_promtool
    def test_would_fail_if_an_alert_never_fired(self, tmp_path: Path) -> None:
        """The unit tests can fail: with one threshold out of reach, that alert's scenario does."""
        for name in ("rules.yml", "alerts.yml"):
            shutil.copy(FOLDER / name, tmp_path)
        text = (tmp_path / "alerts.yml").read_text()
        (tmp_path / "alerts.yml").write_text(edited(text, {"_partitions) < 64": "_partitions) < 0"}))
        unit_tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())
        unit_tests["tests"] = [each for each in scenarios() if "no keeper" in each["name"]]
        (tmp_path / "alerts_test.yml").write_text(yaml.safe_dump(unit_tests))

        result = checked("promtool", "test", "rules", "alerts_test.yml", cwd=tmp_path)

        assert result.returncode != 0
        assert "SessionsPartitionsUnkept" in result.stdout + result.stderr

    def test_are_where_the_compose_file_mounts_them(self) -> None:
        prometheus = services()["prometheus"]

        assert "./deploy/prometheus:/etc/prometheus:ro" in prometheus["volumes"]
        assert "--config.file=/etc/prometheus/prometheus.yml" in prometheus["command"]
        targets = re.findall(r"- ([\w-]+):(\d+)\n", (FOLDER / "prometheus.yml").read_text())
        assert {name for name, _ in targets} <= services().keys()
        metrics_port = services()["api-1"]["environment"]["SESSIONS_METRICS_PORT"]
        assert {port for name, port in targets if name.startswith("api-")} == {metrics_port}


class TestEachAlert:
    def test_is_shown_to_fire(self) -> None:
        """By a scenario that names it, with its severity, and where at some time it is quiet."""
        shown = set()
        for scenario in scenarios():
            for checks in scenario["promql_expr_test"]:
                for sample in checks["exp_samples"]:
                    labels = dict(re.findall(r'(\w+)="(\w+)"', sample["labels"]))
                    shown.add((labels["alertname"], labels["severity"]))
            assert any(not checks["exp_samples"] for checks in scenario["promql_expr_test"]), scenario["name"]

        assert shown == {(name, rule["labels"]["severity"]) for name, rule in alerts().items()}

    def test_is_shown_to_be_quiet_while_all_is_well(self) -> None:
        """The quiet scenario has values for every metric that an alert reads."""
        [well] = [scenario for scenario in scenarios() if scenario["name"] == "all is well"]
        given = {re.split(r"\{", series["series"])[0] for series in well["input_series"]}
        expressions = " ".join(rule["expr"] for name in ("rules.yml", "alerts.yml") for rule in rules(name))

        assert {name for name in METRIC.findall(expressions) if name != "sessions_api"} <= given

    def test_reads_only_metrics_that_are_there(self) -> None:
        for name in ("rules.yml", "alerts.yml"):
            for rule in rules(name):
                assert unknown(rule["expr"]) == set(), rule

    def test_reads_only_recorded_series_that_are_recorded(self) -> None:
        recorded = {rule["record"] for rule in rules("rules.yml")}
        used = {
            name for rule in rules("alerts.yml") for name in re.findall(r"\bsessions:[\w:]+", rule["expr"])
        }

        assert used <= recorded

    def test_asks_only_for_labels_and_values_that_there_are(self) -> None:
        """A misspelt one matches nothing, and its alert would be quiet for ever."""
        for name in ("rules.yml", "alerts.yml"):
            for rule in rules(name):
                assert strange(rule["expr"]) == set(), rule
                assert grouped_by_nothing(rule["expr"]) == set(), rule

    def test_is_shown_by_series_that_there_are(self) -> None:
        """A scenario of a series that nobody exports shows nothing."""
        for scenario in scenarios():
            for series in scenario["input_series"]:
                assert strange(series["series"]) == set(), scenario["name"]

    @pytest.mark.parametrize(
        "query, label, value",
        [
            ('sessions_followers_cut_total{code="4409"}', "code", "4409"),
            ('sessions_errors_total{code=~"STORAGE_FULL|STORAGE_GONE"}', "code", "STORAGE_GONE"),
            ('sessions_errors_total{kind="INTERNAL_ERROR"}', "kind", "INTERNAL_ERROR"),
            ('sessions_turns_total{agent="x", outcome=~"failed|lapsed"}', "outcome", "lapsed"),
            ('sessions_alarms_total{trigger="expired"}', "trigger", "expired"),
            ('sessions_redis_errors_total{kind!~"losses|timeout"}', "kind", "timeout"),
            ('sessions_redis_errors_total{line="command"}', "line", "command"),
            ('sessions_limited_total{policy!="follower"}', "policy", "follower"),
            ('sessions_request_seconds_bucket{route!~".*/(messages|expand)"}', "route", ".*/expand"),
            ('sessions_replicas_differing{what="release"}', "what", "release"),
            ('up{job="sessions"}', "job", "sessions"),
            ('haproxy_backend_active_servers{proxy="apis"}', "proxy", "apis"),
        ],
    )
    def test_is_found_out_where_a_label_or_value_is_none(self, query: str, label: str, value: str) -> None:
        assert {(each.label, each.value) for each in strange(query)} == {(label, value)}

    def test_says_what_it_means_and_where_to_read_on(self) -> None:
        for name, rule in alerts().items():
            told = rule["annotations"]
            assert told.keys() == {"summary", "description", "runbook_url"}, name
            assert told["runbook_url"] == f"docs/operations.md#{name.lower()}"
            assert rule["labels"]["severity"] in {"critical", "warning"}
            assert len(told["summary"]) < 100, name
            assert told["description"].endswith("."), name

    def test_sees_the_first_of_what_it_waits_for(self) -> None:
        """Its counter is exported at 0 from the start: of one that begins with 1 no increase is seen."""
        waits = [
            (name, metric, dict(re.findall(r'(\w+)="(\w+)"', labels)))
            for name, rule in alerts().items()
            for metric, labels in re.findall(r"increase\((\w+)(\{.*?\})?\[\w+\]\)\) > 0", rule["expr"])
        ]
        assert len(waits) > 4
        printing = "from sessions_api.telemetry import metrics; print(metrics.render()[0].decode())"
        page = subprocess.run(
            [sys.executable, "-c", printing], cwd=CHECKOUT, capture_output=True, text=True, check=True
        ).stdout

        for name, metric, labels in waits:
            shown = "".join(f'{label}="{value}"' for label, value in labels.items())
            series = f"{metric}{{{shown}}}" if shown else metric
            assert f"\n{series} 0.0\n" in page, name


class TestTheRatioOfErrors:
    """``sessions:errors:rate5m``, whose codes are the service's own faults."""

    @staticmethod
    def codes() -> list[str]:
        [rule] = [rule for rule in rules("rules.yml") if rule["record"] == "sessions:errors:rate5m"]
        [codes] = re.findall(r'code=~"([A-Z_|]+)"', rule["expr"])
        return str(codes).split("|")

    def test_has_every_code_of_500_and_more_but_those_that_say_why_not(self) -> None:
        served = {
            "INTERNAL_ERROR" if row.status == 500 else kind.code
            for kind, row in TABLE.items()
            if row.status >= 500
        }

        assert served >= NOT_OURS
        assert set(self.codes()) == served - NOT_OURS

    def test_is_told_by_its_codes(self) -> None:
        """In the alert, in its paragraph, and in the dashboard's panel."""
        [*first, last] = self.codes()
        listed = f"{', '.join(first)} and {last} over all requests"
        dashboard = (DEPLOY / "grafana" / "dashboards" / "sessions.json").read_text()
        page = (CHECKOUT / "docs" / "operations.md").read_text()
        [look] = re.findall(r"### SessionsErrorRatioHigh\n\n.+\n\n(.+)", page)

        assert listed in alerts()["SessionsErrorRatioHigh"]["annotations"]["description"]
        assert listed in dashboard
        assert set(re.findall(r"`([A-Z_]+)`", look)) == set(self.codes())

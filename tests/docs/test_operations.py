"""docs/operations.md says what is so: alerts, checks, settings, times, links, and the published figures."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from pathlib import Path

import pytest
import yaml

from bench import sizing
from bench.figures import read
from sessions_api.cli import doctor
from sessions_api.settings import VARIABLES
from sessions_api.store import address, connection
from sessions_api.telemetry import instruments
from sessions_api.telemetry.metrics import REPLICAS
from tests.docs.test_metrics import exported

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
BACKUP = (ROOT / "docs" / "backup.md").read_text()
ALERTS = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
NAMES = [rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]]
SOURCE = "\n".join(path.read_text() for path in (ROOT / "sessions_api").rglob("*.py"))


def section(title: str) -> str:
    """The text below a heading of the second level."""
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's first table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def anchors(text: str) -> set[str]:
    """As a page of Markdown has them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class TestThePage:
    def test_can_be_read(self) -> None:
        assert len(PAGE.splitlines()) <= 400

    @pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", PAGE + BACKUP))))
    def test_leads_to_what_is_there(self, link: str) -> None:
        path, _, anchor = link.partition("#")
        target = (ROOT / "docs" / path).resolve() if path else ROOT / "docs" / "operations.md"

        assert target.exists()
        if anchor:
            assert anchor in anchors(target.read_text())

    def test_names_settings_metrics_and_records_that_exist(self) -> None:
        settings = set(re.findall(r"`(SESSIONS?_[A-Z_]+)", PAGE))
        metrics = set(re.findall(r"`(sessions_[a-z_]+)`", PAGE))
        records = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PAGE)) - metrics

        assert settings <= set(VARIABLES)
        assert REPLICAS in instruments.REGISTRY._collector_to_names
        assert metrics <= exported().keys()
        logged = {record for record in records if f'"{record}"' in SOURCE}
        assert records - logged <= {"request_id", "session_id"}

    @pytest.mark.parametrize("words", sorted(set(re.findall(r"`sessions-api ([^`]+)`", PAGE))))
    def test_names_commands_as_they_are_typed(self, words: str) -> None:
        name, *rest = words.split()
        parser = argparse.ArgumentParser()
        importlib.import_module(f"sessions_api.cli.{name}").arguments(parser)

        parser.parse_args(rest)

    def test_has_the_published_figures(self) -> None:
        """Publishing new ones makes them anew."""
        assert sizing.filled(PAGE, read(sizing.PUBLISHED)) == PAGE


class TestAlerts:
    def test_each_has_its_paragraph_and_no_other(self) -> None:
        assert re.findall(r"^### (\w+)$", section("Alerts"), re.MULTILINE) == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_a_paragraph_says_where_to_look_and_what_to_do(self, name: str) -> None:
        meaning, look, do = re.fullmatch(
            r"\n(.+)\n\n- Look: (.+)\n- Do: (.+)\n*",
            PAGE.split(f"### {name}\n", 1)[1].split("\n### ", 1)[0],
        ).groups()  # type: ignore[union-attr]

        assert min(map(len, (meaning, look, do))) > 20


class TestSettings:
    def test_of_redis_are_those_that_are_deployed(self) -> None:
        lines = (ROOT / "deploy" / "redis" / "redis.conf").read_text().splitlines()
        deployed = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]

        assert [[cell.strip("`") for cell in row[:2]] for row in rows("Redis settings")] == deployed

    def test_times_are_those_of_the_code(self) -> None:
        times = {row[0]: row[1] for row in rows("Network, timeouts")[:3]}
        haproxy = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()

        [deadline] = [
            re.search(r"sessions_redis_deadline_ms: .*?= (\d+)", SOURCE, re.DOTALL)[1]  # type: ignore[index]
        ]
        of_redis = (address.CONNECT_TIMEOUT_S, connection.REPLY_TIMEOUT_S, int(deadline) / 1000)
        assert times["replica and Redis"] == ", ".join(f"{seconds:g} s" for seconds in of_redis)
        for name, limit in (("client and balancer", "client"), ("balancer and replica", "connect")):
            assert re.search(rf"timeout {limit} +(\d+)s", haproxy)[1] + " s" == times[name]  # type: ignore[index]


class TestWhatIsLost:
    """By a Redis that syncs each second, told alike wherever it is told."""

    BOUNDS = re.compile(r"normally up to (1 s|a second), at most (2|two)\b")

    @pytest.mark.parametrize("fault", ["Redis, by SIGKILL", "power of Redis's machine"])
    def test_when_something_dies(self, fault: str) -> None:
        [row] = [row for row in rows("When something dies") if row[0] == fault]

        assert self.BOUNDS.search(row[1])
        assert row[2] == "nothing lost"

    def test_elsewhere(self) -> None:
        [setting] = [row[2] for row in rows("Redis settings") if row[0] == "`appendfsync`"]
        conf = (ROOT / "deploy" / "redis" / "redis.conf").read_text().replace("\n#", "")
        of_faults, of_architecture = (
            (ROOT / "docs" / page).read_text().split(f"\n| {start}")[1].split("\n")[0]
            for page, start in (
                ("faults.md", "Redis is restarted or killed"),
                ("architecture.md", "Redis, restarted with its append-only file"),
            )
        )

        for text in (setting, conf, of_faults, of_architecture):
            assert self.BOUNDS.search(text), text


class TestMinReplicas:
    def test_are_asked_for_where_the_script_sets_them(self) -> None:
        """By Sentinel, and not on a Cluster."""
        start = (ROOT / "deploy" / "redis" / "start").read_text()
        of_sentinel, of_cluster = start.split("\nsentinel)")[1].split("\ncluster)")
        [said] = re.findall(r"^And what depends on the machine: (.+)$", PAGE, re.MULTILINE)

        for setting in ("min-replicas-to-write 1", "min-replicas-max-lag 10"):
            assert re.search(rf"with Sentinel [^;]*`{setting}`", said)
            assert f"--{setting} " in of_sentinel
        assert "and no `min-replicas-to-write`" in said
        assert "--min-replicas" not in of_cluster


class TestDoctor:
    def test_every_check_stands_in_the_table_and_no_other(self) -> None:
        """By the second argument of each finding in the code."""
        found: set[str] = set()
        for path in Path(doctor.__file__).parent.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                    check = node.args[1]
                    assert isinstance(check, ast.Constant), ast.dump(node)
                    found.add(str(check.value))

        documented = re.findall(r"`([\w-]+)`", " ".join(row[0] for row in rows("Look first")))

        assert sorted(documented) == sorted(found)

"""deploy/grafana/: the dashboard is one that Grafana loads, and each panel says what it shows.

That each shows something, the stack's test asks Prometheus.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import yaml

from tests.deploy.compose import services
from tests.deploy.deployed import DEPLOY
from tests.deploy.labels import grouped_by_nothing, strange
from tests.deploy.test_rules import rules, unknown

FOLDER = DEPLOY / "grafana"


def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / "dashboards" / "sessions.json").read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def provisioned(kind: str) -> dict[str, Any]:
    [path] = (FOLDER / "provisioning" / kind).glob("*.yml")
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


class TestTheDashboard:
    def test_begins_with_users_and_ends_with_machines(self) -> None:
        rows = [panel["title"] for panel in board()["panels"] if panel["type"] == "row"]

        assert rows == [
            "Users",
            "Sessions and their time",
            "Turns and agents",
            "Live connections",
            "Redis, as the replicas see it",
            "Replicas and the balancer",
        ]

    def test_has_a_unit_and_a_description_for_each_panel(self) -> None:
        for panel in panels():
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert len(panel["description"]) > 8, panel["title"]
            assert panel["targets"], panel["title"]

    def test_names_each_panel_and_line_once(self) -> None:
        everything = board()["panels"]
        assert len({panel["id"] for panel in everything}) == len(everything)
        assert len({panel["title"] for panel in everything}) == len(everything)
        for panel in panels():
            letters = [target["refId"] for target in panel["targets"]]
            assert len(set(letters)) == len(letters)
            assert all(target["legendFormat"] for target in panel["targets"])

    def test_lays_no_panel_over_another(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in board()["panels"]:
            at = panel["gridPos"]
            cells = set(
                itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
            )
            assert at["x"] + at["w"] <= 24
            assert not cells & taken, panel["title"]
            taken |= cells

    def test_reads_only_what_is_there(self) -> None:
        """Metrics of docs/metrics.md, or recorded by rules.yml; rates over Grafana's own interval."""
        recorded = {rule["record"] for rule in rules("rules.yml")}
        for panel in panels():
            for target in panel["targets"]:
                assert unknown(target["expr"]) == set(), target
                assert set(re.findall(r"\bsessions:[\w:]+", target["expr"])) <= recorded
                assert set(re.findall(r"\[(.*?)\]", target["expr"])) <= {"$__rate_interval"}

    def test_asks_only_for_labels_and_values_that_there_are(self) -> None:
        """A panel of a misspelt one would say that nothing happens."""
        for panel in panels():
            for target in panel["targets"]:
                assert strange(target["expr"]) == set(), target
                assert grouped_by_nothing(target["expr"]) == set(), target


class TestProvisioning:
    def test_gives_the_dashboard_its_source(self) -> None:
        [source] = provisioned("datasources")["datasources"]
        used = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
        assert used == {source["uid"]} == {panel["datasource"]["uid"] for panel in panels()}

        name, _, port = source["url"].removeprefix("http://").partition(":")
        assert name in services()
        assert port == "9090"
        scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["global"]
        assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]

    def test_looks_where_the_compose_file_puts_it(self) -> None:
        grafana = services()["grafana"]
        [provider] = provisioned("dashboards")["providers"]
        folder = provider["options"]["path"]

        assert f"./deploy/grafana/dashboards:{folder}:ro" in grafana["volumes"]
        assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in grafana["volumes"]
        home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        assert home == f"{folder}/sessions.json"

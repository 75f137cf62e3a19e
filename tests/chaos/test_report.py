"""docs/faults.md has every fault and takes the counts of a run; every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.chaos import report
from tests.chaos.schedule import KINDS, TOPOLOGIES

TEXT = report.PAGE.read_text()
TABLE = TEXT.split("## A schedule", maxsplit=1)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_stands_in_the_table(kind: str) -> None:
    assert re.search(rf"chaos(?: `[a-z-]+`)* `{kind}`", TABLE)


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", TEXT)

    assert len(named) > 20
    assert [name for name in named if not Path(name).exists()] == []


@pytest.mark.parametrize("setting", [*TOPOLOGIES, "sentinel, replicated"])
def test_counts_of_every_setting_have_a_place(setting: str) -> None:
    assert re.search(rf"<!-- counts: {setting} -->\n.*?<!-- end -->", TEXT, re.DOTALL)


BODY: report.Body = {
    "command": "make chaos",
    "taken": "2026-01-01",
    "machine": "2 cores",
    "schedules": [
        {
            "setting": "single",
            "counts": {"sessions": 3, "acknowledged": 1_000},
            "faults": {"redis-kill": 1},
            "endsToldMs": [10, 30],
            "endsToldMsDuring": {"none": [10], "redis-kill": [30]},
            "acknowledgedMs": [5, 7, 900],
            "acknowledgedMsDuring": {"none": [5, 7], "redis-kill": [900]},
            "violations": ["lost: a: b: c"],
        }
    ]
    * 2,
}


class TestCounts:
    def test_are_added_up(self) -> None:
        table = report.table(BODY)

        assert re.search(r"schedules +2\n", table)
        assert re.search(r"acknowledged +2000 ", table)
        assert re.search(r"redis-kill +2 ", table)
        assert re.search(r"violations +2\n +lost +2", table)
        assert "p50 30 ms, p99 30 ms, max 30 ms" in table
        assert re.search(r"none +7 +7 +7 +10 +10 +10\n +redis-kill +900 +900 +900 +30 +30 +30\n", table)

    def test_are_put_into_the_page(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        page = tmp_path / "faults.md"
        page.write_text(TEXT)
        monkeypatch.setattr(report, "PAGE", page)

        report.publish(BODY)

        assert "| **violations** | **2** | lost 2 |" in page.read_text()
        assert "| acknowledged | 2,000 |" in page.read_text()
        assert "| none |  | 4 | 7 | 7 | 7 | 2 | 10 | 10 | 10 |" in page.read_text()
        assert "| redis-kill | 2 | 2 | 900 | 900 | 900 | 2 | 30 | 30 | 30 |" in page.read_text()
        assert page.read_text().partition("### Sentinels")[2] == TEXT.partition("### Sentinels")[2]

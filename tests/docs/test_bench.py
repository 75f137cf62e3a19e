"""``make bench`` works; how fast anything is decides no test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class TestSmoke:
    @pytest.mark.parametrize(
        "part",
        [
            "scripts",
            "memory",
            "start",
            "latency",
            pytest.param("http", marks=pytest.mark.timeout(120)),
            pytest.param("agents", marks=pytest.mark.timeout(120)),
            pytest.param("followers", marks=pytest.mark.timeout(120)),
            pytest.param("expiry", marks=pytest.mark.timeout(120)),
            pytest.param("growth", marks=pytest.mark.timeout(120)),
        ],
    )
    def test_measures_each_part(self, part: str, tmp_path: Path) -> None:
        """A run with tiny numbers ends well and writes what it measured, where, and against which budget."""
        if part == "http" and shutil.which("wrk") is None:
            pytest.skip("no wrk here")

        out = tmp_path / "figures.json"
        command = [sys.executable, "-m", "bench", "--smoke", "--only", part, "--out", str(out)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr

        measured = json.loads(out.read_text())[part]
        assert measured["machine"]["cores"] >= 1
        assert all(figure["value"] > 0 for figure in measured["figures"] if figure.get("budget") != 0)
        assert any("budget" in figure for figure in measured["figures"])

    def test_refuses_a_part_that_it_does_not_know(self) -> None:
        """The message names those that there are."""
        command = [sys.executable, "-m", "bench", "--only", "disk"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

        assert run.returncode == 2
        assert (
            "http, scripts, memory, start, latency, agents, floods, hostile, followers, expiry, growth"
            in run.stderr
        )

"""Schemathesis drives the live service from its own OpenAPI document, and finds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import Service

CONFIG = Path(__file__).with_name("schemathesis.toml")
BUDGET_S = 40


@pytest.mark.timeout(BUDGET_S + 80)
def test_finds_nothing(tmp_path: Path) -> None:
    """All checks on valid and invalid data; streams have no end and are tested elsewhere."""
    with Service(tmp_path) as service:
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            str(CONFIG),
            "run",
            f"{service.url}/openapi.json",
            "--checks",
            "all",
            "--mode",
            "all",
            "--exclude-path-regex",
            "/events$",
            "--request-timeout",
            "10",
            "--max-examples",
            "12",
            "--max-time",
            str(BUDGET_S),
            "--seed",
            "2",
            "--no-color",
        ]

        run = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=BUDGET_S + 60, check=False
        )

        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
        assert " 0 failed" not in run.stdout
        assert "passed" in run.stdout
    service.assert_no_bug_logged()

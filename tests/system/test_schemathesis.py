"""Schemathesis drives the live service from its own OpenAPI document, and finds nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sessions_api.access.keyring import mint
from tests.support.service import Service

CONFIG = Path(__file__).with_name("schemathesis.toml")
BUDGET_S = 60
NO_LIMITS = {
    "SESSIONS_LIMIT_CREATES_KEY": "off",
    "SESSIONS_LIMIT_MESSAGES_KEY": "off",
    "SESSIONS_LIMIT_REQUESTS_KEY": "off",
}
"""A refusal by a limit would hide every other answer."""


@pytest.mark.timeout(BUDGET_S + 80)
@pytest.mark.parametrize("has_keys", [False, True], ids=["without keys", "with a key"])
def test_finds_nothing(tmp_path: Path, *, has_keys: bool) -> None:
    """All checks on valid and invalid data; streams have no end and are tested elsewhere.

    With a key that may do everything, each operation is also tried without it.
    """
    line, key = mint("ops", ["admin"])
    env = {"SESSIONS_KEYS": line, **NO_LIMITS} if has_keys else {}
    with Service(tmp_path, env=env) as service:
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
            "25",
            "--generation-deterministic",  # the same cases on every machine, however fast it is
            "--no-color",
            *(["--header", f"X-API-KEY: {key}"] if has_keys else []),
        ]

        run = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=BUDGET_S + 60, check=False
        )

        found = run.stdout[run.stdout.find("= FAILURES ") :]
        assert run.returncode == 0, re.sub(r"(.)\1{50,}", r"\1…", found)[:6000] + run.stderr[-2000:]
        assert " 0 failed" not in run.stdout
        assert "passed" in run.stdout
    service.assert_no_bug_logged()

"""A real Chromium, and a real service whose sessions may live for seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.chromium import Chromium, Page, find_chromium
from tests.support.commands import RunningService

SLOW_AGENT = "33333333-3333-4333-8333-333333333333"
AGENTS = f"""
[[agents]]
id = "{SLOW_AGENT}"
name = "Slow echo"
kind = "echo"
config = {{ delayMs = 150 }}
"""
SECONDS = {
    "SESSIONS_ENV": "test",
    "SESSION_MIN_TIMEOUT_MINUTES": "0.01",
    "SESSION_RETENTION_MINUTES": "5",
}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    binary = find_chromium()
    if binary is None:
        pytest.skip("NO CHROMIUM on PATH: the pages are NOT tested (apt-get install chromium)")
    with Chromium(binary, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "agents.toml").write_text(AGENTS)
    with RunningService(
        folder, env={**SECONDS, "SESSIONS_AGENTS_FILE": str(folder / "agents.toml")}
    ) as service:
        yield service


@pytest.fixture
def page(chromium: Chromium) -> Iterator[Page]:
    """A page; afterwards its scripts must not have thrown."""
    page = chromium.page()
    yield page
    assert page.errors() == []

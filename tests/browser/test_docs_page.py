"""``/docs`` in a real Chromium: the whole API, without anything from another host."""

from __future__ import annotations

import httpx2
import pytest

from tests.browser.chromium import Page
from tests.support.commands import RunningService

pytestmark = pytest.mark.timeout(180)


def test_shows_every_operation(page: Page, service: RunningService) -> None:
    """Each operation of the description has its place on the page, by its id."""
    paths = httpx2.get(f"{service.url}/openapi.json").json()["paths"]
    operations = [operation["operationId"] for methods in paths.values() for operation in methods.values()]

    page.goto(f"{service.url}/docs")
    page.until("document.querySelectorAll('#main > details').length > 0")

    shown = page.run("[...document.querySelectorAll('#main > details')].map(one => one.id)")
    assert sorted(shown) == sorted(operations)
    assert "cannot be shown" not in page.run("document.getElementById('about').textContent")

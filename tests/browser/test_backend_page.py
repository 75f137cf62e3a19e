"""examples/backend.py and its page in a real Chromium: a chat with access keys, on an origin of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from sessions_api.access.keyring import mint
from tests.browser.chromium import Page, wait_until
from tests.browser.test_chat_page import answered, said, send, session_of
from tests.support.commands import RunningService, clean_environment
from tests.support.ports import free_port

CHECKOUT = Path(__file__).parents[2]
TOKEN_SECONDS = 4

pytestmark = pytest.mark.timeout(180)


class Shop(NamedTuple):
    """The app's own server, the service that it uses, and its key there."""

    url: str
    service: RunningService
    key: str

    def revoke(self, session_id: str) -> None:
        tokens = f"{self.service.sessions}/{session_id}/tokens"
        reply = httpx2.delete(tokens, headers={"X-API-KEY": self.key}, trust_env=False)
        assert reply.status_code == 200, reply.text


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    line, key = mint("shop", ["app"])
    env = {"SESSIONS_KEYS": line, "SESSIONS_CORS_ORIGINS": url}
    with RunningService(tmp_path_factory.mktemp("service"), env=env) as service:
        given = {
            "SESSIONS_URL": service.url,
            "SESSIONS_API_KEY": key,
            "BACKEND_PORT": str(port),
            "TOKEN_SECONDS": str(TOKEN_SECONDS),
        }
        process = subprocess.Popen(
            [sys.executable, CHECKOUT / "examples" / "backend.py"],
            env=clean_environment(given),
            stdin=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: answers(url), 30, "the backend's page")
            yield Shop(url, service, key)
        finally:
            process.terminate()
            process.wait(10)


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def requested(page: Page) -> list[str]:
    """Every address that the page has asked for."""
    names: list[str] = page.run("performance.getEntriesByType('resource').map((e) => e.name)")
    return names


def begin(page: Page, shop: Shop) -> str:
    """Open the chat and be answered; the session's id."""
    page.goto(shop.url)
    send(page, "good morning")
    answered(page, "echo: good morning")
    return session_of(page)


def until_refused(page: Page) -> None:
    page.until("document.querySelector('#over').checkVisibility()")
    assert "no access" in page.text("#over-title")
    assert "withdrawn" in page.text("#over-text")
    assert page.text("#link") == "no access"


class TestConversation:
    def test_outlives_its_tokens_and_shows_none_in_an_address(self, page: Page, shop: Shop) -> None:
        """The page refreshes its token, goes on with the stream, and a reload gets one from its server."""
        session_id = begin(page, shop)
        page.until(
            "performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/tokens/refresh'))"
            ".length >= 3",
            3 * TOKEN_SECONDS,
        )
        send(page, "still there?")
        answered(page, "echo: still there?")
        addresses = requested(page)

        page.reload()
        answered(page, "echo: still there?")

        assert said(page) == ["good morning", "echo: good morning", "still there?", "echo: still there?"]
        assert session_of(page) == session_id
        assert {address.partition("?")[2].partition("=")[0] for address in addresses} == {"", "after"}
        assert page.run("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0

    def test_goes_on_after_the_computer_slept_past_the_token(self, page: Page, shop: Shop) -> None:
        """No timer ran, the stream was cut: the page asks its own server, which knows the user."""
        session_id = begin(page, shop)

        page.run("clearTimeout(pass.renewal)")
        page.until("Date.now() > pass.lapses", 2 * TOKEN_SECONDS)
        send(page, "good evening")
        answered(page, "echo: good evening")

        assert session_of(page) == session_id
        assert any(address.endswith(f"/session/{session_id}") for address in requested(page))

    def test_is_nobody_elses(self, page: Page, shop: Shop) -> None:
        """Another user of the app who names the session is told that there is none."""
        theirs = httpx2.get(shop.url, trust_env=False).cookies["login"]
        session_id = begin(page, shop)

        reply = httpx2.post(
            f"{shop.url}/session/{session_id}", headers={"Cookie": f"login={theirs}"}, trust_env=False
        )

        assert reply.status_code == 404
        assert "token" not in reply.json()


class TestRevocation:
    def test_is_told_at_once_and_leaves_the_words_to_read(self, page: Page, shop: Shop) -> None:
        session_id = begin(page, shop)

        shop.revoke(session_id)

        until_refused(page)
        assert said(page) == ["good morning", "echo: good morning"]

    def test_of_who_signs_out_leaves_no_way_back(self, page: Page, shop: Shop) -> None:
        begin(page, shop)

        page.run("fetch('/sign-out', { method: 'POST' })")
        until_refused(page)
        page.click("#again")

        page.until("document.body.innerText.includes('No new session: You are signed out.')")

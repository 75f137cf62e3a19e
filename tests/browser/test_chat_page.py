"""examples/chat.html in a real Chromium, on a real service whose sessions live for seconds."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.browser.chromium import Page
from tests.browser.conftest import SECONDS, SLOW_AGENT
from tests.support.client import Api
from tests.support.commands import RunningService
from tests.support.workers import Worker

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def api(service: RunningService) -> Iterator[Api]:
    api = Api(service.url)
    yield api
    api.close()


def send(page: Page, content: str) -> None:
    page.until("document.activeElement === document.querySelector('#input')")
    page.type(content)
    page.press("Enter")


def answered(page: Page, content: str) -> None:
    page.until(
        "[...document.querySelectorAll('.theirs:not(.live) .text')]"
        f".some((n) => n.textContent === {json.dumps(content)})"
    )


def said(page: Page) -> list[str]:
    """Every bubble's text, as it stands on the page."""
    texts: list[str] = page.run("[...document.querySelectorAll('.said .text')].map((n) => n.textContent)")
    return texts


def session_of(page: Page) -> str:
    session_id: str = page.run("location.hash.slice(1)")
    return session_id


class TestTalking:
    def test_the_first_message_opens_a_session_and_gets_its_answer(
        self, page: Page, service: RunningService
    ) -> None:
        page.goto(f"{service.url}/chat")
        assert page.is_visible("#welcome")

        send(page, "good morning to you")
        answered(page, "echo: good morning to you")

        assert said(page) == ["good morning to you", "echo: good morning to you"]
        assert service.history(session_of(page)) == ["good morning to you", "echo: good morning to you"]

    def test_the_answer_streams_in(self, page: Page, service: RunningService) -> None:
        """Each state of the growing text is a beginning of the answer; a reload goes on with it."""
        page.goto(f"{service.url}/chat?agent={SLOW_AGENT}")
        content = "one two three four five six seven eight nine ten"

        send(page, content)
        page.until("document.querySelector('.live .text')?.textContent.length > 6")
        first: str = page.run("document.querySelector('.live .text').textContent")
        page.reload()
        page.until(f"document.querySelector('.live .text')?.textContent.length > {len(first)}")
        second: str = page.run("document.querySelector('.live .text').textContent")
        answered(page, f"echo: {content}")

        assert f"echo: {content}".startswith(second)
        assert second.startswith(first)
        assert said(page) == [content, f"echo: {content}"]

    def test_a_running_answer_can_be_stopped(self, page: Page, service: RunningService) -> None:
        page.goto(f"{service.url}/chat?agent={SLOW_AGENT}")
        send(page, "one two three four five six seven eight nine ten eleven twelve")
        page.until("document.querySelector('.live .text')?.textContent.length > 6")

        page.press("Escape")
        page.until("document.body.innerText.includes('stopped')")

        assert len(service.history(session_of(page))[-1]) < 60
        assert not page.is_visible("#stop")

    def test_enter_sends_and_shift_enter_does_not(self, page: Page, service: RunningService) -> None:
        page.goto(f"{service.url}/chat")

        page.type("first line")
        page.press("Enter", shift=True)
        page.type("second line")
        page.press("Enter")

        answered(page, "echo: first line\nsecond line")

    def test_what_is_said_is_text_and_never_markup(self, page: Page, service: RunningService) -> None:
        page.goto(f"{service.url}/chat")
        markup = "<img src=x onerror='window.harmed = true'><b>bold</b>"

        send(page, markup)
        answered(page, f"echo: {markup}")

        assert page.run("document.querySelector('#log img, #log b')") is None
        assert page.run("window.harmed ?? false") is False

    def test_a_reload_shows_the_same_conversation(self, page: Page, service: RunningService) -> None:
        page.goto(f"{service.url}/chat")
        send(page, "remember me")
        answered(page, "echo: remember me")

        page.reload()

        answered(page, "echo: remember me")
        assert said(page) == ["remember me", "echo: remember me"]
        send(page, "still here")
        answered(page, "echo: still here")

    def test_nothing_comes_from_elsewhere(self, page: Page, service: RunningService) -> None:
        page.goto(f"{service.url}/chat")
        send(page, "hello")
        answered(page, "echo: hello")

        origins = page.run("performance.getEntriesByType('resource').map((e) => new URL(e.name).origin)")

        assert set(origins) <= {service.url}


class TestAgent:
    def test_is_called_by_its_name_and_seen_to_come_and_go(
        self, page: Page, service: RunningService, api: Api
    ) -> None:
        worker = Worker(api, name="Ada")
        page.goto(f"{service.url}/chat?agent={worker.agent_id.upper()}")
        page.until("document.querySelector('#agent').textContent === 'Ada'")
        assert page.text("header .face") == "A"

        send(page, "hello")
        turn = worker.claim()
        page.until("document.querySelector('#link').dataset.is === 'live'")
        worker.leave()
        page.until("document.querySelector('#link').dataset.is === 'away'")
        assert "answers later" in page.text("#link")

        turn.say("hello ").say("yourself").complete()
        answered(page, "hello yourself")

    def test_shows_its_thought_to_who_asks(self, page: Page, service: RunningService, api: Api) -> None:
        worker = Worker(api)
        page.goto(f"{service.url}/chat?agent={worker.agent_id}")
        send(page, "what is 6 x 7?")
        worker.claim().complete(content="42", metadata={"thought": "They <b>test</b> me."})
        answered(page, "42")
        assert not page.is_visible(".thought p")

        page.click(".thought summary")

        page.until("document.querySelector('.thought p').checkVisibility()")
        assert page.text(".thought p") == "They <b>test</b> me."
        assert page.run("document.querySelector('.thought b')") is None

    def test_that_is_not_there_costs_no_word(self, page: Page, service: RunningService, api: Api) -> None:
        worker = Worker(api)
        worker.leave()
        page.goto(f"{service.url}/chat?agent={worker.agent_id}")
        page.until("document.querySelector('#link').textContent === 'the agent is not there'")

        send(page, "anybody?")

        page.until("document.querySelector('#link').textContent.includes('try again later')")
        assert page.run("document.querySelector('#input').value") == "anybody?"

    def test_that_does_not_exist_is_said_at_once(self, page: Page, service: RunningService) -> None:
        page.goto(f"{service.url}/chat?agent=99999999-9999-4999-8999-999999999999")

        page.until("document.querySelector('#link').textContent === 'there is no such agent'")

    def test_may_speak_first(self, page: Page, service: RunningService) -> None:
        page.goto(f"{service.url}/chat")
        send(page, "hello")
        answered(page, "echo: hello")

        for role, content in (("agent", "One more thing."), ("system", "The shop closes at six.")):
            reply = httpx2.post(
                f"{service.sessions}/{session_of(page)}/messages",
                json={"role": role, "content": content},
                trust_env=False,
            )
            assert reply.status_code == 201

        page.until("document.body.innerText.includes('The shop closes at six.')")
        assert said(page)[2:] == ["One more thing.", "The shop closes at six."]


class TestTime:
    def test_counts_down_warns_and_keeps_going(self, page: Page, service: RunningService) -> None:
        page.goto(f"{service.url}/chat?timeout=0.2&warning=0.18")
        send(page, "hello")
        answered(page, "echo: hello")
        page.until("/^0:\\d\\d$/.test(document.querySelector('#clock').textContent)")

        page.until("document.querySelector('#warning').checkVisibility()")
        assert "ends in 0:" in page.text("#warning")
        before = httpx2.get(f"{service.sessions}/{session_of(page)}", trust_env=False).json()["expiresAt"]
        page.click("#keep")
        page.until("!document.querySelector('#warning').checkVisibility()")

        after = httpx2.get(f"{service.sessions}/{session_of(page)}", trust_env=False).json()["expiresAt"]
        assert after > before

    def test_expiry_leaves_it_readable_and_a_new_session_is_one_click_away(
        self, page: Page, service: RunningService
    ) -> None:
        page.goto(f"{service.url}/chat?timeout=0.05&warning=0.03")
        send(page, "I shall be quiet now")
        answered(page, "echo: I shall be quiet now")
        first = session_of(page)

        page.until("document.querySelector('#over').checkVisibility()")
        assert not page.is_visible("#form")
        assert "session over" in page.text("#link")
        assert said(page) == ["I shall be quiet now", "echo: I shall be quiet now"]

        page.click("#again")
        page.until("document.querySelector('#form').checkVisibility()")
        send(page, "back again")
        answered(page, "echo: back again")

        assert session_of(page) != first
        assert said(page)[:2] == ["I shall be quiet now", "echo: I shall be quiet now"]
        assert httpx2.get(f"{service.sessions}/{first}", trust_env=False).status_code == 410

    def test_an_ended_session_opened_again_shows_what_was_said(
        self, page: Page, service: RunningService
    ) -> None:
        session_id = service.create(
            timeoutConfig={"timeoutMinutes": 0.02, "autoRenew": False, "warningThresholdMinutes": 0.01}
        )
        service.say(session_id, "short")

        page.goto(f"{service.url}/chat#{session_id}")

        page.until("document.querySelector('#over').checkVisibility()")
        assert said(page) == ["short", "echo: short"]

    def test_a_deleted_session_is_told(self, page: Page, service: RunningService) -> None:
        page.goto(f"{service.url}/chat")
        send(page, "hello")
        answered(page, "echo: hello")

        httpx2.delete(f"{service.sessions}/{session_of(page)}", trust_env=False)

        page.until("document.querySelector('#over').checkVisibility()")
        assert "deleted" in page.text("#over")


class TestTrouble:
    def test_a_service_that_was_away_loses_and_doubles_nothing(self, page: Page, tmp_path: Path) -> None:
        """Killed; a message is sent into the void; it is back: one message, one answer, in order."""
        with RunningService(tmp_path, env=SECONDS) as first:
            page.goto(f"{first.url}/chat")
            send(page, "before")
            answered(page, "echo: before")
            first.stop(signal.SIGKILL)
        page.until("document.querySelector('#link').dataset.is === 'waiting'")
        send(page, "into the void")
        page.until("document.body.innerText.includes('sending…')")

        with RunningService(tmp_path, env=SECONDS, port=first.port) as second:
            page.until(
                "document.body.innerText.includes('echo: into the void')"
                " || !!document.querySelector('.note button')",
                40,
            )
            if page.run("!!document.querySelector('.note button')"):  # it gave up: one click, the same key
                page.click(".note button")
            answered(page, "echo: into the void")
            page.until("document.querySelector('#link').dataset.is === 'live'")

            expected = ["before", "echo: before", "into the void", "echo: into the void"]
            assert said(page) == expected
            assert second.history(session_of(page)) == expected

    def test_an_unknown_session_in_the_address_begins_afresh(
        self, page: Page, service: RunningService
    ) -> None:
        page.goto(f"{service.url}/chat#99999999-9999-4999-8999-999999999999")

        page.until("document.querySelector('#welcome').checkVisibility()")
        send(page, "hello")
        answered(page, "echo: hello")


class TestEverybody:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_fits_a_phone_and_names_its_controls(
        self, page: Page, service: RunningService, scheme: str
    ) -> None:
        page.size(360, 640, mobile=True)
        page.prefer(scheme)
        page.goto(f"{service.url}/chat")
        send(page, "a-very-long-word-without-any-space-" * 8)
        page.until("!!document.querySelector('.theirs:not(.live)')")

        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run(
            "[...document.querySelectorAll('button, summary, textarea')].every((n) => "
            "n.textContent.trim() || n.getAttribute('aria-label') || n.labels?.length)"
        )
        assert "echo: a-very" in page.run("document.querySelector('#tell').textContent")

"""What an agent developer would try, against a service in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from sessions_api.sdk import Agent, Answer, Refused, Turn, TurnFailed
from tests.support.app import App
from tests.support.service import Service
from tests.support.waiting import until

FASTER_THAN_AN_EXTEND_S = 3.0
"""A cancel that came only with the next extend would take up to ten."""


async def shout(turn: Turn) -> AsyncGenerator[str, None]:
    for word in turn.text.upper().split():
        yield word + " "


class TestAnswers:
    async def test_stream_and_are_whole_in_the_history(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            for number in range(200):
                yield f"{number} 😀\ud83d"
                yield "\ude00 "
                if number % 50 == 0:
                    await asyncio.sleep(0)

        async with Agent(service.url, agent_id, handler=answer, name="Counter"):
            session_id = await app.create(agent_id)
            text = await app.ask(session_id, "count")

        assert text == "".join(f"{number} 😀😀 " for number in range(200))
        assert await app.said(session_id) == ["count", text]

    async def test_know_what_was_said_before(self, service: Service, app: App, agent_id: str) -> None:
        async def answer(turn: Turn) -> str:
            roles = [f"{message.role}:{message.content}" for message in turn.history]
            is_theirs = turn.session.user_id == turn.messages[0].author_id
            return f"{turn.session.metadata['plan']} {is_theirs} {roles}"

        async with Agent(service.url, agent_id, handler=answer, name="Memory"):
            session_id = await app.create(agent_id, metadata={"plan": "gold"})
            first = await app.ask(session_id, "one")
            second = await app.ask(session_id, "two")

        assert first == "gold True []"
        assert second == f"gold True {['user:one', f'agent:{first}']}"

    async def test_carry_what_was_thought_done_and_spent(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        async def answer(turn: Turn) -> AsyncGenerator[str, None]:
            turn.thought("easy")
            turn.action("LOOK")
            turn.attach(url="https://example.test/map.png", content_type="image/png")
            turn.usage(input_tokens=2, output_tokens=3)
            yield "here"

        async with Agent(service.url, agent_id, handler=answer, name="Guide"):
            session_id = await app.create(agent_id)
            await app.ask(session_id, "where?")
            message = (await app.messages(session_id))[-1]

        assert message["metadata"]["thought"] == "easy"
        assert message["metadata"]["actions"] == ["LOOK"]
        assert message["metadata"]["usage"] == {"inputTokens": 2, "outputTokens": 3}
        assert message["attachments"] == [{"url": "https://example.test/map.png", "contentType": "image/png"}]

    async def test_may_be_empty(self, service: Service, app: App, agent_id: str) -> None:
        async def answer(_turn: Turn) -> None:
            return None

        async with Agent(service.url, agent_id, handler=answer, name="Silent"):
            session_id = await app.create(agent_id)
            said = await app.say(session_id, "anybody?", transport="http")

        assert said["agentResponse"] is None
        assert await app.said(session_id) == ["anybody?"]

    async def test_of_an_answer_object_are_stored_as_given(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        async def answer(_turn: Turn) -> Answer:
            return Answer("whole", metadata={"mood": "fine"})

        async with Agent(service.url, agent_id, handler=answer, name="Whole"):
            session_id = await app.create(agent_id)
            assert await app.ask(session_id, "so?") == "whole"
            assert (await app.messages(session_id))[-1]["metadata"]["mood"] == "fine"

    async def test_that_are_too_large_fail_and_stop_the_handler(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        stopped = asyncio.Event()

        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            try:
                while True:
                    yield "x" * 10_000
                    await asyncio.sleep(0)
            finally:
                stopped.set()

        async with Agent(service.url, agent_id, handler=answer, name="Endless"):
            session_id = await app.create(agent_id)
            said = await app.say(session_id, "go")
            turn = await app.ended(session_id, said["turnId"])
            await asyncio.wait_for(stopped.wait(), 10)

        assert turn["error"]["code"] == "ANSWER_TOO_LARGE"


class TestDefinition:
    async def test_from_the_environment_shapes_new_sessions(
        self, service: Service, app: App, agent_id: str, monkeypatch: Any
    ) -> None:
        monkeypatch.setenv("SESSION_TIMEOUT_MINUTES", "45")
        monkeypatch.setenv("SESSION_AUTO_RENEW", "false")

        async with Agent(service.url, agent_id, handler=shout, name="Set", settings_from_env=True):
            session_id = await app.create(agent_id)
            config = (await app.call("GET", f"/api/messaging/sessions/{session_id}")).json()["timeoutConfig"]

        assert config["timeoutMinutes"] == 45
        assert config["autoRenew"] is False

    async def test_out_of_range_is_refused_with_the_reason(
        self, service: Service, agent_id: str, monkeypatch: Any
    ) -> None:
        monkeypatch.setenv("SESSION_TIMEOUT_MINUTES", "0.001")

        with pytest.raises(Refused, match="timeoutMinutes"):
            await Agent(service.url, agent_id, handler=shout, name="Set", settings_from_env=True).serve()

    async def test_that_nobody_gave_is_missed_at_start(self, service: Service, agent_id: str) -> None:
        with pytest.raises(Refused, match="AGENT_NOT_FOUND"):
            await Agent(service.url, agent_id, handler=shout).serve()


class TestPresence:
    async def test_begins_and_ends_with_the_worker(self, service: Service, app: App, agent_id: str) -> None:
        async with Agent(service.url, agent_id, handler=shout, name="Here", concurrency=5):
            there = await app.availability(agent_id)

        gone = await app.availability(agent_id)
        assert (there["state"], there["workers"], there["capacity"]) == ("available", 1, 5)
        assert (gone["state"], gone["workers"]) == ("offline", 0)


class TestConcurrency:
    async def test_is_never_exceeded_and_everything_is_answered(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        running = most = 0
        full = asyncio.Event()

        async def answer(turn: Turn) -> str:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 3:
                full.set()
            await full.wait()
            await asyncio.sleep(0.01)
            running -= 1
            return turn.text

        async with Agent(service.url, agent_id, handler=answer, name="Busy", concurrency=3):
            sessions = [await app.create(agent_id) for _ in range(9)]
            answers = await asyncio.gather(*(app.ask(each, f"to {each}") for each in sessions))

        assert most == 3
        assert answers == [f"to {each}" for each in sessions]


class TestCancel:
    async def test_stops_a_silent_handler(self, service: Service, app: App, agent_id: str) -> None:
        stopped = asyncio.Event()

        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            yield "so far"
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

        async with Agent(service.url, agent_id, handler=answer, name="Deaf"):
            session_id = await app.create(agent_id)
            said = await app.say(session_id, "go")
            await app.has_draft(session_id)
            await app.cancel(session_id, said["turnId"])
            async with asyncio.timeout(FASTER_THAN_AN_EXTEND_S):
                await stopped.wait()

        [_, answer_message] = await app.messages(session_id)
        assert answer_message["content"] == "so far"
        assert answer_message["status"] == "cancelled"

    async def test_by_an_interrupt_lets_the_next_turn_answer_both(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        started = asyncio.Event()

        async def answer(turn: Turn) -> str:
            if turn.text == "long":
                started.set()
                await asyncio.Event().wait()
            return turn.text

        async with Agent(service.url, agent_id, handler=answer, name="Hasty", on_busy="interrupt"):
            session_id = await app.create(agent_id)
            await app.say(session_id, "long")
            await started.wait()
            assert await app.ask(session_id, "short") in {"short", "long\nshort"}


class TestFailures:
    async def test_of_every_attempt_are_told_without_what_was_said(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        attempts = []

        async def answer(turn: Turn) -> str:
            attempts.append(turn.attempt)
            raise RuntimeError(turn.text)

        async with Agent(service.url, agent_id, handler=answer, name="Broken", max_attempts=2):
            session_id = await app.create(agent_id)
            said = await app.say(session_id, "my secret")
            turn = await app.ended(session_id, said["turnId"])

        assert attempts == [1, 2]
        assert turn["error"] == {"code": "AGENT_ERROR", "message": "The agent failed: RuntimeError."}

    async def test_for_good_are_not_tried_again(self, service: Service, app: App, agent_id: str) -> None:
        """A poison message costs its own turn; the conversation and the worker go on."""
        attempts = 0

        async def answer(turn: Turn) -> str:
            nonlocal attempts
            if turn.text == "poison":
                attempts += 1
                raise TurnFailed("CANNOT_READ_THIS", "This cannot be read.", retry=False)
            return turn.text

        async with Agent(service.url, agent_id, handler=answer, name="Taster", concurrency=1):
            session_id = await app.create(agent_id)
            said = await app.say(session_id, "poison")
            assert await app.ask(session_id, "bread") == "bread"
            turn = await app.turn(session_id, said["turnId"])

        assert attempts == 1
        assert turn["error"] == {"code": "CANNOT_READ_THIS", "message": "This cannot be read."}

    async def test_of_one_attempt_leave_no_trace_of_its_text(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        async def answer(turn: Turn) -> AsyncGenerator[str, None]:
            yield f"attempt {turn.attempt}"
            if turn.attempt == 1:
                await app.has_draft(turn.session.id)
                raise OSError

        async with Agent(service.url, agent_id, handler=answer, name="Second"):
            session_id = await app.create(agent_id)
            assert await app.ask(session_id, "well?") == "attempt 2"
            assert await app.said(session_id) == ["well?", "attempt 2"]


class TestStopping:
    async def test_hands_the_turn_to_the_next_worker_uncounted(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        started = asyncio.Event()

        async def hang(_turn: Turn) -> str:
            started.set()
            await asyncio.Event().wait()
            return "never"

        async def answer(turn: Turn) -> str:
            return f"attempt {turn.attempt}"

        first = Agent(service.url, agent_id, handler=hang, name="Relay", grace_s=0)
        async with first:
            session_id = await app.create(agent_id)
            said = await app.say(session_id, "go")
            await started.wait()
        async with Agent(service.url, agent_id, handler=answer):
            await app.ended(session_id, said["turnId"])

        assert await app.said(session_id) == ["go", "attempt 1"]

    async def test_while_idle_is_quick(self, service: Service, app: App, agent_id: str) -> None:
        """It does not wait for the claim that waits for work."""
        async with asyncio.timeout(10):
            async with Agent(service.url, agent_id, handler=shout, name="Idle"):
                await until(lambda: True)

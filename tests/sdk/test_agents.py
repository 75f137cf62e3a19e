"""An agent's life: its definition, its claims, its places; a service that goes away and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sessions_api.sdk import Agent, Refused, Turn
from sessions_api.sdk.definition import session_settings
from tests.support.desk import AGENT, Desk, Fault
from tests.support.waiting import until


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with Desk() as desk:
        yield desk


async def shout(turn: Turn) -> str:
    return turn.text.upper()


class TestDefinition:
    async def test_is_put_before_the_first_claim(self, desk: Desk, monkeypatch: Any) -> None:
        monkeypatch.setenv("SESSION_TIMEOUT_MINUTES", "45")
        monkeypatch.setenv("SESSION_AUTO_RENEW", "False")
        monkeypatch.setenv("SESSION_WARNING_THRESHOLD_MINUTES", "2.5")
        agent = Agent(
            desk.url,
            AGENT,
            "id.secret",
            handler=shout,
            name="Shouter",
            settings_from_env=True,
            on_busy="merge",
            history=7,
            turn_timeout_s=90,
            max_attempts=2,
        )

        async with agent:
            pass

        assert [each.kind for each in desk.heard[:2]] == ["define", "claim"]
        assert desk.bodies("define") == [
            {
                "name": "Shouter",
                "kind": "worker",
                "session": {"timeoutMinutes": 45, "autoRenew": False, "warningThresholdMinutes": 2.5},
                "onBusy": "merge",
                "history": 7,
                "turnTimeoutMs": 90_000,
                "maxAttempts": 2,
            }
        ]
        assert all(each.headers["x-api-key"] == "id.secret" for each in desk.heard)

    async def test_its_key_may_come_from_the_environment(self, desk: Desk, monkeypatch: Any) -> None:
        monkeypatch.setenv("SESSIONS_API_KEY", "from.environment")

        async with Agent(desk.url, AGENT, handler=shout):
            await until(lambda: desk.heard)

        assert desk.heard[0].headers["x-api-key"] == "from.environment"

    async def test_without_a_name_is_somebody_elses(self, desk: Desk) -> None:
        async with Agent(desk.url, AGENT, handler=shout):
            pass

        assert not desk.of("define")

    async def test_that_is_refused_ends_the_agent_with_every_reason(self, desk: Desk) -> None:
        errors = [{"field": "name", "reason": "is too long"}, {"field": "history", "reason": "is no number"}]
        desk.misbehave("define", Fault(400, "VALIDATION_ERROR", {"errors": errors}))

        with pytest.raises(Refused, match="name is too long; history is no number") as refused:
            await Agent(desk.url, AGENT, handler=shout, name="x" * 500).serve()

        assert refused.value.code == "VALIDATION_ERROR"

    async def test_is_put_again_to_a_service_that_came_back_without_it(self, desk: Desk) -> None:
        async with Agent(desk.url, AGENT, handler=shout, name="Shouter"):
            desk.misbehave("claim", Fault(503), Fault(404, "AGENT_NOT_FOUND"))
            await desk.put()
            await desk.hears("complete")
            await desk.put()
            await desk.hears("complete", 2)

        assert len(desk.of("define")) == 2

    def test_needs_a_name(self) -> None:
        with pytest.raises(ValueError, match="give its name"):
            Agent("http://127.0.0.1:3000", AGENT, settings_from_env=True)

    @pytest.mark.parametrize(
        "variable, value",
        [
            ("SESSION_TIMEOUT_MINUTES", "soon"),
            ("SESSION_MAX_DURATION_MINUTES", "inf"),
            ("SESSION_AUTO_RENEW", "1"),
        ],
    )
    def test_refuses_a_variable_that_cannot_be(self, variable: str, value: str) -> None:
        with pytest.raises(ValueError, match=variable):
            session_settings({variable: value})


class TestClaiming:
    async def test_keeps_to_its_concurrency(self, desk: Desk) -> None:
        """A worker never holds more turns than it has places, and takes the next as soon as one is free."""
        running: set[str] = set()
        most = 0
        go_on = asyncio.Semaphore(0)

        async def answer(turn: Turn) -> str:
            nonlocal most
            running.add(turn.id)
            most = max(most, len(running))
            await go_on.acquire()
            running.discard(turn.id)
            return "done"

        async with Agent(desk.url, AGENT, handler=answer, concurrency=3):
            for _ in range(8):
                await desk.put()
            await until(lambda: len(running) == 3)
            claims = len(desk.of("claim"))
            for done in range(8):
                assert len(desk.of("claim")) <= claims + done
                go_on.release()
                await desk.hears("complete", done + 1)

        assert most == 3

    async def test_without_an_agent_says_so(self, desk: Desk) -> None:
        desk.misbehave("claim", Fault(404, "AGENT_NOT_FOUND"))

        with pytest.raises(Refused, match="AGENT_NOT_FOUND"):
            async with Agent(desk.url, AGENT, handler=shout):
                pass

    async def test_waits_on_one_connection(self, desk: Desk) -> None:
        """Idle, a worker has one request open, whatever it could take."""
        async with Agent(desk.url, AGENT, handler=shout, concurrency=50):
            await desk.hears("claim", 2)

        assert len(desk.of("claim")) == 3  # here I am · work? · goodbye

    async def test_without_a_handler_is_refused(self, desk: Desk) -> None:
        with pytest.raises(RuntimeError, match=r"@agent\.answer"):
            await Agent(desk.url, AGENT).serve()

    async def test_twice_at_once_is_refused(self, desk: Desk) -> None:
        agent = Agent(desk.url, AGENT, handler=shout)
        async with agent:
            with pytest.raises(RuntimeError, match="serves already"):
                await agent.serve()

    @pytest.mark.parametrize("url", ["localhost:3000", "ftp://there", "http://"])
    async def test_needs_an_address(self, url: str) -> None:
        with pytest.raises(ValueError, match="is no address"):
            await Agent(url, AGENT, handler=shout).serve()


class TestStopping:
    """Whatever the service may have heard of a worker is followed by its goodbye, and nothing else is."""

    async def test_while_it_is_defined_claims_nothing(self, desk: Desk) -> None:
        defined = desk.hold("define")
        agent = Agent(desk.url, AGENT, handler=shout, name="Shouter")
        serving = asyncio.create_task(agent.serve())
        await desk.hears("define")

        agent.stop()
        defined.set()
        await asyncio.wait_for(serving, 10)

        assert not desk.of("claim")

    async def test_in_its_first_claim_says_goodbye_after_it(self, desk: Desk) -> None:
        claimed = desk.hold("claim")
        agent = Agent(desk.url, AGENT, handler=shout, name="Shouter")
        serving = asyncio.create_task(agent.serve())
        await desk.hears("claim")

        agent.stop()
        claimed.set()
        await asyncio.wait_for(serving, 10)

        assert [each["capacity"] for each in desk.bodies("claim")] == [8, 0]

    async def test_in_a_first_claim_that_nobody_answers_says_goodbye(self, desk: Desk) -> None:
        claimed = desk.hold("claim")
        agent = Agent(desk.url, AGENT, handler=shout)
        serving = asyncio.create_task(agent.serve())
        await desk.hears("claim")

        serving.cancel()
        await desk.hears("claim", 2)
        claimed.set()
        await asyncio.wait({serving})

        assert [each["capacity"] for each in desk.bodies("claim")] == [8, 0]

    async def test_after_a_claim_whose_reply_was_lost_says_goodbye(self, desk: Desk) -> None:
        desk.misbehave("claim", Fault(0), *[Fault(503)] * 20)
        agent = Agent(desk.url, AGENT, handler=shout)
        serving = asyncio.create_task(agent.serve())
        await desk.hears("claim", 2)

        agent.stop()
        await asyncio.wait_for(serving, 10)

        assert desk.bodies("claim")[-1]["capacity"] == 0


class TestTurn:
    async def test_has_what_was_said(self, desk: Desk) -> None:
        seen: list[Turn] = []

        async def answer(turn: Turn) -> str:
            seen.append(turn)
            return "ok"

        await desk.put("first", attempt=2, more=True)
        async with Agent(desk.url, AGENT, handler=answer):
            await desk.hears("complete")

        [turn] = seen
        assert turn.text == "first"
        assert turn.attempt == 2
        assert turn.has_older_history
        assert turn.history == []
        assert [message.role for message in turn.messages] == ["user"]
        assert turn.messages[0].created_at.year == 2026
        assert turn.session.metadata == {}

    async def test_attaches_a_url_or_data_and_not_both(self, desk: Desk) -> None:
        async def answer(turn: Turn) -> str:
            with pytest.raises(ValueError, match="url or data"):
                turn.attach(url="u", data="d", content_type="text/plain")
            return "ok"

        await desk.put()
        async with Agent(desk.url, AGENT, handler=answer):
            await desk.hears("complete")

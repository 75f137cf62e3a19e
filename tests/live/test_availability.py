"""Followers know whether their agent is there, from their first snapshot on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import AgentState
from sessions_api.domain.ids import AgentId
from tests.support.scene import AGENT, Scene, data, types
from tests.support.servers import RealServer
from tests.support.waiting import until

pytestmark = pytest.mark.servers("valkey")

SINCE_MS = 1_795_393_348_911
AVAILABLE = AgentState("available", SINCE_MS)
BUSY = AgentState("busy", SINCE_MS + 2_000)
STRANGER = AgentId("99999999-9999-4999-8999-999999999999")


@pytest.fixture
async def known(server: RealServer) -> AsyncIterator[Scene]:
    """A replica that knows its agent to be available; what goes without followers is forgotten at once."""
    async with Scene(server.url, state_of={AGENT: AVAILABLE}.get, linger_s=0.01) as scene:
        yield scene


class TestAvailability:
    async def test_follows_the_first_snapshot(self, known: Scene) -> None:
        session = await known.session()
        said = await known.say(session.session_id, "one")
        for after in (None, 0):
            follower = await known.follow(session.session_id, after=after)
            snapshot, availability = await follower.next(), await follower.next()
            follower.close()

            assert types([snapshot, availability]) == ["session.snapshot", "agent.availability"]
            assert data(availability) == {
                "agentId": AGENT, "state": "available", "since": "2026-11-23T00:22:28.911Z",
            }  # fmt: skip
            assert (availability.id, availability.cursor) == ("", 0)
        assert said.cursor

    async def test_is_not_told_of_an_agent_that_nobody_knows(self, scene: Scene) -> None:
        session = await scene.session()
        follower = await scene.follow(session.session_id)
        await follower.next()
        await scene.say(session.session_id, "hello")

        events = await follower.until("message.created")

        assert "agent.availability" not in types(events)
        follower.close()

    async def test_comes_with_every_change_to_the_followers_of_that_agent(self, known: Scene) -> None:
        session = await known.session()
        followers = [await known.follow(session.session_id) for _ in range(2)]
        for follower in followers:
            await follower.until("agent.availability")

        known.hub.agent_changed(STRANGER, BUSY)
        known.hub.agent_changed(AgentId(AGENT.upper()), BUSY)
        known.hub.agent_changed(AGENT, AgentState())

        for follower in followers:
            told = [data(await follower.next()), data(await follower.next())]
            assert [each["state"] for each in told] == ["busy", "offline"]
            assert told[1] == {"agentId": AGENT, "state": "offline"}
            follower.close()

    async def test_costs_no_position(self, known: Scene) -> None:
        """It stands in no order: what comes after it is not taken for a hole."""
        session = await known.session()
        follower = await known.follow(session.session_id)
        await follower.until("agent.availability")

        known.hub.agent_changed(AGENT, BUSY)
        await known.say(session.session_id, "hello")
        await known.answer(session.session_id, "hi")
        events = await follower.until("turn.completed")

        assert types(events)[0] == "agent.availability"
        assert "session.snapshot" not in types(events)
        follower.close()

    async def test_a_change_before_the_first_snapshot_is_in_it(
        self, known: Scene, server: RealServer
    ) -> None:
        session = await known.session()
        server.pause()
        following = asyncio.create_task(known.hub.follow(session.session_id, grant=EVERYTHING, after=None))
        await until(lambda: known.hub.followers == 1)

        known.hub.agent_changed(AGENT, BUSY)
        server.resume()
        subscription = await following

        assert types([await subscription.next(), await subscription.next()]) == [
            "session.snapshot", "agent.availability",
        ]  # fmt: skip
        assert subscription.ready() is None
        subscription.close()

    async def test_nothing_is_kept_of_who_left(self, known: Scene) -> None:
        session = await known.session()
        follower = await known.follow(session.session_id)
        assert known.hub._tails._of_agents

        follower.close()

        await until(lambda: not known.hub._tails._of_agents)
        known.hub.agent_changed(AGENT, BUSY)

"""The dispatcher: fair shares of its places, a new agent that is served at once, presence that is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from sessions_api.agents.dispatcher import Dispatcher
from sessions_api.agents.finder import Finder, Lead
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import AgentId, SessionId
from sessions_api.errors import StorageUnavailable
from sessions_api.store.ready import Waiting
from sessions_api.store.turns import Claim
from tests.support.dispatching import AGENT, AGENTS, Hangs, Says, asked, dispatching, is_now
from tests.support.replicas import stores
from tests.support.stores import opened
from tests.support.waiting import eventually, until

# What scripts do on the other servers is the store's to test.
pytestmark = pytest.mark.servers("valkey", "fakeredis")


class Idle:
    """Has places, and fills none."""

    def has_place(self, agent_id: AgentId) -> bool:
        return True

    def take(self, lead: Lead) -> None:
        pass


class TestPlaces:
    async def test_are_bounded_for_each_agent(self, redis_url: str) -> None:
        connector = Hangs()
        async with stores(redis_url, 1) as (store,), dispatching(store, connector, concurrency=3):
            turns = [await asked(store) for _ in range(5)]
            await until(lambda: connector.open == 3)
            for sid, turn_id in turns:
                await store.turns.cancel(sid, turn_id, grant=EVERYTHING)

            await until(lambda: connector.open == 0)
            assert connector.closed <= 5

    async def test_of_agents_that_hang_starve_no_other(self, redis_url: str) -> None:
        """Five agents hang on more turns than there are places in all; the sixth is answered."""
        connector = Hangs(*AGENTS[:5])
        async with stores(redis_url, 1) as (store,), dispatching(store, connector, *AGENTS, turns=4):
            for agent in AGENTS[:5]:
                for _ in range(3):
                    await asked(store, agent)
            await until(lambda: connector.open >= 5)

            for _ in range(3):
                sid, turn_id = await asked(store, AGENTS[5])
                await is_now(store, sid, turn_id, "completed")

    async def test_go_round(self, redis_url: str) -> None:
        """With one place in all, two agents with a backlog each are answered both."""
        async with stores(redis_url, 1) as (store,):
            turns = [await asked(store, agent) for _ in range(20) for agent in AGENTS[:2]]
            async with dispatching(store, Says("done"), *AGENTS[:2], turns=1):
                for sid, turn_id in turns:
                    await is_now(store, sid, turn_id, "completed")

    async def test_find_a_backlog_larger_than_can_be_remembered(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), dispatching(store, Says("done"), concurrency=1):
            turns = [await asked(store) for _ in range(150)]
            for sid, turn_id in turns:
                await is_now(store, sid, turn_id, "completed")

    async def test_of_which_a_claim_failed_are_looked_for_again(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a keeper that would hint again."""
        async with stores(redis_url, 1) as (store,), dispatching(store, Says("done")):
            claim = store.turns.claim
            failed: list[SessionId] = []

            async def away(session_id: SessionId, **arguments: Any) -> Claim:
                if not failed:
                    failed.append(session_id)
                    raise StorageUnavailable("away")
                return await claim(session_id, **arguments)

            monkeypatch.setattr(store.turns, "claim", away)
            sid, turn_id = await asked(store)
            await is_now(store, sid, turn_id, "completed")

        assert failed == [sid]

    async def test_of_which_many_claims_failed_are_looked_for_once(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And not once for each, which would fail again, and so on, with a keeper's hints in between."""
        definition = AgentDefinition(AGENT, "Tested", "webhook")
        async with stores(redis_url, 1) as (store,):
            finder = Finder(store)
            await finder.start()
            trail = finder.join(AGENT, Idle())
            await trail.caught_up.wait()
            look, looks = store.ready.next_ready, Counter[AgentId]()

            async def noted(agent_id: AgentId) -> Waiting:
                looks[agent_id] += 1
                return await look(agent_id)

            async def away(*_: Any, **_more: Any) -> Claim:
                raise StorageUnavailable("away")

            monkeypatch.setattr(store.ready, "next_ready", noted)
            monkeypatch.setattr(store.turns, "claim", away)
            sid = (await opened(store, agent=AGENT)).session_id
            for number in range(20):
                lead = Lead(AGENT, sid, 0, number)
                assert await finder.claim(trail, lead, definition, worker="here") is None
                await asyncio.sleep(0.005)
            await until(lambda: looks[AGENT] > 0)
            await asyncio.sleep(0.2)
            assert looks[AGENT] == 1
            await finder.stop()


class TestAnAgentDefinedJustNow:
    async def test_is_served_from_when_it_was_told(self, redis_url: str) -> None:
        """Not from the next look at the definitions on: here there is none, since nothing was started."""
        async with stores(redis_url, 1) as (store,):
            finder = Finder(store)
            dispatcher = Dispatcher(store, finder, worker="here", connectors={"echo": Says("done")})
            await finder.start()
            try:
                await store.agents.put(AgentDefinition(AGENT, "New", "echo"))
                await dispatcher.attend()
                sid, turn_id = await asked(store)
                await is_now(store, sid, turn_id, "completed")
            finally:
                await dispatcher.stop()
                await finder.stop()


class TestPresence:
    async def test_is_told_for_all_agents_at_once(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), dispatching(store, Says("done"), *AGENTS, concurrency=7):
            for agent in AGENTS:

                async def is_there(agent: AgentId = agent) -> bool:
                    return (await store.attendance.confirm(agent)).state == "available"

                await eventually(is_there)
            availability = await store.attendance.read(AGENT)
            assert (availability.workers, availability.capacity) == (1, 7)
            assert store.redis.stats.scripts["attend"] <= 2

    async def test_ends_with_its_drain(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), dispatching(store, Says("done")) as dispatcher:
            await dispatcher.attend()
            await dispatcher.drain(0)

            assert (await store.attendance.confirm(AGENT)).state == "offline"
            await dispatcher.attend()
            assert (await store.attendance.confirm(AGENT)).state == "offline"

    async def test_says_when_all_places_are_taken(self, redis_url: str) -> None:
        connector = Hangs()
        async with stores(redis_url, 1) as (store,), dispatching(store, connector, concurrency=1):
            await asked(store)
            await until(lambda: connector.open == 1)

            async def is_busy() -> bool:
                await store.attendance.settle()
                return (await store.attendance.confirm(AGENT)).state == "busy"

            await eventually(is_busy)

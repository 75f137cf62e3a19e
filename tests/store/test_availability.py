"""What replicas learn of agents: states as they change, counts when asked; and what telling them costs."""

from __future__ import annotations

import asyncio

import pytest

from sessions_api.domain.agents import AgentState, Availability
from sessions_api.domain.ids import AgentId
from sessions_api.store import Redis, Store
from sessions_api.store.keys import Keyspace
from tests.support.attending import OTHER_AGENT, pass_, presence, present, state_of
from tests.support.servers import RealServer, TestServer
from tests.support.stores import AGENT, claimed, opened, say


class TestRefresh:
    async def test_tells_what_changed_since_the_last_call(self, store: Store, redis: Redis) -> None:
        other = Store(redis, Keyspace())
        assert await other.attendance.refresh() == {}
        await store.attendance.attend([presence(), presence(agent=OTHER_AGENT, free=False)])

        changed = await other.attendance.refresh()

        assert {agent: each.state for agent, each in changed.items()} == {
            AGENT: "available", OTHER_AGENT: "busy",
        }  # fmt: skip
        assert await other.attendance.refresh() == {}
        await store.attendance.leave(AGENT, "w")
        assert list(await other.attendance.refresh()) == [AGENT]

    async def test_tells_also_what_was_asked_for_in_between(self, store: Store) -> None:
        """Asking for one agent's state must not hide its change from followers."""
        await present(store)
        assert (await store.attendance.confirm(AGENT)).state == "available"
        assert store.attendance.state(AGENT).state == "available"

        assert list(await store.attendance.refresh()) == [AGENT]

    async def test_a_state_that_went_and_came_back_is_told_if_its_instant_moved(self, store: Store) -> None:
        await present(store)
        await store.attendance.refresh()
        await store.attendance.leave(AGENT, "w")
        await present(store)
        await pass_(store, 5_000)  # it may all have been in one millisecond

        assert list(await store.attendance.refresh()) == [AGENT]

    async def test_an_agent_that_is_forgotten_is_offline(self, store: Store, server: TestServer) -> None:
        await present(store)
        await store.attendance.refresh()

        await store.attendance.forget(AGENT)

        assert await store.attendance.refresh() == {AGENT: AgentState("offline", 0)}
        keyspace = store.keyspace
        assert not server.call("EXISTS", keyspace.presence, keyspace.workers(AGENT))
        await store.attendance.forget(AGENT)
        assert await store.attendance.refresh() == {}

    @pytest.mark.servers("valkey")
    async def test_costs_one_read_while_nothing_changes(self, store: Store, server: RealServer) -> None:
        await present(store)
        await store.attendance.refresh()
        server.call("CONFIG", "RESETSTAT")

        await store.attendance.refresh()

        assert {name: calls for name, calls in server.calls().items() if name.startswith("h")} == {"hget": 1}


class TestRead:
    async def test_counts_workers_and_what_they_take_and_the_work_there_is(self, store: Store) -> None:
        await store.attendance.attend(
            [
                presence("a", capacity=3),
                presence("b", capacity=4, free=False),
                presence("dead", capacity=9, ttl_ms=10_000),
                presence("c", agent=OTHER_AGENT, capacity=50),
            ]
        )
        await pass_(store, 10_000)
        for number in range(3):
            session = await opened(store)
            await say(store, session.session_id)
            if not number:
                await claimed(store, session.session_id)

        found = await store.attendance.read(AGENT)

        since_ms = (await store.attendance.confirm(AGENT)).since_ms
        assert found == Availability("available", since_ms, workers=2, capacity=7, running=1, waiting=2)

    async def test_of_an_agent_nobody_ever_served(self, store: Store) -> None:
        assert await store.attendance.read(AGENT) == Availability("offline", 0, 0, 0, 0, 0)

    async def test_is_one_round_trip(self, store: Store) -> None:
        trips = store.redis.stats.round_trips

        await store.attendance.read(AGENT)

        assert store.redis.stats.round_trips - trips == 1


class TestAttend:
    async def test_is_one_script_for_all(self, store: Store) -> None:
        agents = [AgentId(f"{number:08x}-0000-4000-8000-000000000000") for number in range(200)]
        trips = store.redis.stats.round_trips
        scripts = store.redis.stats.scripts["attend"]

        await store.attendance.attend([presence(agent=agent) for agent in agents])

        assert store.redis.stats.scripts["attend"] - scripts == 1
        assert store.redis.stats.round_trips - trips <= 2  # the first call of a script carries its source
        await store.attendance.refresh()
        assert all(store.attendance.state(agent).state == "available" for agent in agents)

    async def test_of_nobody_is_no_call(self, store: Store) -> None:
        trips = store.redis.stats.round_trips

        await store.attendance.attend([])

        assert store.redis.stats.round_trips == trips

    async def test_replicas_that_race_agree(self, store: Store, redis: Redis) -> None:
        others = [Store(redis, Keyspace()) for _ in range(3)]
        await asyncio.gather(
            *(
                other.attendance.attend([presence(f"{number}-{turn}", free=turn % 2 == 0)])
                for turn in range(10)
                for number, other in enumerate(others)
            )
        )

        assert (await store.attendance.read(AGENT)).workers == 30
        assert await state_of(store) == "available"

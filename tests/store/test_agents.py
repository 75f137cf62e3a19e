"""Agents' definitions: put by one replica, seen by all, read only when they changed."""

from __future__ import annotations

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import ECHO_ID, AgentDefinition
from sessions_api.domain.ids import AgentId, AppName
from sessions_api.domain.timeouts import TimeoutChoice
from sessions_api.errors import AgentNotFound
from sessions_api.store import Store
from sessions_api.store.connection import Redis
from sessions_api.store.keys import Keyspace
from tests.support.stores import AGENT, CONFIG, age, opened

ECHO = AgentDefinition(
    ECHO_ID, "Echo", "echo", config={"delay": 1}, session=TimeoutChoice(timeout_ms=60_000), on_busy="merge"
)


class TestPut:
    async def test_is_seen_by_every_replica_after_its_refresh(self, store: Store, redis: Redis) -> None:
        other = Store(redis, Keyspace())
        await other.open()
        assert other.agents.get(ECHO_ID) is None

        await store.agents.put(ECHO)
        changed = await other.agents.refresh()

        assert changed
        assert other.agents.get(ECHO_ID) == store.agents.get(ECHO_ID) == ECHO

    async def test_the_last_definition_wins(self, store: Store, redis: Redis) -> None:
        await store.agents.put(ECHO)
        await store.agents.put(AgentDefinition(ECHO_ID, "Other", "echo"))

        other = Store(redis, Keyspace())
        await other.open()

        assert [definition.name for definition in other.agents.all()] == ["Other"]

    async def test_the_same_again_changes_nothing(self, store: Store) -> None:
        await store.agents.put(ECHO)
        await store.agents.refresh()

        await store.agents.put(ECHO)

        assert not await store.agents.refresh()

    async def test_own_changes_are_not_mistaken_for_all(self, store: Store, redis: Redis) -> None:
        """What another replica put before is read too."""
        other = Store(redis, Keyspace())
        await other.agents.put(AgentDefinition(AgentId(AGENT), "A", "echo"))
        await store.agents.put(ECHO)

        await store.agents.refresh()

        assert [definition.agent_id for definition in store.agents.all()] == [ECHO_ID, AGENT]

    async def test_says_whether_the_agent_is_new(self, store: Store) -> None:
        assert await store.agents.put(ECHO) is True
        assert await store.agents.put(ECHO) is False
        assert await store.agents.put(AgentDefinition(ECHO_ID, "Other", "echo")) is False


class TestForget:
    async def test_is_seen_by_every_replica_after_its_refresh(self, store: Store, redis: Redis) -> None:
        await store.agents.put(ECHO)
        other = Store(redis, Keyspace())
        await other.open()

        assert await store.agents.forget(ECHO_ID) is True

        assert store.agents.get(ECHO_ID) is None
        assert await other.agents.refresh()
        assert other.agents.get(ECHO_ID) is None

    async def test_there_may_be_none(self, store: Store) -> None:
        await store.agents.refresh()

        assert await store.agents.forget(ECHO_ID) is False

        assert not await store.agents.refresh()

    async def test_it_may_be_defined_again(self, store: Store) -> None:
        await store.agents.put(ECHO)
        await store.agents.forget(ECHO_ID)

        assert await store.agents.put(ECHO) is True


class TestSessionsOf:
    async def test_counts_live_sessions_of_all_apps_and_partitions(self, store: Store) -> None:
        """Of app names also where one begins with another: they are stepped through in byte order."""
        apps = [AppName(name) for name in ("a", "a-b", "a0", "local", "z")]
        other_agent = AgentId("b" + AGENT[1:])
        for app in apps:
            for number in range(6):
                await opened(store, f"{number:08x}-1111-4111-8111-111111111111", app=app, agent=AGENT.upper())
            await opened(store, app=app, agent=other_agent)

        assert await store.agents.sessions_of(AGENT) == 30
        assert await store.agents.sessions_of(other_agent) == 5
        assert await store.agents.sessions_of(ECHO_ID) == 0

    async def test_what_ended_is_not_counted(self, store: Store) -> None:
        deleted, expired, _live = [(await opened(store)).session_id for _ in range(3)]
        await store.sessions.end(deleted, grant=EVERYTHING)
        await age(store, expired, CONFIG.timeout_ms)
        await store.alarms.ring(expired)

        assert await store.agents.sessions_of(AGENT) == 1

    async def test_is_one_round_trip(self, store: Store) -> None:
        await store.agents.sessions_of(AGENT)
        trips = store.redis.stats.round_trips

        await store.agents.sessions_of(AGENT)

        assert store.redis.stats.round_trips - trips == 1


class TestFind:
    async def test_asks_redis_once_for_an_agent_it_does_not_know(self, store: Store, redis: Redis) -> None:
        await Store(redis, Keyspace()).agents.put(ECHO)

        assert await store.agents.find(ECHO_ID) == ECHO

    async def test_an_agent_that_nobody_defined_is_not_found(self, store: Store) -> None:
        with pytest.raises(AgentNotFound):
            await store.agents.find(AgentId(AGENT))

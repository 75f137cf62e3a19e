"""Agents' definitions: put by one replica, seen by all, read only when they changed."""

from __future__ import annotations

import pytest

from sessions_api.domain.agents import ECHO_ID, AgentDefinition
from sessions_api.domain.ids import AgentId
from sessions_api.domain.timeouts import TimeoutChoice
from sessions_api.errors import AgentNotFound
from sessions_api.store import Store
from sessions_api.store.connection import Redis
from sessions_api.store.keys import Keyspace
from tests.support.stores import AGENT

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


class TestFind:
    async def test_asks_redis_once_for_an_agent_it_does_not_know(self, store: Store, redis: Redis) -> None:
        await Store(redis, Keyspace()).agents.put(ECHO)

        assert await store.agents.find(ECHO_ID) == ECHO

    async def test_an_agent_that_nobody_defined_is_not_found(self, store: Store) -> None:
        with pytest.raises(AgentNotFound):
            await store.agents.find(AgentId(AGENT))

"""Whether an agent is there: presences of its workers, and the state they make."""

from __future__ import annotations

import pytest

from sessions_api.domain.agents import AgentState
from sessions_api.domain.ids import AgentId
from sessions_api.store import Store
from tests.support.attending import JUST_NOW, OTHER_AGENT, pass_, presence, present, state_of
from tests.support.servers import RealServer, TestServer
from tests.support.stores import AGENT
from tests.support.waiting import eventually


class TestState:
    async def test_an_agent_that_nobody_serves_is_offline(self, store: Store) -> None:
        assert await state_of(store) == "offline"
        assert store.attendance.state(AGENT) == AgentState("offline", 0)

    @pytest.mark.parametrize("free, expected", [(True, "available"), (False, "busy")])
    async def test_it_is_there_at_once_when_a_worker_comes(
        self, store: Store, free: bool, expected: str
    ) -> None:
        await present(store, free=free)

        assert await state_of(store) == expected

    async def test_it_is_available_while_one_worker_is_free(self, store: Store) -> None:
        await present(store, "a")
        await present(store, "b")
        await pass_(store, 5_000)

        await present(store, "a", free=False)
        assert await state_of(store) == "available"
        await present(store, "b", free=False)
        assert await state_of(store) == "busy"
        await pass_(store, 5_000)
        await present(store, "a")
        assert await state_of(store) == "available"

    async def test_it_is_offline_at_once_when_the_last_worker_leaves(self, store: Store) -> None:
        await present(store, "a")
        await present(store, "b")

        await store.attendance.leave(AGENT, "a")
        assert await state_of(store) == "available"
        await store.attendance.leave(AGENT, "b")

        assert await state_of(store) == "offline"

    async def test_a_worker_that_was_never_there_may_leave(self, store: Store) -> None:
        await present(store)
        await store.attendance.leave(AGENT, "other")
        await store.attendance.leave(OTHER_AGENT, "other")

        assert (await state_of(store), await state_of(store, OTHER_AGENT)) == ("available", "offline")

    async def test_an_agent_is_known_since_its_last_change(self, store: Store) -> None:
        await present(store)
        first = await store.attendance.confirm(AGENT)
        await pass_(store, 7_000)
        await present(store)

        assert (await store.attendance.confirm(AGENT)).since_ms == first.since_ms - 7_000
        assert first.since_ms > 0


class TestReplicas:
    """A worker's long polls may wait at several, each of which knows only its own."""

    async def test_a_worker_is_free_while_it_waits_somewhere(self, store: Store) -> None:
        await store.attendance.attend([presence(by="one"), presence(by="two")])
        await pass_(store, 5_000)

        await store.attendance.attend([presence(by="one", free=False)])
        assert await state_of(store) == "available"
        await store.attendance.attend([presence(by="two", free=False)])

        assert await state_of(store) == "busy"

    async def test_it_is_one_worker_all_the_same(self, store: Store) -> None:
        await store.attendance.attend([presence(by=by, capacity=5) for by in ("one", "two")])

        found = await store.attendance.read(AGENT)

        assert (found.workers, found.capacity) == (1, 5)

    async def test_its_capacity_is_what_it_said_last_to_any(self, store: Store) -> None:
        """A write of its says none, and may reach a replica that it never waited at."""
        await store.attendance.attend([presence(by="one", capacity=5, ttl_ms=10_000)])
        await store.attendance.attend([presence(by="two", capacity=0, free=False)])
        await pass_(store, 10_000)
        await store.attendance.attend([presence(by="two", capacity=0, free=False)])

        found = await store.attendance.read(AGENT)

        assert (found.workers, found.capacity) == (1, 5)

    async def test_it_says_goodbye_once_for_all(self, store: Store) -> None:
        await store.attendance.attend([presence(by="one"), presence(by="two"), presence("w-2", by="two")])

        await store.attendance.leave(AGENT, "w")
        assert (await store.attendance.read(AGENT)).workers == 1
        await store.attendance.leave(AGENT, "w-2")

        assert await state_of(store) == "offline"


class TestSettle:
    async def test_a_worker_that_died_is_missed_when_its_presence_has_passed(self, store: Store) -> None:
        await present(store)
        await pass_(store, 30_000)
        await store.attendance.settle()
        assert await state_of(store) == "available"

        await pass_(store, 30_000)
        await store.attendance.settle()

        assert await state_of(store) == "offline"

    async def test_the_free_one_died_and_others_are_busy(self, store: Store) -> None:
        await present(store, "free", ttl_ms=10_000)
        await present(store, "busy", free=False, ttl_ms=40_000)
        await pass_(store, 10_000)

        await store.attendance.settle()
        assert await state_of(store) == "busy"
        await pass_(store, 30_000)
        await store.attendance.settle()

        assert await state_of(store) == "offline"

    async def test_whoever_says_again_that_it_is_there_is_not_missed(self, store: Store) -> None:
        await present(store)
        for _ in range(3):
            await pass_(store, 40_000)
            await present(store)
            await store.attendance.settle()
            assert await state_of(store) == "available"
        await pass_(store, 60_000)
        await store.attendance.settle()

        assert await state_of(store) == "offline"

    async def test_a_shorter_presence_takes_the_place_of_a_longer(self, store: Store) -> None:
        """The client of a long poll went away."""
        await present(store, ttl_ms=60_000)
        await present(store, ttl_ms=10_000)
        await pass_(store, 10_000)

        await store.attendance.settle()

        assert await state_of(store) == "offline"

    async def test_nobody_who_died_is_kept(self, store: Store, server: TestServer) -> None:
        await present(store, "dead", ttl_ms=10_000)
        await present(store, "living", free=False, ttl_ms=60_000)
        await pass_(store, 10_000)

        await store.attendance.settle()

        assert server.call("HKEYS", store.keyspace.workers(AGENT)) == [b"living "]

    async def test_nothing_is_kept_in_wait_for_an_agent_that_is_offline(
        self, store: Store, server: TestServer
    ) -> None:
        await present(store)
        await store.attendance.leave(AGENT, "w")

        assert server.call("ZCARD", store.keyspace.presence) == 0
        assert server.call("EXISTS", store.keyspace.workers(AGENT)) == 0

    async def test_presences_end_by_themselves(self, store: Store, server: TestServer) -> None:
        """With no keeper there, the workers are gone from Redis; the next to settle finds nobody."""
        await present(store, ttl_ms=20)

        async def is_gone() -> bool:
            return not server.call("EXISTS", store.keyspace.workers(AGENT))

        await eventually(is_gone)
        await store.attendance.settle()

        assert await state_of(store) == "offline"

    async def test_settles_any_number_of_agents(self, store: Store) -> None:
        agents = [AgentId(f"{number:08x}-0000-4000-8000-000000000000") for number in range(450)]
        await store.attendance.attend([presence(agent=agent, ttl_ms=1) for agent in agents])

        async def are_offline() -> bool:
            await store.attendance.settle()
            await store.attendance.refresh()
            return {store.attendance.state(agent).state for agent in agents} == {"offline"}

        await eventually(are_offline)

    @pytest.mark.servers("valkey")
    async def test_costs_one_call_while_nothing_is_due(self, store: Store, server: RealServer) -> None:
        await present(store)
        await store.attendance.settle()
        server.call("CONFIG", "RESETSTAT")

        await store.attendance.settle()

        assert server.calls().get("evalsha") == 1


class TestCalm:
    """Between available and busy an agent changes every two seconds at most; followers are told each time."""

    async def test_a_change_too_early_is_made_later(self, store: Store) -> None:
        await present(store)
        await pass_(store, JUST_NOW)
        await present(store, free=False)
        assert await state_of(store) == "available"
        await store.attendance.settle()
        assert await state_of(store) == "available"

        await pass_(store, 2_000 - JUST_NOW)
        await store.attendance.settle()

        assert await state_of(store) == "busy"

    async def test_what_was_taken_back_meanwhile_is_not_made(self, store: Store) -> None:
        await present(store)
        await pass_(store, JUST_NOW)
        await present(store, free=False)
        await present(store)
        before = await store.attendance.confirm(AGENT)

        await store.attendance.settle()

        assert await store.attendance.confirm(AGENT) == before

    async def test_free_again_too_early_is_told_later(self, store: Store) -> None:
        await present(store, free=False)
        await pass_(store, JUST_NOW)
        await present(store)
        assert await state_of(store) == "busy"

        await pass_(store, 2_000 - JUST_NOW)
        await store.attendance.settle()

        assert await state_of(store) == "available"

    async def test_offline_waits_for_nothing(self, store: Store) -> None:
        await present(store)
        await store.attendance.leave(AGENT, "w")
        assert await state_of(store) == "offline"
        await present(store, free=False)
        assert await state_of(store) == "busy"

    async def test_of_many_workers_the_last_free_one_is_missed_by_the_next_look(self, store: Store) -> None:
        """Looking at them all for each that becomes busy would cost the more the more they are."""
        await store.attendance.attend([presence(f"w{number}", free=False) for number in range(150)])
        await present(store, "free")
        await pass_(store, 5_000)
        await store.attendance.settle()
        assert await state_of(store) == "available"
        await pass_(store, 5_000)

        await present(store, "free", free=False)
        assert await state_of(store) == "available"
        await store.attendance.settle()

        assert await state_of(store) == "busy"

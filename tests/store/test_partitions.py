"""A partition: what is due in it, what is cleared out of it, who keeps it."""

from __future__ import annotations

import asyncio

import pytest

from sessions_api.domain.ids import PARTITIONS, partition_of_session
from sessions_api.store import Store
from tests.support.servers import TestServer
from tests.support.stores import CONFIG, MINUTE_MS, age, claimed, new_session, opened, say
from tests.support.waiting import until

SLACK_MS = 3_000  # what may really pass between two calls, on a loaded machine


class TestDue:
    async def test_names_what_is_due_oldest_first_and_what_comes_next(self, store: Store) -> None:
        sessions = [await opened(store) for _ in range(4)]
        partition = partition_of_session(sessions[0].session_id)
        for number, session in enumerate(sessions[:3]):
            await age(store, session.session_id, (26 + number) * MINUTE_MS)

        due = await store.alarms.due(partition)
        first = await store.alarms.due(partition, 1)

        assert due.session_ids == [session.session_id for session in reversed(sessions[:3])]
        assert first.session_ids == [sessions[2].session_id]
        assert due.next_ms == sessions[3].expires_ms - CONFIG.warning_ms
        assert due.now_ms >= sessions[3].now_ms
        assert (await store.alarms.due((partition + 1) % PARTITIONS)).next_ms is None

    async def test_an_alarm_that_fails_is_postponed_and_blocks_nobody(self, store: Store) -> None:
        session = await opened(store)
        partition = partition_of_session(session.session_id)
        await age(store, session.session_id, CONFIG.timeout_ms)

        await store.alarms.postpone(session.session_id, 60_000)
        await store.alarms.postpone(new_session().session_id, 60_000)

        due = await store.alarms.due(partition)
        assert due.session_ids == []
        assert due.next_ms is not None
        assert due.next_ms - due.now_ms == pytest.approx(60_000, abs=SLACK_MS)

    async def test_gauges_count_the_partition(self, store: Store) -> None:
        sessions = [await opened(store) for _ in range(3)]
        await say(store, sessions[0].session_id)
        await say(store, sessions[2].session_id)
        await claimed(store, sessions[2].session_id)
        await age(store, sessions[1].session_id, 26 * MINUTE_MS)
        await store.alarms.ring(sessions[1].session_id)

        gauges = await store.alarms.gauges(partition_of_session(sessions[0].session_id))

        assert (gauges.live, gauges.near, gauges.due, gauges.ready, gauges.running) == (3, 1, 3, 1, 1)


class TestPrune:
    @pytest.mark.parametrize("index", ["users", "agents", "near", "ready", "running", "due"])
    async def test_drops_ghosts_and_nothing_else(self, store: Store, server: TestServer, index: str) -> None:
        sessions = [await opened(store) for _ in range(12)]
        partition = partition_of_session(sessions[0].session_id)
        for session in sessions:
            await say(store, session.session_id)
            await age(store, session.session_id, CONFIG.timeout_ms - MINUTE_MS)
            await store.alarms.ring(session.session_id)
            if index == "running":
                await claimed(store, session.session_id)
        ghosts = sessions[::2]
        for ghost in ghosts:
            server.call("DEL", store.keyspace.of(ghost.session_id).session)

        position: bytes | None = b""
        batches = 0
        while position is not None:
            position = await store.alarms.prune(partition, index, position, 5)
            batches += 1

        members = server.call("ZRANGE", getattr(store.keyspace.partition(partition), index), 0, -1)
        kept = {member[-36:].decode() for member in members}
        assert kept == {session.session_id for session in sessions[1::2]}
        assert batches >= 3


class TestKeep:
    async def test_a_partition_has_one_keeper(self, store: Store, server: TestServer) -> None:
        replies = await asyncio.gather(*(store.alarms.keep(3, f"replica-{number}") for number in range(5)))

        assert sorted(replies) == [False, False, False, False, True]
        winner = f"replica-{replies.index(True)}"
        assert await store.alarms.keep(3, winner)
        assert await store.alarms.keep(4, "another")

    async def test_it_is_given_back_by_its_keeper_only(self, store: Store) -> None:
        await store.alarms.keep(3, "one")
        await store.alarms.yield_(3, "two")
        assert not await store.alarms.keep(3, "two")

        await store.alarms.yield_(3, "one")

        assert await store.alarms.keep(3, "two")

    async def test_a_lease_ends_by_itself(self, store: Store, server: TestServer) -> None:
        await store.alarms.keep(3, "dead", 50)
        key = store.keyspace.partition(3).keeper
        await until(lambda: not server.call("EXISTS", key))

        assert await store.alarms.keep(3, "living")

"""Keepers: leases shared fairly, a sweep that forgets nothing, hints that may fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from sessions_api.domain.ids import SessionId, TurnId, partition_of_session
from sessions_api.errors import SessionExpired
from sessions_api.keeper.hints import Hints
from sessions_api.keeper.keeper import Keeper
from sessions_api.keeper.leases import Leases
from sessions_api.keeper.sweep import Sweep
from sessions_api.store import Redis, Store
from sessions_api.store.keys import Keyspace
from sessions_api.telemetry import metrics
from sessions_api.telemetry.loops import cancelled, run_forever
from tests.support.replicas import facts, stores
from tests.support.servers import RealServer, TestServer
from tests.support.stores import CONFIG, MINUTE_MS, Ears, age, claimed, opened, say
from tests.support.waiting import eventually, until

REAL = ("valkey", "redis62", "debian")


@asynccontextmanager
async def sweeping(store: Store) -> AsyncIterator[Sweep]:
    """A sweep of all partitions, without leases or hints."""
    leases = Leases(store, replica_id="test")
    leases.kept.update(range(64))
    sweep = Sweep(store, leases)
    task = asyncio.create_task(run_forever(sweep.step, loop="test-sweep"))
    try:
        yield sweep
    finally:
        await cancelled(task)
        sweep.clear_gauges()


@asynccontextmanager
async def keeping(url: str, number: int) -> AsyncIterator[list[Keeper]]:
    """Started keepers, each as a replica has it; a test may stop some of them itself."""
    async with stores(url, number) as replicas:
        keepers = [Keeper(store, replica_id=f"replica-{i}") for i, store in enumerate(replicas)]
        for keeper in keepers:
            await keeper.start()
        try:
            yield keepers
        finally:
            for keeper in keepers:
                await keeper.stop()


async def kill(keeper: Keeper) -> None:
    """End *keeper* as SIGKILL would: nothing is given back."""
    tasks, keeper._tasks = keeper._tasks, []
    await cancelled(*tasks)
    await keeper._hints.stop()


def are_shared(*keepers: Keeper) -> bool:
    """Whether every partition is kept by exactly one of *keepers*, none with more than its share."""
    kept = [keeper.kept for keeper in keepers]
    return sorted(p for each in kept for p in each) == list(range(64)) and max(map(len, kept)) <= -(
        -64 // len(keepers)
    )


class TestLeases:
    async def test_give_all_partitions_to_the_only_keeper(self, redis_url: str) -> None:
        async with keeping(redis_url, 1) as (only,):
            await until(lambda: len(only.kept) == 64)

    async def test_are_shared_out_fairly_and_each_partition_has_one_keeper(self, redis_url: str) -> None:
        async with keeping(redis_url, 3) as keepers:
            await until(lambda: are_shared(*keepers))

    async def test_go_to_the_others_when_a_keeper_stops(self, redis_url: str) -> None:
        async with keeping(redis_url, 2) as (leaving, staying):
            await until(lambda: are_shared(leaving, staying))

            await leaving.stop()

            await until(lambda: len(staying.kept) == 64)
            assert not leaving.kept

    async def test_are_taken_over_from_a_keeper_that_died(self, redis_url: str) -> None:
        async with keeping(redis_url, 2) as (dying, staying):
            await until(lambda: are_shared(dying, staying))

            await kill(dying)

            await until(lambda: len(staying.kept) == 64)

    async def test_are_all_given_back_by_a_keeper_stopped_while_taking(
        self, store: Store, server: TestServer
    ) -> None:
        """Redis may have given a lease whose reply the stopping keeper never read."""

        def given() -> list[bytes]:
            keys = server.keys()
            return [key for key in keys if key.startswith(b"sa:keeper")]

        leases = Leases(store, replica_id="test")
        task = asyncio.create_task(leases.step())
        while not given():  # noqa: ASYNC110  it must stop before the loop reads the replies
            await asyncio.sleep(0)

        await cancelled(task)
        await leases.release()

        assert given() == []

    async def test_last_less_than_the_promised_five_seconds(self, store: Store, server: TestServer) -> None:
        """A lease, and the time until somebody looks, are together what a takeover may take."""
        leases = Leases(store, replica_id="test")
        task = asyncio.create_task(run_forever(leases.step, loop="test-leases"))
        await until(lambda: leases.kept)

        left_ms = server.call("PTTL", store.keyspace.partition(next(iter(leases.kept))).keeper)

        await cancelled(task)
        await leases.release()
        assert 0 < left_ms <= 4_000


class TestTheSweep:
    async def test_warns_and_expires_without_any_hint(self, store: Store) -> None:
        session = await opened(store)
        sid = session.session_id

        async with facts(store) as heard, sweeping(store):
            await age(store, sid, CONFIG.timeout_ms - CONFIG.warning_ms)
            await until(lambda: heard.count(sid)["session.expiring"])
            await age(store, sid, CONFIG.warning_ms)
            await until(lambda: heard.count(sid)["session.expired"])

        assert heard.types[sid] == ["session.expiring", "session.expired"]

    async def test_rings_what_another_missed_however_old(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, CONFIG.timeout_ms + 10 * MINUTE_MS)

        async with facts(store) as heard, sweeping(store):
            await until(lambda: heard.count(session.session_id)["session.expired"])

        with pytest.raises(SessionExpired):
            await store.sessions.read(session.session_id, app=None)

    async def test_rings_more_than_one_batch(self, store: Store) -> None:
        sids = [(await opened(store)).session_id for _ in range(250)]
        for sid in sids:
            await age(store, sid, CONFIG.timeout_ms)

        async with facts(store) as heard, sweeping(store):
            await until(lambda: heard.all_have(sids, "session.expired"))

        assert all(heard.types[sid] == ["session.expired"] for sid in sids)

    async def test_postpones_an_alarm_that_fails_and_rings_the_others(
        self, store: Store, server: TestServer
    ) -> None:
        broken = await self.broken(store, server)
        sound = [(await opened(store)).session_id for _ in range(3)]
        for sid in sound:
            await age(store, sid, CONFIG.timeout_ms)

        with capture_logs() as logs:
            async with facts(store) as heard, sweeping(store):
                await until(lambda: heard.all_have(sound, "session.expired"))
                await until(lambda: self.delays(logs, broken))
                due = store.keyspace.partition(partition_of_session(broken)).due
                await until(lambda: server.call("ZSCORE", due, broken))  # it is logged before it is done

        assert self.delays(logs, broken)[0] == 1

    async def test_waits_longer_after_each_failure_and_rings_once_it_can(
        self, store: Store, server: TestServer
    ) -> None:
        broken = await self.broken(store, server)
        with capture_logs() as logs:
            async with facts(store) as heard, sweeping(store):
                await until(lambda: len(self.delays(logs, broken)) == 2)
                server.call("HDEL", store.keyspace.of(broken).all()[3], "queue")

                await until(lambda: "session.expired" in heard.types.get(broken, []))

        assert self.delays(logs, broken) == [1, 2]

    @staticmethod
    async def broken(store: Store, server: TestServer) -> SessionId:
        """A session past its end whose turns cannot be read."""
        session = await opened(store)
        sid = session.session_id
        await say(store, sid)
        turns = store.keyspace.of(sid).all()[3]
        await age(store, sid, CONFIG.timeout_ms)
        server.call("HSET", turns, server.call("HGET", turns, "queue"), "{broken")
        return sid

    @staticmethod
    def delays(logs: Sequence[MutableMapping[str, Any]], session_id: SessionId) -> list[int]:
        return [
            entry["delay_s"]
            for entry in logs
            if entry["event"] == "alarm_postponed" and entry["session_id"] == session_id
        ]

    async def test_drops_the_ghosts_of_a_partition_when_it_meets_one(
        self, store: Store, server: TestServer
    ) -> None:
        """Sessions whose retention passed while no keeper was there."""
        living = await opened(store)
        ghosts = [(await opened(store)).session_id for _ in range(3)]
        for ghost in ghosts:
            server.call("DEL", *store.keyspace.of(ghost).all()[:5])
        partition = store.keyspace.partition(partition_of_session(living.session_id))
        server.call("ZADD", partition.due, 1, ghosts[0])

        async with sweeping(store):
            await until(lambda: server.call("ZCARD", partition.users) == 1)
            await until(lambda: server.call("ZCARD", partition.agents) == 1)
            await until(lambda: server.call("ZCARD", partition.due) == 1)

        assert (await store.sessions.read(living.session_id, app=None)).session_id == living.session_id

    async def test_repeats_the_wake_hint_of_work_that_waits(self, store: Store, ears: Ears) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        ears.heard()

        async with sweeping(store):
            await until(lambda: ("wake", session.session_id) in self.wakes(ears))

    @staticmethod
    def wakes(ears: Ears) -> list[tuple[str, str]]:
        return [(kind, payload.decode()) for kind, _, payload in ears.heard() if kind == "wake"]

    async def test_exports_what_its_partitions_hold(self, store: Store) -> None:
        await opened(store)
        session = await opened(store)
        await say(store, session.session_id)

        async with sweeping(store):
            await until(lambda: b"sessions_live_sessions 2.0" in metrics.render()[0])
            assert b"sessions_ready_sessions 1.0" in metrics.render()[0]

        assert b"sessions_live_sessions 0.0" in metrics.render()[0]

    async def test_rings_what_a_request_met_even_where_it_keeps_nothing(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, CONFIG.timeout_ms)
        keeper = Keeper(store, replica_id="test", is_keeping=False)
        await keeper.start()
        store.scripts.overdue = keeper.ring_soon

        async with facts(store) as heard:
            with pytest.raises(SessionExpired):
                await store.sessions.read(session.session_id, app=None)
            await until(lambda: heard.count(session.session_id)["session.expired"])

        await keeper.stop()

    async def test_a_lapsed_lease_returns_the_turn(self, store: Store) -> None:
        session = await opened(store)
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid)

        async with sweeping(store):
            await age(store, sid, 10_000)
            await self.becomes(store, sid, taken.turn.turn_id, "queued")
            await age(store, sid, 1_000)
            await self.becomes_ready(store, sid)

        assert (await claimed(store, sid)).turn.attempt == 2

    @staticmethod
    async def becomes(store: Store, session_id: SessionId, turn_id: TurnId, state: str) -> None:
        async def is_so() -> bool:
            return (await store.turns.read(session_id, turn_id, app=None)).state == state

        await eventually(is_so)

    @staticmethod
    async def becomes_ready(store: Store, session_id: SessionId) -> None:
        async def is_so() -> bool:
            agent_id = (await store.sessions.read(session_id, app=None)).agent
            return session_id in await store.turns.next_ready(agent_id)

        await eventually(is_so)


class TestHints:
    @asynccontextmanager
    async def hinting(self, store: Store) -> AsyncIterator[list[SessionId]]:
        heard: list[SessionId] = []
        hints = Hints(store, on_alarm=heard.append)
        await hints.start()
        task = asyncio.create_task(run_forever(hints.step, loop="test-hints"))
        try:
            await until(lambda: hints.subscriber.is_up and not hints._connected.is_set())
            yield heard
        finally:
            await cancelled(task)
            await hints.stop()

    @pytest.mark.servers(*REAL)
    async def test_tell_of_an_alarm_at_its_time(self, store: Store) -> None:
        async with self.hinting(store) as heard:
            await self.switched_on(store)
            session = await opened(store, config=CONFIG.__class__(60, False, CONFIG.max_duration_ms, 1))

            await until(lambda: heard == [session.session_id])

    @pytest.mark.servers(*REAL)
    async def test_switch_notifications_on_and_keep_what_was_set(
        self, store: Store, server: RealServer
    ) -> None:
        server.config_set("notify-keyspace-events", "Kg")

        async with self.hinting(store):
            await self.switched_on(store)

        assert set("KgEx") <= set(server.config_get("notify-keyspace-events"))

    @pytest.mark.servers(*REAL)
    async def test_leave_a_setting_that_will_do(self, store: Store, server: RealServer) -> None:
        server.config_set("notify-keyspace-events", "KEA")
        before = server.config_get("notify-keyspace-events")

        async with self.hinting(store):
            await self.switched_on(store)

        assert server.config_get("notify-keyspace-events") == before

    @pytest.mark.servers(*REAL)
    async def test_a_refusal_is_a_warning_and_no_failure(self, server: RealServer) -> None:
        with forbidden_config(server) as url, capture_logs() as logs:
            async with Redis.from_url(url) as redis, self.hinting(Store(redis, Keyspace())):
                await until(lambda: any(e["event"] == "notifications_not_switched_on" for e in logs))

        assert not [entry for entry in logs if entry["event"] == "loop_failed"]

    @pytest.mark.servers("valkey")
    async def test_are_asked_for_again_after_a_restart(self, store: Store, server: RealServer) -> None:
        async with self.hinting(store):
            await self.switched_on(store)
            server.config_set("notify-keyspace-events", "")

            server.restart()
            await until(lambda: store.redis.is_up)

            await until(lambda: set("Ex") <= set(server.config_get("notify-keyspace-events")))

    @staticmethod
    async def switched_on(store: Store) -> None:
        """Wait until the setting was read, and changed if need be."""

        async def is_so() -> bool:
            flags = (await store.redis.command(b"CONFIG", b"GET", b"notify-keyspace-events"))[1].decode()
            return "E" in flags and ("x" in flags or "A" in flags)

        await eventually(is_so)


@contextlib.contextmanager
def forbidden_config(server: RealServer) -> Iterator[str]:
    """The URL of a user who may do anything but CONFIG."""
    server.call("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-config")
    try:
        yield f"redis://limited:secret@127.0.0.1:{server.port}/0"
    finally:
        server.call("ACL", "DELUSER", "limited")

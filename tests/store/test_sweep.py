"""The sweep: it forgets nothing, whatever was missed, failed or lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import AgentId, SessionId, TurnId, partition_of_session
from sessions_api.errors import SessionExpired
from sessions_api.keeper.keeper import Keeper
from sessions_api.keeper.leases import Leases
from sessions_api.keeper.sweep import Sweep
from sessions_api.store import Redis, Store
from sessions_api.store.attendance import Presence
from sessions_api.store.keys import Keyspace
from sessions_api.telemetry import metrics
from sessions_api.telemetry.loops import cancelled, run_forever
from tests.support.replicas import facts
from tests.support.servers import RealServer, TestServer
from tests.support.stores import AGENT, CONFIG, MINUTE_MS, Ears, age, claimed, opened, put_state, say
from tests.support.waiting import eventually, until

OTHER_AGENT = AgentId("b" + AGENT[1:])


@asynccontextmanager
async def sweeping(store: Store, partitions: range = range(64)) -> AsyncIterator[Sweep]:
    """A sweep of *partitions*, without leases or hints."""
    leases = Leases(store, replica_id="test")
    leases.kept.update(partitions)
    sweep = Sweep(store, leases)
    task = asyncio.create_task(run_forever(sweep.step, loop="test-sweep"))
    try:
        yield sweep
    finally:
        await cancelled(task)
        sweep.clear_gauges()


async def served(store: Store) -> None:
    """The agent is defined and there; this process knows."""
    await store.agents.put(AgentDefinition(AGENT, "Agent", "worker"))
    await store.attendance.attend([Presence(AGENT, "worker", 1, 60_000, is_free=True)])
    await store.attendance.refresh()


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
            await store.sessions.read(session.session_id, grant=EVERYTHING)

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
                await put_state(store, broken, queue="")

                await until(lambda: "session.expired" in heard.types.get(broken, []))

        assert self.delays(logs, broken) == [1, 2]

    @staticmethod
    async def broken(store: Store, server: TestServer) -> SessionId:
        """A session past its end whose turns cannot be read."""
        session = await opened(store)
        sid = session.session_id
        turn_id = (await say(store, sid)).turn_id
        await age(store, sid, CONFIG.timeout_ms)
        server.call("HSET", store.keyspace.of(sid).session, turn_id, b"\x8f")  # ends in its first byte
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
            server.call("DEL", *store.keyspace.of(ghost).all()[:4])
        partition = store.keyspace.partition(partition_of_session(living.session_id))
        server.call("ZADD", partition.due, 1, ghosts[0])

        async with sweeping(store):
            await until(lambda: server.call("ZCARD", partition.users) == 1)
            await until(lambda: server.call("ZCARD", partition.agents) == 1)
            await until(lambda: server.call("ZCARD", partition.due) == 1)

        assert (
            await store.sessions.read(living.session_id, grant=EVERYTHING)
        ).session_id == living.session_id

    async def test_repeats_the_wake_hint_of_work_that_waits(self, store: Store, ears: Ears) -> None:
        await served(store)
        session = await opened(store)
        await say(store, session.session_id)
        ears.heard()

        async with sweeping(store):
            await until(lambda: ("wake", session.session_id) in self.wakes(ears))

    async def test_repeats_no_hint_where_nobody_is_there_to_hear_it(self, store: Store, ears: Ears) -> None:
        await served(store)
        await store.agents.put(AgentDefinition(OTHER_AGENT, "Other", "worker"))
        deserted = await opened(store, agent=OTHER_AGENT)
        await say(store, deserted.session_id)
        attended = await opened(store)
        await say(store, attended.session_id)
        ears.heard()

        heard: list[tuple[str, str]] = []

        def is_enough() -> bool:
            heard.extend(self.wakes(ears))
            return len(heard) >= 3

        async with sweeping(store):
            await until(is_enough)

        assert set(heard) == {("wake", attended.session_id)}

    async def test_abandons_the_work_of_an_agent_that_is_no_more(self, store: Store) -> None:
        """Also what waits behind it, and whatever else its partition holds of that agent."""
        sids = [(await opened(store)).session_id for _ in range(3)]
        for sid in sids:
            await say(store, sid)
            await say(store, sid)

        async with facts(store) as heard, sweeping(store):
            await until(lambda: all(heard.count(sid)["turn.failed"] == 2 for sid in sids))

        failed = (await store.log.replay(sids[0], grant=EVERYTHING, after=0)).entries[-1]
        assert json.loads(failed.body)["code"] == "AGENT_NOT_FOUND"

    async def test_a_ghost_at_the_head_of_such_work_hides_nothing(
        self, store: Store, server: TestServer
    ) -> None:
        ghost, living = [(await opened(store)).session_id for _ in range(2)]
        await say(store, ghost)
        server.call("DEL", *store.keyspace.of(ghost).all()[:4])
        await say(store, living)

        async with facts(store) as heard, sweeping(store):
            await until(lambda: heard.count(living)["turn.failed"])

        assert server.call("ZCARD", store.keyspace.partition(partition_of_session(ghost)).ready) == 0

    async def test_abandons_nothing_of_an_agent_that_another_replica_defined(
        self, store: Store, redis: Redis, ears: Ears
    ) -> None:
        """This process may not have read it yet."""
        await Store(redis, Keyspace()).agents.put(AgentDefinition(AGENT, "Agent", "worker"))
        session = await opened(store)
        await say(store, session.session_id)

        async with sweeping(store):
            await until(lambda: store.agents.get(AGENT))
            looks = store.redis.stats.scripts["stale"]
            await until(lambda: store.redis.stats.scripts["stale"] > looks)

        assert (await store.sessions.read(session.session_id, grant=EVERYTHING)).turn_state == "queued"

    async def test_settles_attendance(self, store: Store) -> None:
        await store.attendance.attend([Presence(AGENT, "dead", 1, 1, is_free=True)])

        async def is_offline() -> bool:
            return (await store.attendance.confirm(AGENT)).state == "offline"

        async with sweeping(store):
            await eventually(is_offline)

    async def test_leaves_attendance_to_the_keeper_of_partition_0(self, store: Store) -> None:
        await store.attendance.attend([Presence(AGENT, "dead", 1, 1, is_free=True)])
        session = await opened(store, "22222222-2222-4222-8222-222222222222")
        assert partition_of_session(session.session_id) > 0
        await age(store, session.session_id, CONFIG.timeout_ms)

        async with facts(store) as heard, sweeping(store, range(1, 64)):
            await until(lambda: heard.count(session.session_id)["session.expired"])

        assert (await store.attendance.confirm(AGENT)).state == "available"

    @staticmethod
    def wakes(ears: Ears) -> list[tuple[str, str]]:
        return [(kind, payload.decode()) for kind, _, payload in ears.heard() if kind == "wake"]

    async def test_exports_what_its_partitions_hold(self, store: Store) -> None:
        await served(store)
        await opened(store)
        for is_taken in (True, False):
            session = await opened(store)
            await say(store, session.session_id)
            if is_taken:
                await claimed(store, session.session_id)

        async with sweeping(store):
            await until(lambda: b"sessions_live_sessions 3.0" in metrics.render()[0])
            assert b"sessions_ready_sessions 1.0" in metrics.render()[0]
            assert b"sessions_running_sessions 1.0" in metrics.render()[0]

        assert b"sessions_live_sessions 0.0" in metrics.render()[0]

    async def test_tells_of_a_server_that_would_forget(self, store: Store, server: TestServer) -> None:
        """A line in the log, and a gauge for the alert."""
        if not isinstance(server, RealServer):
            pytest.skip("fakeredis has no policy")
        server.config_set("maxmemory-policy", "volatile-lru")

        with capture_logs() as logs:
            async with sweeping(store):
                await until(lambda: b"sessions_redis_evicting_servers 1.0" in metrics.render()[0])
        assert b"sessions_redis_evicting_servers 0.0" in metrics.render()[0]

        told = [line for line in logs if line["event"] == "redis_may_evict"]
        assert [line["policies"] for line in told] == [["volatile-lru"]]

    async def test_rings_what_a_request_met_even_where_it_keeps_nothing(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, CONFIG.timeout_ms)
        keeper = Keeper(store, replica_id="test", is_keeping=False)
        await keeper.start()
        store.scripts.overdue = keeper.ring_soon

        async with facts(store) as heard:
            with pytest.raises(SessionExpired):
                await store.sessions.read(session.session_id, grant=EVERYTHING)
            await until(lambda: heard.count(session.session_id)["session.expired"])

        await keeper.stop()

    async def test_a_lapsed_lease_returns_the_turn_and_says_whose_it_was(self, store: Store) -> None:
        await served(store)
        session = await opened(store)
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid)

        with capture_logs() as logs:
            async with sweeping(store):
                await age(store, sid, 10_000)
                await self.becomes(store, sid, taken.turn.turn_id, "queued")
                await age(store, sid, 1_000)
                await self.becomes_ready(store, sid)

        assert (await claimed(store, sid)).turn.attempt == 2
        assert [entry for entry in logs if entry["event"] == "turn_lapsed"] == [
            {
                "event": "turn_lapsed",
                "log_level": "warning",
                "session_id": sid,
                "agent_id": taken.agent_id,
                "turn_id": taken.turn.turn_id,
                "attempt": 1,
                "worker": taken.turn.worker,
                "became": "queued",
            }
        ]

    @staticmethod
    async def becomes(store: Store, session_id: SessionId, turn_id: TurnId, state: str) -> None:
        async def is_so() -> bool:
            return (await store.turns.read(session_id, turn_id, grant=EVERYTHING)).state == state

        await eventually(is_so)

    @staticmethod
    async def becomes_ready(store: Store, session_id: SessionId) -> None:
        async def is_so() -> bool:
            agent_id = (await store.sessions.read(session_id, grant=EVERYTHING)).agent
            return session_id in (await store.ready.next_ready(agent_id)).session_ids

        await eventually(is_so)


class Clocked(Sweep):
    """A sweep whose clock only its own work moves."""

    clock_s = 0.0

    def _now_s(self) -> float:  # type: ignore[override]
        return self.clock_s

    async def work(self, seconds: float, *, due: int) -> float:
        """The pause that is owed for work of so long while so many alarms are due."""

        async def work() -> None:
            for _ in range(9):  # until its commands would have left
                await asyncio.sleep(0)
            self.clock_s += seconds

        self._backlog.extend([SessionId(str(number)) for number in range(due)])
        self._owed_s = 0.0
        await self._paced(work())
        self._backlog.clear()
        return self._owed_s


@pytest.mark.servers("fakeredis")
class TestThePace:
    @pytest.mark.parametrize("keepers", [1, 3])
    async def test_is_a_quarter_and_three_quarters_while_behind(
        self, store: Store, keepers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Leases, "replicas", keepers)
        sweep = Clocked(store, Leases(store, replica_id="test"))

        def share(pause_s: float) -> float:
            """Of Redis's time, for all keepers together, if all do as this one."""
            return keepers / (1 + pause_s)

        assert share(await sweep.work(1, due=64)) == pytest.approx(0.25)
        assert share(await sweep.work(1, due=65)) == pytest.approx(0.75)

"""Alarms: warnings and expiry at their instant, once, whoever rings; and nothing left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sessions_api.domain import timeouts
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, SessionId, new_op_id, partition_of_session
from sessions_api.domain.sessions import ConfigChange, Session
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.errors import SessionExpired, SessionNotFound
from sessions_api.store import Store
from sessions_api.store.connection import Redis
from sessions_api.store.keys import Keyspace
from tests.support.servers import TestServer
from tests.support.stores import (
    CONFIG,
    MINUTE_MS,
    RETENTION_MS,
    Ears,
    age,
    claimed,
    complete,
    is_life,
    new_session,
    opened,
    say,
    state_of,
)
from tests.support.timeout_cases import CASES, Case, Step
from tests.support.turns import started
from tests.support.waiting import until

SLACK_MS = 3_000  # what may really pass between the steps of a case, on a loaded machine
TOMBSTONE = {
    "app", "agent_id", "user_id", "created_ms",
    "timeout_ms", "auto_renew", "max_duration_ms", "warning_ms", "sources", "on_busy", "retention_ms",
    "config_version", "last_activity_ms", "last_renewal_ms", "renewals", "expires_ms", "reason",
    "cursor", "rev", "keys_until_ms",
}  # fmt: skip


def near_one(first: int, second: int) -> bool:
    return abs(first - second) <= SLACK_MS


class Life:
    """A session that is led through a case, time passing at once."""

    def __init__(self, store: Store, session: Session, offset_ms: int = 0) -> None:
        self.store = store
        self.sid = session.session_id
        self.taken: ClaimedTurn | None = None
        self.passed_ms = offset_ms

    async def do(self, step: Step) -> Any:
        store, sid = self.store, self.sid
        match step.act:
            case "ring":
                return await store.alarms.ring(sid)
            case "renew":
                return await store.sessions.renew(sid, grant=EVERYTHING, op=new_op_id())
            case "heartbeat":
                return await store.sessions.heartbeat(sid, grant=EVERYTHING, op=new_op_id())
            case "message":
                return await say(store, sid)
            case "hold":
                await say(store, sid)
                self.taken = await claimed(store, sid)
            case "extend":
                assert self.taken is not None
                turn = self.taken.turn
                return await store.turns.extend(sid, turn.turn_id, fence=turn.fence)
            case "release":
                assert self.taken is not None
                return await complete(store, self.taken)
            case "configure":
                change = ConfigChange(**{name: ("s", value) for name, value in step.change.items()})
                return await store.sessions.configure(sid, grant=EVERYTHING, op=new_op_id(), change=change)
            case _:
                raise AssertionError(step.act)
        return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_lives(store: Store, server: TestServer, case: Case) -> None:
    """The scripts lead every life as the policy does: the same cases as in tests/domain."""
    session = await opened(store, config=case.config)
    life = Life(store, session)
    for number, step in enumerate(case.steps):
        where = f"{case.name}: step {number + 1}"
        await age(store, session.session_id, step.after_ms)
        await life.do(step)
        state = await state_of(store, session.session_id)
        assert near_one(state.expires_ms - state.created_ms, step.expires_ms), where
        assert state.reason == step.ends, where
        if step.ends:
            assert state.warned_ms == 0, where
            return
        assert (state.warned_ms > 0) is step.near, where
        assert (await store.listing.near()) == step.near, where
        read = await store.sessions.read(session.session_id, grant=EVERYTHING)
        if step.act in {"renew", "release"} or (
            step.act in {"message", "heartbeat"} and case.config.auto_renew
        ):
            # Exact: by the instants that the script itself decided with.
            deadline_ms = timeouts.deadline_ms(state.created_ms, read.last_renewal_ms, read.config)
            assert read.expires_ms == deadline_ms, where
        assert read.expires_ms <= read.max_expires_ms
        assert read.held_until_ms <= read.max_expires_ms


class TestRing:
    async def test_five_keepers_racing_have_one_effect(
        self, store: Store, server: TestServer, ears: Ears
    ) -> None:
        """Each warning and each expiration happens once, counted by what followers hear."""
        session = await opened(store)
        await say(store, session.session_id)
        keepers = [Redis.from_url(server.url) for _ in range(5)]
        for keeper in keepers:
            await keeper.start()
        try:
            stores = [Store(keeper, Keyspace()) for keeper in keepers]
            outcomes: list[list[str]] = []
            for pause_ms in (26 * MINUTE_MS, 5 * MINUTE_MS):
                await age(store, session.session_id, pause_ms)
                ears.heard()
                rung = await asyncio.gather(*(each.alarms.ring(session.session_id) for each in stores * 4))
                outcomes.append(sorted({str(each.outcome) for each in rung}))
                outcomes.append(ears.types())
        finally:
            for keeper in keepers:
                await keeper.stop()

        assert outcomes == [
            ["idle", "warned"], ["session.expiring"],
            ["expired", "idle"], ["turn.failed", "session.expired"],
        ]  # fmt: skip

    async def test_tells_how_late_it_was(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, CONFIG.timeout_ms + 1_234)

        rung = await store.alarms.ring(session.session_id)

        assert rung.outcome == "expired"
        assert 1_234 <= rung.lag_ms < 1_234 + SLACK_MS

    async def test_rung_early_it_finds_nothing_due_and_stays_set(
        self, store: Store, server: TestServer
    ) -> None:
        session = await opened(store)
        partition = store.keyspace.partition(partition_of_session(session.session_id))
        before = server.call("ZSCORE", partition.due, session.session_id)

        assert (await store.alarms.ring(session.session_id)).outcome == "idle"

        assert server.call("ZSCORE", partition.due, session.session_id) == before

    async def test_a_renewal_leaves_it_alone_and_it_is_set_anew_when_it_rings(
        self, store: Store, server: TestServer
    ) -> None:
        """One idle call per timeout instead of two writes per heartbeat."""
        session = await opened(store)
        sid = session.session_id
        partition = store.keyspace.partition(partition_of_session(sid))
        await age(store, sid, 10 * MINUTE_MS)
        first = server.call("ZSCORE", partition.due, sid)
        await store.sessions.heartbeat(sid, grant=EVERYTHING, op=new_op_id())
        assert server.call("ZSCORE", partition.due, sid) == first

        await age(store, sid, 15 * MINUTE_MS)
        assert (await store.alarms.ring(sid)).outcome == "idle"

        after = await store.sessions.read(sid, grant=EVERYTHING)
        due = int(float(server.call("ZSCORE", partition.due, sid)))
        assert due == after.expires_ms - CONFIG.warning_ms

    async def test_a_warning_whose_expiry_has_passed_is_not_sent(self, store: Store, ears: Ears) -> None:
        session = await opened(store)
        await age(store, session.session_id, CONFIG.timeout_ms)
        ears.heard()

        await store.alarms.ring(session.session_id)

        assert ears.types() == ["session.expired"]

    async def test_what_is_absent_is_said_to_be(self, store: Store) -> None:
        assert (await store.alarms.ring(new_session().session_id)).outcome == "absent"

    async def test_notifications_name_the_session(self, store: Store) -> None:
        """The key whose expiry is the hint leads back to its session."""
        session = await opened(store)
        of = store.keyspace.of(session.session_id)

        assert store.keyspace.session_of_alarm(of.all()[1]) == session.session_id
        assert store.keyspace.session_of_alarm(of.session) is None
        assert store.keyspace.session_of_alarm(b"other:alarm:{x}:" + of.sid) is None


class TestExpiry:
    async def test_leaves_a_tombstone_of_exactly_these_fields(self, store: Store, server: TestServer) -> None:
        session = await opened(store, metadata=b'{"a":1}')
        sid = session.session_id
        first = await say(store, sid)
        await complete(store, await claimed(store, sid))
        await say(store, sid)
        taken = await claimed(store, sid)
        await store.turns.delta(sid, taken.turn.turn_id, fence=taken.turn.fence, text="a", offset=0)
        await store.sessions.renew(sid, grant=EVERYTHING, op=new_op_id())
        before = await store.sessions.read(sid, grant=EVERYTHING)
        await age(store, sid, CONFIG.timeout_ms)
        await store.alarms.ring(sid)

        of = store.keyspace.of(sid)
        state = await state_of(store, sid)

        assert {name for name, value in msgspec.structs.asdict(state).items() if value} == TOMBSTONE
        assert state.reason == "timeout"
        assert state.expires_ms == before.expires_ms - CONFIG.timeout_ms
        turns = {first.turn_id, taken.turn.turn_id}
        fields = {name.decode() for name in server.call("HKEYS", of.session)}
        assert fields == {"state", "metadata", *turns, "0", "1"}
        assert server.call("HGET", of.session, "metadata") == b'{"a":1}'
        assert is_life(server.call("PTTL", of.session), RETENTION_MS, slack_ms=SLACK_MS)
        assert server.call("EXISTS", of.all()[1], of.all()[3]) == 0

    async def test_ends_every_open_turn_before_the_session(self, store: Store, ears: Ears) -> None:
        session = await opened(store)
        sid = session.session_id
        running = await say(store, sid)
        await claimed(store, sid)
        queued = await say(store, sid)
        await age(store, sid, CONFIG.timeout_ms)
        ears.heard()

        await store.alarms.ring(sid)

        heard = [event for event in ears.heard() if event[0] != "wake"]
        assert [(kind, args.split(" ")[0]) for kind, args, _ in heard[:2]] == [
            ("turn.failed", running.turn_id), ("turn.failed", queued.turn_id),
        ]  # fmt: skip
        assert [kind for kind, *_ in heard[2:]] == ["session.expired"]
        for each in (running, queued):
            turn = await store.turns.read(sid, each.turn_id, grant=EVERYTHING)
            assert turn.error is not None
            assert (turn.state, turn.error.code) == ("failed", "SESSION_EXPIRED")

    async def test_settles_the_indexes(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        await age(store, session.session_id, CONFIG.timeout_ms - 1_000)
        await store.alarms.ring(session.session_id)
        await age(store, session.session_id, 1_000)

        await store.alarms.ring(session.session_id)

        names = {key.removeprefix(b"sa:").split(b":")[0] for key in sorted(server.keys())}
        assert names == {b"session", b"log", b"meta"}
        assert await store.listing.total(app=None) == await store.listing.near() == 0

    async def test_after_the_retention_it_is_not_there_though_its_keys_are(
        self, store: Store, server: TestServer
    ) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await age(store, sid, CONFIG.timeout_ms)
        await store.alarms.ring(sid)
        for key in store.keyspace.of(sid).all()[:3]:
            server.call("PEXPIRE", key, 3 * RETENTION_MS)
        await age(store, sid, RETENTION_MS)

        assert server.call("EXISTS", store.keyspace.of(sid).session) == 1
        for call in (
            store.sessions.read(sid, grant=LOCAL_APP),
            store.sessions.end(sid, grant=LOCAL_APP),
            store.log.history(sid, grant=LOCAL_APP, limit=1, ended=True),
            store.log.replay(sid, grant=LOCAL_APP, after=0),
            store.turns.read(sid, taken.turn.turn_id, grant=LOCAL_APP),
        ):
            with pytest.raises(SessionNotFound):
                await call

    async def test_after_the_retention_nothing_is_left(self, store: Store, server: TestServer) -> None:
        """By Redis itself: nobody has to clean up."""
        config = TimeoutConfig(60_000, True, 720_000, 10_000)
        before = server.keys()
        sessions = [await opened(store, config=config, retention_ms=500) for _ in range(4)]
        for session in sessions[1:]:
            await say(store, session.session_id)
        taken = await claimed(store, sessions[2].session_id)
        await store.turns.delta(
            sessions[2].session_id, taken.turn.turn_id, fence=taken.turn.fence, text="a", offset=0
        )
        for session in sessions:
            await age(store, session.session_id, 60_000)
        for session in sessions[:3]:
            await store.alarms.ring(session.session_id)

        # The fourth was rung by nobody: its keys go by themselves, its ghosts when it is rung.
        await until(
            lambda: not [key for key in sorted(server.keys()) if sessions[3].session_id.encode() in key]
        )
        await store.alarms.ring(sessions[3].session_id)
        partition = partition_of_session(sessions[3].session_id)
        for index in ("users", "agents", "near", "ready", "due"):
            await store.alarms.prune(partition, index)

        await until(lambda: server.keys() == before)
        for session in sessions:
            with pytest.raises(SessionNotFound):
                await store.sessions.read(session.session_id, grant=EVERYTHING)

    async def test_is_seen_at_the_instant_itself(self, store: Store) -> None:
        """By waiting for once: live while time remains, over afterwards, with no keeper running."""
        session = await opened(store, config=TimeoutConfig(300, True, 60_000, 100))
        last_ms = session.now_ms
        with pytest.raises(SessionExpired) as error:  # noqa: PT012  the loop is what ends in it
            while True:
                last_ms = (await store.sessions.read(session.session_id, grant=EVERYTHING)).now_ms
                assert last_ms < session.expires_ms

        assert error.value.expires_ms == session.expires_ms

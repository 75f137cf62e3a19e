"""A Redis that is out of memory: writes are refused whole; reads, expiry and deletion go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import AgentId, OpId, new_message_id
from sessions_api.domain.messages import NewMessage
from sessions_api.domain.sessions import ConfigChange
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.errors import SessionExpired, SessionNotFound, StorageFull
from sessions_api.store import Store
from sessions_api.store.attendance import Presence
from sessions_api.store.replicas import Identity
from tests.support.servers import RealServer
from tests.support.stores import (
    AGENT,
    CONFIG,
    age,
    agent_body,
    answer_body,
    claimed,
    dump,
    new_session,
    once,
    opened,
    say,
)

pytestmark = pytest.mark.servers("valkey", "redis62", "debian")
OTHER_AGENT = AgentId("b" + AGENT[1:])
NO_RENEWAL = TimeoutConfig(30_000, False, 43_200_000, 5_000)


class Full:
    """Sessions in every state, on a server that takes nothing more."""

    def __init__(self, store: Store, server: RealServer) -> None:
        self.store = store
        self.server = server

    async def prepare(self) -> None:
        store = self.store
        self.idle = (await opened(store)).session_id
        self.warned = (await opened(store)).session_id
        await age(store, self.warned, CONFIG.timeout_ms - 60_000)
        await store.alarms.ring(self.warned)
        self.queued = (await opened(store)).session_id
        self.turn = (await say(store, self.queued)).turn_id
        self.busy = (await opened(store)).session_id
        await say(store, self.busy)
        self.running = (await claimed(store, self.busy)).turn
        await store.turns.delta(
            self.busy, self.running.turn_id, fence=self.running.fence, text="so", offset=0
        )
        self.behind = (await say(store, self.busy)).turn_id
        self.held = (await opened(store, config=NO_RENEWAL)).session_id
        await say(store, self.held)
        self.holding = (await claimed(store, self.held)).turn
        await age(store, self.idle, 1_000)
        await store.alarms.keep(5, "replica")
        await store.replicas.present(Identity("replica"), 60_000)
        await store.attendance.attend([Presence(AGENT, "worker", 1, 60_000, is_free=True)])
        await store.agents.put(AgentDefinition(OTHER_AGENT, "Other", "worker"))
        self.server.config_set("maxmemory", "1")

    async def refused(self, call: Any) -> None:
        """*call* is refused, and the store is as it was."""
        before = dump(self.server)
        with pytest.raises(StorageFull):
            await call
        assert dump(self.server) == before


@pytest.fixture
async def full(store: Store, server: RealServer) -> AsyncIterator[Full]:
    full = Full(store, server)
    await full.prepare()
    yield full
    server.config_set("maxmemory", "0")


class TestWrites:
    async def test_nothing_is_half_written(self, full: Full) -> None:
        store, running = full.store, full.running
        await full.refused(store.sessions.create(new_session()))
        await full.refused(store.sessions.create(new_session(), once=once()))
        await full.refused(store.sessions.renew(full.idle, grant=EVERYTHING, op=OpId("a")))
        await full.refused(store.sessions.renew(full.idle, grant=EVERYTHING, op=OpId("a"), once=once()))
        await full.refused(store.sessions.heartbeat(full.idle, grant=EVERYTHING, op=OpId("a")))
        await full.refused(
            store.sessions.configure(
                full.idle, grant=EVERYTHING, op=OpId("a"), change=ConfigChange(timeout_ms=("s", 60_000_000))
            )
        )
        await full.refused(say(store, full.idle))
        await full.refused(say(store, full.idle, once=once()))
        await full.refused(say(store, full.queued, on_busy="merge"))
        await full.refused(say(store, full.busy))
        await full.refused(say(store, full.busy, on_busy="interrupt"))
        await full.refused(say(store, full.queued, on_busy="interrupt"))
        await full.refused(claimed(store, full.queued))
        await full.refused(
            store.log.speak(
                full.idle,
                grant=EVERYTHING,
                message=NewMessage(new_message_id(), agent_body("m", "hi")),
            )
        )
        await full.refused(store.agents.put(AgentDefinition(AGENT, "Agent", "worker")))
        await full.refused(store.attendance.attend([Presence(AGENT, "other", 1, 60_000, is_free=True)]))
        await full.refused(
            store.turns.complete(
                full.busy, running.turn_id, fence=running.fence, around=(b'{"content":', b"}")
            )
        )
        await full.refused(
            store.turns.delta(full.busy, running.turn_id, fence=running.fence, text="more", offset=2)
        )
        await full.refused(
            store.turns.complete(full.busy, running.turn_id, fence=running.fence, body=answer_body("done"))
        )

    async def test_what_is_refused_can_be_repeated_when_there_is_room(self, full: Full) -> None:
        message_id, turn_id = new_message_id(), full.turn
        with pytest.raises(StorageFull):
            await say(full.store, full.idle, message_id=message_id, turn_id=turn_id, once=once())

        full.server.config_set("maxmemory", "0")
        appended = await say(full.store, full.idle, message_id=message_id, turn_id=turn_id, once=once())

        assert (appended.is_repeat, appended.session.queued) == (False, 1)

    @pytest.mark.parametrize("how", ["extend", "retry", "final", "release", "empty"])
    async def test_a_turn_is_given_up_whole_or_not_at_all(self, full: Full, how: str) -> None:
        store, turn, sid = full.store, full.running, full.busy
        before = dump(full.server)
        try:
            match how:
                case "extend":
                    await store.turns.extend(sid, turn.turn_id, fence=turn.fence)
                case "release":
                    await store.turns.release(sid, turn.turn_id, fence=turn.fence)
                case "empty":
                    await store.turns.complete(sid, turn.turn_id, fence=turn.fence, body=None)
                case _:
                    await store.turns.fail(
                        sid, turn.turn_id, fence=turn.fence, code="X", message="x", retry=how == "retry"
                    )
        except StorageFull:
            assert dump(full.server) == before
        else:
            session = await store.sessions.read(sid, grant=EVERYTHING)
            state = (await store.turns.read(sid, turn.turn_id, grant=EVERYTHING)).state
            assert state == {"extend": "running", "final": "failed", "empty": "completed"}.get(how, "queued")
            assert (session.held_until_ms > 0) is (state == "running")
            assert session.queued == (2 if state == "queued" else 1)
            assert session.turn_state == ("running" if state == "running" else "queued")


class TestWhatGoesOn:
    async def test_reads(self, full: Full) -> None:
        store = full.store
        assert (await store.sessions.read(full.busy, grant=EVERYTHING)).turn_state == "running"
        assert len((await store.log.history(full.busy, grant=EVERYTHING, limit=9)).entries) == 2
        replay = await store.log.replay(full.busy, grant=EVERYTHING, after=0)
        assert replay.draft is not None
        assert replay.draft.text == "so"
        assert (await store.turns.read(full.busy, full.running.turn_id, grant=EVERYTHING)).state == "running"
        assert await store.turns.answer(full.busy, full.running.turn_id, grant=EVERYTHING) is None
        assert len((await store.listing.page(app=None)).sessions) == 5
        assert (await store.ready.next_ready(AGENT)).session_ids == [full.queued]

    async def test_warnings_and_expiry(self, full: Full) -> None:
        store = full.store
        await age(store, full.idle, CONFIG.timeout_ms - 60_000)
        assert (await store.alarms.ring(full.idle)).outcome == "warned"
        for sid in (full.idle, full.warned, full.queued, full.busy, full.held):
            await age(store, sid, CONFIG.timeout_ms)
            assert (await store.alarms.ring(sid)).outcome == "expired"
            with pytest.raises(SessionExpired):
                await store.sessions.read(sid, grant=EVERYTHING)

        assert await store.listing.total(app=None) == 0

    async def test_a_lapsed_lease(self, full: Full) -> None:
        await age(full.store, full.busy, 30_000)

        assert (await full.store.alarms.ring(full.busy)).outcome == "lapsed"

        session = await full.store.sessions.read(full.busy, grant=EVERYTHING)
        assert (session.turn_state, session.queued) == ("queued", 2)

    async def test_ending(self, full: Full) -> None:
        for sid in (full.idle, full.warned, full.queued, full.busy, full.held):
            await full.store.sessions.end(sid, grant=EVERYTHING)
            with pytest.raises(SessionNotFound):
                await full.store.sessions.read(sid, grant=EVERYTHING)

    async def test_cancelling(self, full: Full) -> None:
        running = await full.store.turns.cancel(full.busy, full.running.turn_id, grant=EVERYTHING)
        behind = await full.store.turns.cancel(full.busy, full.behind, grant=EVERYTHING)

        assert running.state == behind.state == "cancelled"
        answer = await full.store.turns.answer(full.busy, running.turn_id, grant=EVERYTHING)
        assert answer is not None
        assert (await full.store.sessions.read(full.busy, grant=EVERYTHING)).turn_id is None

    async def test_abandoning(self, full: Full) -> None:
        assert await full.store.turns.abandon(full.busy, code="X", message="x") == 2
        assert await full.store.turns.abandon(full.queued, code="X", message="x") == 1
        assert await full.store.ready.open_of(AGENT) == [full.held]

    async def test_a_workers_goodbye(self, full: Full) -> None:
        await full.store.attendance.settle()
        await full.store.attendance.leave(AGENT, "worker")

        assert (await full.store.attendance.confirm(AGENT)).state == "offline"

    async def test_forgetting_an_agent(self, full: Full) -> None:
        await full.store.attendance.forget(AGENT)

        assert await full.store.agents.forget(OTHER_AGENT) is True
        assert (await full.store.attendance.confirm(AGENT)).state == "offline"

    async def test_keepers(self, full: Full) -> None:
        """Without them nobody would ring the alarms that make room."""
        store = full.store
        assert await store.alarms.keep(5, "replica")
        assert await store.alarms.keep(6, "replica")
        assert not await store.alarms.keep(6, "other")
        alive = await store.replicas.present(Identity("other"), 60_000)
        assert [replica.replica_id for replica in alive] == ["other", "replica"]
        await store.alarms.postpone(full.idle, 60_000)
        assert (await store.alarms.due(0)).session_ids == []

"""What a call of the store costs: one round trip, also where it reads many."""

from __future__ import annotations

import pytest

from sessions_api.api.bodies import read_message
from sessions_api.api.gate import Gate, Policies
from sessions_api.api.operations import Operations
from sessions_api.domain.access import Caller, key_caller, token_grant
from sessions_api.domain.ids import LOCAL_APP, new_message_id, new_op_id
from sessions_api.domain.limits import Limit
from sessions_api.domain.messages import NewMessage
from sessions_api.domain.sessions import ConfigChange
from sessions_api.settings import Settings
from sessions_api.store import Store
from sessions_api.store.asked import counted_trips
from sessions_api.store.attendance import Presence
from tests.support.servers import RealServer
from tests.support.stores import AGENT, MINUTE_MS, agent_body, answer_body, claimed, new_session, opened, say
from tests.support.waiting import until


@pytest.mark.servers("valkey")
class TestRoundTrips:
    async def test_each_method_is_one_call_of_one_script(self, store: Store, server: RealServer) -> None:
        """Counted by the server itself; the first call of each script carries its source.

        Messages are read beside the script: in its trip, and for a claim after it.
        """
        session = await opened(store)
        sid = session.session_id

        async def calls() -> None:
            await store.sessions.create(new_session())
            await store.sessions.read(sid, grant=LOCAL_APP)
            await store.sessions.renew(sid, grant=LOCAL_APP, op=new_op_id())
            await store.sessions.heartbeat(sid, grant=LOCAL_APP, op=new_op_id())
            await store.sessions.configure(
                sid, grant=LOCAL_APP, op=new_op_id(), change=ConfigChange(timeout_ms=("s", 31 * MINUTE_MS))
            )
            appended = await say(store, sid)
            taken = (await claimed(store, sid)).turn
            await store.turns.delta(sid, taken.turn_id, fence=taken.fence, text="a", offset=0)
            await store.turns.extend(sid, taken.turn_id, fence=taken.fence)
            await store.turns.complete(sid, taken.turn_id, fence=taken.fence, body=answer_body("a"))
            await store.turns.read(sid, appended.turn_id, grant=LOCAL_APP)
            await store.turns.answer(sid, appended.turn_id, grant=LOCAL_APP)
            await store.turns.cancel(sid, appended.turn_id, grant=LOCAL_APP)
            await store.log.history(sid, grant=LOCAL_APP, limit=50)
            await store.log.replay(sid, grant=LOCAL_APP, after=0)
            await store.alarms.ring(sid)
            await store.turns.abandon(sid, code="X", message="x")
            message_id = new_message_id()
            await store.log.speak(
                sid,
                grant=LOCAL_APP,
                message=NewMessage(message_id, agent_body(message_id, "hi")),
            )
            await store.attendance.attend([Presence(AGENT, "w", 1, 60_000, is_free=True)])
            await store.attendance.leave(AGENT, "w")
            await store.attendance.forget(AGENT)

        await calls()
        server.call("CONFIG", "RESETSTAT")
        before = store.redis.stats.round_trips
        await calls()

        assert server.calls()["evalsha"] == 21
        assert server.calls()["xrevrange"] == 1 + 1  # history, and what was said before the claimed turn
        assert "eval" not in server.calls()
        assert store.redis.stats.round_trips - before == 21 + 1

    async def test_a_claim_reads_only_what_may_be_there(self, store: Store, server: RealServer) -> None:
        """Not where it finds nothing to take, nothing was said before, or nobody wants to know."""
        session = await opened(store)
        sid = session.session_id

        async def trips(history: int = 50) -> int:
            before = store.redis.stats.round_trips
            turn = (await claimed(store, sid, history=history)).turn
            spent = store.redis.stats.round_trips - before
            await store.turns.complete(sid, turn.turn_id, fence=turn.fence, body=answer_body("a"))
            await say(store, sid)
            return spent

        await say(store, sid)
        assert await trips() <= 2  # Redis may have to learn the script

        assert await trips() == 2
        assert await trips(history=0) == 1

        await claimed(store, sid)
        before = store.redis.stats.round_trips
        with pytest.raises(AssertionError):
            await claimed(store, sid)
        assert store.redis.stats.round_trips - before == 1

    async def test_reads_of_many_share_one_trip(self, store: Store) -> None:
        sessions = [await opened(store) for _ in range(5)]
        trips = store.redis.stats.round_trips

        await store.log.positions([session.session_id for session in sessions])
        await store.listing.total(app=LOCAL_APP)
        await store.listing.near()
        await store.ready.next_ready(AGENT)
        await store.ready.open_of(AGENT)
        await store.ready.counts(AGENT)
        await store.attendance.read(AGENT)
        await store.alarms.gauges(0)

        assert store.redis.stats.round_trips - trips == 8


APP_KEY = key_caller(LOCAL_APP, frozenset({"app"}), "appkey")
TOKEN = Caller(app=LOCAL_APP, grant=token_grant(0, 2**52), rights=frozenset({"send"}))
SHIPPED = Settings.from_env({}).policies


@pytest.mark.servers("valkey")
class TestMessagePath:
    """What the limits of a message add to its one trip."""

    @pytest.mark.parametrize(
        "caller, policies, trips, scripts",
        [
            (APP_KEY, Policies(), 1, 1),
            (APP_KEY, SHIPPED, 1, 2),  # the key's count goes in the same write, and is not waited for
            (TOKEN, SHIPPED, 1, 1),  # in the message's own script
            (TOKEN, Policies(messages_session=Limit(99, 60), messages_user=Limit(99, 60)), 1, 1),
            (APP_KEY, Policies(messages_agent=Limit(99, 60)), 2, 2),
        ],
        ids=["no limits", "app key", "token", "session and user", "agent"],
    )
    async def test_costs(
        self, store: Store, server: RealServer, caller: Caller, policies: Policies, trips: int, scripts: int
    ) -> None:
        """Counted by the caller, by the connection and by the server itself."""
        sid = (await opened(store)).session_id
        operations = Operations(store, Gate(policies, store))
        message = read_message({"content": "hi"}, max_chars=4000)

        async def send() -> None:
            await operations.accept(sid, caller, message, None, address="192.0.2.1")
            await until(lambda: not store.limits._counting)  # the answer that nobody waits for is here too

        await send()  # now the server knows the scripts, and the gate whose the session is
        server.call("CONFIG", "RESETSTAT")
        before = store.redis.stats.round_trips
        for _ in range(10):
            with counted_trips() as counted:
                await send()
            assert len(counted) == trips

        assert store.redis.stats.round_trips - before == 10 * trips
        assert server.calls()["evalsha"] == 10 * scripts
        assert "eval" not in server.calls()

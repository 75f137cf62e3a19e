"""What a call of the store costs: one round trip, also where it reads many."""

from __future__ import annotations

import pytest

from sessions_api.domain.ids import LOCAL_APP, new_op_id
from sessions_api.domain.sessions import ConfigChange
from sessions_api.store import Store
from tests.support.servers import RealServer
from tests.support.stores import AGENT, MINUTE_MS, claimed, new_session, opened, say


@pytest.mark.servers("valkey")
class TestRoundTrips:
    async def test_each_method_is_one_call_of_one_script(self, store: Store, server: RealServer) -> None:
        """Counted by the server itself; the first call of each script carries its source."""
        session = await opened(store)
        sid = session.session_id

        async def calls() -> None:
            await store.sessions.create(new_session())
            await store.sessions.read(sid, app=LOCAL_APP)
            await store.sessions.renew(sid, app=LOCAL_APP, op=new_op_id())
            await store.sessions.heartbeat(sid, app=LOCAL_APP, op=new_op_id())
            await store.sessions.configure(
                sid, app=LOCAL_APP, op=new_op_id(), change=ConfigChange(timeout_ms=("s", 31 * MINUTE_MS))
            )
            appended = await say(store, sid)
            taken = (await claimed(store, sid)).turn
            await store.turns.delta(sid, taken.turn_id, fence=taken.fence, text="a", offset=0)
            await store.turns.extend(sid, taken.turn_id, fence=taken.fence)
            await store.turns.complete(sid, taken.turn_id, fence=taken.fence, body=b"{}")
            await store.turns.read(sid, appended.turn_id, app=LOCAL_APP)
            await store.turns.answer(sid, appended.turn_id, app=LOCAL_APP)
            await store.turns.cancel(sid, appended.turn_id, app=LOCAL_APP)
            await store.log.history(sid, app=LOCAL_APP, limit=50)
            await store.log.replay(sid, app=LOCAL_APP, after=0)
            await store.alarms.ring(sid)

        await calls()
        server.call("CONFIG", "RESETSTAT")
        before = store.redis.stats.round_trips
        await calls()

        assert server.calls()["evalsha"] == 16
        assert "eval" not in server.calls()
        assert store.redis.stats.round_trips - before == 16

    async def test_reads_of_many_share_one_trip(self, store: Store) -> None:
        sessions = [await opened(store) for _ in range(5)]
        trips = store.redis.stats.round_trips

        await store.log.positions([session.session_id for session in sessions])
        await store.listing.total(app=LOCAL_APP)
        await store.listing.near()
        await store.turns.next_ready(AGENT)
        await store.alarms.gauges(0)

        assert store.redis.stats.round_trips - trips == 5

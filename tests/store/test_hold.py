"""A running turn holds its session past the idle deadline, never past the maximum."""

from __future__ import annotations

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, SessionId
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.errors import SessionExpired
from sessions_api.store import Store
from tests.support.stores import MINUTE_MS, NO_RENEWAL, Ears, age, claimed, complete, opened, say
from tests.support.turns import FIRST_LEASE_MS, act, reclaimed, started, turn_of


class TestHold:
    async def test_a_running_turn_outlives_the_idle_timeout(self, store: Store) -> None:
        session = await opened(store, config=TimeoutConfig(20_000, True, 720 * MINUTE_MS, 5_000))
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid)
        await age(store, sid, 9_000)
        await act(store, "delta", taken)
        await age(store, sid, 25_000)

        held = await store.sessions.read(sid, grant=EVERYTHING)
        assert held.expires_ms < held.now_ms < held.held_until_ms
        assert held.remaining_ms == held.held_until_ms - held.now_ms

        await complete(store, taken)

        after = await store.sessions.read(sid, grant=EVERYTHING)
        assert after.expires_ms == after.last_renewal_ms + 20_000
        assert after.last_renewal_ms > held.last_renewal_ms

    @pytest.mark.parametrize("name", ["complete", "final", "retry", "release", "cancel"])
    async def test_a_session_that_only_the_turn_kept_alive_ends_with_it(
        self, store: Store, ears: Ears, name: str
    ) -> None:
        """Without autoRenew, in the same script; the turn's outcome comes before the session's."""
        session = await opened(store, config=TimeoutConfig(20_000, False, 720 * MINUTE_MS, 5_000))
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid)
        await age(store, sid, 9_000)
        await act(store, "delta", taken)
        await age(store, sid, 25_000)
        ears.heard()

        if name == "cancel":
            await store.turns.cancel(sid, taken.turn.turn_id, grant=LOCAL_APP)
        else:
            await act(store, name, taken)

        heard = ears.types()
        assert heard[-1] == "session.expired"
        with pytest.raises(SessionExpired) as error:
            await store.sessions.read(sid, grant=LOCAL_APP)
        assert error.value.expires_ms > session.expires_ms - 34_000
        outcome = {"complete": "completed", "cancel": "cancelled"}.get(name, "failed")
        assert (await turn_of(store, taken)).state == outcome
        assert (await store.alarms.ring(sid)).outcome == "idle"

    @pytest.mark.parametrize("name", ["retry", "release"])
    async def test_with_renewal_another_attempt_follows(self, store: Store, name: str) -> None:
        session = await opened(store, config=TimeoutConfig(20_000, True, 720 * MINUTE_MS, 5_000))
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid)
        await act(store, "delta", taken)
        await age(store, sid, 25_000)

        await act(store, name, taken)

        assert (await reclaimed(store, taken)).turn.turn_id == taken.turn.turn_id

    async def test_the_maximum_duration_ends_a_hold(self, store: Store) -> None:
        session = await opened(store, config=TimeoutConfig(20_000, True, 25_000, 5_000))
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid)
        await act(store, "delta", taken)

        held = await store.sessions.read(sid, grant=EVERYTHING)
        assert held.held_until_ms == held.created_ms + 25_000
        await age(store, sid, 25_000)
        rung = await store.alarms.ring(sid)
        assert (rung.outcome, rung.lapse) == ("expired", None)  # its worker did nothing wrong

        with pytest.raises(SessionExpired) as error:
            await store.sessions.read(sid, grant=LOCAL_APP)
        assert error.value.reason == "max_duration"
        turn = await turn_of(store, taken)
        assert turn.error is not None
        assert turn.error.code == "SESSION_EXPIRED"

    async def test_a_queued_turn_and_a_lapsed_lease_hold_nothing(self, store: Store) -> None:
        session = await opened(store, config=NO_RENEWAL)
        await say(store, session.session_id)
        await age(store, session.session_id, NO_RENEWAL.timeout_ms)
        with pytest.raises(SessionExpired):
            await store.sessions.read(session.session_id, grant=LOCAL_APP)

        taken = await started(store, config=TimeoutConfig(5_000, False, MINUTE_MS, 1_000))
        await age(store, SessionId(taken.session_id), FIRST_LEASE_MS)
        rung = await store.alarms.ring(SessionId(taken.session_id))

        assert rung.outcome == "expired"
        assert rung.lapse is not None
        assert (rung.lapse.turn_id, rung.lapse.became) == (taken.turn.turn_id, "failed")

"""A session's timeouts change while it lives; its deadline counts from its last renewal."""

from __future__ import annotations

import pytest

from sessions_api.domain.ids import LOCAL_APP, new_op_id
from sessions_api.domain.sessions import ConfigChange, Session
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.errors import ConfigChanged, InvalidInput
from sessions_api.store import Store
from tests.support.stores import CONFIG, MINUTE_MS, Ears, age, claimed, opened, say
from tests.support.waiters import metric


class TestConfigure:
    async def _patch(
        self, store: Store, session: Session, if_match: int | None = None, **fields: tuple[str, int]
    ) -> Session:
        return await store.sessions.configure(
            session.session_id,
            grant=LOCAL_APP,
            op=new_op_id(),
            change=ConfigChange(**fields),
            if_match=if_match,
        )

    async def test_the_deadline_counts_from_the_last_renewal(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, 2 * MINUTE_MS)

        after = await self._patch(store, session, timeout_ms=("s", 10 * MINUTE_MS))

        assert after.expires_ms == after.last_renewal_ms + 10 * MINUTE_MS
        assert after.config.sources == "sddd"
        assert after.renewals == 0

    async def test_is_counted_where_it_moves_the_deadline(self, store: Store) -> None:
        session = await opened(store)
        before = metric("sessions_renewals_total", by="config")

        await self._patch(store, session, timeout_ms=("s", 10 * MINUTE_MS))
        await self._patch(store, session, timeout_ms=("s", 10 * MINUTE_MS), auto_renew=("s", 0))

        assert metric("sessions_renewals_total", by="config") == before + 1

    async def test_fields_not_named_keep_their_value(self, store: Store) -> None:
        session = await opened(store)

        after = await self._patch(store, session, auto_renew=("s", 0))

        assert after.config == TimeoutConfig(
            CONFIG.timeout_ms, False, CONFIG.max_duration_ms, CONFIG.warning_ms, "dsdd"
        )

    async def test_moves_the_version_and_refuses_a_stale_one(self, store: Store) -> None:
        session = await opened(store)
        after = await self._patch(store, session, session.config_version, timeout_ms=("s", 10 * MINUTE_MS))

        assert after.config_version == session.config_version + 1
        with pytest.raises(ConfigChanged) as error:
            await self._patch(store, session, session.config_version, timeout_ms=("s", 20 * MINUTE_MS))
        assert error.value.current == after.config_version

    async def test_a_deadline_in_the_past_is_refused_and_nothing_changes(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, 20 * MINUTE_MS)

        with pytest.raises(InvalidInput):
            await self._patch(store, session, timeout_ms=("s", 10 * MINUTE_MS))

        after = await store.sessions.read(session.session_id, grant=LOCAL_APP)
        assert (after.config, after.config_version) == (CONFIG, 1)

    async def test_fields_that_contradict_each_other_are_refused(self, store: Store) -> None:
        session = await opened(store)

        with pytest.raises(InvalidInput, match="warningThresholdMinutes"):
            await self._patch(store, session, warning_ms=("s", CONFIG.timeout_ms))
        with pytest.raises(InvalidInput, match="maxDurationMinutes"):
            await self._patch(store, session, max_duration_ms=("s", CONFIG.timeout_ms - 1))

        assert (await store.sessions.read(session.session_id, grant=LOCAL_APP)).config == CONFIG

    async def test_an_inherited_threshold_is_halved_to_fit(self, store: Store) -> None:
        session = await opened(store)

        after = await self._patch(store, session, timeout_ms=("s", 4 * MINUTE_MS))

        assert (after.config.warning_ms, after.config.sources) == (2 * MINUTE_MS, "sddd")

    async def test_the_same_op_again_changes_nothing_more(self, store: Store) -> None:
        session = await opened(store)
        op = new_op_id()
        change = ConfigChange(timeout_ms=("s", 10 * MINUTE_MS))
        await store.sessions.configure(session.session_id, grant=LOCAL_APP, op=op, change=change, if_match=1)

        again = await store.sessions.configure(
            session.session_id, grant=LOCAL_APP, op=op, change=change, if_match=1
        )

        assert again.config_version == 2

    async def test_the_same_op_again_tells_that_the_deadline_moved(self, store: Store) -> None:
        """Whichever of the two replies arrives, the move is counted."""
        sid, op = (await opened(store)).session_id, new_op_id()
        change = ConfigChange(timeout_ms=("s", 10 * MINUTE_MS))
        before = metric("sessions_renewals_total", by="config")

        for _ in range(2):
            await store.sessions.configure(sid, grant=LOCAL_APP, op=op, change=change)

        assert metric("sessions_renewals_total", by="config") == before + 2

    async def test_widening_the_threshold_past_now_warns_at_once(self, store: Store, ears: Ears) -> None:
        session = await opened(store)
        await age(store, session.session_id, 10 * MINUTE_MS)
        ears.heard()

        after = await self._patch(store, session, warning_ms=("s", 25 * MINUTE_MS))

        assert after.warned_ms == after.now_ms
        assert ears.types() == ["session.expiring", "session.updated"]
        assert await store.listing.near() == 1

    async def test_a_deadline_that_moves_away_takes_the_warning_back(self, store: Store, ears: Ears) -> None:
        session = await opened(store)
        await age(store, session.session_id, 26 * MINUTE_MS)
        await store.alarms.ring(session.session_id)
        assert await store.listing.near() == 1

        after = await self._patch(store, session, timeout_ms=("s", 60 * MINUTE_MS))

        assert after.warned_ms == 0
        assert await store.listing.near() == 0

    async def test_a_lowered_maximum_shortens_a_hold(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        await claimed(store, session.session_id)

        after = await self._patch(
            store, session, timeout_ms=("s", 5_000), max_duration_ms=("s", 5_000), warning_ms=("s", 1_000)
        )

        assert after.held_until_ms == after.created_ms + 5_000 == after.expires_ms

    async def test_a_deadline_in_the_past_is_allowed_while_a_turn_holds_the_session(
        self, store: Store
    ) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        await age(store, session.session_id, 20 * MINUTE_MS)
        await claimed(store, session.session_id)

        after = await self._patch(store, session, timeout_ms=("s", 10 * MINUTE_MS))

        assert after.expires_ms < after.now_ms < after.held_until_ms

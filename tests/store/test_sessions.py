"""Sessions: opened, read, renewed, configured, ended, listed."""

from __future__ import annotations

import asyncio
import random

import pytest

from sessions_api.domain.ids import LOCAL_APP, AgentId, AppName, UserId, new_op_id, new_session_id
from sessions_api.domain.sessions import ConfigChange, Session
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.errors import (
    ConfigChanged,
    IdempotencyMismatch,
    InvalidInput,
    MaxDurationReached,
    SessionExpired,
    SessionNotFound,
    TooManyOpenSessions,
)
from sessions_api.store import Store
from tests.support.servers import RealServer, TestServer
from tests.support.stores import (
    AGENT,
    CONFIG,
    MINUTE_MS,
    NO_RENEWAL,
    RETENTION_MS,
    USER,
    Ears,
    age,
    claimed,
    new_session,
    once,
    opened,
    say,
)

OTHER_APP = AppName("other")


class TestCreate:
    async def test_opens_a_session_that_reads_as_it_was_made(self, store: Store) -> None:
        new = new_session(metadata=b'{"plan":"pro"}', on_busy="merge")

        session, replayed = await store.sessions.create(new)
        read = await store.sessions.read(new.session_id, app=LOCAL_APP)

        assert not replayed
        assert (session.agent_id, session.user_id, session.metadata) == (AGENT, USER, b'{"plan":"pro"}')
        assert session.on_busy == "merge"
        assert session.expires_ms == session.created_ms + CONFIG.timeout_ms
        assert (session.stage, session.cursor, session.renewals) == ("created", 0, 0)
        assert read.clock == session.clock

    async def test_ids_are_echoed_as_sent_and_compared_without_case(self, store: Store) -> None:
        user = USER.upper().replace("1", "A")
        session = await opened(store, user)

        found = await store.listing.page(app=LOCAL_APP, user_id=UserId(user.lower()))

        assert session.user_id == user
        assert [each.session_id for each in found.sessions] == [session.session_id]

    async def test_repeated_with_its_id_opens_nothing_more(self, store: Store) -> None:
        new = new_session()
        first, _ = await store.sessions.create(new)

        again, replayed = await store.sessions.create(new)

        assert again.created_ms == first.created_ms
        assert not replayed
        assert await store.listing.total(app=LOCAL_APP) == 1

    async def test_a_maximum_below_the_timeout_wins(self, store: Store) -> None:
        config = TimeoutConfig(30 * MINUTE_MS, True, 10 * MINUTE_MS, 5 * MINUTE_MS)

        session = await opened(store, config=config)

        assert session.expires_ms == session.created_ms + 10 * MINUTE_MS

    async def test_refuses_more_than_the_users_open_sessions(self, store: Store) -> None:
        """What has expired no longer counts once it is settled."""
        sessions = [await opened(store) for _ in range(3)]
        with pytest.raises(TooManyOpenSessions):
            await store.sessions.create(new_session(), max_open=3)

        await age(store, sessions[0].session_id, CONFIG.timeout_ms)
        await store.alarms.ring(sessions[0].session_id)

        await store.sessions.create(new_session(), max_open=3)
        await store.sessions.create(new_session(app=OTHER_APP), max_open=3)


class TestCreateOnce:
    async def test_a_repeat_gets_the_session_that_the_key_opened(self, store: Store) -> None:
        first, _ = await store.sessions.create(new_session(), once=once())

        again, replayed = await store.sessions.create(new_session(), once=once())

        assert replayed
        assert again.session_id == first.session_id
        assert await store.listing.total(app=LOCAL_APP) == 1

    async def test_other_content_under_the_key_is_refused(self, store: Store) -> None:
        await store.sessions.create(new_session(), once=once())

        with pytest.raises(IdempotencyMismatch):
            await store.sessions.create(new_session(), once=once(content=b"other"))

    async def test_expired_meanwhile_it_is_still_the_first_success(self, store: Store) -> None:
        first, _ = await store.sessions.create(new_session(), once=once())
        await age(store, first.session_id, CONFIG.timeout_ms)
        await store.alarms.ring(first.session_id)

        again, replayed = await store.sessions.create(new_session(), once=once())

        assert replayed
        assert again.session_id == first.session_id

    async def test_deleted_meanwhile_there_is_nothing_to_return(self, store: Store) -> None:
        first, _ = await store.sessions.create(new_session(), once=once())
        await store.sessions.end(first.session_id, app=LOCAL_APP)

        with pytest.raises(SessionNotFound):
            await store.sessions.create(new_session(), once=once())

    async def test_a_refusal_is_not_remembered(self, store: Store) -> None:
        await opened(store)
        with pytest.raises(TooManyOpenSessions):
            await store.sessions.create(new_session(), once=once(), max_open=1)

        _, replayed = await store.sessions.create(new_session(), once=once())

        assert not replayed

    async def test_racing_repeats_open_one_session(self, store: Store) -> None:
        replies = await asyncio.gather(
            *(store.sessions.create(new_session(), once=once()) for _ in range(10))
        )

        assert len({session.session_id for session, _ in replies}) == 1
        assert [replayed for _, replayed in replies].count(False) == 1


class TestRead:
    async def test_renews_nothing(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, MINUTE_MS)

        read = await store.sessions.read(session.session_id, app=LOCAL_APP)

        assert read.expires_ms == session.expires_ms - MINUTE_MS
        assert read.remaining_ms <= CONFIG.timeout_ms - MINUTE_MS

    async def test_a_stranger_learns_nothing(self, store: Store) -> None:
        session = await opened(store)

        with pytest.raises(SessionNotFound):
            await store.sessions.read(session.session_id, app=OTHER_APP)
        with pytest.raises(SessionNotFound):
            await store.sessions.read(new_session_id(USER), app=LOCAL_APP)
        await age(store, session.session_id, CONFIG.timeout_ms)
        with pytest.raises(SessionNotFound):
            await store.sessions.read(session.session_id, app=OTHER_APP)

    async def test_is_exact_whether_or_not_anybody_settled_the_session(self, store: Store) -> None:
        """From its instant on a session is over, and the error says until when its log stays."""
        session = await opened(store)
        overdue: list[str] = []
        store.scripts.overdue = overdue.append
        await age(store, session.session_id, CONFIG.timeout_ms)

        with pytest.raises(SessionExpired) as unsettled:
            await store.sessions.read(session.session_id, app=LOCAL_APP)
        await store.alarms.ring(session.session_id)
        with pytest.raises(SessionExpired) as settled:
            await store.sessions.read(session.session_id, app=LOCAL_APP)

        assert overdue == [session.session_id]
        for error in (unsettled.value, settled.value):
            assert error.reason == "timeout"
            assert error.expires_ms == session.expires_ms - CONFIG.timeout_ms
            assert error.retained_until_ms == error.expires_ms + RETENTION_MS

    async def test_expired_once_is_expired_for_good(self, store: Store, server: TestServer) -> None:
        """Also if Redis's clock is set back afterwards."""
        session = await opened(store)
        await age(store, session.session_id, CONFIG.timeout_ms)
        await store.alarms.ring(session.session_id)

        await age(store, session.session_id, -10 * MINUTE_MS)

        with pytest.raises(SessionExpired):
            await store.sessions.read(session.session_id, app=LOCAL_APP)


class TestRenew:
    async def test_restarts_the_idle_clock(self, store: Store) -> None:
        session = await opened(store, config=NO_RENEWAL)
        await age(store, session.session_id, 10 * MINUTE_MS)

        renewed, replayed = await store.sessions.renew(session.session_id, app=LOCAL_APP, op=new_op_id())

        assert not replayed
        assert renewed.expires_ms == renewed.now_ms + NO_RENEWAL.timeout_ms
        assert (renewed.renewals, renewed.last_renewal_ms) == (1, renewed.now_ms)

    async def test_keeps_the_session_within_its_maximum_duration(self, store: Store) -> None:
        config = TimeoutConfig(30 * MINUTE_MS, True, 45 * MINUTE_MS, 5 * MINUTE_MS)
        session = await opened(store, config=config)
        await age(store, session.session_id, 20 * MINUTE_MS)

        renewed, _ = await store.sessions.renew(session.session_id, app=LOCAL_APP, op=new_op_id())
        with pytest.raises(MaxDurationReached) as error:
            await store.sessions.renew(session.session_id, app=LOCAL_APP, op=new_op_id())

        assert renewed.expires_ms == renewed.created_ms + config.max_duration_ms
        assert error.value.expires_ms == renewed.expires_ms
        assert (await store.sessions.read(session.session_id, app=None)).renewals == 1

    async def test_the_same_op_again_renews_no_more(self, store: Store) -> None:
        session = await opened(store)
        op = new_op_id()
        await age(store, session.session_id, MINUTE_MS)
        first, _ = await store.sessions.renew(session.session_id, app=LOCAL_APP, op=op)
        await age(store, session.session_id, MINUTE_MS)

        again, _ = await store.sessions.renew(session.session_id, app=LOCAL_APP, op=op)

        assert again.renewals == 1
        assert again.expires_ms == first.expires_ms - MINUTE_MS

    async def test_a_key_makes_a_repeat_join_the_first(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, MINUTE_MS)
        await store.sessions.renew(session.session_id, app=LOCAL_APP, op=new_op_id(), once=once())

        again, replayed = await store.sessions.renew(
            session.session_id, app=LOCAL_APP, op=new_op_id(), once=once()
        )

        assert (again.renewals, replayed) == (1, True)
        with pytest.raises(IdempotencyMismatch):
            await store.sessions.renew(
                session.session_id, app=LOCAL_APP, op=new_op_id(), once=once(content=b"other")
            )

    async def test_a_repeat_is_answered_after_expiry_and_not_after_deletion(self, store: Store) -> None:
        session = await opened(store)
        await store.sessions.renew(session.session_id, app=LOCAL_APP, op=new_op_id(), once=once())
        await age(store, session.session_id, CONFIG.timeout_ms)

        _, replayed = await store.sessions.renew(
            session.session_id, app=LOCAL_APP, op=new_op_id(), once=once()
        )
        await store.sessions.end(session.session_id, app=LOCAL_APP)

        assert replayed
        with pytest.raises(SessionNotFound):
            await store.sessions.renew(session.session_id, app=LOCAL_APP, op=new_op_id(), once=once())

    async def test_an_expired_session_stays_expired(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, CONFIG.timeout_ms)

        with pytest.raises(SessionExpired):
            await store.sessions.renew(session.session_id, app=LOCAL_APP, op=new_op_id())
        with pytest.raises(SessionExpired):
            await store.sessions.heartbeat(session.session_id, app=LOCAL_APP, op=new_op_id())
        with pytest.raises(SessionExpired):
            await store.sessions.configure(
                session.session_id,
                app=LOCAL_APP,
                op=new_op_id(),
                change=ConfigChange(timeout_ms=("s", MINUTE_MS)),
            )


class TestHeartbeat:
    async def test_renews_if_the_session_renews_itself(self, store: Store) -> None:
        for config, expected in ((CONFIG, True), (NO_RENEWAL, False)):
            session = await opened(store, config=config)
            await age(store, session.session_id, MINUTE_MS)

            after, renewed = await store.sessions.heartbeat(session.session_id, app=LOCAL_APP, op=new_op_id())

            assert renewed is expected
            assert after.last_activity_ms == after.now_ms
            assert after.expires_ms == (after.now_ms if expected else after.created_ms) + config.timeout_ms

    async def test_at_the_cap_it_is_welcome_and_moves_nothing(self, store: Store) -> None:
        session = await opened(store, config=TimeoutConfig(30 * MINUTE_MS, True, 30 * MINUTE_MS, MINUTE_MS))
        await age(store, session.session_id, MINUTE_MS)

        after, renewed = await store.sessions.heartbeat(session.session_id, app=LOCAL_APP, op=new_op_id())

        assert (renewed, after.renewals) == (False, 0)


class TestConfigure:
    async def _patch(
        self, store: Store, session: Session, if_match: int | None = None, **fields: tuple[str, int]
    ) -> Session:
        return await store.sessions.configure(
            session.session_id,
            app=LOCAL_APP,
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

        after = await store.sessions.read(session.session_id, app=LOCAL_APP)
        assert (after.config, after.config_version) == (CONFIG, 1)

    async def test_fields_that_contradict_each_other_are_refused(self, store: Store) -> None:
        session = await opened(store)

        with pytest.raises(InvalidInput, match="warningThresholdMinutes"):
            await self._patch(store, session, warning_ms=("s", CONFIG.timeout_ms))
        with pytest.raises(InvalidInput, match="maxDurationMinutes"):
            await self._patch(store, session, max_duration_ms=("s", CONFIG.timeout_ms - 1))

        assert (await store.sessions.read(session.session_id, app=LOCAL_APP)).config == CONFIG

    async def test_an_inherited_threshold_is_halved_to_fit(self, store: Store) -> None:
        session = await opened(store)

        after = await self._patch(store, session, timeout_ms=("s", 4 * MINUTE_MS))

        assert (after.config.warning_ms, after.config.sources) == (2 * MINUTE_MS, "sddd")

    async def test_the_same_op_again_changes_nothing_more(self, store: Store) -> None:
        session = await opened(store)
        op = new_op_id()
        change = ConfigChange(timeout_ms=("s", 10 * MINUTE_MS))
        await store.sessions.configure(session.session_id, app=LOCAL_APP, op=op, change=change, if_match=1)

        again = await store.sessions.configure(
            session.session_id, app=LOCAL_APP, op=op, change=change, if_match=1
        )

        assert again.config_version == 2

    async def test_widening_the_threshold_past_now_warns_at_once(self, store: Store, ears: Ears) -> None:
        session = await opened(store)
        await age(store, session.session_id, 10 * MINUTE_MS)
        ears.heard()

        after = await self._patch(store, session, warning_ms=("s", 25 * MINUTE_MS))

        assert after.warned_ms == after.now_ms
        assert ears.types() == ["session.updated", "session.expiring"]
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


class TestEnd:
    async def test_erases_everything(self, store: Store, server: TestServer, ears: Ears) -> None:
        """Afterwards nothing says that the session existed."""
        before = server.keys()
        session = await opened(store)
        await say(store, session.session_id)
        await say(store, session.session_id)
        await claimed(store, session.session_id)
        ears.heard()

        await store.sessions.end(session.session_id, app=LOCAL_APP)

        assert server.keys() == before
        assert ears.types() == ["turn.cancelled", "turn.cancelled", "session.ended"]
        with pytest.raises(SessionNotFound):
            await store.sessions.read(session.session_id, app=LOCAL_APP)
        with pytest.raises(SessionNotFound):
            await store.sessions.end(session.session_id, app=LOCAL_APP)

    async def test_erases_an_expired_session_too(self, store: Store, server: TestServer) -> None:
        before = server.keys()
        for settled in (True, False):
            session = await opened(store)
            await say(store, session.session_id)
            await age(store, session.session_id, CONFIG.timeout_ms)
            if settled:
                await store.alarms.ring(session.session_id)

            await store.sessions.end(session.session_id, app=LOCAL_APP)

        assert server.keys() == before

    async def test_is_not_for_strangers(self, store: Store) -> None:
        session = await opened(store)

        with pytest.raises(SessionNotFound):
            await store.sessions.end(session.session_id, app=OTHER_APP)

        await store.sessions.read(session.session_id, app=LOCAL_APP)


class TestPage:
    async def _all(self, store: Store, limit: int, **owner: object) -> list[str]:
        ids: list[str] = []
        after = None
        while True:
            page = await store.listing.page(limit=limit, after=after, **owner)  # type: ignore[arg-type]
            assert len(page.sessions) <= limit
            ids += [session.session_id for session in page.sessions]
            after = page.next
            if after is None:
                return ids

    @pytest.mark.parametrize("limit", [1, 3, 7, 100])
    async def test_every_session_is_listed_once_whatever_the_page(self, store: Store, limit: int) -> None:
        """Newest first by user and by agent; sessions made in one millisecond are no exception."""
        users = [f"{number:08x}-1111-4111-8111-111111111111" for number in range(5)]
        sessions = list(
            await asyncio.gather(*(opened(store, random.Random(n).choice(users)) for n in range(15)))
        )
        sessions += await asyncio.gather(*(opened(store, users[0], app=OTHER_APP) for _ in range(3)))
        mine = [session for session in sessions if session.app == LOCAL_APP]
        newest = sorted(mine, key=lambda session: (session.created_ms, session.session_id), reverse=True)

        assert await self._all(store, limit, app=LOCAL_APP, agent_id=AGENT) == [s.session_id for s in newest]
        for user in users:
            expected = [session.session_id for session in newest if session.user_id == user]
            assert await self._all(store, limit, app=LOCAL_APP, user_id=UserId(user)) == expected
        everyones = await self._all(store, limit, app=None)
        assert sorted(everyones) == sorted(session.session_id for session in sessions)
        assert sorted(await self._all(store, limit, app=OTHER_APP)) == sorted(
            session.session_id for session in sessions if session.app == OTHER_APP
        )

    async def test_leaves_out_what_expired_or_was_deleted(self, store: Store) -> None:
        sessions = [await opened(store) for _ in range(4)]
        await age(store, sessions[1].session_id, CONFIG.timeout_ms)
        await store.sessions.end(sessions[2].session_id, app=LOCAL_APP)

        ids = await self._all(store, 2, app=LOCAL_APP, user_id=USER)

        assert sorted(ids) == sorted([sessions[0].session_id, sessions[3].session_id])

    async def test_what_is_created_between_two_pages_moves_nothing(self, store: Store) -> None:
        sessions = [await opened(store) for _ in range(4)]
        for session in sessions:
            await age(store, session.session_id, 1_000)
        first = await store.listing.page(app=LOCAL_APP, user_id=USER, limit=2)

        await opened(store)
        second = await store.listing.page(app=LOCAL_APP, user_id=USER, limit=2, after=first.next)

        listed = {session.session_id for session in [*first.sessions, *second.sessions]}
        assert listed == {session.session_id for session in sessions}

    @pytest.mark.parametrize("cursor", ["x", "AAAA", "é", "=", "bm90IGEgY3Vyc29y" * 3])
    async def test_a_cursor_that_is_not_ours_is_refused(self, store: Store, cursor: str) -> None:
        for owner in ({"user_id": USER}, {"agent_id": AGENT}, {}):
            with pytest.raises(InvalidInput):
                await store.listing.page(app=LOCAL_APP, limit=5, after=cursor, **owner)

    async def test_totals_count_the_index(self, store: Store) -> None:
        await opened(store)
        await opened(store, "22222222-1111-4111-8111-111111111111")
        await opened(store, app=OTHER_APP)

        assert await store.listing.total(app=LOCAL_APP) == 2
        assert await store.listing.total(app=None) == 3
        assert await store.listing.total(app=LOCAL_APP, user_id=USER) == 1
        assert await store.listing.total(app=LOCAL_APP, agent_id=AGENT) == 2
        assert await store.listing.total(app=LOCAL_APP, agent_id=AgentId("0" * 8 + AGENT[8:])) == 0


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

"""Sessions: opened, read, renewed, ended."""

from __future__ import annotations

import asyncio

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, UserId, new_op_id, new_session_id
from sessions_api.domain.sessions import ConfigChange
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.errors import (
    IdempotencyMismatch,
    MaxDurationReached,
    SessionExpired,
    SessionNotFound,
    TooManyOpenSessions,
)
from sessions_api.store import Store
from tests.support.servers import TestServer
from tests.support.stores import (
    AGENT,
    CONFIG,
    MINUTE_MS,
    NO_RENEWAL,
    OTHER_APP,
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


class TestCreate:
    async def test_opens_a_session_that_reads_as_it_was_made(self, store: Store) -> None:
        new = new_session(metadata=b'{"plan":"pro"}', on_busy="merge")

        session, is_repeat = await store.sessions.create(new)
        read = await store.sessions.read(new.session_id, grant=LOCAL_APP)

        assert not is_repeat
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

        again, is_repeat = await store.sessions.create(new)

        assert again.created_ms == first.created_ms
        assert not is_repeat
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

        again, is_repeat = await store.sessions.create(new_session(), once=once())

        assert is_repeat
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

        again, is_repeat = await store.sessions.create(new_session(), once=once())

        assert is_repeat
        assert again.session_id == first.session_id

    async def test_deleted_meanwhile_there_is_nothing_to_return(self, store: Store) -> None:
        first, _ = await store.sessions.create(new_session(), once=once())
        await store.sessions.end(first.session_id, grant=LOCAL_APP)

        with pytest.raises(SessionNotFound):
            await store.sessions.create(new_session(), once=once())

    async def test_a_refusal_is_not_remembered(self, store: Store) -> None:
        await opened(store)
        with pytest.raises(TooManyOpenSessions):
            await store.sessions.create(new_session(), once=once(), max_open=1)

        _, is_repeat = await store.sessions.create(new_session(), once=once())

        assert not is_repeat

    async def test_racing_repeats_open_one_session(self, store: Store) -> None:
        replies = await asyncio.gather(
            *(store.sessions.create(new_session(), once=once()) for _ in range(10))
        )

        assert len({session.session_id for session, _ in replies}) == 1
        assert [is_repeat for _, is_repeat in replies].count(False) == 1


class TestRead:
    async def test_renews_nothing(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, MINUTE_MS)

        read = await store.sessions.read(session.session_id, grant=LOCAL_APP)

        assert read.expires_ms == session.expires_ms - MINUTE_MS
        assert read.remaining_ms <= CONFIG.timeout_ms - MINUTE_MS

    async def test_a_stranger_learns_nothing(self, store: Store) -> None:
        session = await opened(store)

        with pytest.raises(SessionNotFound):
            await store.sessions.read(session.session_id, grant=OTHER_APP)
        with pytest.raises(SessionNotFound):
            await store.sessions.read(new_session_id(USER), grant=LOCAL_APP)
        await age(store, session.session_id, CONFIG.timeout_ms)
        with pytest.raises(SessionNotFound):
            await store.sessions.read(session.session_id, grant=OTHER_APP)

    async def test_is_exact_whether_or_not_anybody_settled_the_session(self, store: Store) -> None:
        """From its instant on a session is over, and the error says until when its log stays."""
        session = await opened(store)
        overdue: list[str] = []
        store.scripts.overdue = overdue.append
        await age(store, session.session_id, CONFIG.timeout_ms)

        with pytest.raises(SessionExpired) as unsettled:
            await store.sessions.read(session.session_id, grant=LOCAL_APP)
        await store.alarms.ring(session.session_id)
        with pytest.raises(SessionExpired) as settled:
            await store.sessions.read(session.session_id, grant=LOCAL_APP)

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
            await store.sessions.read(session.session_id, grant=LOCAL_APP)


class TestRenew:
    async def test_restarts_the_idle_clock(self, store: Store) -> None:
        session = await opened(store, config=NO_RENEWAL)
        await age(store, session.session_id, 10 * MINUTE_MS)

        renewed, is_repeat = await store.sessions.renew(session.session_id, grant=LOCAL_APP, op=new_op_id())

        assert not is_repeat
        assert renewed.expires_ms == renewed.now_ms + NO_RENEWAL.timeout_ms
        assert (renewed.renewals, renewed.last_renewal_ms) == (1, renewed.now_ms)

    async def test_keeps_the_session_within_its_maximum_duration(self, store: Store) -> None:
        config = TimeoutConfig(30 * MINUTE_MS, True, 45 * MINUTE_MS, 5 * MINUTE_MS)
        session = await opened(store, config=config)
        await age(store, session.session_id, 20 * MINUTE_MS)

        renewed, _ = await store.sessions.renew(session.session_id, grant=LOCAL_APP, op=new_op_id())
        with pytest.raises(MaxDurationReached) as error:
            await store.sessions.renew(session.session_id, grant=LOCAL_APP, op=new_op_id())

        assert renewed.expires_ms == renewed.created_ms + config.max_duration_ms
        assert error.value.expires_ms == renewed.expires_ms
        assert (await store.sessions.read(session.session_id, grant=EVERYTHING)).renewals == 1

    async def test_the_same_op_again_renews_no_more(self, store: Store) -> None:
        session = await opened(store)
        op = new_op_id()
        await age(store, session.session_id, MINUTE_MS)
        first, _ = await store.sessions.renew(session.session_id, grant=LOCAL_APP, op=op)
        await age(store, session.session_id, MINUTE_MS)

        again, _ = await store.sessions.renew(session.session_id, grant=LOCAL_APP, op=op)

        assert again.renewals == 1
        assert again.expires_ms == first.expires_ms - MINUTE_MS

    async def test_a_key_makes_a_repeat_join_the_first(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, MINUTE_MS)
        await store.sessions.renew(session.session_id, grant=LOCAL_APP, op=new_op_id(), once=once())

        again, is_repeat = await store.sessions.renew(
            session.session_id, grant=LOCAL_APP, op=new_op_id(), once=once()
        )

        assert (again.renewals, is_repeat) == (1, True)
        with pytest.raises(IdempotencyMismatch):
            await store.sessions.renew(
                session.session_id, grant=LOCAL_APP, op=new_op_id(), once=once(content=b"other")
            )

    async def test_a_repeat_is_answered_after_expiry_and_not_after_deletion(self, store: Store) -> None:
        session = await opened(store)
        await store.sessions.renew(session.session_id, grant=LOCAL_APP, op=new_op_id(), once=once())
        await age(store, session.session_id, CONFIG.timeout_ms)

        _, is_repeat = await store.sessions.renew(
            session.session_id, grant=LOCAL_APP, op=new_op_id(), once=once()
        )
        await store.sessions.end(session.session_id, grant=LOCAL_APP)

        assert is_repeat
        with pytest.raises(SessionNotFound):
            await store.sessions.renew(session.session_id, grant=LOCAL_APP, op=new_op_id(), once=once())

    async def test_an_expired_session_stays_expired(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, CONFIG.timeout_ms)

        with pytest.raises(SessionExpired):
            await store.sessions.renew(session.session_id, grant=LOCAL_APP, op=new_op_id())
        with pytest.raises(SessionExpired):
            await store.sessions.heartbeat(session.session_id, grant=LOCAL_APP, op=new_op_id())
        with pytest.raises(SessionExpired):
            await store.sessions.configure(
                session.session_id,
                grant=LOCAL_APP,
                op=new_op_id(),
                change=ConfigChange(timeout_ms=("s", MINUTE_MS)),
            )


class TestHeartbeat:
    async def test_renews_if_the_session_renews_itself(self, store: Store) -> None:
        for config, expected in ((CONFIG, True), (NO_RENEWAL, False)):
            session = await opened(store, config=config)
            await age(store, session.session_id, MINUTE_MS)

            after, renewed = await store.sessions.heartbeat(
                session.session_id, grant=LOCAL_APP, op=new_op_id()
            )

            assert renewed is expected
            assert after.last_activity_ms == after.now_ms
            assert after.expires_ms == (after.now_ms if expected else after.created_ms) + config.timeout_ms

    async def test_at_the_cap_it_is_welcome_and_moves_nothing(self, store: Store) -> None:
        session = await opened(store, config=TimeoutConfig(30 * MINUTE_MS, True, 30 * MINUTE_MS, MINUTE_MS))
        await age(store, session.session_id, MINUTE_MS)

        after, renewed = await store.sessions.heartbeat(session.session_id, grant=LOCAL_APP, op=new_op_id())

        assert (renewed, after.renewals) == (False, 0)


class TestEnd:
    async def test_erases_everything(self, store: Store, server: TestServer, ears: Ears) -> None:
        """Afterwards nothing says that the session existed."""
        before = server.keys()
        session = await opened(store)
        await say(store, session.session_id)
        await say(store, session.session_id)
        await claimed(store, session.session_id)
        ears.heard()

        await store.sessions.end(session.session_id, grant=LOCAL_APP)

        assert server.keys() == before
        assert ears.types() == ["turn.cancelled", "turn.cancelled", "session.ended"]
        with pytest.raises(SessionNotFound):
            await store.sessions.read(session.session_id, grant=LOCAL_APP)
        with pytest.raises(SessionNotFound):
            await store.sessions.end(session.session_id, grant=LOCAL_APP)

    async def test_erases_an_expired_session_too(self, store: Store, server: TestServer) -> None:
        before = server.keys()
        for settled in (True, False):
            session = await opened(store)
            await say(store, session.session_id)
            await age(store, session.session_id, CONFIG.timeout_ms)
            if settled:
                await store.alarms.ring(session.session_id)

            await store.sessions.end(session.session_id, grant=LOCAL_APP)

        assert server.keys() == before

    async def test_is_not_for_strangers(self, store: Store) -> None:
        session = await opened(store)

        with pytest.raises(SessionNotFound):
            await store.sessions.end(session.session_id, grant=OTHER_APP)

        await store.sessions.read(session.session_id, grant=LOCAL_APP)

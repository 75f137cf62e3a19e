"""A message enters the log once, whatever is repeated, and gets a turn."""

from __future__ import annotations

import asyncio

import pytest

from sessions_api.domain.ids import LOCAL_APP, new_message_id, new_turn_id
from sessions_api.domain.messages import LogEntry
from sessions_api.errors import (
    AgentUnavailable,
    IdempotencyMismatch,
    SessionBusy,
    SessionExpired,
    SessionNotFound,
)
from sessions_api.store import Store
from tests.support.servers import TestServer
from tests.support.stores import (
    AGENT,
    CONFIG,
    MINUTE_MS,
    NO_RENEWAL,
    Ears,
    age,
    claimed,
    complete,
    new_session,
    once,
    opened,
    put_state,
    say,
    user_body,
    written,
)


class TestAppend:
    async def test_a_message_enters_the_log_gets_a_turn_and_renews(self, store: Store, ears: Ears) -> None:
        session = await opened(store)
        await age(store, session.session_id, MINUTE_MS)
        ears.heard()

        appended = await say(store, session.session_id, "hi")

        after = appended.session
        assert (appended.was_renewed, appended.is_repeat) == (True, False)
        assert after.expires_ms == after.now_ms + CONFIG.timeout_ms
        assert (after.cursor, after.turn_id, after.turn_state, after.queued) == (
            appended.cursor, appended.turn_id, "queued", 1
        )  # fmt: skip
        assert after.last_activity_ms == after.now_ms
        assert appended.cursor == after.now_ms
        (entry,) = await written(store, session.session_id)
        body = user_body(appended.message_id, "hi")
        assert entry == LogEntry.of(appended.cursor, turn_id=appended.turn_id, body=body)
        kinds = [kind for kind, *_ in ears.heard()]
        assert sorted(kinds) == ["message.created", "session.renewed", "turn.queued", "wake"]

    async def test_without_renewal_the_deadline_stays(self, store: Store) -> None:
        session = await opened(store, config=NO_RENEWAL)
        await age(store, session.session_id, MINUTE_MS)

        appended = await say(store, session.session_id)

        assert not appended.was_renewed
        assert appended.session.expires_ms == session.expires_ms - MINUTE_MS

    async def test_repeated_with_its_turn_id_it_enters_once(self, store: Store) -> None:
        session = await opened(store)
        message_id, turn_id = new_message_id(), new_turn_id()
        first = await say(store, session.session_id, message_id=message_id, turn_id=turn_id)

        again = await say(store, session.session_id, message_id=message_id, turn_id=turn_id)

        assert (again.cursor, again.turn_id, again.was_renewed) == (first.cursor, turn_id, first.was_renewed)
        assert not again.is_repeat
        assert len(await written(store, session.session_id)) == 1

    async def test_merged_it_enters_once_too(self, store: Store) -> None:
        """A message that opens no turn of its own is known by its message id, for ten seconds."""
        session = await opened(store)
        opener = await say(store, session.session_id, on_busy="merge")
        message_id = new_message_id()
        first = await say(store, session.session_id, on_busy="merge", message_id=message_id)

        again = await say(store, session.session_id, on_busy="merge", message_id=message_id)

        assert first.turn_id == again.turn_id == opener.turn_id
        assert first.cursor == again.cursor
        assert not again.is_repeat
        assert len(await written(store, session.session_id)) == 2

    async def test_the_repeat_of_an_accepted_message_is_answered_after_expiry(self, store: Store) -> None:
        """Its first reply may have been lost just before."""
        session = await opened(store, config=NO_RENEWAL)
        message_id, turn_id = new_message_id(), new_turn_id()
        first = await say(store, session.session_id, message_id=message_id, turn_id=turn_id)
        await age(store, session.session_id, NO_RENEWAL.timeout_ms)

        again = await say(store, session.session_id, message_id=message_id, turn_id=turn_id)

        assert again.cursor == first.cursor
        with pytest.raises(SessionExpired):
            await say(store, session.session_id)

    async def test_cursors_never_repeat_or_go_back(self, store: Store, server: TestServer) -> None:
        """Not in a burst of one millisecond, and not when Redis's clock is set back by an hour."""
        session = await opened(store)
        sid = session.session_id
        burst = await asyncio.gather(*(say(store, sid) for _ in range(50)))
        ahead = burst[-1].cursor + 60 * MINUTE_MS
        of = store.keyspace.of(sid)
        last = max(each.cursor for each in burst)
        server.call(
            "XADD", of.all()[2], f"{ahead}-0", "prev", last, "message", "{}",
        )  # fmt: skip
        await put_state(store, sid, cursor=ahead)

        later = [await say(store, sid) for _ in range(3)]

        entries = await written(store, sid)
        cursors = [entry.cursor for entry in entries]
        assert len(set(cursors)) == 54
        assert cursors == sorted(cursors)
        assert [entry.prev for entry in entries] == [0, *cursors[:-1]]
        assert [each.cursor for each in later] == [ahead + 1, ahead + 2, ahead + 3]

    async def test_an_unknown_or_expired_session_takes_none(self, store: Store) -> None:
        with pytest.raises(SessionNotFound):
            await say(store, new_session().session_id)
        session = await opened(store)
        await age(store, session.session_id, CONFIG.timeout_ms)
        with pytest.raises(SessionExpired):
            await say(store, session.session_id)

    async def test_with_nobody_there_to_answer_nothing_is_written(self, store: Store, ears: Ears) -> None:
        """For a poster who wants to wait for the answer; the agent is named as the session has it."""
        session = await opened(store, agent=AGENT.upper())
        ears.heard()

        with pytest.raises(AgentUnavailable) as error:
            await say(store, session.session_id, is_agent_away=True)

        assert error.value.agent_id == AGENT.upper()
        assert await written(store, session.session_id) == []
        assert ears.heard() == []
        with pytest.raises(SessionNotFound):
            await say(store, new_session().session_id, is_agent_away=True)


class TestAppendOnce:
    @pytest.mark.parametrize("on_busy", ["queue", "merge", "interrupt", "reject"])
    async def test_a_repeat_gets_what_the_key_got(self, store: Store, on_busy: str) -> None:
        session = await opened(store, on_busy=on_busy)
        first = await say(store, session.session_id, once=once())

        again = await say(store, session.session_id, once=once())

        assert again.is_repeat
        assert (again.message_id, again.cursor, again.turn_id, again.was_renewed) == (
            first.message_id, first.cursor, first.turn_id, first.was_renewed
        )  # fmt: skip
        assert len(await written(store, session.session_id)) == 1

    async def test_other_content_under_the_key_is_refused(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id, once=once())

        with pytest.raises(IdempotencyMismatch):
            await say(store, session.session_id, once=once(content=b"other"))

        assert len(await written(store, session.session_id)) == 1

    async def test_expired_meanwhile_the_first_success_is_returned(self, store: Store) -> None:
        for settled in (False, True):
            session = await opened(store)
            key = once(f"{settled}")
            first = await say(store, session.session_id, once=key)
            await age(store, session.session_id, CONFIG.timeout_ms)
            if settled:
                await store.alarms.ring(session.session_id)

            again = await say(store, session.session_id, once=key)

            assert (again.is_repeat, again.cursor) == (True, first.cursor)

    async def test_deleted_meanwhile_it_is_not_found(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id, once=once())
        await store.sessions.end(session.session_id, grant=LOCAL_APP)

        with pytest.raises(SessionNotFound):
            await say(store, session.session_id, once=once())

    async def test_a_refusal_is_not_remembered(self, store: Store) -> None:
        session = await opened(store, on_busy="reject")
        await say(store, session.session_id)
        with pytest.raises(SessionBusy):
            await say(store, session.session_id, once=once())
        await complete(store, await claimed(store, session.session_id))

        assert not (await say(store, session.session_id, once=once())).is_repeat

    async def test_racing_repeats_enter_once(self, store: Store) -> None:
        session = await opened(store)

        replies = await asyncio.gather(*(say(store, session.session_id, once=once()) for _ in range(20)))

        assert len({reply.cursor for reply in replies}) == 1
        assert [reply.is_repeat for reply in replies].count(False) == 1
        assert len(await written(store, session.session_id)) == 1

    async def test_the_key_holds_no_content(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        await say(store, session.session_id, "a secret", once=once("a key"))

        records = [key for key in sorted(server.keys()) if b"once" in key]

        assert len(records) == 1
        assert b"secret" not in server.call("GET", records[0])
        assert 0 < server.call("PTTL", records[0]) <= 86_400_000

    async def test_a_repeat_is_honoured_with_nobody_there(self, store: Store) -> None:
        """What was accepted stays accepted; its answer may be in the log."""
        session = await opened(store)
        first = await say(store, session.session_id, once=once())

        again = await say(store, session.session_id, once=once(), is_agent_away=True)

        assert (again.cursor, again.is_repeat) == (first.cursor, True)

"""The log: appended to once, paged through without a lie, replayed without a gap."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
import redis as redis_py

from sessions_api.domain.ids import LOCAL_APP, SessionId, new_message_id, new_turn_id
from sessions_api.domain.messages import LogEntry, NewMessage
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.errors import IdempotencyMismatch, SessionBusy, SessionExpired, SessionNotFound
from sessions_api.store import Store
from tests.support.servers import TestServer
from tests.support.stores import (
    CONFIG,
    MINUTE_MS,
    NO_RENEWAL,
    USER,
    Ears,
    age,
    claimed,
    complete,
    new_session,
    once,
    opened,
    say,
    user_body,
)

real = pytest.mark.servers("valkey", "redis62", "debian")


async def written(store: Store, session_id: SessionId) -> list[LogEntry]:
    """The whole log, page by page."""
    entries: list[LogEntry] = []
    while True:
        after = entries[-1].cursor if entries else 0
        replay = await store.log.replay(session_id, app=None, after=after, limit=7)
        entries += replay.entries
        if replay.complete:
            return entries


async def talked(store: Store, seed: int, *, length: int = 24) -> SessionId:
    """A session whose log mixes messages, answers, and turns that failed or were cancelled."""
    chance = random.Random(seed)
    session = await opened(store)
    sid = session.session_id
    await asyncio.gather(*(say(store, sid, f"burst {number}") for number in range(5)))
    for number in range(length):
        match chance.randrange(5):
            case 0:
                await say(store, sid, f"{number}")
            case 1:
                await say(store, sid, f"{number}", on_busy="interrupt")
            case _ if not (await store.sessions.read(sid, app=None)).queued:
                await say(store, sid, f"{number}")
            case 2:
                await complete(store, await claimed(store, sid), f"answer {number}")
            case 3:
                turn = (await claimed(store, sid)).turn
                await store.turns.fail(
                    sid, turn.turn_id, fence=turn.fence, code="X", message="x", retry=False
                )
            case 4:
                turn = (await claimed(store, sid)).turn
                await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="part", offset=0)
                await store.turns.cancel(sid, turn.turn_id, app=None)
            case _:
                pass
    return sid


class TestAppend:
    async def test_a_message_enters_the_log_gets_a_turn_and_renews(self, store: Store, ears: Ears) -> None:
        session = await opened(store)
        await age(store, session.session_id, MINUTE_MS)
        ears.heard()

        appended = await say(store, session.session_id, "hi")

        after = appended.session
        assert (appended.was_renewed, appended.replayed) == (True, False)
        assert after.expires_ms == after.now_ms + CONFIG.timeout_ms
        assert (after.cursor, after.turn_id, after.turn_state, after.queued) == (
            appended.cursor, appended.turn_id, "queued", 1
        )  # fmt: skip
        assert after.last_activity_ms == after.now_ms
        assert appended.cursor == after.now_ms
        (entry,) = await written(store, session.session_id)
        assert entry == LogEntry(
            appended.cursor, 0, "message", appended.turn_id, None, user_body(appended.message_id, "hi")
        )
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
        assert not again.replayed
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
        assert not again.replayed
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
            "XADD", of.all()[2], f"{ahead}-0", "kind", "message", "prev", last, "turn", "", "status", "",
            "body", "{}",
        )  # fmt: skip
        server.call("HSET", of.session, "cursor", ahead)

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


class TestAppendOnce:
    @pytest.mark.parametrize("on_busy", ["queue", "merge", "interrupt", "reject"])
    async def test_a_repeat_gets_what_the_key_got(self, store: Store, on_busy: str) -> None:
        session = await opened(store, on_busy=on_busy)
        first = await say(store, session.session_id, once=once())

        again = await say(store, session.session_id, once=once())

        assert again.replayed
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

            assert (again.replayed, again.cursor) == (True, first.cursor)

    async def test_deleted_meanwhile_it_is_not_found(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id, once=once())
        await store.sessions.end(session.session_id, app=LOCAL_APP)

        with pytest.raises(SessionNotFound):
            await say(store, session.session_id, once=once())

    async def test_a_refusal_is_not_remembered(self, store: Store) -> None:
        session = await opened(store, on_busy="reject")
        await say(store, session.session_id)
        with pytest.raises(SessionBusy):
            await say(store, session.session_id, once=once())
        await complete(store, await claimed(store, session.session_id))

        assert not (await say(store, session.session_id, once=once())).replayed

    async def test_racing_repeats_enter_once(self, store: Store) -> None:
        session = await opened(store)

        replies = await asyncio.gather(*(say(store, session.session_id, once=once()) for _ in range(20)))

        assert len({reply.cursor for reply in replies}) == 1
        assert [reply.replayed for reply in replies].count(False) == 1
        assert len(await written(store, session.session_id)) == 1

    async def test_the_key_holds_no_content(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        await say(store, session.session_id, "a secret", once=once("a key"))

        records = [key for key in sorted(server.keys()) if b"once" in key]

        assert len(records) == 1
        assert b"secret" not in server.call("GET", records[0])
        assert 0 < server.call("PTTL", records[0]) <= 86_400_000


class TestHistory:
    @pytest.mark.parametrize("seed", range(3))
    async def test_pages_never_skip_repeat_or_lie(self, store: Store, seed: int) -> None:
        """Compared with a plain list: bursts of one millisecond, other entries in between, any bounds."""
        sid = await talked(store, seed)
        messages = [entry for entry in await written(store, sid) if entry.kind == "message"]
        cursors = [entry.cursor for entry in messages]
        chance = random.Random(seed)
        marks = [None, 0, cursors[0] - 1, cursors[-1] + 1, *chance.sample(cursors, 4)]
        for before in marks:
            for after in marks:
                limit = chance.choice([1, 2, 5, 100])
                within = [
                    cursor
                    for cursor in cursors
                    if (before is None or cursor < before) and (after is None or cursor > after)
                ]
                forward = after is not None and before is None
                expected = within[:limit] if forward else within[-limit:]

                page = await store.log.history(sid, app=LOCAL_APP, limit=limit, before=before, after=after)

                assert [entry.cursor for entry in page.entries] == expected[::-1], (before, after, limit)
                assert page.has_more is (len(within) > limit), (before, after, limit)

    @pytest.mark.parametrize("limit", [1, 3, 100])
    async def test_walking_back_and_forth_meets_every_message_once(self, store: Store, limit: int) -> None:
        sid = await talked(store, 7)
        cursors = [entry.cursor for entry in await written(store, sid) if entry.kind == "message"]

        back: list[int] = []
        has_more = True
        while has_more:
            before = back[-1] if back else None
            page = await store.log.history(sid, app=LOCAL_APP, limit=limit, before=before)
            back += [entry.cursor for entry in page.entries]
            has_more = page.has_more
        forth: list[int] = []
        has_more = True
        while has_more:
            page = await store.log.history(sid, app=LOCAL_APP, limit=limit, after=forth[-1] if forth else 0)
            forth += [entry.cursor for entry in reversed(page.entries)]
            has_more = page.has_more

        assert back[::-1] == forth == cursors

    async def test_bodies_come_back_byte_for_byte(self, store: Store) -> None:
        session = await opened(store)
        bodies = [
            b'{"authorId":"' + USER.encode() + b'","content":' + content + b"}"
            for content in (b'"\xf0\x9f\x98\x80 \\u0000"', b"1.10", b'"%d\\r\\n"', b'[{ } , "/\\/"]')
        ]
        for body in bodies:
            await store.log.append(
                session.session_id,
                app=None,
                message=NewMessage(new_message_id(), body),
                turn_id=new_turn_id(),
            )

        page = await store.log.history(session.session_id, app=LOCAL_APP, limit=10)

        assert [entry.body for entry in reversed(page.entries)] == bodies

    async def test_a_body_without_author_gets_the_sessions_user(self, store: Store) -> None:
        """The replica need not know whose session it is."""
        session = await opened(store)
        message = NewMessage(new_message_id(), b'{"content":"hi"}')

        await store.log.append(session.session_id, app=None, message=message, turn_id=new_turn_id())

        (entry,) = (await store.log.history(session.session_id, app=None, limit=1)).entries
        assert entry.body == b'{"authorId":"' + USER.encode() + b'","content":"hi"}'

    async def test_any_number_is_a_cursor(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        for bound in (-1, 0, 1, 2**53 + 1, 2**64, 2**70):
            before = await store.log.history(session.session_id, app=None, limit=1, before=bound)
            after = await store.log.history(session.session_id, app=None, limit=1, after=bound)
            replay = await store.log.replay(session.session_id, app=None, after=bound)

            assert len(before.entries) == (bound > 1)
            assert len(after.entries) == len(replay.entries) == (bound <= 1)

    async def test_an_expired_session_shows_its_log_on_request_only(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        await age(store, session.session_id, CONFIG.timeout_ms)
        await store.alarms.ring(session.session_id)

        with pytest.raises(SessionExpired):
            await store.log.history(session.session_id, app=LOCAL_APP, limit=10)
        page = await store.log.history(session.session_id, app=LOCAL_APP, limit=10, ended=True)

        assert len(page.entries) == 1

    async def test_a_session_without_messages_has_an_empty_page(self, store: Store) -> None:
        session = await opened(store)

        page = await store.log.history(session.session_id, app=LOCAL_APP, limit=10)

        assert (page.entries, page.has_more) == ([], False)
        with pytest.raises(SessionNotFound):
            await store.log.history(new_session().session_id, app=LOCAL_APP, limit=10, ended=True)


class TestReplay:
    async def test_entries_are_a_chain(self, store: Store) -> None:
        """Each entry names the one before it: whoever holds a cursor knows whether it missed something."""
        sid = await talked(store, 11)

        entries = await written(store, sid)

        assert [entry.prev for entry in entries] == [0, *(entry.cursor for entry in entries[:-1])]
        assert entries[-1].cursor == (await store.sessions.read(sid, app=None)).cursor

    @pytest.mark.parametrize("limit", [1, 4, 200])
    async def test_the_page_that_ends_at_the_sessions_cursor_is_the_last(
        self, store: Store, limit: int
    ) -> None:
        sid = await talked(store, 3)
        whole = await written(store, sid)
        for position in (0, 5, len(whole) - 1, len(whole)):
            after = whole[position - 1].cursor if position else 0
            met: list[int] = []
            while True:
                replay = await store.log.replay(sid, app=None, after=after, limit=limit)
                met += [entry.cursor for entry in replay.entries]
                if replay.complete:
                    break
                assert len(replay.entries) == limit
                after = met[-1]

            assert met == [entry.cursor for entry in whole[position:]]
            assert (replay.oldest, replay.newest) == (whole[0].cursor, whole[-1].cursor)

    async def test_a_page_has_a_bounded_size_and_at_least_one_entry(self, store: Store) -> None:
        session = await opened(store)
        for _ in range(3):
            await say(store, session.session_id, "x" * 200_000)
        await say(store, session.session_id, "x" * 400_000)

        sizes = []
        after = 0
        complete_ = False
        while not complete_:
            replay = await store.log.replay(session.session_id, app=None, after=after)
            sizes.append(len(replay.entries))
            after, complete_ = replay.entries[-1].cursor, replay.complete

        assert sizes == [1, 1, 1, 1]

    async def test_the_draft_joins_the_page_without_a_gap(self, store: Store) -> None:
        """Session, page and draft are read at one instant."""
        session = await opened(store)
        sid = session.session_id
        await say(store, sid)
        turn = (await claimed(store, sid)).turn
        seen: list[tuple[int, str | None]] = []

        async def answer() -> None:
            for number in range(20):
                await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="ab", offset=2 * number)
            await store.turns.complete(sid, turn.turn_id, fence=turn.fence, body=b'{"content":"all"}')

        async def look() -> None:
            while True:
                replay = await store.log.replay(sid, app=None, after=0)
                seen.append((len(replay.entries), replay.draft.text if replay.draft else None))
                if replay.draft:
                    assert replay.draft.units == 2 * replay.draft.index == len(replay.draft.text)
                if len(replay.entries) == 2:
                    return

        await asyncio.gather(answer(), look())

        assert all((entries == 1) is (text is not None) for entries, text in seen)

    async def test_without_a_position_no_entry_is_read(self, store: Store) -> None:
        sid = await talked(store, 5, length=3)

        replay = await store.log.replay(sid, app=None, after=None)

        assert replay.entries == []
        assert replay.complete
        assert replay.session is not None
        assert replay.newest == replay.session.cursor

    async def test_an_expired_session_replays_its_log_and_says_how_it_ended(self, store: Store) -> None:
        session = await opened(store)
        appended = await say(store, session.session_id)
        await age(store, session.session_id, CONFIG.timeout_ms)
        overdue: list[str] = []
        store.scripts.overdue = overdue.append

        unsettled = await store.log.replay(session.session_id, app=None, after=0)
        await store.alarms.ring(session.session_id)
        settled = await store.log.replay(session.session_id, app=None, after=0)

        assert overdue == [session.session_id]
        assert unsettled.session is settled.session is None
        assert unsettled.expired is not None
        assert settled.expired is not None
        assert [entry.kind for entry in unsettled.entries] == ["message"]
        assert [entry.kind for entry in settled.entries] == ["message", "turn.failed"]
        assert settled.entries[1].turn_id == appended.turn_id
        assert settled.newest == settled.entries[1].cursor

    async def test_positions_tell_who_is_behind(self, store: Store) -> None:
        session = await opened(store)
        appended = await say(store, session.session_id)
        over = await opened(store)
        await age(store, over.session_id, CONFIG.timeout_ms)

        here, ended, absent = await store.log.positions(
            [session.session_id, over.session_id, new_session().session_id]
        )

        assert here is not None
        assert (here.cursor, here.rev, here.is_over) == (appended.cursor, appended.session.rev, False)
        assert ended is not None
        assert ended.is_over
        assert absent is None


@pytest.mark.servers("valkey", "redis62", "debian")  # fakeredis does not take megabytes over TCP
class TestTrimming:
    def _fill(self, store: Store, server: TestServer, sid: SessionId, entries: int, body: bytes) -> list[int]:
        """*entries* old messages, as if they had been said and answered."""
        of = store.keyspace.of(sid)
        first = int(server.call("TIME")[0]) * 1000 - 10_000_000
        cursors = list(range(first, first + entries))
        with redis_py.Redis(port=server.port, host="127.0.0.1", protocol=2) as client:
            pipe = client.pipeline(transaction=False)
            for number, cursor in enumerate(cursors):
                prev = cursors[number - 1] if number else 0
                fields = {"kind": "message", "prev": prev, "turn": "", "status": "", "body": body}
                pipe.xadd(of.all()[2], fields, id=f"{cursor}-0")
            pipe.hset(of.session.decode(), mapping={"cursor": cursors[-1], "log_bytes": entries * len(body)})
            pipe.pexpire(of.all()[2], 3_600_000)
            pipe.execute()
        return cursors

    @real
    async def test_ten_thousand_entries_stay(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        sid = session.session_id
        cursors = self._fill(store, server, sid, 9_999, b"{}")
        await say(store, sid)
        assert (await store.log.replay(sid, app=None, after=None)).oldest == cursors[0]

        await complete(store, await claimed(store, sid))
        await say(store, sid)

        replay = await store.log.replay(sid, app=None, after=0)
        assert server.call("XLEN", store.keyspace.of(sid).all()[2]) == 10_000
        assert replay.oldest == replay.entries[0].cursor == cursors[2]
        assert replay.entries[0].prev == cursors[1]  # not 0: that something went is visible

    async def test_eight_mebibytes_stay(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        sid = session.session_id
        cursors = self._fill(store, server, sid, 16, b"x" * (512 * 1024))

        await say(store, sid)

        assert (await store.log.replay(sid, app=None, after=None)).oldest == cursors[1]
        history = await store.log.history(sid, app=None, limit=100)
        assert len(history.entries) == 16
        assert not history.has_more

    async def test_what_is_not_answered_stays_whatever_its_size(
        self, store: Store, server: TestServer
    ) -> None:
        session = await opened(store)
        sid = session.session_id
        cursors = self._fill(store, server, sid, 3, b"x" * (3 * 1024 * 1024))
        server.call("HSET", store.keyspace.of(sid).session, "log_bytes", 0)
        first = await say(store, sid, "unanswered")
        server.call("HSET", store.keyspace.of(sid).session, "log_bytes", 9 * 1024 * 1024 + 100)

        await say(store, sid, "x" * 2_000_000)
        await say(store, sid, "x" * 2_000_000)
        server.call("HSET", store.keyspace.of(sid).session, "log_bytes", 20 * 1024 * 1024)
        await say(store, sid, "one more")

        entries = await written(store, sid)
        assert entries[0].cursor == first.cursor
        assert entries[0].prev == cursors[-1]
        taken = await claimed(store, sid)
        assert [json.loads(entry.body)["content"] for entry in taken.messages] == ["unanswered"]


class TestConfigOfRetention:
    async def test_every_write_moves_the_life_of_all_keys(self, store: Store, server: TestServer) -> None:
        """They live to the session's end plus its retention."""
        session = await opened(store, config=TimeoutConfig(MINUTE_MS, True, 720 * MINUTE_MS, 1_000))
        sid = session.session_id
        await say(store, sid)
        turn = (await claimed(store, sid)).turn
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="a", offset=0)
        await age(store, sid, 20_000)
        await store.turns.extend(sid, turn.turn_id, fence=turn.fence)

        read = await store.sessions.read(sid, app=None)
        end_ms = max(read.expires_ms, read.held_until_ms) + read.retention_ms
        for key in (each for each in sorted(server.keys()) if sid.encode() in each and b"alarm" not in each):
            expected = end_ms - read.now_ms
            assert expected - 2_000 < server.call("PTTL", key) <= expected, key

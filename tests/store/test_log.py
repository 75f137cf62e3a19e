"""The log: paged through without a lie, replayed without a gap."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, SessionId, new_message_id, new_turn_id
from sessions_api.domain.messages import NewMessage
from sessions_api.errors import SessionExpired, SessionNotFound
from sessions_api.store import Store
from tests.support.stores import (
    CONFIG,
    OTHER_APP,
    USER,
    age,
    claimed,
    complete,
    new_session,
    opened,
    say,
    written,
)


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
            case _ if not (await store.sessions.read(sid, grant=EVERYTHING)).queued:
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
                await store.turns.cancel(sid, turn.turn_id, grant=EVERYTHING)
            case _:
                pass
    return sid


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

                page = await store.log.history(sid, grant=LOCAL_APP, limit=limit, before=before, after=after)

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
            page = await store.log.history(sid, grant=LOCAL_APP, limit=limit, before=before)
            back += [entry.cursor for entry in page.entries]
            has_more = page.has_more
        forth: list[int] = []
        has_more = True
        while has_more:
            page = await store.log.history(sid, grant=LOCAL_APP, limit=limit, after=forth[-1] if forth else 0)
            forth += [entry.cursor for entry in reversed(page.entries)]
            has_more = page.has_more

        assert back[::-1] == forth == cursors

    @pytest.mark.parametrize("limit", [1, 2, 5])
    async def test_a_page_is_full_however_many_turns_failed_in_between(
        self, store: Store, limit: int
    ) -> None:
        session = await opened(store)
        sid = session.session_id
        await say(store, sid, "first")
        await say(store, sid, "0", on_busy="interrupt")
        for number in range(1, 15):
            await say(store, sid, f"{number}", on_busy="interrupt")
            if number % 5 == 0:
                await complete(store, await claimed(store, sid), "answer")
        entries = await written(store, sid)
        messages = [entry.cursor for entry in entries if entry.kind == "message"]
        assert len(messages) < len(entries)

        newest = await store.log.history(sid, grant=EVERYTHING, limit=limit)
        oldest = await store.log.history(sid, grant=EVERYTHING, limit=limit, after=0)
        all_ = await store.log.history(sid, grant=EVERYTHING, limit=len(messages))

        assert [entry.cursor for entry in newest.entries] == messages[::-1][:limit]
        assert [entry.cursor for entry in oldest.entries] == messages[:limit][::-1]
        assert newest.has_more
        assert oldest.has_more
        assert [entry.cursor for entry in all_.entries] == messages[::-1]
        assert not all_.has_more

    async def test_another_app_gets_nothing_of_it(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)

        with pytest.raises(SessionNotFound):
            await store.log.history(session.session_id, grant=OTHER_APP, limit=10)

    async def test_bodies_come_back_byte_for_byte(self, store: Store) -> None:
        session = await opened(store)
        bodies = [
            b'{"authorId":"' + USER.encode() + b'","content":' + content + b"}"
            for content in (b'"\xf0\x9f\x98\x80 \\u0000"', b"1.10", b'"%d\\r\\n"', b'[{ } , "/\\/"]')
        ]
        for body in bodies:
            await store.log.append(
                session.session_id,
                grant=EVERYTHING,
                message=NewMessage(new_message_id(), body),
                turn_id=new_turn_id(),
            )

        page = await store.log.history(session.session_id, grant=LOCAL_APP, limit=10)

        assert [entry.body for entry in reversed(page.entries)] == [
            f'{{"turnId":"{entry.turn_id}",'.encode() + body[1:]
            for entry, body in zip(reversed(page.entries), bodies, strict=True)
        ]

    async def test_a_body_without_author_gets_the_sessions_user(self, store: Store) -> None:
        """The replica need not know whose session it is."""
        session = await opened(store)
        message = NewMessage(new_message_id(), b'{"content":"hi"}')

        await store.log.append(session.session_id, grant=EVERYTHING, message=message, turn_id=new_turn_id())

        (entry,) = (await store.log.history(session.session_id, grant=EVERYTHING, limit=1)).entries
        assert json.loads(entry.body) == {"turnId": entry.turn_id, "authorId": USER, "content": "hi"}

    async def test_any_number_is_a_cursor(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        for bound in (-1, 0, 1, 2**53 + 1, 2**64, 2**70):
            before = await store.log.history(session.session_id, grant=EVERYTHING, limit=1, before=bound)
            after = await store.log.history(session.session_id, grant=EVERYTHING, limit=1, after=bound)
            replay = await store.log.replay(session.session_id, grant=EVERYTHING, after=bound)

            assert len(before.entries) == (bound > 1)
            assert len(after.entries) == len(replay.entries) == (bound <= 1)

    async def test_an_expired_session_shows_its_log_on_request_only(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        await age(store, session.session_id, CONFIG.timeout_ms)
        await store.alarms.ring(session.session_id)

        with pytest.raises(SessionExpired):
            await store.log.history(session.session_id, grant=LOCAL_APP, limit=10)
        page = await store.log.history(session.session_id, grant=LOCAL_APP, limit=10, ended=True)

        assert len(page.entries) == 1

    async def test_a_session_without_messages_has_an_empty_page(self, store: Store) -> None:
        session = await opened(store)

        page = await store.log.history(session.session_id, grant=LOCAL_APP, limit=10)

        assert (page.entries, page.has_more) == ([], False)
        with pytest.raises(SessionNotFound):
            await store.log.history(new_session().session_id, grant=LOCAL_APP, limit=10, ended=True)


class TestReplay:
    async def test_entries_are_a_chain(self, store: Store) -> None:
        """Each entry names the one before it: whoever holds a cursor knows whether it missed something."""
        sid = await talked(store, 11)

        entries = await written(store, sid)

        assert [entry.prev for entry in entries] == [0, *(entry.cursor for entry in entries[:-1])]
        assert entries[-1].cursor == (await store.sessions.read(sid, grant=EVERYTHING)).cursor

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
                replay = await store.log.replay(sid, grant=EVERYTHING, after=after, limit=limit)
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
            replay = await store.log.replay(session.session_id, grant=EVERYTHING, after=after)
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
                replay = await store.log.replay(sid, grant=EVERYTHING, after=0)
                seen.append((len(replay.entries), replay.draft.text if replay.draft else None))
                if replay.draft:
                    assert replay.draft.units == 2 * replay.draft.index == len(replay.draft.text)
                if len(replay.entries) == 2:
                    return

        await asyncio.gather(answer(), look())

        assert all((entries == 1) is (text is not None) for entries, text in seen)

    async def test_without_a_position_no_entry_is_read(self, store: Store) -> None:
        sid = await talked(store, 5, length=3)

        replay = await store.log.replay(sid, grant=EVERYTHING, after=None)

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

        unsettled = await store.log.replay(session.session_id, grant=EVERYTHING, after=0)
        await store.alarms.ring(session.session_id)
        settled = await store.log.replay(session.session_id, grant=EVERYTHING, after=0)

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

        positions = await store.log.positions([session.session_id, over.session_id, new_session().session_id])
        here, ended, absent = positions.values()

        assert here is not None
        assert (here.cursor, here.rev, here.is_over) == (appended.cursor, appended.session.rev, False)
        assert ended is not None
        assert ended.is_over
        assert absent is None

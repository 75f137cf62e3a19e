"""What a message does that finds a turn open, and how many may wait."""

from __future__ import annotations

import json

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, new_message_id, new_turn_id
from sessions_api.errors import BacklogFull, SessionBusy
from sessions_api.store import Store
from tests.support.servers import TestServer
from tests.support.stores import AGENT, MINUTE_MS, Ears, age, claimed, complete, opened, say
from tests.support.turns import act, turn_of


class TestOnBusy:
    async def test_queue_gives_each_message_its_turn_in_order(self, store: Store) -> None:
        session = await opened(store)
        appended = [await say(store, session.session_id, f"{number}") for number in range(3)]

        answered = []
        for _ in range(3):
            taken = await claimed(store, session.session_id)
            answered.append(taken.turn.turn_id)
            await complete(store, taken)

        assert answered == [each.turn_id for each in appended]
        assert len(set(answered)) == 3

    async def test_merge_joins_the_last_queued_turn(self, store: Store) -> None:
        session = await opened(store, on_busy="merge")
        running = await say(store, session.session_id, "running")
        await claimed(store, session.session_id)

        first = await say(store, session.session_id, "one")
        second = await say(store, session.session_id, "two")
        after = await store.sessions.read(session.session_id, grant=EVERYTHING)

        assert running.turn_id != first.turn_id == second.turn_id
        turn = await store.turns.read(session.session_id, first.turn_id, grant=EVERYTHING)
        assert turn.messages == [first.cursor, second.cursor]
        assert after.queued == 2

    async def test_merge_leaves_a_turn_alone_that_a_worker_has_seen(self, store: Store) -> None:
        session = await opened(store, on_busy="merge")
        await say(store, session.session_id)
        taken = await claimed(store, session.session_id)
        await act(store, "retry", taken)

        joined = await say(store, session.session_id)

        assert joined.turn_id != taken.turn.turn_id

    async def test_reject_wants_no_open_turn(self, store: Store) -> None:
        session = await opened(store, on_busy="reject")
        first = await say(store, session.session_id)
        with pytest.raises(SessionBusy) as queued:
            await say(store, session.session_id)
        taken = await claimed(store, session.session_id)
        with pytest.raises(SessionBusy) as running:
            await say(store, session.session_id)

        assert (queued.value.turn_id, queued.value.state) == (first.turn_id, "queued")
        assert (running.value.turn_id, running.value.state) == (first.turn_id, "running")
        await complete(store, taken)
        await say(store, session.session_id)

    async def test_a_rejected_message_leaves_no_trace(self, store: Store) -> None:
        session = await opened(store, on_busy="reject")
        await say(store, session.session_id)
        before = await store.sessions.read(session.session_id, grant=EVERYTHING)
        await age(store, session.session_id, MINUTE_MS)

        with pytest.raises(SessionBusy):
            await say(store, session.session_id)

        after = await store.sessions.read(session.session_id, grant=EVERYTHING)
        assert after.expires_ms == before.expires_ms - MINUTE_MS
        assert after.cursor == before.cursor

    async def test_interrupt_cancels_the_running_turn_and_takes_what_is_queued(
        self, store: Store, ears: Ears
    ) -> None:
        session = await opened(store)
        sid = session.session_id
        await say(store, sid, "first")
        running = await claimed(store, sid)
        await act(store, "delta", running)
        queued = [await say(store, sid, "second"), await say(store, sid, "third")]
        await age(store, sid, MINUTE_MS // 60)
        ears.heard()

        interrupting = await say(store, sid, "stop", on_busy="interrupt")

        assert ears.types() == [
            "message.created", "turn.cancelled", "turn.cancelled", "turn.cancelled", "message.created",
            "session.renewed", "turn.queued",
        ]  # fmt: skip
        stopped = await turn_of(store, running)
        assert (stopped.state, stopped.by, stopped.superseded_by) == ("cancelled", "interrupt", "")
        partial = await store.turns.answer(sid, stopped.turn_id, grant=LOCAL_APP)
        assert partial is not None
        assert json.loads(partial.body)["content"] == "so"
        for each in queued:
            taken = await store.turns.read(sid, each.turn_id, grant=EVERYTHING)
            assert (taken.state, taken.superseded_by) == ("cancelled", interrupting.turn_id)
        after = await store.sessions.read(sid, grant=EVERYTHING)
        assert (after.turn_id, after.turn_state, after.queued) == (interrupting.turn_id, "queued", 3)
        assert after.held_until_ms == 0
        assert (await store.ready.next_ready(AGENT)).session_ids == [sid]
        answering = await claimed(store, sid)
        assert [json.loads(entry.body)["content"] for entry in answering.messages] == [
            "second",
            "third",
            "stop",
        ]
        assert await act(store, "complete", running) is True

    async def test_interrupting_a_long_queue_keeps_fifty_records(
        self, store: Store, server: TestServer
    ) -> None:
        session = await opened(store)
        for _ in range(99):
            await say(store, session.session_id)

        last = await say(store, session.session_id, on_busy="interrupt")

        fields = server.call("HKEYS", store.keyspace.of(session.session_id).session)
        assert (
            len(fields) == len({"state", "metadata"}) + 50 + 50 + 1
        )  # the ring, what is in it, and the last one
        assert len((await claimed(store, session.session_id)).messages) == 100
        assert (await store.turns.read(session.session_id, last.turn_id, grant=EVERYTHING)).state == "running"

    async def test_an_interrupt_repeated_tells_its_own_cursor(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id, "queued")
        message_id, turn_id = new_message_id(), new_turn_id()
        first = await say(
            store, session.session_id, on_busy="interrupt", message_id=message_id, turn_id=turn_id
        )

        again = await say(
            store, session.session_id, on_busy="interrupt", message_id=message_id, turn_id=turn_id
        )

        assert again.cursor == first.cursor == again.session.cursor

    async def test_a_messages_own_choice_comes_first(self, store: Store) -> None:
        session = await opened(store, on_busy="reject")
        await say(store, session.session_id)

        await say(store, session.session_id, on_busy="queue")


class TestBacklog:
    async def test_a_hundred_messages_may_wait(self, store: Store) -> None:
        session = await opened(store)
        for _ in range(100):
            await say(store, session.session_id)

        with pytest.raises(BacklogFull) as error:
            await say(store, session.session_id)
        with pytest.raises(BacklogFull):
            await say(store, session.session_id, on_busy="merge")

        assert error.value.queued == 100
        await claimed(store, session.session_id)
        await say(store, session.session_id)

    async def test_four_mebibytes_may_wait(self, store: Store) -> None:
        session = await opened(store)
        half = "x" * (2 * 1024 * 1024 - 200)
        await say(store, session.session_id, half)
        await say(store, session.session_id, half)

        with pytest.raises(BacklogFull) as error:
            await say(store, session.session_id, "x" * 400)

        assert error.value.queued == 2
        await claimed(store, session.session_id)
        await say(store, session.session_id, "x" * 400)

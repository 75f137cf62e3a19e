"""A user ends a turn: what was said so far is kept, and other turns of the session are left alone."""

from __future__ import annotations

import json

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, SessionId, TurnId
from sessions_api.errors import TurnNotFound
from sessions_api.store import Store
from tests.support.stores import AGENT, Ears, age, complete, opened, say
from tests.support.turns import LEASE_MS, kinds, started


class TestCancel:
    async def test_keeps_what_was_said_so_far(self, store: Store, ears: Ears) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        text = 'Half "an\\ ans\n\x01wer/ 😀'
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=text, offset=0)
        ears.heard()

        cancelled = await store.turns.cancel(sid, turn.turn_id, grant=LOCAL_APP)

        assert (cancelled.state, cancelled.by) == ("cancelled", "user")
        answer = await store.turns.answer(sid, turn.turn_id, grant=LOCAL_APP)
        assert answer is not None
        body = json.loads(answer.body)
        assert (body["content"], body["id"], body["authorId"]) == (text, turn.message_id, AGENT)
        assert (answer.status, answer.cursor) == ("cancelled", cancelled.answer)
        assert ears.types()[:2] == ["message.created", "turn.cancelled"]
        assert (await store.sessions.read(sid, grant=EVERYTHING)).stage == "active"

    async def test_without_text_only_the_cancellation_is_logged(self, store: Store) -> None:
        session = await opened(store)
        queued = await say(store, session.session_id)

        await store.turns.cancel(session.session_id, queued.turn_id, grant=LOCAL_APP)

        assert await kinds(store, session.session_id) == ["message", "turn.cancelled"]
        assert (await store.ready.next_ready(AGENT)).session_ids == []
        assert (await store.sessions.read(session.session_id, grant=EVERYTHING)).queued == 0

    async def test_repeated_it_is_returned_as_it_is(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        first = await store.turns.cancel(sid, taken.turn.turn_id, grant=LOCAL_APP)

        again = await store.turns.cancel(sid, taken.turn.turn_id, grant=LOCAL_APP)

        assert again == first
        assert await kinds(store, sid) == ["message", "turn.cancelled"]

    async def test_a_turn_that_ended_otherwise_is_returned_as_it_is(self, store: Store) -> None:
        taken = await started(store)
        await complete(store, taken)

        turn = await store.turns.cancel(SessionId(taken.session_id), taken.turn.turn_id, grant=LOCAL_APP)

        assert turn.state == "completed"

    async def test_a_queued_turn_leaves_the_running_one_alone(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        behind = await say(store, sid)

        await store.turns.cancel(sid, behind.turn_id, grant=LOCAL_APP)

        session = await store.sessions.read(sid, grant=EVERYTHING)
        assert (session.turn_id, session.turn_state, session.queued) == (taken.turn.turn_id, "running", 0)
        assert await complete(store, taken) is False
        assert (await store.sessions.read(sid, grant=EVERYTHING)).turn_id is None

    @pytest.mark.parametrize("is_lapsed", [False, True])
    async def test_a_queued_turn_leaves_the_running_ones_text_alone(
        self, store: Store, is_lapsed: bool
    ) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        behind = await say(store, sid)
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="so", offset=0)
        if is_lapsed:
            await age(store, sid, LEASE_MS)
            await store.alarms.ring(sid)

        await store.turns.cancel(sid, behind.turn_id, grant=LOCAL_APP)
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=" far", offset=2)

        draft = (await store.log.replay(sid, grant=EVERYTHING, after=None)).draft
        assert draft is not None
        assert draft.text == "so far"

    @pytest.mark.parametrize("turn_id", ["0", "1", "state"])
    async def test_only_turns_are_turns(self, store: Store, turn_id: str) -> None:
        """The hash of turns has a ring in it, too: its places are no turns."""
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await complete(store, taken)
        await say(store, sid)

        with pytest.raises(TurnNotFound):
            await store.turns.cancel(sid, TurnId(turn_id), grant=LOCAL_APP)
        with pytest.raises(TurnNotFound):
            await store.turns.read(sid, TurnId(turn_id), grant=LOCAL_APP)

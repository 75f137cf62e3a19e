"""How a turn ends by its worker, answered or failed, and what that does to its session and its log."""

from __future__ import annotations

import asyncio
import json

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, SessionId
from sessions_api.errors import DeltaGap, TurnLost, TurnNotFound
from sessions_api.store import Store
from tests.support.stores import AGENT, Ears, age, answer_body, claimed, complete, opened, say, state_of
from tests.support.turns import (
    FIRST_LEASE_MS,
    act,
    kinds,
    lapsed,
    lapsed_in_mid_answer,
    reclaimed,
    started,
    turn_of,
)


class TestComplete:
    async def test_the_answer_enters_the_log_and_the_idle_clock_restarts(
        self, store: Store, ears: Ears
    ) -> None:
        taken = await started(store)
        sid, turn_id = SessionId(taken.session_id), taken.turn.turn_id
        ears.heard()

        await complete(store, taken, "42")

        answer = await store.turns.answer(sid, turn_id, grant=LOCAL_APP)
        assert answer is not None
        assert (answer.status, answer.turn_id, json.loads(answer.body)["content"]) == (
            "complete",
            turn_id,
            "42",
        )
        session = await store.sessions.read(sid, grant=EVERYTHING)
        assert (session.turn_id, session.held_until_ms) == (None, 0)
        assert (await turn_of(store, taken)).answer == answer.cursor == session.cursor
        heard = ears.types()
        assert heard[:2] == ["message.created", "turn.completed"]

    async def test_an_empty_answer_stores_nothing(self, store: Store) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn

        await store.turns.complete(sid, turn.turn_id, fence=turn.fence, body=None)

        assert await kinds(store, sid) == ["message"]
        assert await store.turns.answer(sid, turn.turn_id, grant=LOCAL_APP) is None
        assert (await turn_of(store, taken)).state == "completed"

    @pytest.mark.parametrize(
        "text", ["Half an answer", 'Quo"te, back\\slash,\nline, \x01\x7f/ 😀 é', "%1 %s"]
    )
    async def test_what_was_streamed_may_be_the_answer(self, store: Store, text: str) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        middle = len(text) // 2
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=text[:middle], offset=0)
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=text[middle:], offset=middle)

        await store.turns.complete(
            sid, turn.turn_id, fence=turn.fence, around=(b'{"content":', b',"isAgent":true}')
        )

        answer = await store.turns.answer(sid, turn.turn_id, grant=LOCAL_APP)
        assert answer is not None
        assert json.loads(answer.body) == {
            "turnId": turn.turn_id,
            "status": "complete",
            "id": turn.message_id,
            "authorId": AGENT,
            "content": text,
            "isAgent": True,
        }

    async def test_nothing_streamed_is_an_empty_answer(self, store: Store) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn

        await store.turns.complete(sid, turn.turn_id, fence=turn.fence, around=(b'{"content":', b"}"))

        assert await kinds(store, sid) == ["message"]
        assert (await turn_of(store, taken)).state == "completed"

    async def test_what_a_lapsed_worker_streamed_may_be_the_answer(self, store: Store) -> None:
        """Nobody claimed the turn since, so nobody dropped it."""
        taken = await lapsed_in_mid_answer(store)
        sid, turn = SessionId(taken.session_id), taken.turn

        await store.turns.complete(sid, turn.turn_id, fence=turn.fence, around=(b'{"content":', b"}"))

        answer = await store.turns.answer(sid, turn.turn_id, grant=LOCAL_APP)
        assert answer is not None
        assert json.loads(answer.body)["content"] == "so"

    async def test_what_an_earlier_attempt_streamed_is_not_the_answer(self, store: Store) -> None:
        taken = await started(store)
        await act(store, "delta", taken)
        await act(store, "retry", taken)
        turn = (await reclaimed(store, taken)).turn
        sid = SessionId(taken.session_id)

        await store.turns.complete(sid, turn.turn_id, fence=turn.fence, around=(b'{"content":', b"}"))

        assert await kinds(store, sid) == ["message"]

    async def test_the_last_text_is_heard_before_the_answer(self, store: Store, ears: Ears) -> None:
        """As by a delta of its own, which it saves."""
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="so \U0001f600", offset=0)
        ears.heard()

        for _ in range(2):
            await store.turns.complete(
                sid, turn.turn_id, fence=turn.fence, body=answer_body("so \U0001f600it"), last="it", offset=5
            )

        delta, answer, completed, *others = [event for event in ears.heard() if event[0] != "wake"]
        assert delta == ("turn.delta", f"{turn.turn_id} {turn.message_id} 1 5", b"it")
        assert (answer[0], completed[0]) == ("message.created", "turn.completed")
        assert "turn.delta" not in [kind for kind, *_ in others]
        assert json.loads(answer[2])["content"] == "so \U0001f600it"
        assert (await turn_of(store, taken)).units == 7

    @pytest.mark.parametrize("offset", [1, 3])
    async def test_last_text_that_does_not_follow_is_refused(
        self, store: Store, ears: Ears, offset: int
    ) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        await act(store, "delta", taken)
        ears.heard()

        with pytest.raises(DeltaGap) as refused:
            await store.turns.complete(
                sid, turn.turn_id, fence=turn.fence, body=answer_body("so it"), last="it", offset=offset
            )

        assert refused.value.expected == 2
        assert ears.types() == []
        assert await kinds(store, sid) == ["message"]
        assert (await turn_of(store, taken)).state == "running"

    async def test_last_text_of_a_lapsed_worker_is_in_its_answer_alone(
        self, store: Store, ears: Ears
    ) -> None:
        """Followers were told that the turn is queued again, and with it to forget the text."""
        taken = await lapsed_in_mid_answer(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        ears.heard()

        await store.turns.complete(
            sid, turn.turn_id, fence=turn.fence, body=answer_body("so it"), last=" it", offset=2
        )

        assert ears.types()[:2] == ["message.created", "turn.completed"]

    async def test_the_next_turn_is_ready_in_the_same_step(self, store: Store, ears: Ears) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await say(store, sid)
        assert (await store.ready.next_ready(AGENT)).session_ids == []
        ears.heard()

        await complete(store, taken)

        assert (await store.ready.next_ready(AGENT)).session_ids == [sid]
        assert ("wake", f"sa:wake:{{{AGENT}}}", sid.encode()) in ears.heard()

    async def test_an_answer_is_found_by_its_turn_also_when_the_record_is_gone(self, store: Store) -> None:
        """The last fifty turns that ended keep their record; the log keeps their answers."""
        session = await opened(store)
        first = await say(store, session.session_id)
        await complete(store, await claimed(store, session.session_id), "first")
        for _ in range(50):
            await say(store, session.session_id)
            await complete(store, await claimed(store, session.session_id))

        with pytest.raises(TurnNotFound):
            await store.turns.read(session.session_id, first.turn_id, grant=LOCAL_APP)
        answer = await store.turns.answer(
            session.session_id, first.turn_id, grant=LOCAL_APP, after=first.cursor
        )

        assert answer is not None
        assert json.loads(answer.body)["content"] == "first"

    async def test_cancel_and_complete_race_and_the_first_wins(self, store: Store) -> None:
        for number in range(6):
            taken = await started(store)
            sid, turn_id = SessionId(taken.session_id), taken.turn.turn_id
            calls = [complete(store, taken), store.turns.cancel(sid, turn_id, grant=LOCAL_APP)]

            replies = await asyncio.gather(*(calls if number % 2 else reversed(calls)))

            turn = await turn_of(store, taken)
            cancelled = next(reply for reply in replies if isinstance(reply, bool))
            assert turn.state == ("cancelled" if cancelled else "completed")
            assert await kinds(store, sid) == ["message", "turn.cancelled" if cancelled else "complete"]


class TestFail:
    async def test_attempts_follow_after_a_pause_until_they_run_out(self, store: Store, ears: Ears) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        for attempt, pause_ms in ((1, 1_000), (2, 5_000)):
            assert taken.turn.attempt == attempt
            await act(store, "retry", taken)
            turn = await turn_of(store, taken)
            assert turn.state == "queued"
            with pytest.raises(AssertionError):
                await claimed(store, sid)
            assert (await store.ready.next_ready(AGENT)).session_ids == []

            await age(store, sid, pause_ms - 900)
            await store.alarms.ring(sid)
            assert (await store.ready.next_ready(AGENT)).session_ids == []

            taken = await reclaimed(store, taken, 900)

        await act(store, "retry", taken)

        turn = await turn_of(store, taken)
        assert (turn.state, turn.attempt) == ("failed", 3)
        assert await kinds(store, sid) == ["message", "turn.failed"]
        failed = (await store.log.replay(sid, grant=EVERYTHING, after=0)).entries[-1]
        assert json.loads(failed.body) == {
            "turnId": turn.turn_id,
            "code": "BROKEN",
            "message": "It broke",
            "attempts": 3,
        }
        assert (failed.turn_id, failed.status) == (turn.turn_id, None)

    @pytest.mark.parametrize("asked_ms, pause_ms", [(10, 1_000), (20_000, 20_000), (600_000, 60_000)])
    async def test_an_agent_may_ask_for_a_longer_pause(
        self, store: Store, asked_ms: int, pause_ms: int
    ) -> None:
        """Not for a shorter one than the backoff, nor for more than a minute."""
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        await age(store, sid, 5_000)
        before = await store.sessions.read(sid, grant=EVERYTHING)
        await store.turns.fail(
            sid, turn.turn_id, fence=turn.fence, code="AGENT_RATE_LIMITED", message="Later", retry=True,
            pause_ms=asked_ms,
        )  # fmt: skip

        retry_ms = (await state_of(store, sid)).retry_ms
        after = await store.sessions.read(sid, grant=EVERYTHING)
        assert before.now_ms + pause_ms <= retry_ms <= after.now_ms + pause_ms
        assert (await reclaimed(store, taken, pause_ms)).turn.attempt == 2

    async def test_a_long_pause_makes_no_more_attempts(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        taken = await claimed(store, session.session_id, max_attempts=1)
        turn = taken.turn

        await store.turns.fail(
            session.session_id, turn.turn_id, fence=turn.fence, code="X", message="x", retry=True,
            pause_ms=60_000,
        )  # fmt: skip

        assert (await turn_of(store, taken)).state == "failed"

    async def test_cancelling_a_turn_behind_it_does_not_shorten_its_pause(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        behind = await say(store, sid)
        await act(store, "retry", taken)

        await store.turns.cancel(sid, behind.turn_id, grant=LOCAL_APP)

        with pytest.raises(AssertionError):
            await claimed(store, sid)
        assert (await reclaimed(store, taken)).turn.attempt == 2

    async def test_a_lapsed_lease_counts_as_an_attempt(self, store: Store) -> None:
        taken = await started(store)
        for attempt in (1, 2):
            assert taken.turn.attempt == attempt
            await lapsed(store, taken)
            taken = await reclaimed(store, taken, 5_000)

        await age(store, SessionId(taken.session_id), FIRST_LEASE_MS)
        await store.alarms.ring(SessionId(taken.session_id))

        turn = await turn_of(store, taken)
        assert turn.state == "failed"
        assert turn.error is not None
        assert turn.error.code == "AGENT_TIMEOUT"

    async def test_a_turn_handed_back_counts_no_attempt_and_is_ready_at_once(self, store: Store) -> None:
        taken = await started(store)
        for _ in range(4):
            await act(store, "release", taken)

            taken = await claimed(store, SessionId(taken.session_id))

            assert taken.turn.attempt == 1

    async def test_no_extension_reaches_beyond_the_attempts_deadline(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        taken = await claimed(store, session.session_id, turn_ms=12_000)
        await act(store, "extend", taken)
        held = await store.sessions.read(session.session_id, grant=EVERYTHING)
        assert held.held_until_ms == taken.turn.deadline_ms

        await age(store, session.session_id, 12_000)
        assert (await store.alarms.ring(session.session_id)).outcome == "lapsed"
        with pytest.raises(TurnLost):
            await act(store, "extend", taken)

        assert (await turn_of(store, taken)).state == "queued"
        assert (await store.sessions.read(session.session_id, grant=EVERYTHING)).held_until_ms == 0

    async def test_the_failed_turn_makes_way_for_the_next(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await say(store, sid)

        await act(store, "final", taken)

        assert (await store.ready.next_ready(AGENT)).session_ids == [sid]
        assert (await claimed(store, sid)).turn.attempt == 1

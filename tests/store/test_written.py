"""What a worker's write replies: whose it was, and whether this call did it. That is counted once."""

from __future__ import annotations

import asyncio
import json

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, SessionId
from sessions_api.errors import AnswerTooLarge, TurnLost
from sessions_api.store import Store
from sessions_api.store.written import Written
from tests.support.stores import AGENT, Ears, age, answer_body, claimed, opened, say
from tests.support.turns import (
    ACTS,
    BACKOFF_MS,
    act,
    lapsed,
    lapsed_in_mid_answer,
    reclaimed,
    started,
    turn_of,
    write,
)
from tests.support.waiters import metric

ENDS = {"complete": "completed", "retry": "failed", "final": "failed", "release": "released"}


def turns(outcome: str) -> float:
    return metric("sessions_turns_total", agent=AGENT, outcome=outcome)


class TestReply:
    @pytest.mark.parametrize("name", ACTS)
    async def test_says_whose_it_was_and_whether_it_ended_the_attempt(self, store: Store, name: str) -> None:
        """A replica that never saw the claim needs no read to know its agent and worker."""
        taken = await started(store, agent=AGENT.upper())

        first = await write(store, name, taken)
        again = await write(store, name, taken)

        assert first == Written(
            is_cancelled=False, is_end=name in ENDS, agent_id=AGENT, worker=taken.turn.worker
        )
        assert again == Written(is_cancelled=False, is_end=False, agent_id=AGENT, worker=taken.turn.worker)

    @pytest.mark.parametrize("name", ACTS)
    async def test_of_a_cancelled_turn_names_its_last_worker_to_nobody_else(
        self, store: Store, name: str
    ) -> None:
        taken = await started(store)
        await store.turns.cancel(SessionId(taken.session_id), taken.turn.turn_id, grant=LOCAL_APP)

        own = await write(store, name, taken)
        other = await write(store, name, taken, fence="1.0")

        assert (own.is_cancelled, own.is_end, own.worker) == (True, False, taken.turn.worker)
        assert (other.is_cancelled, other.is_end, other.worker) == (True, False, "")


class TestCounts:
    @pytest.mark.parametrize("name", ENDS)
    async def test_the_end_of_an_attempt_counts_once_with_its_time(self, store: Store, name: str) -> None:
        taken = await started(store)
        before = turns(ENDS[name]), metric("sessions_turn_seconds_count", agent=AGENT)

        await asyncio.gather(*(act(store, name, taken) for _ in range(3)))

        assert turns(ENDS[name]) == before[0] + 1
        assert metric("sessions_turn_seconds_count", agent=AGENT) == before[1] + 1

    async def test_a_cancelled_turn_counts_when_its_worker_is_told(self, store: Store) -> None:
        taken = await started(store)
        before = turns("cancelled")
        await store.turns.cancel(SessionId(taken.session_id), taken.turn.turn_id, grant=LOCAL_APP)
        assert turns("cancelled") == before

        for name in ACTS:
            await act(store, name, taken)

        assert turns("cancelled") == before + 1

    async def test_the_first_text_of_an_attempt_counts_once(self, store: Store) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        before = metric("sessions_first_delta_seconds_count", agent=AGENT)

        for text, offset in (("", 0), ("a", 0), ("a", 0), ("b", 1)):
            await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=text, offset=offset)

        assert metric("sessions_first_delta_seconds_count", agent=AGENT) == before + 1

    async def test_the_first_text_may_come_with_the_answer(self, store: Store) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        before = metric("sessions_first_delta_seconds_count", agent=AGENT), turns("completed")

        for _ in range(2):
            await store.turns.complete(
                sid, turn.turn_id, fence=turn.fence, body=answer_body("so"), last="so", offset=0
            )

        assert metric("sessions_first_delta_seconds_count", agent=AGENT) == before[0] + 1
        assert turns("completed") == before[1] + 1

    async def test_an_answer_that_is_too_large_is_a_failure(self, store: Store) -> None:
        taken = await started(store)
        before = turns("failed")

        for _ in range(2):
            with pytest.raises(AnswerTooLarge):
                await store.turns.delta(
                    SessionId(taken.session_id),
                    taken.turn.turn_id,
                    fence=taken.turn.fence,
                    text="a" * 100_001,
                    offset=0,
                )

        assert turns("failed") == before + 1

    async def test_a_lapsed_attempt_is_lost_when_another_one_begins(self, store: Store) -> None:
        before = turns("lost")
        taken = await started(store)
        await lapsed(store, taken)
        assert turns("lost") == before

        await reclaimed(store, taken)

        assert turns("lost") == before + 1
        with pytest.raises(TurnLost):
            await act(store, "complete", taken)
        assert turns("lost") == before + 1

    async def test_a_lapsed_attempt_whose_worker_returns_is_not_lost(self, store: Store) -> None:
        before = turns("lost"), turns("completed")
        taken = await started(store)
        await lapsed(store, taken)

        await act(store, "complete", taken)

        assert (turns("lost"), turns("completed")) == (before[0], before[1] + 1)

    async def test_a_lapsed_last_attempt_is_lost(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        taken = await claimed(store, session.session_id, max_attempts=1)
        before = turns("lost")

        await lapsed(store, taken)
        await store.alarms.ring(session.session_id)

        assert turns("lost") == before + 1

    async def test_an_attempt_handed_back_is_not_lost(self, store: Store) -> None:
        before = turns("lost")
        taken = await started(store)
        await act(store, "retry", taken)
        await reclaimed(store, taken, BACKOFF_MS)

        assert turns("lost") == before


class TestAnAnswersBody:
    async def test_gets_the_messages_id_and_the_agent_in_front(self, store: Store) -> None:
        """As the session has it; a body that is put together in Redis no less."""
        for streams in (False, True):
            taken = await started(store, agent=AGENT.upper())
            sid, turn = SessionId(taken.session_id), taken.turn
            if streams:
                await act(store, "delta", taken)
                around = (b'{"content":', b',"isAgent":true}')
                await store.turns.complete(sid, turn.turn_id, fence=turn.fence, around=around)
            else:
                await store.turns.complete(sid, turn.turn_id, fence=turn.fence, body=answer_body("so"))

            answer = await store.turns.answer(sid, turn.turn_id, grant=LOCAL_APP)
            assert answer is not None
            assert json.loads(answer.body) == {
                "turnId": turn.turn_id,
                "status": "complete",
                "id": turn.message_id,
                "authorId": AGENT.upper(),
                "content": "so",
                "isAgent": True,
            }

    async def test_without_text_is_stored_if_there_is_more_to_it(self, store: Store) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        around = (b'{"content":', b',"metadata":{"thought":"hm"}}')

        await store.turns.complete(sid, turn.turn_id, fence=turn.fence, around=around, is_more=True)

        answer = await store.turns.answer(sid, turn.turn_id, grant=LOCAL_APP)
        assert answer is not None
        body = json.loads(answer.body)
        assert (body["content"], body["metadata"]) == ("", {"thought": "hm"})
        assert (await turn_of(store, taken)).answer == answer.cursor

    async def test_of_an_earlier_attempt_never_gets_the_id_of_the_new_one(self, store: Store) -> None:
        old = await started(store)
        await act(store, "release", old)
        new = await claimed(store, SessionId(old.session_id))
        with pytest.raises(TurnLost):
            await act(store, "complete", old)

        await act(store, "complete", new)

        answer = await store.turns.answer(SessionId(new.session_id), new.turn.turn_id, grant=LOCAL_APP)
        assert answer is not None
        assert json.loads(answer.body)["id"] == new.turn.message_id != old.turn.message_id


class TestATurnGivenBack:
    @pytest.mark.parametrize("pause_ms", [1_000, 20_000])
    async def test_says_until_when_it_pauses(self, store: Store, pause_ms: int) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        before = await store.sessions.read(sid, grant=EVERYTHING)
        await store.turns.fail(
            sid, turn.turn_id, fence=turn.fence, code="X", message="x", retry=True, pause_ms=pause_ms
        )
        after = await store.sessions.read(sid, grant=EVERYTHING)

        paused = await turn_of(store, taken)

        assert before.now_ms + pause_ms <= paused.not_before_ms <= after.now_ms + pause_ms
        assert (await reclaimed(store, taken, pause_ms)).turn.not_before_ms == 0

    async def test_at_once_pauses_for_nothing(self, store: Store) -> None:
        taken = await started(store)
        await act(store, "release", taken)

        assert (await turn_of(store, taken)).not_before_ms == 0

    @pytest.mark.parametrize("how", ["retry", "release", "lapse"])
    async def test_is_announced_as_queued_once(self, store: Store, ears: Ears, how: str) -> None:
        """What was heard of its text is void; the rev makes it known to whoever missed it."""
        taken = await started(store)
        before = await store.sessions.read(SessionId(taken.session_id), grant=EVERYTHING)
        ears.heard()

        if how == "lapse":
            await lapsed(store, taken)
        else:
            for _ in range(2):
                await act(store, how, taken)

        heard = [(kind, args) for kind, args, _ in ears.heard() if kind == "turn.queued"]
        assert heard == [("turn.queued", taken.turn.turn_id)]
        after = await store.sessions.read(SessionId(taken.session_id), grant=EVERYTHING)
        assert after.rev == before.rev + 1

    async def test_that_failed_for_good_is_not_queued(self, store: Store, ears: Ears) -> None:
        taken = await started(store)
        ears.heard()

        await act(store, "final", taken)

        assert "turn.queued" not in ears.types()

    @pytest.mark.parametrize("text", ["", "more"])
    async def test_that_lapsed_is_announced_with_its_text_when_its_worker_returns(
        self, store: Store, ears: Ears, text: str
    ) -> None:
        taken = await lapsed_in_mid_answer(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        ears.heard()

        if text:
            await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=text, offset=2)
        else:
            await store.turns.extend(sid, turn.turn_id, fence=turn.fence)

        assert [each for each in ears.heard() if each[0] != "wake"] == [
            ("turn.started", f"{turn.turn_id} 1 {turn.message_id}", b""),
            ("turn.delta", f"{turn.turn_id} {turn.message_id} {int(bool(text))} 0", f"so{text}".encode()),
        ]

    async def test_that_lapsed_pauses_no_more_once_its_worker_returns(self, store: Store) -> None:
        taken = await started(store)
        await lapsed(store, taken)
        assert (await turn_of(store, taken)).not_before_ms > 0

        await act(store, "extend", taken)
        await age(store, SessionId(taken.session_id), 1)

        assert (await turn_of(store, taken)).not_before_ms == 0

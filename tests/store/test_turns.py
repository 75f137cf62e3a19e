"""Turns: who may write to one, and what each write does to it, its session and its log."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sessions_api.domain.ids import (
    LOCAL_APP,
    AgentId,
    SessionId,
    TurnId,
    new_message_id,
    new_turn_id,
    partition_of_session,
)
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.domain.turns import ClaimedTurn, Turn
from sessions_api.errors import (
    AnswerTooLarge,
    BacklogFull,
    DeltaGap,
    SessionBusy,
    SessionExpired,
    SessionNotFound,
    TurnLost,
    TurnNotFound,
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
    agent_body,
    claimed,
    complete,
    opened,
    say,
)
from tests.support.waiting import eventually

LEASE_MS = 30_000
FIRST_LEASE_MS = 10_000
BACKOFF_MS = 1_000
ACTS = ("delta", "extend", "complete", "retry", "final", "release")


async def act(store: Store, name: str, taken: ClaimedTurn, fence: str | None = None) -> bool:
    """One of the writes of a worker."""
    sid, turn_id = SessionId(taken.session_id), taken.turn.turn_id
    fence = fence or taken.turn.fence
    match name:
        case "delta":
            return await store.turns.delta(sid, turn_id, fence=fence, text="so", offset=0)
        case "extend":
            return await store.turns.extend(sid, turn_id, fence=fence)
        case "complete":
            body = agent_body(taken.turn.message_id, "done")
            return await store.turns.complete(sid, turn_id, fence=fence, body=body)
        case "release":
            return await store.turns.release(sid, turn_id, fence=fence)
        case _:
            pass
    return await store.turns.fail(
        sid, turn_id, fence=fence, code="BROKEN", message="It broke", retry=name == "retry"
    )


async def turn_of(store: Store, taken: ClaimedTurn) -> Turn:
    return await store.turns.read(SessionId(taken.session_id), taken.turn.turn_id, app=None)


async def kinds(store: Store, session_id: SessionId) -> list[str]:
    """The log, a word for each entry."""
    replay = await store.log.replay(session_id, app=None, after=0)
    return [entry.status or entry.kind for entry in replay.entries]


async def started(store: Store, **settings: Any) -> ClaimedTurn:
    session = await opened(store, **settings)
    await say(store, session.session_id)
    return await claimed(store, session.session_id)


async def lapsed(store: Store, taken: ClaimedTurn) -> None:
    await age(store, SessionId(taken.session_id), FIRST_LEASE_MS)
    assert (await store.alarms.ring(SessionId(taken.session_id))).outcome == "lapsed"


async def reclaimed(store: Store, taken: ClaimedTurn, by_ms: int = BACKOFF_MS) -> ClaimedTurn:
    """The same turn in its next attempt, after the pause."""
    await age(store, SessionId(taken.session_id), by_ms)
    await store.alarms.ring(SessionId(taken.session_id))
    return await claimed(store, SessionId(taken.session_id))


class TestClaim:
    async def test_takes_the_oldest_turn_with_its_messages_and_what_was_said_before(
        self, store: Store
    ) -> None:
        session = await opened(store, metadata=b'{"a":1}')
        first = await say(store, session.session_id, "one")
        await complete(store, await claimed(store, session.session_id), "uno")
        second = await say(store, session.session_id, "two")
        await say(store, session.session_id, "three")

        taken = await claimed(store, session.session_id)

        assert (taken.session_id, taken.agent_id, taken.metadata) == (session.session_id, AGENT, b'{"a":1}')
        assert taken.turn.turn_id == second.turn_id
        assert [json.loads(entry.body)["content"] for entry in taken.messages] == ["two"]
        assert [json.loads(entry.body)["content"] for entry in taken.history] == ["one", "uno"]
        assert taken.history[0].cursor == first.cursor
        assert (taken.turn.state, taken.turn.attempt, taken.more) == ("running", 1, False)

    async def test_one_turn_of_a_session_runs_at_a_time(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        await say(store, session.session_id)
        first = await claimed(store, session.session_id)

        with pytest.raises(AssertionError):
            await claimed(store, session.session_id)
        await complete(store, first)

        assert (await claimed(store, session.session_id)).turn.turn_id != first.turn.turn_id

    async def test_racing_workers_get_one_turn_between_them(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)

        claims = await asyncio.gather(
            *(
                store.turns.claim(
                    session.session_id,
                    agent_id=AGENT,
                    worker=f"w{n}",
                    fence_bits=f"{n:016x}",
                    message_id=new_message_id(),
                    turn_ms=300_000,
                    max_attempts=3,
                )
                for n in range(20)
            )
        )

        assert sum(claim.turn is not None for claim in claims) == 1

    async def test_a_repeat_with_its_fence_gets_the_same_turn(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        first = await claimed(store, session.session_id, fence_bits="f" * 16)

        again = await claimed(store, session.session_id, fence_bits="f" * 16)

        assert again.turn == first.turn
        assert again.turn.attempt == 1

    async def test_is_for_the_sessions_own_agent(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)

        claim = await store.turns.claim(
            session.session_id, agent_id=AgentId("b" + AGENT[1:]), worker="w", fence_bits="0" * 16,
            message_id=new_message_id(), turn_ms=1_000, max_attempts=3,
        )  # fmt: skip

        assert claim.turn is None

    async def test_names_another_session_with_work(self, store: Store) -> None:
        sessions = [await opened(store) for _ in range(2)]
        for session in sessions:
            await say(store, session.session_id)

        claim = await store.turns.claim(
            sessions[0].session_id, agent_id=AGENT, worker="w", fence_bits="0" * 16,
            message_id=new_message_id(), turn_ms=1_000, max_attempts=3,
        )  # fmt: skip

        assert claim.next == sessions[1].session_id
        assert await store.turns.next_ready(AGENT) == [sessions[1].session_id]

    @pytest.mark.parametrize("size", [0, 1, 3])
    async def test_history_counts_messages_and_says_if_there_is_more(self, store: Store, size: int) -> None:
        """Failed and cancelled turns lie between the messages of the log and are no history."""
        session = await opened(store)
        for number in range(3):
            await say(store, session.session_id, f"{number}")
            await act(store, "final", await claimed(store, session.session_id))
        await say(store, session.session_id, "now")

        taken = await claimed(store, session.session_id, history=size)

        assert [json.loads(entry.body)["content"] for entry in taken.history] == ["0", "1", "2"][3 - size :]
        if size:
            assert taken.more is (size < 3)

    async def test_history_is_found_behind_any_number_of_failures(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id, "first")
        await complete(store, await claimed(store, session.session_id), "answer")
        await say(store, session.session_id, "merged", turn_id=new_turn_id())
        for _ in range(4):
            await say(store, session.session_id, "x", on_busy="interrupt")

        taken = await claimed(store, session.session_id, history=1)

        assert [json.loads(entry.body)["content"] for entry in taken.history] == ["answer"]
        assert taken.more

    async def test_holds_the_session_for_the_first_lease(self, store: Store) -> None:
        taken = await started(store)

        session = await store.sessions.read(SessionId(taken.session_id), app=None)

        assert session.held_until_ms == taken.turn.started_ms + FIRST_LEASE_MS
        assert (session.stage, session.turn_state) == ("waiting", "running")

    async def test_an_expired_or_absent_session_has_nothing_to_take(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        for _ in range(2):
            await age(store, session.session_id, 2 * CONFIG.timeout_ms)
            with pytest.raises(AssertionError):
                await claimed(store, session.session_id)


class TestWorkersWrite:
    """DESIGN's table: own, lapsed, repeated, cancelled, lost, failed; for each kind of write."""

    @pytest.mark.parametrize("name", ACTS)
    async def test_its_own_running_turn_is_done(self, store: Store, name: str) -> None:
        taken = await started(store)

        assert await act(store, name, taken) is False

        state = {"complete": "completed", "final": "failed", "retry": "queued", "release": "queued"}
        assert (await turn_of(store, taken)).state == state.get(name, "running")

    @pytest.mark.parametrize("name", ACTS)
    async def test_lapsed_but_not_claimed_again_it_is_still_its_own(self, store: Store, name: str) -> None:
        """The fence changes at the next claim, not at the lapse."""
        taken = await started(store)
        await lapsed(store, taken)

        assert await act(store, name, taken) is False

        turn = await turn_of(store, taken)
        state = {"complete": "completed", "final": "failed", "retry": "queued", "release": "queued"}
        assert turn.state == state.get(name, "running")
        session = await store.sessions.read(SessionId(taken.session_id), app=None)
        assert session.turn_state == (turn.state if turn.is_open else None)
        assert session.queued == (1 if turn.state == "queued" else 0)

    @pytest.mark.parametrize("name", ACTS)
    async def test_repeated_it_is_the_same_success(self, store: Store, name: str) -> None:
        taken = await started(store)
        await act(store, name, taken)
        before = await turn_of(store, taken)
        log = await kinds(store, SessionId(taken.session_id))

        assert await act(store, name, taken) is False

        after = await turn_of(store, taken)
        assert (after.state, after.attempt, after.units, after.index) == (
            before.state, before.attempt, before.units, before.index
        )  # fmt: skip
        assert await kinds(store, SessionId(taken.session_id)) == log

    @pytest.mark.parametrize("name", ACTS)
    async def test_cancelled_it_is_told_and_nothing_is_written(self, store: Store, name: str) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await store.turns.cancel(sid, taken.turn.turn_id, app=LOCAL_APP)
        log = await kinds(store, sid)

        assert await act(store, name, taken) is True

        assert (await turn_of(store, taken)).state == "cancelled"
        assert await kinds(store, sid) == log

    @pytest.mark.parametrize("name", ACTS)
    async def test_claimed_again_it_is_lost(self, store: Store, name: str) -> None:
        taken = await started(store)
        await lapsed(store, taken)
        second = await reclaimed(store, taken)

        with pytest.raises(TurnLost):
            await act(store, name, taken)

        assert (await turn_of(store, taken)).fence == second.turn.fence
        assert await act(store, name, second) is False

    @pytest.mark.parametrize("name", ACTS)
    async def test_failed_for_good_it_is_lost(self, store: Store, name: str) -> None:
        taken = await started(store)
        await act(store, "final", taken)

        if name in {"final", "retry", "release"}:
            assert await act(store, name, taken) is False  # given up is given up
        else:
            with pytest.raises(TurnLost):
                await act(store, name, taken)

        assert await kinds(store, SessionId(taken.session_id)) == ["message", "turn.failed"]

    @pytest.mark.parametrize("name", ACTS)
    async def test_an_unknown_turn_or_fence_is_lost(self, store: Store, name: str) -> None:
        taken = await started(store)

        with pytest.raises(TurnLost):
            await act(store, name, taken, fence="1.0")
        sid = SessionId(taken.session_id)
        with pytest.raises(TurnLost):
            await store.turns.extend(sid, new_turn_id(), fence=taken.turn.fence)

    @pytest.mark.parametrize("name", ACTS)
    async def test_after_expiry_the_session_is_over(self, store: Store, name: str) -> None:
        taken = await started(store)
        await age(store, SessionId(taken.session_id), CONFIG.timeout_ms)

        with pytest.raises(SessionExpired):
            await act(store, name, taken)
        await age(store, SessionId(taken.session_id), 3 * CONFIG.timeout_ms)
        with pytest.raises(SessionNotFound):
            await act(store, name, taken)


class TestDelta:
    async def test_builds_the_answer_and_holds_the_session_for_a_lease(
        self, store: Store, ears: Ears
    ) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        ears.heard()

        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="Grüße, ", offset=0)
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="😀!", offset=7)

        draft = (await store.log.replay(sid, app=None, after=None)).draft
        assert draft is not None
        assert (draft.text, draft.units, draft.index, draft.message_id) == (
            "Grüße, 😀!",
            10,
            2,
            turn.message_id,
        )
        session = await store.sessions.read(sid, app=None)
        assert session.now_ms < session.held_until_ms <= session.now_ms + LEASE_MS
        assert ears.heard() == [
            ("turn.delta", f"{turn.turn_id} {turn.message_id} 0 0", "Grüße, ".encode()),
            ("turn.delta", f"{turn.turn_id} {turn.message_id} 1 7", "😀!".encode()),
        ]

    async def test_what_is_already_there_is_not_added_again(self, store: Store) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        for text, offset in (("abc", 0), ("abc", 0), ("bc", 1), ("de", 3)):
            assert (
                await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=text, offset=offset)
                is False
            )

        draft = (await store.log.replay(sid, app=None, after=None)).draft
        assert draft is not None
        assert draft.text == "abcde"

    @pytest.mark.parametrize("offset, text", [(4, "x"), (2, "cd"), (1, "xyz")])
    async def test_a_hole_or_an_overlap_is_refused_with_the_next_offset(
        self, store: Store, offset: int, text: str
    ) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="abc", offset=0)

        with pytest.raises(DeltaGap) as error:
            await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=text, offset=offset)

        assert error.value.expected == 3

    async def test_an_answer_that_is_too_large_fails_for_good(self, store: Store) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="a" * 100_000, offset=0)

        with pytest.raises(AnswerTooLarge):
            await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="b", offset=100_000)

        ended = await turn_of(store, taken)
        assert ended.state == "failed"
        assert ended.error is not None
        assert ended.error.code == "ANSWER_TOO_LARGE"
        assert (await store.sessions.read(sid, app=None)).turn_id is None

    async def test_each_attempt_starts_anew(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await act(store, "delta", taken)
        await act(store, "retry", taken)

        second = await reclaimed(store, taken)

        draft = (await store.log.replay(sid, app=None, after=None)).draft
        assert draft is not None
        assert (draft.text, draft.units, draft.index, draft.attempt) == ("", 0, 0, 2)
        assert second.turn.message_id != taken.turn.message_id
        assert second.turn.fence != taken.turn.fence


class TestComplete:
    async def test_the_answer_enters_the_log_and_the_idle_clock_restarts(
        self, store: Store, ears: Ears
    ) -> None:
        taken = await started(store)
        sid, turn_id = SessionId(taken.session_id), taken.turn.turn_id
        ears.heard()

        await complete(store, taken, "42")

        answer = await store.turns.answer(sid, turn_id, app=LOCAL_APP)
        assert answer is not None
        assert (answer.status, answer.turn_id, json.loads(answer.body)["content"]) == (
            "complete",
            turn_id,
            "42",
        )
        session = await store.sessions.read(sid, app=None)
        assert (session.turn_id, session.held_until_ms) == (None, 0)
        assert (await turn_of(store, taken)).answer == answer.cursor == session.cursor
        heard = ears.types()
        assert heard[:2] == ["message.created", "turn.completed"]

    async def test_an_empty_answer_stores_nothing(self, store: Store) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn

        await store.turns.complete(sid, turn.turn_id, fence=turn.fence, body=None)

        assert await kinds(store, sid) == ["message"]
        assert await store.turns.answer(sid, turn.turn_id, app=LOCAL_APP) is None
        assert (await turn_of(store, taken)).state == "completed"

    async def test_the_next_turn_is_ready_in_the_same_step(self, store: Store, ears: Ears) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await say(store, sid)
        assert await store.turns.next_ready(AGENT) == []
        ears.heard()

        await complete(store, taken)

        assert await store.turns.next_ready(AGENT) == [sid]
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
            await store.turns.read(session.session_id, first.turn_id, app=LOCAL_APP)
        answer = await store.turns.answer(
            session.session_id, first.turn_id, app=LOCAL_APP, after=first.cursor
        )

        assert answer is not None
        assert json.loads(answer.body)["content"] == "first"

    async def test_cancel_and_complete_race_and_the_first_wins(self, store: Store) -> None:
        for number in range(6):
            taken = await started(store)
            sid, turn_id = SessionId(taken.session_id), taken.turn.turn_id
            calls = [complete(store, taken), store.turns.cancel(sid, turn_id, app=LOCAL_APP)]

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
            assert await store.turns.next_ready(AGENT) == []

            await age(store, sid, pause_ms - 900)
            await store.alarms.ring(sid)
            assert await store.turns.next_ready(AGENT) == []

            taken = await reclaimed(store, taken, 900)

        await act(store, "retry", taken)

        turn = await turn_of(store, taken)
        assert (turn.state, turn.attempt) == ("failed", 3)
        assert await kinds(store, sid) == ["message", "turn.failed"]
        failed = (await store.log.replay(sid, app=None, after=0)).entries[-1]
        assert json.loads(failed.body) == {"code": "BROKEN", "message": "It broke", "attempts": 3}
        assert failed.turn_id == turn.turn_id

    async def test_cancelling_a_turn_behind_it_does_not_shorten_its_pause(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        behind = await say(store, sid)
        await act(store, "retry", taken)

        await store.turns.cancel(sid, behind.turn_id, app=LOCAL_APP)

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
        held = await store.sessions.read(session.session_id, app=None)
        assert held.held_until_ms == taken.turn.deadline_ms

        await age(store, session.session_id, 12_000)
        assert (await store.alarms.ring(session.session_id)).outcome == "lapsed"
        await act(store, "extend", taken)  # its own still, but no longer running

        assert (await turn_of(store, taken)).state == "queued"
        assert (await store.sessions.read(session.session_id, app=None)).held_until_ms == 0

    async def test_the_failed_turn_makes_way_for_the_next(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await say(store, sid)

        await act(store, "final", taken)

        assert await store.turns.next_ready(AGENT) == [sid]
        assert (await claimed(store, sid)).turn.attempt == 1


class TestCancel:
    async def test_keeps_what_was_said_so_far(self, store: Store, ears: Ears) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        text = 'Half "an\\ ans\n\x01wer/ 😀'
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=text, offset=0)
        ears.heard()

        cancelled = await store.turns.cancel(sid, turn.turn_id, app=LOCAL_APP)

        assert (cancelled.state, cancelled.by) == ("cancelled", "user")
        answer = await store.turns.answer(sid, turn.turn_id, app=LOCAL_APP)
        assert answer is not None
        body = json.loads(answer.body)
        assert (body["content"], body["id"], body["authorId"]) == (text, turn.message_id, AGENT)
        assert (answer.status, answer.cursor) == ("cancelled", cancelled.answer)
        assert ears.types()[:2] == ["message.created", "turn.cancelled"]
        assert (await store.sessions.read(sid, app=None)).stage == "active"

    async def test_without_text_only_the_cancellation_is_logged(self, store: Store) -> None:
        session = await opened(store)
        queued = await say(store, session.session_id)

        await store.turns.cancel(session.session_id, queued.turn_id, app=LOCAL_APP)

        assert await kinds(store, session.session_id) == ["message", "turn.cancelled"]
        assert await store.turns.next_ready(AGENT) == []
        assert (await store.sessions.read(session.session_id, app=None)).queued == 0

    async def test_repeated_it_is_returned_as_it_is(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        first = await store.turns.cancel(sid, taken.turn.turn_id, app=LOCAL_APP)

        again = await store.turns.cancel(sid, taken.turn.turn_id, app=LOCAL_APP)

        assert again == first
        assert await kinds(store, sid) == ["message", "turn.cancelled"]

    async def test_a_turn_that_ended_otherwise_is_returned_as_it_is(self, store: Store) -> None:
        taken = await started(store)
        await complete(store, taken)

        turn = await store.turns.cancel(SessionId(taken.session_id), taken.turn.turn_id, app=LOCAL_APP)

        assert turn.state == "completed"

    async def test_a_queued_turn_leaves_the_running_one_alone(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        behind = await say(store, sid)

        await store.turns.cancel(sid, behind.turn_id, app=LOCAL_APP)

        session = await store.sessions.read(sid, app=None)
        assert (session.turn_id, session.turn_state, session.queued) == (taken.turn.turn_id, "running", 0)
        assert await complete(store, taken) is False
        assert (await store.sessions.read(sid, app=None)).turn_id is None

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

        await store.turns.cancel(sid, behind.turn_id, app=LOCAL_APP)
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=" far", offset=2)

        draft = (await store.log.replay(sid, app=None, after=None)).draft
        assert draft is not None
        assert draft.text == "so far"

    @pytest.mark.parametrize("turn_id", ["queue", "ended", "0"])
    async def test_only_turns_are_turns(self, store: Store, turn_id: str) -> None:
        """The hash of turns has two fields that are none."""
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await complete(store, taken)
        await say(store, sid)

        with pytest.raises(TurnNotFound):
            await store.turns.cancel(sid, TurnId(turn_id), app=LOCAL_APP)
        with pytest.raises(TurnNotFound):
            await store.turns.read(sid, TurnId(turn_id), app=LOCAL_APP)


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
        after = await store.sessions.read(session.session_id, app=None)

        assert running.turn_id != first.turn_id == second.turn_id
        turn = await store.turns.read(session.session_id, first.turn_id, app=None)
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
        before = await store.sessions.read(session.session_id, app=None)
        await age(store, session.session_id, MINUTE_MS)

        with pytest.raises(SessionBusy):
            await say(store, session.session_id)

        after = await store.sessions.read(session.session_id, app=None)
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
        partial = await store.turns.answer(sid, stopped.turn_id, app=LOCAL_APP)
        assert partial is not None
        assert json.loads(partial.body)["content"] == "so"
        for each in queued:
            taken = await store.turns.read(sid, each.turn_id, app=None)
            assert (taken.state, taken.superseded_by) == ("cancelled", interrupting.turn_id)
        after = await store.sessions.read(sid, app=None)
        assert (after.turn_id, after.turn_state, after.queued) == (interrupting.turn_id, "queued", 3)
        assert after.held_until_ms == 0
        assert await store.turns.next_ready(AGENT) == [sid]
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

        fields = server.call("HKEYS", store.keyspace.of(session.session_id).all()[3])
        assert len(fields) == len({"queue", "ended"}) + 50 + 1
        assert len((await claimed(store, session.session_id)).messages) == 100
        assert (await store.turns.read(session.session_id, last.turn_id, app=None)).state == "running"

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


class TestHold:
    async def test_a_running_turn_outlives_the_idle_timeout(self, store: Store) -> None:
        session = await opened(store, config=TimeoutConfig(20_000, True, 720 * MINUTE_MS, 5_000))
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid)
        await age(store, sid, 9_000)
        await act(store, "delta", taken)
        await age(store, sid, 25_000)

        held = await store.sessions.read(sid, app=None)
        assert held.expires_ms < held.now_ms < held.held_until_ms
        assert held.remaining_ms == held.held_until_ms - held.now_ms

        await complete(store, taken)

        after = await store.sessions.read(sid, app=None)
        assert after.expires_ms == after.last_renewal_ms + 20_000
        assert after.last_renewal_ms > held.last_renewal_ms

    @pytest.mark.parametrize("name", ["complete", "final", "retry", "release", "cancel"])
    async def test_a_session_that_only_the_turn_kept_alive_ends_with_it(
        self, store: Store, ears: Ears, name: str
    ) -> None:
        """Without autoRenew, in the same script; the turn's outcome comes before the session's."""
        session = await opened(store, config=TimeoutConfig(20_000, False, 720 * MINUTE_MS, 5_000))
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid)
        await age(store, sid, 9_000)
        await act(store, "delta", taken)
        await age(store, sid, 25_000)
        ears.heard()

        if name == "cancel":
            await store.turns.cancel(sid, taken.turn.turn_id, app=LOCAL_APP)
        else:
            await act(store, name, taken)

        heard = ears.types()
        assert heard[-1] == "session.expired"
        with pytest.raises(SessionExpired) as error:
            await store.sessions.read(sid, app=LOCAL_APP)
        assert error.value.expires_ms > session.expires_ms - 34_000
        outcome = {"complete": "completed", "cancel": "cancelled"}.get(name, "failed")
        assert (await turn_of(store, taken)).state == outcome
        assert (await store.alarms.ring(sid)).outcome == "idle"

    @pytest.mark.parametrize("name", ["retry", "release"])
    async def test_with_renewal_another_attempt_follows(self, store: Store, name: str) -> None:
        session = await opened(store, config=TimeoutConfig(20_000, True, 720 * MINUTE_MS, 5_000))
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid)
        await act(store, "delta", taken)
        await age(store, sid, 25_000)

        await act(store, name, taken)

        assert (await reclaimed(store, taken)).turn.turn_id == taken.turn.turn_id

    async def test_the_maximum_duration_ends_a_hold(self, store: Store) -> None:
        session = await opened(store, config=TimeoutConfig(20_000, True, 25_000, 5_000))
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid)
        await act(store, "delta", taken)

        held = await store.sessions.read(sid, app=None)
        assert held.held_until_ms == held.created_ms + 25_000
        await age(store, sid, 25_000)
        assert (await store.alarms.ring(sid)).outcome == "expired"

        with pytest.raises(SessionExpired) as error:
            await store.sessions.read(sid, app=LOCAL_APP)
        assert error.value.reason == "max_duration"
        turn = await turn_of(store, taken)
        assert turn.error is not None
        assert turn.error.code == "SESSION_EXPIRED"

    async def test_a_queued_turn_and_a_lapsed_lease_hold_nothing(self, store: Store) -> None:
        session = await opened(store, config=NO_RENEWAL)
        await say(store, session.session_id)
        await age(store, session.session_id, NO_RENEWAL.timeout_ms)
        with pytest.raises(SessionExpired):
            await store.sessions.read(session.session_id, app=LOCAL_APP)

        taken = await started(store, config=TimeoutConfig(5_000, False, MINUTE_MS, 1_000))
        await age(store, SessionId(taken.session_id), FIRST_LEASE_MS)
        assert (await store.alarms.ring(SessionId(taken.session_id))).outcome == "expired"


class TestStaleReady:
    async def test_finds_work_that_nobody_came_for(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        partition = partition_of_session(session.session_id)

        async def is_found() -> bool:
            return await store.turns.stale_ready(partition) == [(AGENT, session.session_id)]

        await eventually(is_found, within_s=5)

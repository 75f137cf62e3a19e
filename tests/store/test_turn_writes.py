"""Who may write to a turn, and how an answer grows."""

from __future__ import annotations

import msgspec
import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, SessionId, new_turn_id
from sessions_api.errors import (
    AnswerTooLarge,
    DeltaGap,
    SessionExpired,
    SessionNotFound,
    TurnLost,
    TurnNotFound,
)
from sessions_api.store import Store
from tests.support.stores import CONFIG, Ears, age, claimed, opened, say
from tests.support.turns import (
    ACTS,
    FIRST_LEASE_MS,
    LEASE_MS,
    act,
    kinds,
    lapsed,
    reclaimed,
    started,
    turn_of,
)

STATES = {"complete": "completed", "final": "failed", "retry": "queued", "release": "queued"}
"""What a turn becomes by a worker's write; by the others it runs on."""


class TestWorkersWrite:
    """DESIGN's table: own, lapsed, repeated, cancelled, lost, failed; for each kind of write."""

    @pytest.mark.parametrize("name", ACTS)
    async def test_its_own_running_turn_is_done(self, store: Store, name: str) -> None:
        taken = await started(store)

        assert await act(store, name, taken) is False

        assert (await turn_of(store, taken)).state == STATES.get(name, "running")

    @pytest.mark.parametrize("name", ACTS)
    async def test_lapsed_but_not_claimed_again_it_is_still_its_own(self, store: Store, name: str) -> None:
        """The fence changes at the next claim, not at the lapse."""
        taken = await started(store)
        await lapsed(store, taken)

        assert await act(store, name, taken) is False

        turn = await turn_of(store, taken)
        assert turn.state == STATES.get(name, "running")
        session = await store.sessions.read(SessionId(taken.session_id), grant=EVERYTHING)
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
        await store.turns.cancel(sid, taken.turn.turn_id, grant=LOCAL_APP)
        log = await kinds(store, sid)

        assert await act(store, name, taken) is True

        assert (await turn_of(store, taken)).state == "cancelled"
        assert await kinds(store, sid) == log

    @pytest.mark.parametrize("name", ACTS)
    async def test_claimed_again_it_is_lost(self, store: Store, name: str) -> None:
        taken = await started(store)
        await lapsed(store, taken)
        second = await reclaimed(store, taken)

        with pytest.raises(TurnLost) as lost:
            await act(store, name, taken)

        assert (lost.value.state, lost.value.why) == ("running", "taken")
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
    async def test_with_another_fence_it_is_lost(self, store: Store, name: str) -> None:
        taken = await started(store)

        with pytest.raises(TurnLost):
            await act(store, name, taken, fence="1.0")

    @pytest.mark.parametrize("name", ACTS)
    async def test_of_a_turn_that_never_was_there_is_nothing_to_lose(self, store: Store, name: str) -> None:
        taken = await started(store)
        unknown = msgspec.structs.replace(
            taken, turn=msgspec.structs.replace(taken.turn, turn_id=new_turn_id())
        )

        with pytest.raises(TurnNotFound):
            await act(store, name, unknown)

    @pytest.mark.parametrize("name", ACTS)
    async def test_with_its_lease_over_and_nobody_noticing_it_is_still_its_own(
        self, store: Store, name: str
    ) -> None:
        """The alarm may be late; the worker was not asked to know."""
        taken = await started(store)
        await age(store, SessionId(taken.session_id), FIRST_LEASE_MS)

        assert await act(store, name, taken) is False

        turn = await turn_of(store, taken)
        assert turn.state == STATES.get(name, "running")
        session = await store.sessions.read(SessionId(taken.session_id), grant=EVERYTHING)
        assert (session.held_until_ms > session.now_ms) is (turn.state == "running")

    @pytest.mark.parametrize("name", ACTS)
    async def test_lapsed_and_repeated_it_is_the_same_success(self, store: Store, name: str) -> None:
        taken = await started(store)
        await lapsed(store, taken)
        await act(store, name, taken)
        before = await turn_of(store, taken)
        log = await kinds(store, SessionId(taken.session_id))

        assert await act(store, name, taken) is False

        after = await turn_of(store, taken)
        assert (after.state, after.attempt, after.units) == (before.state, before.attempt, before.units)
        assert await kinds(store, SessionId(taken.session_id)) == log

    @pytest.mark.parametrize("is_noticed", [False, True])
    @pytest.mark.parametrize("name", [name for name in ACTS if name != "extend"])
    async def test_past_its_deadline_it_is_its_own_and_holds_nothing(
        self, store: Store, name: str, is_noticed: bool
    ) -> None:
        """A late answer is welcome while nobody else works at it; more time is not to be had."""
        session = await opened(store)
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid, turn_ms=60_000)
        await age(store, sid, 60_000)
        if is_noticed:
            assert (await store.alarms.ring(sid)).outcome == "lapsed"

        assert await act(store, name, taken) is False

        after = await store.sessions.read(sid, grant=EVERYTHING)
        assert after.held_until_ms <= after.now_ms
        await store.alarms.ring(sid)
        turn = await turn_of(store, taken)
        assert turn.state == STATES.get(name, "queued")
        if name == "complete":
            assert await kinds(store, sid) == ["message", "complete"]

    @pytest.mark.parametrize("is_noticed", [False, True])
    async def test_past_its_deadline_there_is_nothing_to_extend(self, store: Store, is_noticed: bool) -> None:
        """An extension that held nothing would tell its worker to go on."""
        session = await opened(store)
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid, turn_ms=60_000)
        await age(store, sid, 60_000)
        if is_noticed:
            assert (await store.alarms.ring(sid)).outcome == "lapsed"
        before = await turn_of(store, taken)

        with pytest.raises(TurnLost) as lost:
            await act(store, "extend", taken)

        assert (lost.value.state, lost.value.why) == (before.state, "late")
        assert await turn_of(store, taken) == before
        assert await act(store, "complete", taken) is False

    @pytest.mark.parametrize("name", ACTS)
    async def test_past_its_deadline_and_claimed_again_it_is_lost(self, store: Store, name: str) -> None:
        session = await opened(store)
        sid = session.session_id
        await say(store, sid)
        taken = await claimed(store, sid, turn_ms=60_000)
        await age(store, sid, 60_000)
        await store.alarms.ring(sid)
        second = await reclaimed(store, taken)

        with pytest.raises(TurnLost):
            await act(store, name, taken)

        assert await kinds(store, sid) == ["message"]
        assert await act(store, name, second) is False

    @pytest.mark.parametrize("first", ["complete", "retry", "final", "release"])
    @pytest.mark.parametrize("name", ACTS)
    async def test_another_kind_of_write_after_its_own_end_is_lost(
        self, store: Store, first: str, name: str
    ) -> None:
        """A worker that contradicts itself: what it said first stands."""
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await act(store, first, taken)
        state, log = (await turn_of(store, taken)).state, await kinds(store, sid)
        given_up = {"retry", "final", "release"}

        if name == first or {name, first} <= given_up:
            assert await act(store, name, taken) is False
        else:
            with pytest.raises(TurnLost) as lost:
                await act(store, name, taken)
            assert (lost.value.state, lost.value.why) == (state, "ended")

        assert (await turn_of(store, taken)).state == state
        assert await kinds(store, sid) == log

    @pytest.mark.parametrize("first", ["retry", "release"])
    @pytest.mark.parametrize("name", ACTS)
    async def test_given_up_and_claimed_again_it_is_lost(self, store: Store, first: str, name: str) -> None:
        """Also the repeat of what it did: the turn is another's now."""
        taken = await started(store)
        await act(store, first, taken)
        second = await reclaimed(store, taken)

        with pytest.raises(TurnLost):
            await act(store, name, taken)

        assert (await turn_of(store, taken)).fence == second.turn.fence
        assert await act(store, name, second) is False

    @pytest.mark.parametrize("name", ACTS)
    async def test_lapsed_and_cancelled_it_is_told(self, store: Store, name: str) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await lapsed(store, taken)
        await store.turns.cancel(sid, taken.turn.turn_id, grant=LOCAL_APP)

        assert await act(store, name, taken) is True

        assert await kinds(store, sid) == ["message", "turn.cancelled"]

    @pytest.mark.parametrize("name", ACTS)
    async def test_cancelled_in_anothers_hands_every_worker_is_told(self, store: Store, name: str) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await lapsed(store, taken)
        second = await reclaimed(store, taken)
        await store.turns.cancel(sid, taken.turn.turn_id, grant=LOCAL_APP)

        assert await act(store, name, taken) is True
        assert await act(store, name, second) is True

        assert await kinds(store, sid) == ["message", "turn.cancelled"]

    @pytest.mark.parametrize("name", ACTS)
    async def test_failed_by_another_hand_it_is_lost(self, store: Store, name: str) -> None:
        """Abandoned with its agent: nothing of it is the worker's doing, so nothing is its success."""
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await store.turns.abandon(sid, code="AGENT_NOT_FOUND", message="It is gone")

        if name in {"retry", "final", "release"}:
            assert await act(store, name, taken) is False  # it is given up, whoever did it
        else:
            with pytest.raises(TurnLost):
                await act(store, name, taken)

        assert await kinds(store, sid) == ["message", "turn.failed"]

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

        draft = (await store.log.replay(sid, grant=EVERYTHING, after=None)).draft
        assert draft is not None
        assert (draft.text, draft.units, draft.index, draft.message_id) == (
            "Grüße, 😀!",
            10,
            2,
            turn.message_id,
        )
        session = await store.sessions.read(sid, grant=EVERYTHING)
        assert session.now_ms < session.held_until_ms <= session.now_ms + LEASE_MS
        assert ears.heard() == [
            ("turn.delta", f"{turn.turn_id} {turn.message_id} 0 0", "Grüße, ".encode()),
            ("turn.delta", f"{turn.turn_id} {turn.message_id} 1 7", "😀!".encode()),
        ]

    async def test_what_is_already_there_is_not_added_again(self, store: Store) -> None:
        taken = await started(store)
        sid, turn = SessionId(taken.session_id), taken.turn
        for text, offset in (("abc", 0), ("abc", 0), ("bc", 1), ("de", 3)):
            written = await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=text, offset=offset)
            assert not written.is_cancelled

        draft = (await store.log.replay(sid, grant=EVERYTHING, after=None)).draft
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
        assert (await store.sessions.read(sid, grant=EVERYTHING)).turn_id is None

    async def test_each_attempt_starts_anew(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await act(store, "delta", taken)
        await act(store, "retry", taken)

        second = await reclaimed(store, taken)

        draft = (await store.log.replay(sid, grant=EVERYTHING, after=None)).draft
        assert draft is not None
        assert (draft.text, draft.units, draft.index, draft.attempt) == ("", 0, 0, 2)
        assert second.turn.message_id != taken.turn.message_id
        assert second.turn.fence != taken.turn.fence

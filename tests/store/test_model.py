"""The store against a plain-Python model of a session: any sequence of calls, one outcome.

Hypothesis draws the calls; after each, what the store holds is compared with the
model (``support/model.py``): clock, turns, queue, log, indexes, alarm and TTLs.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from sessions_api.domain import timeouts
from sessions_api.domain.ids import MessageId, TurnId, new_message_id, new_op_id
from sessions_api.errors import (
    DeltaGap,
    SessionExpired,
    TurnLost,
)
from sessions_api.store.turns import Claim
from tests.support.model import S
from tests.support.servers import TestServer
from tests.support.stores import AGENT, age, answer_body
from tests.support.usermodel import UserSide

BACKOFF_MS = {1: 1 * S, 2: 5 * S}


class Machine(UserSide):
    """Every call there is, in any order, at any time."""

    # ------------------------------------------------------------ time

    @rule(tens=st.integers(1, 9))
    def pass_time(self, tens: int) -> None:
        self.run(age(self.store, self.sid, tens * 10 * S))
        self.model.now += tens * 10 * S
        self.model.uncertain = False

    @rule()
    @precondition(lambda self: not self.model.uncertain)
    def ring(self) -> None:
        model = self.model
        rung = self.run(self.store.alarms.ring(self.sid))
        if model.settled:
            assert rung.outcome == "idle"
            return
        if model.over:
            model.expire(timeouts.end_ms(model.clock))
            assert rung.outcome == "expired"
            return
        outcome = "idle"
        if model.running and model.clock.held_until_ms <= model.now:
            outcome, turn_id = "lapsed", model.running
            turn = model.turns[turn_id]
            if turn.attempt >= 3:
                model.fail(turn_id)
                if model.config.auto_renew:
                    model.renew()
            else:
                turn.lapsed = True
                model.retry(turn_id, BACKOFF_MS[turn.attempt])
            model.reckon()
        elif 0 < model.retry_at <= model.now:
            model.retry_at = 0
            model.reckon()
        before = model.clock.warned_ms
        model.warn()
        assert rung.outcome == (
            "warned" if model.clock.warned_ms != before and model.clock.warned_ms else outcome
        )

    # ------------------------------------------------------------ the worker's side

    @rule()
    @precondition(lambda self: not self.model.uncertain)
    def claim(self) -> None:
        model = self.model
        message_id = new_message_id()
        bits = new_op_id()

        def claim() -> Coroutine[Any, Any, Claim]:
            return self.store.turns.claim(
                self.sid,
                agent_id=AGENT,
                worker="w",
                fence_bits=bits,
                message_id=message_id,
                turn_ms=300 * S,
                max_attempts=3,
            )

        got = self.run(claim())
        if model.over or model.running or not model.queue or model.retry_at > model.now:
            assert got.turn is None
            return
        turn_id = model.queue[0]
        model.dequeue(turn_id)
        turn = model.turns[turn_id]
        turn.state, turn.lapsed, turn.text = "running", False, ""
        turn.attempt += 1
        turn.deadline = model.now + 300 * S
        model.running = turn_id
        model.ready = False
        assert got.turn is not None
        turn.fence = got.turn.turn.fence
        model.hold(turn, 10 * S)
        self.leases[turn_id] = min(model.now + 10 * S, turn.deadline)
        model.warn()
        assert (got.turn.turn.turn_id, got.turn.turn.attempt) == (turn_id, turn.attempt)
        assert len(got.turn.messages) == turn.messages
        self.taken.append((turn_id, turn.fence, message_id))
        again = self.run(claim())
        assert again.turn is not None
        assert again.turn.turn == got.turn.turn

    def _standing(self, data: st.DataObject) -> tuple[TurnId, str, MessageId, str]:
        taken = self.taken[-1] if data.draw(st.booleans()) else data.draw(st.sampled_from(self.taken))
        return *taken, self.model.standing(*taken[:2])

    def _refused(self, got: object, standing: str, *same: str) -> bool:
        """Whether *got* is what a write that is not done must get; *same*: its own earlier outcome."""
        if standing == "own":
            return False
        expected = {"cancelled": True, "lost": TurnLost}.get(
            standing, False if standing in same else TurnLost
        )
        assert got is expected, (got, standing)
        return True

    @rule(data=st.data(), text=st.sampled_from(["a", "so", "😀"]), skip=st.sampled_from([0, 0, 0, 1]))
    @precondition(lambda self: self.taken)
    def delta(self, data: st.DataObject, text: str, skip: int) -> None:
        model = self.model
        turn_id, fence, _, standing = self._standing(data)
        turn = model.turns[turn_id]
        units = len(turn.text.encode("utf-16-le")) // 2
        got = self.attempt(
            self.store.turns.delta(self.sid, turn_id, fence=fence, text=text, offset=units + skip)
        )
        if model.over:
            assert got is SessionExpired
            return
        if self._refused(got, standing):
            return
        if skip:
            assert got is DeltaGap
            return
        assert got is False
        model.revive(turn_id)
        turn.text += text
        if turn.state == "running":
            model.hold(turn, 30 * S)
            self.leases[turn_id] = min(model.now + 30 * S, turn.deadline)
        model.warn()

    @rule(data=st.data())
    @precondition(lambda self: self.taken)
    def extend(self, data: st.DataObject) -> None:
        model = self.model
        turn_id, fence, _, standing = self._standing(data)
        turn = model.turns[turn_id]
        got = self.attempt(self.store.turns.extend(self.sid, turn_id, fence=fence))
        if model.over:
            assert got is SessionExpired
        elif standing == "own" and model.now >= turn.deadline:
            assert got is TurnLost
        elif not self._refused(got, standing):
            assert got is False
            model.revive(turn_id)
            model.hold(turn, 30 * S)
            self.leases[turn_id] = min(model.now + 30 * S, turn.deadline)
            model.warn()

    @rule(data=st.data(), what=st.sampled_from(["content", "nothing", "streamed", "more", "last", "gap"]))
    @precondition(lambda self: self.taken)
    def complete(self, data: st.DataObject, what: str) -> None:
        model = self.model
        turn_id, fence, _, standing = self._standing(data)
        turn = model.turns[turn_id]
        body = answer_body("done") if what in {"content", "last", "gap"} else None
        units = len(turn.text.encode("utf-16-le")) // 2
        around = (b'{"content":', b"}") if what in {"streamed", "more"} else None
        empty = what == "nothing" or (what == "streamed" and not turn.text)
        got = self.attempt(
            self.store.turns.complete(
                self.sid,
                turn_id,
                fence=fence,
                body=body,
                around=around,
                is_more=what == "more",
                last="e" if what in {"last", "gap"} else "",
                offset=units + (what == "gap"),
            )
        )
        if model.over and standing not in {"cancelled", "completed"}:
            assert got is SessionExpired
        elif standing == "own" and what == "gap" and turn.state == "running":
            assert got is DeltaGap
        elif not self._refused(got, standing, "completed"):
            assert got is False
            if not empty:
                model.log.append(("complete", turn_id))
            model.close(turn_id, "completed")
            model.after_turn()

    @rule(
        data=st.data(),
        how=st.sampled_from(["retry", "final", "release"]),
        pause=st.sampled_from([0, 0, 3, 15, 90]),
    )
    @precondition(lambda self: self.taken)
    def give_up(self, data: st.DataObject, how: str, pause: int) -> None:
        model = self.model
        turn_id, fence, _, standing = self._standing(data)
        turn = model.turns[turn_id]
        store = self.store.turns
        got = self.attempt(
            store.release(self.sid, turn_id, fence=fence)
            if how == "release"
            else store.fail(
                self.sid,
                turn_id,
                fence=fence,
                code="X",
                message="x",
                retry=how == "retry",
                pause_ms=pause * S,
            )
        )
        if model.over:
            assert got is SessionExpired or standing in {"failed", "cancelled"}
            return
        if self._refused(got, standing, "queued", "failed"):
            return
        assert got is False
        if turn.state == "queued":
            model.dequeue(turn_id)
            turn.state, turn.lapsed = "running", False
            model.running = turn_id
        if how == "final" or (how == "retry" and turn.attempt >= 3):
            model.fail(turn_id)
            model.after_turn()
            return
        if how == "release":
            turn.attempt -= 1
        pause_ms = min(max(BACKOFF_MS[turn.attempt], pause * S), 60 * S) if how == "retry" else 0
        model.retry(turn_id, pause_ms)
        model.after_turn(ended=False)


@pytest.mark.servers("valkey", "redis62")
@pytest.mark.timeout(180)
def test_any_sequence_of_calls_has_one_outcome(server: TestServer) -> None:
    class OnServer(Machine):
        pass

    OnServer.server = server
    run_state_machine_as_test(
        OnServer,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )

"""The store against a plain-Python model of a session: any sequence of calls, one outcome.

Hypothesis draws the calls; after each, what the store holds is compared with the
model (``support/model.py``): clock, turns, queue, log, indexes, alarm and TTLs.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from sessions_api.domain import timeouts
from sessions_api.domain.ids import MessageId, TurnId, new_message_id, new_op_id, new_turn_id
from sessions_api.domain.sessions import ConfigChange, OnBusy
from sessions_api.errors import (
    BacklogFull,
    DeltaGap,
    InvalidInput,
    MaxDurationReached,
    SessionBusy,
    SessionExpired,
    SessionNotFound,
    TurnLost,
)
from sessions_api.store.turns import Claim
from tests.support.model import Compared, ModelTurn, S
from tests.support.servers import TestServer
from tests.support.stores import AGENT, age, agent_body, say

BACKOFF_MS = {1: 1 * S, 2: 5 * S}


class Machine(Compared):
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

    # ------------------------------------------------------------ the user's side

    @rule(on_busy=st.sampled_from(["queue", "queue", "merge", "interrupt", "reject"]))
    def append(self, on_busy: OnBusy) -> None:
        model, turn_id = self.model, new_turn_id()
        message_id = new_message_id()

        def call() -> Coroutine[Any, Any, Any]:
            return say(self.store, self.sid, on_busy=on_busy, turn_id=turn_id, message_id=message_id)

        got = self.attempt(call())
        if model.over:
            assert got is SessionExpired
            return
        if on_busy == "reject" and (model.running or model.queue):
            assert got is SessionBusy
            return
        assert got is not BacklogFull
        joined = None
        if on_busy == "merge" and model.queue and model.turns[model.queue[-1]].attempt == 0:
            joined = model.queue[-1]
        turn = ModelTurn(messages=0)
        if on_busy == "interrupt":
            if model.running:
                model.cancel(model.running)
            for each in list(model.queue):
                turn.messages += model.turns[each].messages
                model.cancel(each)
        if joined is None:
            model.turns[turn_id] = turn
            model.queue.append(turn_id)
            joined = turn_id
        model.turns[joined].messages += 1
        model.log.append(("message", joined))
        if model.config.auto_renew:
            model.renew()
        if not model.running:
            model.reckon()
        model.warn()
        assert got.turn_id == joined
        again = self.attempt(call())
        assert (again.turn_id, again.cursor, again.is_repeat) == (joined, got.cursor, False)

    @rule()
    def renew(self) -> None:
        model = self.model
        got = self.attempt(self.store.sessions.renew(self.sid, app=None, op=new_op_id()))
        if model.over:
            assert got is SessionExpired
        elif timeouts.is_capped(model.clock, model.config):
            assert got is MaxDurationReached
        else:
            model.renew()
            model.warn()

    @rule()
    def heartbeat(self) -> None:
        model = self.model
        got = self.attempt(self.store.sessions.heartbeat(self.sid, app=None, op=new_op_id()))
        if model.over:
            assert got is SessionExpired
            return
        if model.config.auto_renew:
            model.renew()
        model.warn()

    @rule(
        timeout=st.sampled_from([None, 15, 55, 95, 155]),
        maximum=st.sampled_from([None, 205, 405, 805]),
        warning=st.sampled_from([None, 10, 20, 40]),
        auto=st.sampled_from([None, 0, 1]),
    )
    def configure(
        self, timeout: int | None, maximum: int | None, warning: int | None, auto: int | None
    ) -> None:
        model = self.model
        values = {"timeout_ms": timeout, "max_duration_ms": maximum, "warning_ms": warning}
        changes = {name: value * S for name, value in values.items() if value is not None}
        asked = {name: ("s", value) for name, value in changes.items()}
        if auto is not None:
            asked["auto_renew"] = ("s", auto)
        change = ConfigChange(**asked)
        got = self.attempt(self.store.sessions.configure(self.sid, app=None, op=new_op_id(), change=change))
        if model.over:
            assert got is SessionExpired
            return
        sources = "".join(
            "s" if name in asked else old
            for name, old in zip(
                ("timeout_ms", "auto_renew", "max_duration_ms", "warning_ms"),
                model.config.sources,
                strict=True,
            )
        )
        config = msgspec.structs.replace(model.config, sources=sources, **changes)
        if auto is not None:
            config = msgspec.structs.replace(config, auto_renew=bool(auto))
        if config.warning_ms >= config.timeout_ms:
            if sources[3] == "s":
                assert got is InvalidInput
                return
            config = msgspec.structs.replace(config, warning_ms=config.timeout_ms // 2)
        deadline = timeouts.deadline_ms(0, model.clock.last_renewal_ms, config)
        held = model.clock.held_until_ms
        if held > model.now:
            held = min(self._lease(), config.max_duration_ms)
        if (sources[2] == "s" and config.max_duration_ms < config.timeout_ms) or max(
            deadline, held
        ) <= model.now:
            assert got is InvalidInput
            return
        model.config = config
        model.version += 1
        warned = 0 if model.now < deadline - config.warning_ms else model.clock.warned_ms
        model.set(expires_ms=deadline, held_until_ms=held, warned_ms=warned)
        model.warn()

    def _lease(self) -> int:
        assert self.model.running is not None
        return self.leases[self.model.running]

    @rule(data=st.data())
    @precondition(lambda self: self.model.turns)
    def cancel(self, data: st.DataObject) -> None:
        model = self.model
        turn_id = data.draw(st.sampled_from(list(model.turns)))
        got = self.attempt(self.store.turns.cancel(self.sid, turn_id, app=None))
        turn = model.turns[turn_id]
        if model.over:
            assert got is SessionExpired or turn.state == "cancelled"
            return
        if turn.state in {"queued", "running"}:
            behind = model.running is not None and model.running != turn_id
            model.cancel(turn_id)
            if not behind:
                model.after_turn()
        assert got.state == turn.state

    @rule()
    def end(self) -> None:
        self.run(self.store.sessions.end(self.sid, app=None))
        assert self.attempt(self.store.sessions.read(self.sid, app=None)) is SessionNotFound
        assert {key for key in sorted(self.server.keys()) if not key.startswith(b"sa:once:")} == {b"sa:meta"}
        self.open(self.model.config)

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
        elif not self._refused(got, standing):
            assert got is False
            model.revive(turn_id)
            if turn.state == "running":
                model.hold(turn, 30 * S)
                self.leases[turn_id] = min(model.now + 30 * S, turn.deadline)
            model.warn()

    @rule(data=st.data(), empty=st.booleans())
    @precondition(lambda self: self.taken)
    def complete(self, data: st.DataObject, empty: bool) -> None:
        model = self.model
        turn_id, fence, message_id, standing = self._standing(data)
        body = None if empty else agent_body(message_id, "done")
        got = self.attempt(self.store.turns.complete(self.sid, turn_id, fence=fence, body=body))
        if model.over and standing not in {"cancelled", "completed"}:
            assert got is SessionExpired
        elif not self._refused(got, standing, "completed"):
            assert got is False
            if not empty:
                model.log.append(("complete", turn_id))
            model.close(turn_id, "completed")
            model.after_turn()

    @rule(data=st.data(), how=st.sampled_from(["retry", "final", "release"]))
    @precondition(lambda self: self.taken)
    def give_up(self, data: st.DataObject, how: str) -> None:
        model = self.model
        turn_id, fence, _, standing = self._standing(data)
        turn = model.turns[turn_id]
        store = self.store.turns
        got = self.attempt(
            store.release(self.sid, turn_id, fence=fence)
            if how == "release"
            else store.fail(self.sid, turn_id, fence=fence, code="X", message="x", retry=how == "retry")
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
        model.retry(turn_id, 0 if how == "release" else BACKOFF_MS[turn.attempt])
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

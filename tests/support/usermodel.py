"""The user's calls on one session, drawn by Hypothesis, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from sessions_api.domain import timeouts
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import new_message_id, new_op_id, new_turn_id
from sessions_api.domain.messages import NewMessage
from sessions_api.domain.sessions import ConfigChange, OnBusy
from sessions_api.errors import (
    BacklogFull,
    InvalidInput,
    MaxDurationReached,
    SessionBusy,
    SessionExpired,
    SessionNotFound,
)
from tests.support.model import Compared, ModelTurn, S
from tests.support.stores import AGENT, USER, agent_body, say


class UserSide(Compared):
    """Everything a caller does who is no worker."""

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
        got = self.attempt(self.store.sessions.renew(self.sid, grant=EVERYTHING, op=new_op_id()))
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
        got = self.attempt(self.store.sessions.heartbeat(self.sid, grant=EVERYTHING, op=new_op_id()))
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
        got = self.attempt(
            self.store.sessions.configure(self.sid, grant=EVERYTHING, op=new_op_id(), change=change)
        )
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
        got = self.attempt(self.store.turns.cancel(self.sid, turn_id, grant=EVERYTHING))
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
    def abandon(self) -> None:
        model = self.model
        abandoned = self.run(self.store.turns.abandon(self.sid, code="X", message="x"))
        if model.over:
            assert abandoned == 0
            return
        left = [*([model.running] if model.running else []), *model.queue]
        assert abandoned == len(left)
        for turn_id in left:
            model.fail(turn_id)
        if left:
            model.after_turn()

    @rule(is_known=st.booleans())
    def speak(self, is_known: bool) -> None:
        model, message_id = self.model, new_message_id()
        grant = f"agent:{AGENT}" if is_known else f"agent:{USER}"

        def call() -> Coroutine[Any, Any, Any]:
            message = NewMessage(message_id, agent_body(message_id, "by the way"))
            return self.store.log.speak(self.sid, grant=grant, message=message)

        got = self.attempt(call())
        if not is_known or model.over:
            assert got is (SessionExpired if is_known else SessionNotFound)
            return
        model.log.append(("message", None))
        again = self.attempt(call())
        assert (again.cursor, again.turn_id, again.is_repeat) == (got.cursor, "", False)

    @rule()
    def end(self) -> None:
        self.run(self.store.sessions.end(self.sid, grant=EVERYTHING))
        assert self.attempt(self.store.sessions.read(self.sid, grant=EVERYTHING)) is SessionNotFound
        assert {key for key in sorted(self.server.keys()) if not key.startswith(b"sa:once:")} == {b"sa:meta"}
        self.open(self.model.config)

"""The store against a plain-Python model of a session: any sequence of calls, one outcome.

Hypothesis draws the calls; after each, what the store holds is compared with the
model: clock, turns, queue, log, indexes, alarm and TTLs. The model decides with
``domain/timeouts.py``; it counts time in tens of seconds and its timeouts end on
fives, so that the milliseconds which really pass decide nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sessions_api.domain import timeouts
from sessions_api.domain.ids import MessageId, SessionId, TurnId, new_message_id, new_op_id, new_turn_id
from sessions_api.domain.sessions import ConfigChange, OnBusy
from sessions_api.domain.timeouts import Clock, TimeoutConfig
from sessions_api.errors import (
    BacklogFull,
    DeltaGap,
    InvalidInput,
    MaxDurationReached,
    SessionBusy,
    SessionExpired,
    SessionNotFound,
    SessionsError,
    TurnLost,
)
from sessions_api.store import Store
from sessions_api.store.connection import Redis
from sessions_api.store.keys import Keyspace
from sessions_api.store.turns import Claim
from tests.support.servers import TestServer
from tests.support.stores import AGENT, age, agent_body, new_session, say

S = 1_000
SLACK_MS = 4_500
RETENTION_MS = 36_000 * S
BACKOFF_MS = {1: 1 * S, 2: 5 * S}
CONFIGS = (
    TimeoutConfig(95 * S, True, 405 * S, 20 * S),
    TimeoutConfig(95 * S, False, 405 * S, 20 * S),
    TimeoutConfig(15 * S, False, 805 * S, 10 * S),
)
T = TypeVar("T")
Taken = tuple[TurnId, str, MessageId]


@dataclass
class ModelTurn:
    state: str = "queued"
    messages: int = 1
    attempt: int = 0
    fence: str = ""
    lapsed: bool = False
    deadline: int = 0
    text: str = ""


@dataclass
class Model:
    """A session, its instants counted from its creation."""

    config: TimeoutConfig
    clock: Clock
    now: int = 0
    version: int = 1
    turns: dict[TurnId, ModelTurn] = field(default_factory=dict)
    queue: list[TurnId] = field(default_factory=list)
    running: TurnId | None = None
    retry_at: int = 0
    ready: bool = False
    log: list[tuple[str, str]] = field(default_factory=list)
    settled: str = ""
    uncertain: bool = False  # a pause of a second or five has begun and no time was passed since

    @property
    def over(self) -> bool:
        return bool(self.settled) or not timeouts.is_live(self.clock, self.now)

    def set(self, **changes: int) -> None:
        self.clock = msgspec.structs.replace(self.clock, **changes)

    def renew(self) -> None:
        self.clock = timeouts.renewed(self.clock, self.config, self.now)

    def warn(self) -> None:
        due = timeouts.warning_due_ms(self.clock, self.config, self.now)
        if due is not None and due <= self.now < timeouts.end_ms(self.clock):
            self.set(warned_ms=self.now or 1)

    def hold(self, turn: ModelTurn, lease_ms: int) -> None:
        self.set(held_until_ms=min(self.now + lease_ms, turn.deadline, self.config.max_duration_ms))

    def reckon(self) -> None:
        self.ready = not self.running and bool(self.queue) and self.retry_at <= self.now

    def dequeue(self, turn_id: TurnId) -> None:
        if not self.running and self.queue[0] == turn_id:
            self.retry_at = 0
        self.queue.remove(turn_id)

    def close(self, turn_id: TurnId, state: str) -> None:
        turn = self.turns[turn_id]
        if turn.state == "queued":
            self.dequeue(turn_id)
        else:
            self.running = None
            self.set(held_until_ms=0)
        turn.state = state

    def fail(self, turn_id: TurnId) -> None:
        self.close(turn_id, "failed")
        self.log.append(("turn.failed", turn_id))

    def cancel(self, turn_id: TurnId) -> None:
        text = self.turns[turn_id].text if self.turns[turn_id].state == "running" else ""
        self.close(turn_id, "cancelled")
        if text:
            self.log.append(("cancelled", turn_id))
        self.log.append(("turn.cancelled", turn_id))

    def retry(self, turn_id: TurnId, backoff_ms: int) -> None:
        turn = self.turns[turn_id]
        turn.state = "queued"
        self.running = None
        self.set(held_until_ms=0)
        self.queue.insert(0, turn_id)
        self.retry_at = self.now + backoff_ms if backoff_ms else 0
        self.uncertain = bool(backoff_ms)

    def expire(self, at: int) -> None:
        reason = timeouts.reason_of(self.clock, self.config)
        for turn_id in [*([self.running] if self.running else []), *self.queue]:
            self.fail(turn_id)
        self.settled = reason
        self.ready = False
        self.set(expires_ms=at, held_until_ms=0, warned_ms=0)

    def after_turn(self, *, ended: bool = True) -> None:
        if self.config.auto_renew and (ended or self.now >= timeouts.end_ms(self.clock)):
            self.renew()
        if self.now >= timeouts.end_ms(self.clock):
            self.set(expires_ms=self.now)
            return self.expire(self.now)
        self.reckon()
        return self.warn()

    def standing(self, turn_id: TurnId, fence: str) -> str:
        turn = self.turns[turn_id]
        if turn.state == "cancelled":
            return "cancelled"
        if turn.fence != fence:
            return "lost"
        if turn.state == "running" or (turn.state == "queued" and turn.lapsed):
            return "own"
        return turn.state

    def revive(self, turn_id: TurnId) -> None:
        turn = self.turns[turn_id]
        if turn.state == "queued" and self.now < turn.deadline:
            self.dequeue(turn_id)
            turn.state, turn.lapsed = "running", False
            self.running = turn_id
            self.ready = False


class Machine(RuleBasedStateMachine):
    """One session after another on one server."""

    server: TestServer

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = Redis.from_url(self.server.url)
        self.run(self.redis.start())
        self.store = Store(self.redis, Keyspace())
        self.run(self.redis.command(b"FLUSHALL"))
        self.run(self.store.open())

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.redis.stop())
        self.runner.close()

    def attempt(self, call: Coroutine[Any, Any, Any]) -> Any:
        """The outcome of *call*: its result, or the class of what it raised."""
        try:
            return self.run(call)
        except SessionsError as error:
            return type(error)

    @initialize(config=st.sampled_from(CONFIGS))
    def open(self, config: TimeoutConfig) -> None:
        new = new_session(config=config, retention_ms=RETENTION_MS)
        session, _ = self.run(self.store.sessions.create(new))
        self.sid: SessionId = session.session_id
        self.model = Model(config, Clock(0, 0, timeouts.deadline_ms(0, 0, config)))
        self.taken: list[Taken] = []

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
        assert (again.turn_id, again.cursor, again.replayed) == (joined, got.cursor, False)

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

    @property
    def leases(self) -> dict[TurnId, int]:
        leases: dict[TurnId, int] = self.__dict__.setdefault("_leases", {})
        return leases

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

    # ------------------------------------------------------------ what must hold

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        model, of = self.model, self.store.keyspace.of(self.sid)
        session_key, _alarm, log, turns, draft, due, ready, users, agents, near, _live = of.all()
        replay = self.run(self.store.log.replay(self.sid, app=None, after=0))
        assert [(entry.status or entry.kind, entry.turn_id) for entry in replay.entries] == model.log
        assert [entry.prev for entry in replay.entries] == [
            0,
            *(entry.cursor for entry in replay.entries[:-1]),
        ][: len(replay.entries)]
        assert (replay.session is None) is model.over
        for turn_id, turn in model.turns.items():
            found = self.run(self.store.turns.read(self.sid, turn_id, app=None))
            assert (found.state, found.attempt, len(found.messages)) == (
                turn.state,
                turn.attempt,
                turn.messages,
            )
        zsets, ttls = self.run(
            self._rest((due, ready, users, agents, near), (session_key, log, turns, draft))
        )
        listed = [any(member.endswith(of.sid) for member in members) for members in zsets]
        live = not model.settled
        warned = live and model.clock.warned_ms > 0
        assert listed[0] is listed[2] is listed[3] is live
        if not model.uncertain:
            assert listed[1] is model.ready
        assert listed[4] is warned
        assert all(ttl != -1 for ttl in ttls)
        left = timeouts.end_ms(model.clock) + RETENTION_MS - model.now
        assert abs(ttls[0] - left) < SLACK_MS
        if model.log:
            assert abs(ttls[1] - left) < SLACK_MS
            assert abs(ttls[2] - left) < SLACK_MS
        if replay.session is None:
            assert replay.expired is not None
            if model.settled:
                assert replay.expired.reason == model.settled
            return
        session = replay.session
        assert session.config == model.config
        assert session.config_version == model.version
        for name in ("expires_ms", "last_renewal_ms", "held_until_ms", "warned_ms"):
            value, virtual = getattr(session, name), getattr(model.clock, name)
            if name in {"held_until_ms", "warned_ms"}:
                assert (value > 0) is (virtual > 0), name
            if virtual or name == "last_renewal_ms":
                assert abs(value - session.created_ms - virtual) < SLACK_MS, name
        first = model.running or (model.queue[0] if model.queue else None)
        assert session.turn_id == first
        assert session.turn_state == ("running" if model.running else "queued" if first else None)
        assert session.queued == sum(model.turns[each].messages for each in model.queue)
        if model.running:
            assert replay.draft is not None
            assert replay.draft.text == model.turns[model.running].text
        else:
            assert replay.draft is None
        # The promise: the alarm may be early, never late.
        instants = [timeouts.end_ms(session.clock), session.held_until_ms]
        instants.append(timeouts.warning_due_ms(session.clock, session.config, session.now_ms) or 0)
        next_ms = min(instant for instant in instants if instant > 0)
        score = self.run(self.redis.command(b"ZSCORE", due, of.sid))
        assert int(float(score)) <= max(next_ms, session.now_ms) + 1

    async def _rest(self, zsets: tuple[bytes, ...], keys: tuple[bytes, ...]) -> tuple[list[Any], list[int]]:
        redis = self.redis
        members = await asyncio.gather(*(redis.command(b"ZRANGE", key, 0, -1, safe=True) for key in zsets))
        ttls = await asyncio.gather(*(redis.command(b"PTTL", key, safe=True) for key in keys))
        return list(members), list(ttls)


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

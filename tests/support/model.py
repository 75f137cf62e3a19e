"""A plain-Python model of a session, and the store held against it.

The model decides with ``domain/timeouts.py``; it counts time in tens of seconds and
its timeouts end on fives, so that the milliseconds which really pass decide nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from sessions_api.domain import timeouts
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import MessageId, SessionId, TurnId
from sessions_api.domain.timeouts import Clock, TimeoutConfig
from sessions_api.errors import SessionsError
from sessions_api.store import Store
from sessions_api.store.connection import Redis
from sessions_api.store.keys import Keyspace
from sessions_api.store.written import Written
from tests.support.servers import TestServer
from tests.support.stores import is_life, new_session, state_of

S = 1_000
SLACK_MS = 4_500
ABSENT = -2
RETENTION_MS = 36_000 * S
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
    log: list[tuple[str, TurnId | None]] = field(default_factory=list)
    settled: str = ""
    uncertain: bool = False  # a pause has begun and no time was passed since

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


class Compared(RuleBasedStateMachine):
    """One session after another on one server, each held against its model after every call."""

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
        """What *call* returned (a write: whether it was cancelled), or the class of what it raised."""
        try:
            result = self.run(call)
        except SessionsError as error:
            return type(error)
        return result.is_cancelled if isinstance(result, Written) else result

    @initialize(config=st.sampled_from(CONFIGS))
    def open(self, config: TimeoutConfig) -> None:
        new = new_session(config=config, retention_ms=RETENTION_MS)
        session, _ = self.run(self.store.sessions.create(new))
        self.sid: SessionId = session.session_id
        self.model = Model(config, Clock(0, 0, timeouts.deadline_ms(0, 0, config)))
        self.taken: list[Taken] = []
        self.leases: dict[TurnId, int] = {}

    # ------------------------------------------------------------ what must hold

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        model, of = self.model, self.store.keyspace.of(self.sid)
        session_key, _alarm, log, draft, due, ready, users, agents, near, running, _live = of.all()
        replay = self.run(self.store.log.replay(self.sid, grant=EVERYTHING, after=0))
        assert [(entry.status or entry.kind, entry.turn_id) for entry in replay.entries] == model.log
        assert [entry.prev for entry in replay.entries] == [
            0,
            *(entry.cursor for entry in replay.entries[:-1]),
        ][: len(replay.entries)]
        assert (replay.session is None) is model.over
        for turn_id, turn in model.turns.items():
            found = self.run(self.store.turns.read(self.sid, turn_id, grant=EVERYTHING))
            assert (found.state, found.attempt, len(found.messages)) == (
                turn.state,
                turn.attempt,
                turn.messages,
            )
        zsets, ttls = self.run(
            self._rest((due, ready, users, agents, near, running), (session_key, log, draft))
        )
        listed = [any(member.endswith(of.sid) for member in members) for members in zsets]
        live = not model.settled
        warned = live and model.clock.warned_ms > 0
        assert listed[0] is listed[2] is listed[3] is live
        if not model.uncertain:
            assert listed[1] is model.ready
        assert listed[4] is warned
        assert listed[5] is (model.running is not None)
        assert all(ttl != -1 for ttl in ttls)
        left = timeouts.end_ms(model.clock) + RETENTION_MS - model.now
        assert is_life(ttls[0], left, slack_ms=SLACK_MS)
        if model.log:
            assert is_life(ttls[1], left, slack_ms=SLACK_MS)
        assert ttls[2] == ABSENT or is_life(ttls[2], left, slack_ms=SLACK_MS)
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
        paused_ms = self.run(state_of(self.store, self.sid)).retry_ms
        instants = [timeouts.end_ms(session.clock), session.held_until_ms, paused_ms]
        instants.append(timeouts.warning_due_ms(session.clock, session.config, session.now_ms) or 0)
        next_ms = min(instant for instant in instants if instant > 0)
        score = self.run(self.redis.command(b"ZSCORE", due, of.sid))
        assert int(float(score)) <= max(next_ms, session.now_ms) + 1

    async def _rest(self, zsets: tuple[bytes, ...], keys: tuple[bytes, ...]) -> tuple[list[Any], list[int]]:
        redis = self.redis
        members = await asyncio.gather(*(redis.command(b"ZRANGE", key, 0, -1, safe=True) for key in zsets))
        ttls = await asyncio.gather(*(redis.command(b"PTTL", key, safe=True) for key in keys))
        return list(members), list(ttls)

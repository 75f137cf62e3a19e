"""The channels that this process listens at, and who listens there.

A :class:`Tail` is one followed session; :class:`Tails` are all of them, with the
one pub/sub connection and the one task that looks at positions. What makes a
lost publish harmless is told in ``hub.py``.

The clock is Redis's: instants of a session are only set against the ``now_ms``
that came with them.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import structlog

from sessions_api.domain import timeouts
from sessions_api.domain.agents import AgentState
from sessions_api.domain.ids import AgentId, SessionId
from sessions_api.domain.sessions import Session
from sessions_api.errors import StorageError, StorageUnavailable
from sessions_api.live import events
from sessions_api.live.events import Event
from sessions_api.store.fleet import live_subscriber
from sessions_api.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sessions_api.store import Store

LINGER_S: Final = 5.0
CHECK_S: Final = (20.0, 40.0)
AFTER_END_S: Final = (0.3, 0.8)
CHECK_AHEAD_S: Final = 0.25
"""Checks that are due so soon share a round trip with those that are due; less than any AFTER_END_S."""
CHECK_BATCH: Final = 500
READS_AT_ONCE: Final = 64
OVER_AGAIN_MS: Final = 2_000

log = structlog.get_logger(__name__)


class Listener(Protocol):
    """A follower (``subscription.py``) or a waiting poster (``waiting.py``)."""

    is_follower: ClassVar[bool]
    """Whether it counts against the bounds of followers, and is sent elsewhere at once by a drain."""

    def offer(self, event: Event) -> None:
        """A live event, in the order of the channel; must be quick, and must not raise."""

    def hear_of_agent(self, event: Event) -> None:
        """Another state of the session's agent: no event of the channel, so it stands in no order."""

    def compare(self, cursor: int, rev: int) -> None:
        """The session's true position; where it is not the listener's, something was missed."""

    def fall_behind(self) -> None:
        """Something may have been missed: read."""

    def vanish(self) -> None:
        """The session is no more."""

    def drain(self, after_ms: int) -> None:
        """This replica stops; come back elsewhere, after *after_ms*."""

    def stop(self) -> None:
        """This process ends now."""


class Tail:
    """One followed session: its listeners, and when it has to be looked at next."""

    __slots__ = (
        "_tails",
        "agent_id",
        "channel",
        "due_s",
        "heard",
        "is_settled",
        "linger",
        "listeners",
        "session_id",
    )

    def __init__(self, tails: Tails, session_id: SessionId, channel: bytes) -> None:
        self._tails = tails
        self.session_id = session_id
        self.channel = channel
        self.agent_id = ""
        """As the session has it; empty until it was read."""
        self.listeners: dict[Listener, None] = {}
        self.heard = 0
        """Events heard so far: a position read while this moved proves nothing."""
        self.due_s = float("inf")
        """Loop time of the next position check."""
        self.is_settled = False
        """The session is over, and everything that its end has to write is written."""
        self.linger: asyncio.TimerHandle | None = None

    @property
    def now_ms(self) -> int:
        """Redis's clock, about: for the times of events that are made here."""
        return self._tails.now_ms

    def offer(self, event: Event) -> None:
        self.heard += 1
        if event.end_ms:
            self._tails.look_after_end(self, event.end_ms, event.time_ms)
        if event.type == "session.expired":
            self.is_settled = True
        for listener in tuple(self.listeners):
            listener.offer(event)

    def learn(self, session: Session) -> None:
        """What a read of the session says about its end, and whose it is."""
        self._tails.look_after_end(self, timeouts.end_ms(session.clock), session.now_ms)
        if not self.agent_id:
            self.agent_id = session.agent_id
            self._tails.learn_agent(self)

    def availability(self) -> Event | None:
        """The state of the session's agent; None if this process knows of none."""
        state = self._tails.state_of(AgentId(self.agent_id.lower()))
        if state is None:
            return None
        return events.availability(self.session_id, self.now_ms, self.agent_id, state)

    async def settle(self) -> None:
        """A session past its end may not have been looked after yet: do it.

        Raises:
            StorageError: Redis cannot be asked now.
        """
        if self.is_settled:
            return
        rung = await self._tails.store.alarms.ring(self.session_id)
        metrics.count_alarm("request", rung.outcome, rung.lag_ms)
        self.is_settled = True


class Tails:
    """All followed sessions of this process.

    A channel is subscribed while somebody listens, and a little longer.
    """

    def __init__(
        self,
        store: Store,
        *,
        state_of: Callable[[AgentId], AgentState | None],
        check_s: tuple[float, float] = CHECK_S,
        linger_s: float = LINGER_S,
    ) -> None:
        self.store = store
        self.state_of = state_of
        self.reads = asyncio.Semaphore(READS_AT_ONCE)
        """Bounds the pages read at once: after an outage everybody wants one."""
        self.subscriber = live_subscriber(
            store.redis,
            on_message=self.on_message,
            on_resubscribed=self._on_resubscribed,
            key_prefix=store.keyspace.prefix.encode(),
        )
        self.followers = 0
        self._check_s = check_s
        self._linger_s = linger_s
        self._tails: dict[bytes, Tail] = {}
        self._of_agents: dict[AgentId, dict[Tail, None]] = {}
        self._left = asyncio.Event()
        self._due: list[tuple[float, int, Tail]] = []
        self._numbers = itertools.count()
        self._earlier = asyncio.Event()
        self._checker: asyncio.Task[None] | None = None
        self._ahead_ms = time.time() * 1000 - time.monotonic() * 1000

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        await self.subscriber.start()
        self._checker = asyncio.create_task(self._check_forever(), name="live positions")

    async def stop(self) -> None:
        for listener in self.listeners():
            listener.stop()
        for tail in self._tails.values():
            if tail.linger is not None:
                tail.linger.cancel()
        checker, self._checker = self._checker, None
        if checker is not None:
            checker.cancel()
            await asyncio.wait([checker])
        await self.subscriber.stop()

    @property
    def now_ms(self) -> int:
        """Redis's clock, as far as it was heard: for times that are shown, never for decisions."""
        return int(time.monotonic() * 1000 + self._ahead_ms)

    # ------------------------------------------------------------ listeners

    def __len__(self) -> int:
        return len(self._tails)

    def listeners(self) -> list[Listener]:
        return [listener for tail in self._tails.values() for listener in tail.listeners]

    async def are_left(self, within_ms: float) -> bool:
        """Whether nobody listens any more; waits for it at most *within_ms*."""
        try:
            async with asyncio.timeout(within_ms / 1000):
                while any(tail.listeners for tail in self._tails.values()):
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            return False
        return True

    def find(self, session_id: SessionId) -> Tail:
        """The session's tail; a new one is kept once somebody joins it."""
        channel = self.store.keyspace.of(session_id).live
        return self._tails.get(channel) or Tail(self, session_id, channel)

    def join(self, tail: Tail, listener: Listener) -> None:
        if tail.linger is not None:
            tail.linger.cancel()
            tail.linger = None
        self._tails[tail.channel] = tail
        tail.listeners[listener] = None
        self.followers += listener.is_follower
        self._look_at(tail, asyncio.get_running_loop().time() + random.uniform(*self._check_s))  # noqa: S311  jitter

    def leave(self, tail: Tail, listener: Listener) -> None:
        """Repeatable. The channel stays subscribed for a while: whoever reloads a page comes back at once."""
        if listener not in tail.listeners:
            return
        del tail.listeners[listener]
        self.followers -= listener.is_follower
        if not tail.listeners:
            self._left.set()
            if self._checker is None:  # stopped: nobody comes back
                return
            tail.linger = asyncio.get_running_loop().call_later(self._linger_s, self._drop, tail)

    async def subscribed(self, tail: Tail, within_s: float) -> None:
        """Return when what is published from now on will arrive.

        Raises:
            StorageUnavailable: Redis did not confirm in time; it stays wanted.
        """
        try:
            async with asyncio.timeout(within_s):
                await self.subscriber.subscribe(tail.channel)
        except TimeoutError as error:
            raise StorageUnavailable("the subscription was not confirmed in time") from error

    def _drop(self, tail: Tail) -> None:
        tail.linger = None
        if not tail.listeners:
            self._tails.pop(tail.channel, None)
            self._forget_agent(tail)
            tail.due_s = float("inf")
            self.subscriber.unsubscribe(tail.channel)

    # ------------------------------------------------------------ agents

    def learn_agent(self, tail: Tail) -> None:
        self._of_agents.setdefault(AgentId(tail.agent_id.lower()), {})[tail] = None

    def _forget_agent(self, tail: Tail) -> None:
        agent_id = AgentId(tail.agent_id.lower())
        tails = self._of_agents.get(agent_id, {})
        tails.pop(tail, None)
        if not tails:
            self._of_agents.pop(agent_id, None)

    def agent_changed(self, agent_id: AgentId, state: AgentState) -> None:
        """Tell the listeners of that agent's sessions."""
        for tail in tuple(self._of_agents.get(AgentId(agent_id.lower()), ())):
            if tail.listeners:
                event = events.availability(tail.session_id, self.now_ms, tail.agent_id, state)
                for listener in tuple(tail.listeners):
                    listener.hear_of_agent(event)

    # ------------------------------------------------------------ what comes in

    def on_message(self, channel: bytes, payload: bytes) -> None:
        tail = self._tails.get(channel)
        if tail is None or not tail.listeners:
            return
        for event in events.of_payload(tail.session_id, payload):
            self._ahead_ms = event.time_ms - time.monotonic() * 1000
            tail.offer(event)

    def _on_resubscribed(self, channels: Iterable[bytes] | None) -> None:
        """Whatever was published there meanwhile is lost (None: anywhere): compare those positions now."""
        metrics.RESUBSCRIPTIONS.inc()
        now_s = asyncio.get_running_loop().time()
        for channel in tuple(self._tails) if channels is None else channels:
            tail = self._tails.get(channel)
            if tail is not None:
                self._look_at(tail, now_s)

    # ------------------------------------------------------------ positions

    def look_after_end(self, tail: Tail, end_ms: int, now_ms: int) -> None:
        """Look at the session when its end has passed, unless it is looked at before that anyway."""
        self._ahead_ms = now_ms - time.monotonic() * 1000
        self._look_at_end(tail, end_ms - now_ms)

    def _look_at_end(self, tail: Tail, remaining_ms: int) -> None:
        now_s = asyncio.get_running_loop().time()
        end_s = now_s + max(0, remaining_ms) / 1000 + random.uniform(*AFTER_END_S)  # noqa: S311  jitter
        self._look_at(tail, min(end_s, now_s + random.uniform(*self._check_s)))  # noqa: S311  jitter

    def _look_at(self, tail: Tail, at_s: float) -> None:
        if at_s < tail.due_s:
            tail.due_s = at_s
            heapq.heappush(self._due, (at_s, next(self._numbers), tail))
            if self._due[0][2] is tail:
                self._earlier.set()

    def _look_soon(self, tail: Tail) -> None:
        """It could not be asked for now, or what came meanwhile makes the answer worth nothing."""
        self._look_at(tail, asyncio.get_running_loop().time() + random.uniform(0.3, 1))  # noqa: S311  jitter

    def _take_due(self, until_s: float) -> list[Tail]:
        taken: list[Tail] = []
        while self._due and self._due[0][0] <= until_s and len(taken) < CHECK_BATCH:
            at_s, _, tail = heapq.heappop(self._due)
            if at_s == tail.due_s:  # else it was moved, or dropped
                tail.due_s = float("inf")
                if tail.listeners:
                    taken.append(tail)
        return taken

    async def _check_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._due or self._due[0][0] > loop.time():
                await self._sleep_until_due()
                continue
            due = self._take_due(loop.time() + CHECK_AHEAD_S)
            try:
                await self._check(due)
            except Exception as error:
                if not isinstance(error, StorageError):
                    metrics.LOOP_FAILURES.of("live positions").inc()
                    log.exception("position_check_failed", sessions=len(due))
                for tail in due:
                    self._look_soon(tail)

    async def _sleep_until_due(self) -> None:
        self._earlier.clear()
        at_s = self._due[0][0] if self._due else None
        try:
            async with asyncio.timeout_at(at_s):
                await self._earlier.wait()
        except TimeoutError:
            pass

    async def _check(self, tails: list[Tail]) -> None:
        """Compare what the listeners know with the truth, where it can be asked for."""
        heard = [tail.heard for tail in tails]
        positions = await self.store.log.positions([tail.session_id for tail in tails])
        for tail, before in zip(tails, heard, strict=True):
            listeners = tuple(tail.listeners)
            if tail.session_id not in positions:
                self._look_soon(tail)
                continue
            position = positions[tail.session_id]
            if position is None:
                for listener in listeners:
                    listener.vanish()
                continue
            if position.is_over:
                await tail.settle()
                self._look_at_end(tail, OVER_AGAIN_MS)  # whoever drains slowly has still to hear it
            else:
                self._look_at_end(tail, position.end_ms - self.now_ms)
            for listener in listeners:
                if position.is_over:
                    listener.fall_behind()
                elif tail.heard == before:
                    listener.compare(position.cursor, position.rev)
            if tail.heard != before and not position.is_over:
                self._look_soon(tail)

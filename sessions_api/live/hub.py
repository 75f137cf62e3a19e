"""Fan-out: one pub/sub connection per process, one channel per followed session, a queue per follower.

Pub/sub is a hint with the event inside; the log and the session are the truth.
The script that changes a session publishes the change, so the channel's order
is the log's order. What makes the hint safe:

1. *Attach*: the subscription is confirmed **before** the session, its running
   text and the first page of the log are read, in one script. What comes while
   a page is read is kept, and tested against the page (``subscription.py``).
2. *Every live event is tested*: an entry of the log names the cursor before it,
   a live-only fact the session's ``rev``, a delta its offset. Whoever misses one
   reads from its cursor.
3. *Positions are compared*, of all followed sessions in one batch: every 20 to
   40 s, and at once after a re-subscription. So a lost publish that nothing
   follows is found too.
4. *The end is looked for*: within a second after a session's deadline its
   position is read, whether the keeper published anything or not.

A follower reads its replay itself, as it drains; here runs one task, which
compares positions. The clock is Redis's: instants of a session are only set
against the ``now_ms`` that came with them.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from typing import TYPE_CHECKING, Final

import structlog

from sessions_api.domain.ids import AppName, SessionId
from sessions_api.errors import Draining, StorageError, StorageUnavailable, TooManyFollowers
from sessions_api.live import events
from sessions_api.live.subscription import Subscription
from sessions_api.live.tail import Listener, Tail
from sessions_api.live.waiting import Watch
from sessions_api.store.pubsub import Subscriber
from sessions_api.telemetry import metrics

if TYPE_CHECKING:
    from sessions_api.store import Store

MAX_FOLLOWERS: Final = 10_000
MAX_FOLLOWERS_PER_SESSION: Final = 100
SUBSCRIBE_TIMEOUT_S: Final = 2.5
LINGER_S: Final = 5.0
CHECK_S: Final = (20.0, 40.0)
AFTER_END_S: Final = (0.3, 0.8)
CHECK_AHEAD_S: Final = 0.25
"""Checks that are due so soon share a round trip with those that are due; less than any AFTER_END_S."""
CHECK_BATCH: Final = 500
READS_AT_ONCE: Final = 64
OVER_AGAIN_MS: Final = 2_000
RECONNECT_MS: Final = 5_000

log = structlog.get_logger(__name__)


class Hub:
    """All live connections of this process.

    1. :meth:`start` before the first follower; it does not need Redis to be there.
    2. :meth:`drain` tells everybody to go elsewhere, and waits for them.
    3. :meth:`stop` ends what is left; no task and no connection remains.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_followers: int = MAX_FOLLOWERS,
        max_followers_per_session: int = MAX_FOLLOWERS_PER_SESSION,
        check_s: tuple[float, float] = CHECK_S,
        linger_s: float = LINGER_S,
    ) -> None:
        self.store = store
        self.reads = asyncio.Semaphore(READS_AT_ONCE)
        """Bounds the pages read at once: after an outage everybody wants one."""
        self.subscriber = Subscriber(
            store.redis,
            on_message=self._on_message,
            on_resubscribed=self._on_resubscribed,
            key_prefix=store.keyspace.prefix.encode(),
        )
        self._max_followers = max_followers
        self._max_per_session = max_followers_per_session
        self._check_s = check_s
        self._linger_s = linger_s
        self._tails: dict[bytes, Tail] = {}
        self._followers = 0
        self._due: list[tuple[float, int, Tail]] = []
        self._numbers = itertools.count()
        self._earlier = asyncio.Event()
        self._checker: asyncio.Task[None] | None = None
        self._is_draining = False
        self._gone = asyncio.Event()
        self._ahead_ms = time.time() * 1000 - time.monotonic() * 1000

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        await self.subscriber.start()
        self._checker = asyncio.create_task(self._check_forever(), name="live positions")

    async def drain(self, within_ms: int) -> None:
        """Send everybody away, jittered; return when they are gone, or after *within_ms*.

        Streams are told at once; a waiting poster's turn may still end within a
        quarter of the time, then it hears ``DRAINING``. Nobody new is let in.
        """
        self._is_draining = True
        log.info("hub_draining", followers=self._followers, sessions=len(self._tails))
        for listener in self._listeners():
            if isinstance(listener, Subscription):
                listener.drain(int(random.uniform(0.02, 1) * min(RECONNECT_MS, max(within_ms, 100))))  # noqa: S311  jitter
        if not await self._are_gone(within_ms / 4):
            for listener in self._listeners():
                listener.drain(0)
            await self._are_gone(within_ms * 3 / 4)

    async def stop(self) -> None:
        self._is_draining = True
        for listener in self._listeners():
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
    def followers(self) -> int:
        return self._followers

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def now_ms(self) -> int:
        """Redis's clock, as far as it was heard: for times that are shown, never for decisions."""
        return int(time.monotonic() * 1000 + self._ahead_ms)

    def _listeners(self) -> list[Listener]:
        return [listener for tail in self._tails.values() for listener in tail.listeners]

    async def _are_gone(self, within_ms: float) -> bool:
        try:
            async with asyncio.timeout(within_ms / 1000):
                while any(tail.listeners for tail in self._tails.values()):
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            return False
        return True

    # ------------------------------------------------------------ listeners

    async def follow(self, session_id: SessionId, *, app: AppName | None, after: int | None) -> Subscription:
        """A follower of the session from *after* on; None: from now. The first page is read already.

        Raises:
            SessionNotFound: no such session, or not *app*'s. (An expired one is followed to its end.)
            TooManyFollowers: the session or this process has as many as it may.
            Draining: this replica shuts down.
            StorageUnavailable: Redis cannot be asked now.
        """
        if self._is_draining:
            raise Draining
        if self._followers >= self._max_followers:
            raise TooManyFollowers(self._max_followers)
        tail = self._tail(session_id)
        if sum(isinstance(listener, Subscription) for listener in tail.listeners) >= self._max_per_session:
            raise TooManyFollowers(self._max_per_session)
        subscription = Subscription(self, tail, app=app, after=after)
        self._followers += 1
        self._join(tail, subscription)
        try:
            await self.subscribed(tail, SUBSCRIBE_TIMEOUT_S)
            await subscription.attach()
        except BaseException:
            subscription.close()
            raise
        return subscription

    def watch(self, session_id: SessionId) -> Watch:
        """What a waiting poster enters (``async with``) before it appends its message."""
        return Watch(self, session_id)

    def join(self, session_id: SessionId, listener: Listener) -> Tail:
        return self._join(self._tail(session_id), listener)

    def _join(self, tail: Tail, listener: Listener) -> Tail:
        if tail.linger is not None:
            tail.linger.cancel()
            tail.linger = None
        self._tails[tail.channel] = tail
        tail.listeners[listener] = None
        self._look_at(tail, asyncio.get_running_loop().time() + random.uniform(*self._check_s))  # noqa: S311  jitter
        return tail

    def leave(self, tail: Tail, listener: Listener) -> None:
        """Repeatable. The channel stays subscribed for a while: whoever reloads a page comes back at once."""
        if listener not in tail.listeners:
            return
        del tail.listeners[listener]
        if isinstance(listener, Subscription):
            self._followers -= 1
        if not tail.listeners:
            self._gone.set()
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

    def _tail(self, session_id: SessionId) -> Tail:
        channel = self.store.keyspace.of(session_id).live
        return self._tails.get(channel) or Tail(self, session_id, channel)

    def _drop(self, tail: Tail) -> None:
        tail.linger = None
        if not tail.listeners:
            self._tails.pop(tail.channel, None)
            tail.due_s = float("inf")
            self.subscriber.unsubscribe(tail.channel)

    # ------------------------------------------------------------ what comes in

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        tail = self._tails.get(channel)
        if tail is None or not tail.listeners:
            return
        event = events.of_payload(tail.session_id, payload)
        self._ahead_ms = event.time_ms - time.monotonic() * 1000
        tail.offer(event)

    def _on_resubscribed(self) -> None:
        """Whatever was published meanwhile is lost: compare all positions now."""
        metrics.RESUBSCRIPTIONS.inc()
        now_s = asyncio.get_running_loop().time()
        for tail in self._tails.values():
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
                    self._look_at(tail, loop.time() + random.uniform(0.3, 1))  # noqa: S311  jitter

    async def _sleep_until_due(self) -> None:
        self._earlier.clear()
        at_s = self._due[0][0] if self._due else None
        try:
            async with asyncio.timeout_at(at_s):
                await self._earlier.wait()
        except TimeoutError:
            pass

    async def _check(self, tails: list[Tail]) -> None:
        """Compare what the listeners know with the truth."""
        heard = [tail.heard for tail in tails]
        positions = await self.store.log.positions([tail.session_id for tail in tails])
        for tail, before, position in zip(tails, heard, positions, strict=True):
            listeners = tuple(tail.listeners)
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

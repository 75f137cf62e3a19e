"""One follower's view of one session: a position, a bounded queue, and the way back to the tail.

A follower is either **with the tail** (each live event is tested against its
position and queued) or **behind** (live events pass it by, until it has drained
and read the log up to the session's cursor). It starts behind, and falls behind
again whenever a test finds that something was missed: a publish (``prev`` is
past its cursor), a live-only fact (``rev`` jumps), a delta (its offset is not
the length of the text so far). So there is one way back, whatever was lost.

The reading is done in the follower's own :meth:`Subscription.next`, when its
queue is empty: a slow client reads its replay at its own pace, and no task
exists but the one that writes to the client.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, ClassVar, Final

import structlog

from sessions_api.domain.access import Grant
from sessions_api.domain.ids import SessionId
from sessions_api.domain.sessions import Session
from sessions_api.domain.turns import Draft
from sessions_api.errors import SessionNotFound, StorageError, StorageFault, Unauthenticated
from sessions_api.live import events
from sessions_api.live.closing import BUG, GOING_AWAY, GONE, OVER, RESTART, TOO_SLOW, UNAUTHENTICATED, Closing
from sessions_api.live.events import LOGGED, Event
from sessions_api.live.proof import Proof
from sessions_api.live.queue import MAX_EVENTS, Queue
from sessions_api.live.runningtext import RunningText
from sessions_api.telemetry import metrics
from sessions_api.wire.events import Gap

if TYPE_CHECKING:
    from sessions_api.live.tails import Tail, Tails
    from sessions_api.store.log import Replay

READ_AGAIN_FIRST_S: Final = 0.1
READ_AGAIN_LAST_S: Final = 2.0

log = structlog.get_logger(__name__)


class Subscription:
    """A follower; made by :meth:`Hub.follow`, read with :meth:`next`, to be closed with :meth:`close`.

    *after* is the cursor that the client has seen last, None for one that starts now.
    """

    __slots__ = (
        "_after",
        "_finished",
        "_is_behind",
        "_is_first",
        "_is_updated",
        "_queue",
        "_read_ms",
        "_recorded",
        "_rev",
        "_tail",
        "_tails",
        "_text",
        "_waiter",
        "cursor",
        "proof",
    )
    is_follower: ClassVar[bool] = True

    def __init__(self, tails: Tails, tail: Tail, *, grant: Grant, after: int | None, key_id: str) -> None:
        self.cursor = after or 0
        """The newest log entry that was queued, or that the client said it has."""
        self._tails = tails
        self._tail = tail
        self.proof = Proof(grant, self.fall_behind, key_id=key_id)
        self._after = after
        self._rev = 0
        self._read_ms = 0
        self._text = RunningText()
        self._queue = Queue()
        self._recorded: list[Event] | None = None  # live events that come while a page is being read
        self._is_behind = True
        self._is_first = True
        self._is_updated = False
        self._finished: Event | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def session_id(self) -> SessionId:
        return self._tail.session_id

    # ------------------------------------------------------------ the client's side

    async def next(self) -> Event:
        """The next event; one with *closing* set is the last, and comes again if asked for.

        May be cancelled at any time, by a timeout for a heartbeat, without losing anything.
        """
        while True:
            event = self.ready()
            if event is not None:
                return event
            if self._is_behind:
                await self._catch_up()
            else:
                await self._news()

    def ready(self) -> Event | None:
        """As :meth:`next`, if that would not have to wait."""
        return self._queue.take() or self._finished

    def close(self) -> None:
        """Leave; whoever waits in :meth:`next` gets the closing event. Repeatable."""
        self._tails.leave(self._tail, self)
        self.finish(RESTART)
        self.proof.forget()

    def show(self, grant: Grant, key_id: str = "") -> None:
        """Another proof that the client may follow, such as a fresh token: what holds from now on."""
        self.proof.renew(grant, key_id)
        self._recorded = None  # a page that is being read proves nothing of this grant: read another one
        self.fall_behind()

    async def attach(self) -> None:
        """Read the first page; the caller has subscribed.

        Raises:
            SessionNotFound: no such session, or not the grant's.
            Unauthenticated: the grant is of a token that has ended.
            StorageUnavailable: Redis cannot be asked now.
        """
        await self._read()

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ------------------------------------------------------------ the tail's side

    def offer(self, event: Event) -> None:
        """A live event, in the order of the channel."""
        if self._finished is not None:
            return
        if event.type == "session.ended":
            self._tell(event)
            self.finish(GONE, end=self.cursor)
        elif self._recorded is not None:
            if len(self._recorded) < MAX_EVENTS:
                self._recorded.append(event)
            else:  # read again, rather than keep an endless list
                self._recorded = None
        elif not self._is_behind:
            self._take(event)

    def hear_of_agent(self, event: Event) -> None:
        """Told at once, wherever the position is; who has no snapshot yet gets the state with it."""
        if self._finished is None and not self._is_first:
            self._tell(event)

    def fall_behind(self) -> None:
        """Something was missed, or may have been: read before going on."""
        if self._is_behind or self._finished is not None:
            return
        self._is_behind = True
        self._after = self.cursor
        self.wake()

    def compare(self, cursor: int, rev: int) -> None:
        """Compare with the session's true position."""
        # A running text has no position that could be compared: read whether a piece of it was lost.
        if (cursor, rev) != (self.cursor, self._rev) or self._text.message_id:
            self.fall_behind()

    def finish(self, why: Closing, *, end: int | None = None) -> None:
        """End with *why*, after what is queued; *end* as in :func:`events.closing`."""
        if self._finished is None:
            self._finished = events.closing(self.session_id, self._tail.now_ms, why, end=end)
            self._is_behind = False
            self.wake()

    def drain(self, after_ms: int) -> None:
        """Go elsewhere, after *after_ms*."""
        if self._finished is None:
            self._tell(events.reconnect(self.session_id, self._tail.now_ms, after_ms))
            self.finish(RESTART)

    def stop(self) -> None:
        self.finish(GOING_AWAY)

    def vanish(self) -> None:
        """The session is no more: deleted, or past its retention."""
        if self._finished is None:
            self._tell(events.ended(self.session_id, self._tail.now_ms))
            self.finish(GONE, end=self.cursor)

    def _tell(self, event: Event) -> None:
        """Queue *event* for the client, or cut off one that reads too slowly."""
        self._queue.put(event)
        if self._queue.is_too_full and not self._leave_out_text():
            self._queue.clear()  # what it has not read goes: its cursor leads it back to all of it
            self.finish(TOO_SLOW)
        else:
            self.wake()

    def _leave_out_text(self) -> bool:
        """Make room by the queued deltas: the draft, read again, brings all of them at once.

        An agent that says a word at a time fills the queue of a follower that
        only paused. False if that makes little room.
        """
        if not self._queue.leave_out_text():
            return False
        self._text.units = -1
        self.fall_behind()
        return True

    def _take(self, event: Event) -> None:
        """Queue *event* if it is the next one, drop it if it is known, else fall behind."""
        if event.type in LOGGED and event.cursor:
            self._take_entry(event)
        elif event.type == "turn.delta":
            self._take_delta(event)
        elif event.type == "session.expired":
            # Its last entries may have been missed, and nobody comes back after the end: look.
            self.fall_behind()
        elif not event.cursor and event.type in LOGGED:  # a delete takes the log with it
            self._tell(event)
        elif event.rev == self._rev + 1:
            self._take_fact(event)
        elif event.rev > self._rev:
            self.fall_behind()

    def _take_entry(self, event: Event) -> None:
        if event.cursor <= self.cursor:
            return
        if event.prev != self.cursor or event.rev > self._rev:
            self.fall_behind()
            return
        self._pass(event)
        self._tell(event)

    def _pass(self, event: Event) -> None:
        """Move the position to a log entry; a turn that it ends has no running text any more."""
        self.cursor = event.cursor
        if (
            event.turn_id
            and event.turn_id == self._text.turn_id
            and (event.status or event.type != "message.created")
        ):
            self._text.drop()

    def _take_delta(self, event: Event) -> None:
        text = self._text
        if event.message_id != text.message_id:
            if event.rev < self._rev or event.time_ms < self._read_ms:
                return  # of an attempt that was over when we read
            if event.time_ms == self._read_ms:
                self.fall_behind()  # or not: a millisecond later it is clear
                return
        if event.rev <= self._rev and text.goes_on_with(event):
            text.grow(event)
            self._tell(event)
        elif not text.has(event):
            self.fall_behind()

    def _take_fact(self, event: Event) -> None:
        self._rev = event.rev
        if event.type == "turn.started":
            self._text.begin(event.turn_id, event.message_id)
        elif event.type in {"turn.completed", "turn.queued"} and event.turn_id == self._text.turn_id:
            self._text.drop()
        elif event.type == "session.updated":
            self._is_updated = True
            self.fall_behind()
            return
        elif event.type == "tokens.revoked":
            if self.proof.may_be_revoked:
                self.fall_behind()  # and hear whether it was this one
            return
        self._tell(event)

    # ------------------------------------------------------------ back to the tail

    async def _catch_up(self) -> None:
        pause_s = READ_AGAIN_FIRST_S
        while self._is_behind and self._finished is None:
            try:
                await self._read()
                break
            except SessionNotFound:
                self.vanish()
            except Unauthenticated:  # its token was revoked, or has expired
                self.finish(UNAUTHENTICATED)
            except StorageFault:
                log.exception("replay_failed", session_id=self.session_id)
                self.finish(BUG)
            except StorageError:
                # Redis is away; the client keeps its connection, and hears the rest when it is back.
                try:
                    async with asyncio.timeout(pause_s * random.uniform(0.5, 1)):  # noqa: S311  jitter
                        await self._news()
                except TimeoutError:
                    pause_s = min(2 * pause_s, READ_AGAIN_LAST_S)

    async def _read(self) -> None:
        """Read one page; if it ends at the session's cursor, the follower is with the tail again."""
        page, recorded = await self._read_page()
        if page.expired is not None and not page.is_settled:
            await self._tail.settle()
            page, recorded = await self._read_page()  # with what its end wrote, whoever settled it
        if self._finished is not None:
            return
        after = self._after
        self._after_page(page)
        if page.expired is not None:
            if page.complete:
                self._tell(events.expired(self.session_id, page.expired))
                self.finish(OVER, end=page.newest)
        elif page.complete and recorded is not None:
            self._is_behind = False
            for event in recorded:
                if self._is_behind or self._finished is not None:
                    break
                self._take(event)
        elif not page.entries and self._after == after and not page.complete:
            raise StorageFault(f"a replay of {self.session_id} that neither ends nor goes on")

    async def _read_page(self) -> tuple[Replay, list[Event] | None]:
        """A page from the position on, and the live events that came meanwhile; None: more than are kept."""
        async with self._tails.reads:
            self._recorded = []
            try:
                page = await self._tails.store.log.replay(
                    self.session_id, grant=self.proof.grant, after=self._after
                )
                return page, self._recorded
            finally:
                self._recorded = None

    def _after_page(self, page: Replay) -> None:
        """Make *page* the follower's position, and what it has to tell its next events."""
        told: list[Event] = []
        session = page.session
        if session is not None:
            self._tail.learn(session)
            self._read_ms = session.now_ms
            self.proof.held_at(session.now_ms)
            if self._is_first:
                told.append(events.snapshot(session, page.draft, is_start=self._after is None))
                self._know(session, page.draft)
                availability = self._tail.availability()
                if availability is not None:
                    told.append(availability)
            elif self._is_updated:
                told.append(events.updated(session))
                self._is_updated = False
        if self._after is None:
            self.cursor = page.newest
        else:
            told += self._entries_of(page, self._after)
        if session is not None and page.complete and not self._knows(session, page.draft):
            told.append(events.snapshot(session, page.draft, is_start=False))
            self._know(session, page.draft)
        self._is_first = False
        self._after = self.cursor
        told.reverse()
        self._queue.page = told

    def _entries_of(self, page: Replay, after: int) -> list[Event]:
        """The page's entries, after a gap if they do not follow on *after*."""
        told: list[Event] = []
        prev = page.entries[0].prev if page.entries else page.newest
        if prev != after:
            gap = Gap("trimmed" if prev > after else "rewound", after, page.oldest, page.newest)
            told.append(events.gap(self.session_id, self._tail.now_ms, gap))
            self.cursor = prev
            metrics.RESUMES.of(gap.reason).inc()
        elif self._is_first:
            metrics.RESUMES.of("exact").inc()
        for entry in page.entries:
            event = events.of_entry(self.session_id, entry)
            self._pass(event)
            told.append(event)
        return told

    def _knows(self, session: Session, draft: Draft | None) -> bool:
        return session.rev == self._rev and self._text.is_known(draft)

    def _know(self, session: Session, draft: Draft | None) -> None:
        self._rev = session.rev
        self._text.know(draft)

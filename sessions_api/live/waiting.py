"""A poster that waits for its turn: for its outcome (``transport: http``), or for its text too (``sse``).

::

    async with hub.watch(session_id) as watch:  # listens before the message is appended
        appended = await store.log.append(…)
        outcome = await watch.outcome(appended.turn_id, timeout_ms=…, is_repeat=appended.is_repeat)
    if outcome.error is not None: …  # problem_of(outcome.error, turn_id=outcome.turn_id)

    async for part in watch.stream(turn_id, timeout_ms=…): …  # Chunk | Restart | Beat, an Outcome at the end

A watch reports its own turn's outcome, or that of the turn which superseded it.
It takes what is published as a hint: it reads its turn again every second, so
no single publish matters to it. What was told of the answer's text is in ``spoken.py``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, ClassVar, Final, Self

import msgspec

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import SessionId, TurnId
from sessions_api.domain.messages import LogEntry
from sessions_api.domain.turns import Turn
from sessions_api.errors import (
    AgentFailed,
    AgentTimedOut,
    Draining,
    SessionExpired,
    SessionNotFound,
    StorageError,
    TurnNotFound,
)
from sessions_api.live.events import Event
from sessions_api.live.outcomes import Beat, Chunk, Outcome, OutcomeKind, Part, Restart
from sessions_api.live.spoken import Spoken

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sessions_api.live.tails import Tail, Tails

READ_AGAIN_S: Final = 1.0
CONFIRM_S: Final = 0.5
"""How long the append waits for the subscription; without it the answer comes by reading."""
MAX_EVENTS: Final = 256
MAX_BYTES: Final = 1024 * 1024
TEXT: Final = frozenset({"turn.started", "turn.delta"})
"""The events that tell of the answer's text, and of nothing else."""


class _Failure(msgspec.Struct):
    code: str
    message: str
    attempts: int = 0


class _Cancellation(msgspec.Struct, rename="camel"):
    by: str
    superseded_by: str = ""


_failure = msgspec.json.Decoder(_Failure)
_cancellation = msgspec.json.Decoder(_Cancellation)


class Watch:
    """One waiting poster; made by :meth:`Hub.watch`."""

    is_follower: ClassVar[bool] = False

    def __init__(self, tails: Tails, session_id: SessionId) -> None:
        self._tails = tails
        self._session_id = session_id
        self._turn_id = TurnId("")
        self._with_text = True
        self._inbox: deque[Event] = deque()
        self._bytes = 0
        self._must_read = False
        self._is_stopped = False
        self._answer: LogEntry | None = None
        self._spoken = Spoken()
        self._waiter: asyncio.Future[None] | None = None
        self._tail: Tail | None = None

    async def __aenter__(self) -> Self:
        tail = self._tail = self._tails.find(self._session_id)
        self._tails.join(tail, self)
        try:
            await self._tails.subscribed(tail, CONFIRM_S)
        except StorageError:
            self._must_read = True
        except BaseException:
            self._tails.leave(tail, self)
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._tail is not None:
            self._tails.leave(self._tail, self)

    # ------------------------------------------------------------ the tail's side

    def offer(self, event: Event) -> None:
        if event.turn_id:
            if event.type == "turn.queued" or (event.type in TEXT and not self._with_text):
                return  # nothing to wake up for
            if self._turn_id and event.turn_id != self._turn_id:
                return
        elif event.type not in {"session.expired", "session.ended"}:
            return
        self._inbox.append(event)
        self._bytes += event.size
        if len(self._inbox) > MAX_EVENTS or self._bytes > MAX_BYTES:
            self._empty()
            self._must_read = True
        self._wake()

    def hear_of_agent(self, event: Event) -> None:
        """Nothing to do: the turn's outcome is all that is waited for."""

    def compare(self, cursor: int, rev: int) -> None:
        """Nothing to do: its turn is read every second."""

    def fall_behind(self) -> None:
        self._must_read = True
        self._wake()

    def vanish(self) -> None:
        self.fall_behind()

    def drain(self, after_ms: int) -> None:  # noqa: ARG002  a poster is told nothing but the error
        self._is_stopped = True
        self._wake()

    def stop(self) -> None:
        self.drain(0)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _empty(self) -> None:
        self._inbox.clear()
        self._bytes = 0

    # ------------------------------------------------------------ the poster's side

    async def outcome(self, turn_id: TurnId, *, timeout_ms: int, is_repeat: bool = False) -> Outcome:
        """Wait until the turn has ended, at most *timeout_ms*. Every end is an outcome, none an exception.

        *is_repeat*: the turn is older than this watch, so it is read at once.
        """
        self._with_text = False
        async with aclosing(self._follow(turn_id, timeout_ms, is_repeat=is_repeat)) as parts:
            async for part in parts:
                if isinstance(part, Outcome):
                    return part
        raise AssertionError(turn_id)

    async def stream(
        self, turn_id: TurnId, *, timeout_ms: int, is_repeat: bool = False, beat_s: float = float("inf")
    ) -> AsyncGenerator[Part, None]:
        """The text as it comes, at last the outcome. The chunks of one message join to its content.

        *is_repeat*: begins with the text so far. *beat_s*: yield a :class:`Beat` after so long a silence.
        """
        loop = asyncio.get_running_loop()
        said_s = loop.time()
        async with aclosing(self._follow(turn_id, timeout_ms, is_repeat=is_repeat)) as parts:
            async for part in parts:
                if isinstance(part, Beat) and loop.time() < said_s + beat_s:
                    continue
                said_s = loop.time()
                yield part

    async def _follow(
        self, turn_id: TurnId, timeout_ms: int, *, is_repeat: bool
    ) -> AsyncGenerator[Part, None]:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_ms / 1000
        self._turn_id = turn_id
        self._must_read |= is_repeat
        read_s = loop.time() + READ_AGAIN_S
        while True:
            outcome: Outcome | None = None
            while self._inbox and outcome is None:
                event = self._inbox.popleft()
                self._bytes -= event.size
                if event.turn_id and event.turn_id != self._turn_id:
                    continue
                if event.type in TEXT:
                    heard = self._spoken.hear(event) if self._with_text else []
                    self._must_read |= heard is None
                    for part in heard or ():
                        yield part
                else:
                    outcome = self._end_of(event)
            if outcome is None and (self._must_read or loop.time() >= read_s):
                self._must_read = False
                read_s = loop.time() + READ_AGAIN_S
                try:
                    outcome, parts = await self._read()
                except StorageError:
                    parts = []  # until the next look
                for part in parts:
                    yield part
                yield Beat()
            if outcome is None and not self._inbox:
                if self._is_stopped:
                    outcome = Outcome("draining", self._turn_id, error=Draining())
                elif loop.time() >= until_s:
                    outcome = Outcome(
                        "timed_out", self._turn_id, error=AgentTimedOut(self._turn_id, timeout_ms)
                    )
            if outcome is not None:
                if self._with_text and outcome.error is None:
                    for part in self._spoken.finish(self._turn_id, outcome.answer):
                        yield part
                yield outcome
                return
            await self._news(min(read_s, until_s))

    async def _news(self, until_s: float) -> None:
        if self._inbox or self._must_read or self._is_stopped:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(until_s):
                await self._waiter
        except TimeoutError:
            pass
        finally:
            self._waiter = None

    # ------------------------------------------------------------ the outcome

    def _end_of(self, event: Event) -> Outcome | None:
        """The outcome that *event* says, or None; where it says not enough, the turn is to be read."""
        match event.type:
            case "message.created" if event.status:
                self._answer = event.entry
            case "turn.completed":
                if (self._answer is not None or not event.message_id) and not self._must_restart():
                    return Outcome("completed", self._turn_id, answer=self._answer)
                self._must_read = True
            case "turn.cancelled" if event.entry is not None:
                cancelled = _cancellation.decode(event.entry.body)
                if cancelled.by == "delete":
                    return self._deleted()
                if self._answer is not None and not self._must_restart():
                    return Outcome("cancelled", self._turn_id, answer=self._answer)
                self._must_read = True
            case "turn.failed" if event.entry is not None:
                failure = _failure.decode(event.entry.body)
                if failure.code != "SESSION_EXPIRED":
                    return self._failed(failure)
                self._must_read = True
            case "session.ended":
                return self._deleted()
            case _:  # session.expired: it may have ended the turn
                self._must_read = event.type == "session.expired" or self._must_read
        return None

    def _must_restart(self) -> bool:
        """Whether the poster was told what the answer is not: the turn says of which attempt it is."""
        return self._with_text and self._spoken.is_other(self._answer)

    def _deleted(self) -> Outcome:
        return Outcome("deleted", self._turn_id, error=SessionNotFound(self._session_id))

    def _failed(self, failure: _Failure) -> Outcome:
        error = AgentFailed(self._turn_id, failure.attempts, failure.message, failure.code)
        return Outcome("failed", self._turn_id, error=error)

    async def _read(self) -> tuple[Outcome | None, list[Chunk | Restart]]:
        """What the store says of the turn; raises StorageError."""
        turns = self._tails.store.turns
        try:
            turn = await turns.read(self._session_id, self._turn_id, grant=EVERYTHING)
            while turn.superseded_by:
                self._turn_id = TurnId(turn.superseded_by)
                turn = await turns.read(self._session_id, self._turn_id, grant=EVERYTHING)
            if turn.is_open:
                return None, await self._missed(turn)
            self._spoken.attempt = turn.attempt
            return await self._outcome_of(turn), []
        except TurnNotFound:
            answer = await turns.answer(self._session_id, self._turn_id, grant=EVERYTHING)
            if answer is None:
                return Outcome("forgotten", self._turn_id), []
            kind: OutcomeKind = "cancelled" if answer.status == "cancelled" else "completed"
            return Outcome(kind, self._turn_id, answer=answer), []
        except SessionNotFound:
            return self._deleted(), []

    async def _outcome_of(self, turn: Turn) -> Outcome:
        if turn.state == "failed":
            code = turn.error.code if turn.error is not None else ""
            if code == "SESSION_EXPIRED":
                return await self._expired(turn)
            return self._failed(_Failure(code, turn.error.message if turn.error else "", turn.attempt))
        if turn.by == "delete":
            return self._deleted()
        answer = None
        if turn.answer:
            answer = await self._tails.store.turns.answer(self._session_id, turn.turn_id, grant=EVERYTHING)
        return Outcome("completed" if turn.state == "completed" else "cancelled", turn.turn_id, answer=answer)

    async def _expired(self, turn: Turn) -> Outcome:
        try:
            await self._tails.store.sessions.read(self._session_id, grant=EVERYTHING)
        except SessionExpired as error:
            return Outcome("expired", turn.turn_id, error=error)
        return self._failed(_Failure("SESSION_EXPIRED", "The session expired", turn.attempt))

    async def _missed(self, turn: Turn) -> list[Chunk | Restart]:
        """The text that was published unheard."""
        if not self._with_text or not self._spoken.misses(turn):
            return []
        page = await self._tails.store.log.replay(self._session_id, grant=EVERYTHING, after=None)
        if page.session is None or page.draft is None or page.draft.turn_id != self._turn_id:
            return []
        return self._spoken.catch_up(page.draft, page.session.now_ms)

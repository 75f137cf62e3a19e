"""A poster that waits for its turn: for its outcome (``transport: http``), or for its text too (``sse``).

::

    async with hub.watch(session_id) as watch:  # listens before the message is appended
        appended = await store.log.append(…)
        outcome = await watch.outcome(appended.turn_id, timeout_ms=…, is_repeat=appended.replayed)
    if outcome.error is not None: …  # problem_of(outcome.error, turn_id=outcome.turn_id)

    async for part in watch.stream(turn_id, timeout_ms=…): …  # Chunk | Restart | Beat, an Outcome at the end

A watch reports its own turn's outcome, or that of the turn which superseded it.
It takes what is published as a hint: it reads its turn again every second, so
no single publish matters to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Self

import msgspec

from sessions_api.domain.ids import MessageId, SessionId, TurnId
from sessions_api.domain.messages import LogEntry, utf16_units
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
from sessions_api.wire.messages import read_body

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sessions_api.live.hub import Hub
    from sessions_api.live.tail import Tail

__all__ = ["Beat", "Chunk", "Outcome", "Part", "Restart", "Watch"]

READ_AGAIN_S: Final = 1.0
CONFIRM_S: Final = 0.5
"""How long the append waits for the subscription; without it the answer comes by reading."""
MAX_EVENTS: Final = 256
MAX_BYTES: Final = 1024 * 1024


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

    def __init__(self, hub: Hub, session_id: SessionId) -> None:
        self._hub = hub
        self._session_id = session_id
        self._turn_id = TurnId("")
        self._with_text = True
        self._inbox: deque[Event] = deque()
        self._bytes = 0
        self._must_read = False
        self._is_stopped = False
        self._answer: LogEntry | None = None
        self._message_id = MessageId("")
        self._said: list[str] = []
        self._units = 0
        self._waiter: asyncio.Future[None] | None = None
        self._tail: Tail | None = None

    async def __aenter__(self) -> Self:
        """Raises Draining: nothing was appended yet, another replica takes the whole request."""
        if self._hub.is_draining:
            raise Draining
        self._tail = self._hub.join(self._session_id, self)
        try:
            await self._hub.subscribed(self._tail, CONFIRM_S)
        except StorageError:
            self._must_read = True
        except BaseException:
            self._hub.leave(self._tail, self)
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._tail is not None:
            self._hub.leave(self._tail, self)

    # ------------------------------------------------------------ the tail's side

    def offer(self, event: Event) -> None:
        if event.turn_id:
            if event.type == "turn.delta" and not self._with_text:
                return
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
                if event.type in {"turn.delta", "turn.started"}:
                    for part in self._hear(event):
                        yield part
                else:
                    outcome = await self._end_of(event)
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
                for part in self._rest_of(outcome):
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

    async def _end_of(self, event: Event) -> Outcome | None:
        """The outcome that *event* says, or None; where it says not enough, the turn is to be read."""
        match event.type:
            case "message.created" if event.status:
                self._answer = event.entry
            case "turn.completed":
                if self._answer is not None or not event.message_id:
                    return Outcome("completed", self._turn_id, answer=self._answer)
                self._must_read = True
            case "turn.cancelled" if event.entry is not None:
                cancelled = _cancellation.decode(event.entry.body)
                if cancelled.by == "delete":
                    return self._deleted()
                if self._answer is not None:
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

    def _deleted(self) -> Outcome:
        return Outcome("deleted", self._turn_id, error=SessionNotFound(self._session_id))

    def _failed(self, failure: _Failure) -> Outcome:
        error = AgentFailed(self._turn_id, failure.attempts, failure.message)
        return Outcome("failed", self._turn_id, error=error)

    async def _read(self) -> tuple[Outcome | None, list[Chunk | Restart]]:
        """What the store says of the turn; raises StorageError."""
        turns = self._hub.store.turns
        try:
            turn = await turns.read(self._session_id, self._turn_id, app=None)
            while turn.superseded_by:
                self._turn_id = TurnId(turn.superseded_by)
                turn = await turns.read(self._session_id, self._turn_id, app=None)
            if turn.is_open:
                return None, await self._missed(turn)
            return await self._outcome_of(turn), []
        except TurnNotFound:
            answer = await turns.answer(self._session_id, self._turn_id, app=None)
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
            answer = await self._hub.store.turns.answer(self._session_id, turn.turn_id, app=None)
        return Outcome("completed" if turn.state == "completed" else "cancelled", turn.turn_id, answer=answer)

    async def _expired(self, turn: Turn) -> Outcome:
        try:
            await self._hub.store.sessions.read(self._session_id, app=None)
        except SessionExpired as error:
            return Outcome("expired", turn.turn_id, error=error)
        return self._failed(_Failure("SESSION_EXPIRED", "The session expired", turn.attempt))

    # ------------------------------------------------------------ the text

    def _hear(self, event: Event) -> list[Chunk | Restart]:
        """What a live event adds to the text; where it does not follow on, the draft is to be read."""
        message_id = MessageId(event.message_id)
        if event.type == "turn.started":
            return self._begin(message_id, event.attempt)
        if message_id != self._message_id:
            if self._message_id or event.offset:
                self._must_read = True
                return []
            self._message_id = message_id
        if event.offset != self._units:
            self._must_read |= event.offset + event.units > self._units
            return []
        return self._say(event.text.decode(errors="replace"))

    def _begin(self, message_id: MessageId, attempt: int) -> list[Chunk | Restart]:
        if message_id == self._message_id:
            return []
        is_another = bool(self._message_id) or attempt > 1
        self._message_id = message_id
        self._said.clear()
        self._units = 0
        return [Restart(self._turn_id, message_id, attempt)] if is_another and self._with_text else []

    def _say(self, text: str) -> list[Chunk | Restart]:
        chunk = Chunk(self._turn_id, self._message_id, text, len(self._said), self._units)
        self._said.append(text)
        self._units += utf16_units(text)
        return [chunk]

    async def _missed(self, turn: Turn) -> list[Chunk | Restart]:
        """The text that was published unheard."""
        is_known = turn.message_id == self._message_id and turn.units <= self._units
        if not self._with_text or turn.state != "running" or is_known:
            return []
        page = await self._hub.store.log.replay(self._session_id, app=None, after=None)
        draft = page.draft
        if draft is None or draft.turn_id != self._turn_id:
            return []
        parts = self._begin(draft.message_id, draft.attempt)
        if draft.units > self._units:
            parts += self._say(_after(draft.text, self._units))
        return parts

    def _rest_of(self, outcome: Outcome) -> list[Chunk | Restart]:
        """What of the answer was not said yet, so that the chunks are the answer."""
        if not self._with_text or outcome.answer is None:
            return []
        body = read_body(outcome.answer.body)
        said = "".join(self._said)
        parts: list[Chunk | Restart] = []
        if self._message_id and body.id != self._message_id and said:
            parts += self._begin(MessageId(body.id), 0)
            said = ""
        self._message_id = MessageId(body.id)
        if body.content != said and body.content.startswith(said):
            parts += self._say(body.content[len(said) :])
        return parts


def _after(text: str, units: int) -> str:
    """*text* from UTF-16 unit *units* on."""
    if text.isascii():
        return text[units:]
    return text.encode("utf-16-le", "surrogatepass")[2 * units :].decode("utf-16-le", "replace")

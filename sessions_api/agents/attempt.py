"""One attempt at a turn: what the connector says becomes deltas, then the answer.

The first piece leaves at once, later ones at most every 30 ms; what is left when the
agent has ended goes with the answer. The lease (10 s,
30 s from the first delta or extension on) is extended while the connector is
silent. Redis away for a while loses nothing: what is unsent is kept and sent
again, at the same offset, until the attempt's deadline. A stop hint makes it ask
at once whether the turn was ended, and closes the connector if so.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final, Protocol

import structlog

from sessions_api.agents.connectors import Connector
from sessions_api.agents.connectors.failure import AttemptFailed
from sessions_api.agents.finder import Finder
from sessions_api.agents.tally import count_answer
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import SessionId
from sessions_api.domain.messages import after_utf16_units, utf16_units
from sessions_api.domain.traces import trace_fields
from sessions_api.domain.turns import Answer, ClaimedTurn
from sessions_api.errors import (
    AnswerTooLarge,
    DeltaGap,
    SessionExpired,
    SessionNotFound,
    StorageError,
    TurnLost,
    TurnNotFound,
)
from sessions_api.store import Store
from sessions_api.store.turns import MAX_ANSWER_CHARS
from sessions_api.store.written import Written
from sessions_api.telemetry import metrics
from sessions_api.telemetry.loops import cancelled
from sessions_api.telemetry.tracing import OFF, Tracing
from sessions_api.wire.messages import answer_body

COALESCE_S: Final = 0.030
TAIL_CHARS: Final = 4_096
"""So much text goes with the answer. More goes before it: a follower has to take both from one message."""
FIRST_EXTEND_S: Final = 3.0
EXTEND_S: Final = 10.0
RETRY_S: Final = 0.5
FAIL_WITHIN_S: Final = 30.0
"""A failure is told until the lease has ended: it may be final, and the agent would be asked again."""

log = structlog.get_logger(__name__)


class Write(Protocol):
    """A write that may be repeated. *was_tried*: an earlier call of it may have been done."""

    async def __call__(self, *, was_tried: bool) -> Written: ...


class Attempt:
    """Answers one claimed turn; :meth:`run` ends when the turn is off our hands."""

    def __init__(
        self,
        store: Store,
        finder: Finder,
        claimed: ClaimedTurn,
        definition: AgentDefinition,
        connector: Connector,
        tracing: Tracing = OFF,
    ) -> None:
        self._turns = store.turns
        self._finder = finder
        self._claimed = claimed
        self._definition = definition
        self._connector = connector
        self._span = tracing.turn(claimed, definition)
        if self._span.trace:
            self._claimed = claimed.within(self._span.trace)
        self._session_id = SessionId(claimed.session_id)
        self._turn_id = claimed.turn.turn_id
        self._fence = claimed.turn.fence
        self._said: list[str] = []  # everything, for the answer
        self._unsent: list[str] = []
        self._units_sent = 0
        self._ending = Answer()
        self._must_ask = False  # whether the turn is still ours: a hint said it is not
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._sign_of_life_s = self._loop.time()

    async def hand_back(self) -> None:
        """Leave the turn to another replica, its attempt uncounted."""
        self._span.event("released")
        try:
            await self._turns.release(self._session_id, self._turn_id, fence=self._fence)
        except (TurnLost, TurnNotFound, SessionNotFound, SessionExpired, StorageError) as error:
            log.info("turn_not_released", **self._ids, code=error.code)
        finally:
            self._span.end()

    async def run(self) -> None:
        """Answer; on cancellation, hand the turn back for another replica to take.

        Raises nothing but CancelledError: whatever happens is the turn's outcome.
        """
        try:
            await self._run()
        except asyncio.CancelledError:
            await self.hand_back()
            raise
        self._span.end()

    async def _run(self) -> None:
        try:
            try:
                left_s = (self._claimed.turn.deadline_ms - self._claimed.now_ms) / 1000
                with self._finder.watch(self._claimed.turn.turn_id, self._stop):
                    async with asyncio.timeout(left_s):
                        await self._answer()
            except TimeoutError:
                await self._fail(_too_long())
            except AttemptFailed as failed:
                await self._fail(failed)
        except (TurnLost, TurnNotFound, SessionNotFound, SessionExpired) as error:
            self._span.failed(error.code)
            log.info("turn_lost", **self._ids, code=error.code)
        except AnswerTooLarge:
            self._span.failed("ANSWER_TOO_LARGE")
            log.warning("turn_failed", **self._ids, code="ANSWER_TOO_LARGE")
        except Exception as error:
            self._span.failed(type(error).__name__)
            log.exception("turn_left_to_its_lease", **self._ids)
            metrics.LOOP_FAILURES.of("turn").inc()

    async def _answer(self) -> None:
        reading = asyncio.create_task(self._read(), name=f"turn {self._turn_id}")
        reading.add_done_callback(lambda _task: self._news.set())
        try:
            while not reading.done():
                if await self._send_or_extend(reading):
                    self._span.event("cancelled")
                    return
            if reading.cancelled():
                raise AttemptFailed("AGENT_ERROR", "The agent gave up")
            if (error := reading.exception()) is not None:
                raise _failure(error)
        finally:
            await cancelled(reading)
        await self._complete()

    async def _read(self) -> None:
        answer = self._connector.answer(self._claimed, self._definition)
        async with aclosing(answer) as pieces:
            async for piece in pieces:
                if isinstance(piece, Answer):
                    self._ending = piece
                    return
                self._said.append(piece)
                self._unsent.append(piece)
                self._news.set()

    async def _send_or_extend(self, reading: asyncio.Task[None]) -> bool:
        """Wait until there is something to send or the lease needs it; True if the turn was cancelled."""
        patience_s = EXTEND_S if self._units_sent else FIRST_EXTEND_S
        try:
            async with asyncio.timeout_at(self._sign_of_life_s + patience_s):
                await self._news.wait()
        except TimeoutError:
            return (await self._persist(self._extend)).is_cancelled
        self._news.clear()
        if self._must_ask:
            self._must_ask = False
            if (await self._persist(self._extend)).is_cancelled:
                return True
        if any(self._unsent) and self._units_sent and not reading.done():
            left_s = self._sign_of_life_s + COALESCE_S - self._loop.time()
            await asyncio.wait([reading], timeout=max(0.0, left_s))
        if reading.done():
            return False  # what is left goes with the answer
        return await self._delta()

    async def _extend(self, *, was_tried: bool) -> Written:  # noqa: ARG002  it counts nothing
        try:
            written = await self._turns.extend(self._session_id, self._turn_id, fence=self._fence)
        except TurnLost as lost:
            if lost.why == "late":  # Redis's clock was first
                raise _too_long() from None
            raise
        self._sign_of_life_s = self._loop.time()
        return written

    async def _delta(self) -> bool:
        """Send all that is unsent; True if the turn was cancelled.

        Where a failover has lost what had arrived, that is sent once more.
        """
        while True:
            try:
                return await self._send()
            except DeltaGap as gap:
                self._rewind(gap)

    def _rewind(self, gap: DeltaGap) -> None:
        log.warning("draft_rewound", **self._ids, sent=self._units_sent, expected=gap.expected)
        self._unsent = [after_utf16_units("".join(self._said), gap.expected)]
        self._units_sent = gap.expected

    async def _send(self) -> bool:
        """A repeat must send the same text again, so it is joined first."""
        text = self._unsent[0] if len(self._unsent) == 1 else "".join(self._unsent)
        count = len(self._unsent)
        if not text:
            return False

        async def send(*, was_tried: bool) -> Written:
            return await self._turns.delta(
                self._session_id,
                self._turn_id,
                fence=self._fence,
                text=text,
                offset=self._units_sent,
                was_tried=was_tried,
            )

        written = await self._persist(send)
        if not self._units_sent:
            self._span.event("first_delta")
        del self._unsent[:count]
        self._units_sent += utf16_units(text)
        self._sign_of_life_s = self._loop.time()
        return written.is_cancelled

    async def _complete(self) -> None:
        """Where what was streamed is the answer, with its tail, so that nothing is missing in it."""
        said, ending = "".join(self._said), self._ending
        content = said if ending.content is None else ending.content
        if utf16_units(content) > MAX_ANSWER_CHARS:
            message = f"The answer exceeds {MAX_ANSWER_CHARS} characters"
            raise AttemptFailed("ANSWER_TOO_LARGE", message, retry=False)
        if content == said and sum(map(len, self._unsent)) > TAIL_CHARS and await self._delta():
            self._span.event("cancelled")
            return
        body = answer_body(content, ending)

        async def complete(*, was_tried: bool) -> Written:
            return await self._turns.complete(
                self._session_id,
                self._turn_id,
                fence=self._fence,
                body=body,
                last="".join(self._unsent) if content == said else "",
                offset=self._units_sent,
                was_tried=was_tried,
            )

        written: Written | None = None
        while written is None:
            try:
                written = await self._persist(complete)
            except DeltaGap as gap:
                self._rewind(gap)
        if content and content == said and not self._units_sent and not written.is_cancelled:
            self._span.event("first_delta")
        self._span.event("cancelled" if written.is_cancelled else "completed")
        if written.is_end:
            self._span.used(count_answer(metrics.agent(self._definition.agent_id), ending))

    async def _fail(self, failed: AttemptFailed) -> None:
        self._span.failed(failed.code)
        log.warning("turn_attempt_failed", **self._ids, code=failed.code, attempt=self._claimed.turn.attempt)

        async def fail(*, was_tried: bool) -> Written:  # noqa: ARG001  an end is counted by the script
            return await self._turns.fail(
                self._session_id,
                self._turn_id,
                fence=self._fence,
                code=failed.code,
                message=failed.message,
                retry=failed.retry,
                pause_ms=round(failed.pause_s * 1000),
            )

        try:
            async with asyncio.timeout(FAIL_WITHIN_S):
                await self._persist(fail)
        except TimeoutError:
            log.warning("turn_left_to_its_lease", **self._ids, code="STORAGE_UNAVAILABLE")

    def _stop(self) -> None:
        self._must_ask = True
        self._news.set()

    async def _persist(self, write: Write) -> Written:
        """Repeat a write while Redis is away or full, until the caller's deadline."""
        was_tried = False
        while True:
            try:
                return await write(was_tried=was_tried)
            except StorageError as error:
                if not was_tried:  # one line for an outage, and not one for each try of each turn
                    log.warning("turn_write_repeated", **self._ids, code=error.code)
                was_tried = True
                await asyncio.sleep(RETRY_S)

    @property
    def _ids(self) -> dict[str, str]:
        return {
            "session_id": self._session_id,
            "turn_id": self._turn_id,
            "agent_id": self._definition.agent_id,
            **trace_fields(self._claimed.trace),
        }


def _too_long() -> AttemptFailed:
    return AttemptFailed("AGENT_TIMEOUT", "The agent took too long")


def _failure(error: BaseException) -> AttemptFailed:
    """*error* as the user may see it: what an unforeseen one says might hold content, or a secret."""
    if isinstance(error, AttemptFailed):
        return error
    failed = AttemptFailed("AGENT_ERROR", f"The agent failed with {type(error).__name__}")
    failed.__cause__ = error
    return failed

"""One attempt at a turn: what the connector says becomes deltas, then the answer.

The first piece leaves at once, later ones at most every 30 ms. The lease (10 s,
30 s from the first delta or extension on) is extended while the connector is
silent. Redis away for a while loses nothing: what is unsent is kept and sent
again, at the same offset, until the attempt's deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final, Literal

import structlog

from sessions_api.agents.connectors import Connector
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import SessionId
from sessions_api.domain.messages import utf16_units
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.errors import AnswerTooLarge, SessionExpired, SessionNotFound, StorageError, TurnLost
from sessions_api.store import Store
from sessions_api.telemetry import metrics
from sessions_api.telemetry.loops import cancelled
from sessions_api.wire.messages import agent_body

Outcome = Literal["completed", "cancelled", "failed", "lost", "released"]

COALESCE_S: Final = 0.030
FIRST_EXTEND_S: Final = 3.0
EXTEND_S: Final = 10.0
RETRY_S: Final = 0.5

log = structlog.get_logger(__name__)


class Attempt:
    """Answers one claimed turn; :meth:`run` ends when the turn is off our hands."""

    def __init__(
        self, store: Store, claimed: ClaimedTurn, definition: AgentDefinition, connector: Connector
    ) -> None:
        self._turns = store.turns
        self._claimed = claimed
        self._definition = definition
        self._connector = connector
        self._session_id = SessionId(claimed.session_id)
        self._turn_id = claimed.turn.turn_id
        self._fence = claimed.turn.fence
        self._said: list[str] = []  # everything, for the answer
        self._unsent: list[str] = []
        self._units_sent = 0
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        self._sign_of_life_s = self._started_s
        self._agent = metrics.agent(definition.agent_id)

    async def hand_back(self) -> None:
        """Leave the turn to another replica, its attempt uncounted."""
        try:
            await self._turns.release(self._session_id, self._turn_id, fence=self._fence)
        except (TurnLost, SessionNotFound, SessionExpired, StorageError) as error:
            log.info("turn_not_released", **self._ids, code=error.code)
        self._count("released")

    async def run(self) -> None:
        """Answer; on cancellation, hand the turn back for another replica to take.

        Raises nothing but CancelledError: whatever happens is the turn's outcome.
        """
        try:
            outcome = await self._outcome()
        except asyncio.CancelledError:
            await self.hand_back()
            raise
        self._count(outcome)

    async def _outcome(self) -> Outcome:
        try:
            try:
                left_s = (self._claimed.turn.deadline_ms - self._claimed.now_ms) / 1000
                async with asyncio.timeout(left_s):
                    return await self._answer()
            except TimeoutError:
                return await self._fail("AGENT_TIMEOUT", "The agent took too long")
            except _Broken as broken:
                return await self._fail("AGENT_ERROR", str(broken))
        except (TurnLost, SessionNotFound, SessionExpired) as error:
            log.info("turn_lost", **self._ids, code=error.code)
            return "lost"
        except AnswerTooLarge:
            log.warning("turn_failed", **self._ids, code="ANSWER_TOO_LARGE")
            return "failed"
        except StorageError as error:
            log.warning("turn_left_to_its_lease", **self._ids, code=error.code)
            return "lost"
        except Exception:
            log.exception("turn_left_to_its_lease", **self._ids)
            metrics.LOOP_FAILURES.of("turn").inc()
            return "lost"

    async def _answer(self) -> Outcome:
        reading = asyncio.create_task(self._read(), name=f"turn {self._turn_id}")
        reading.add_done_callback(lambda _task: self._news.set())
        try:
            while not reading.done():
                if await self._send_or_extend(reading):
                    return "cancelled"
            if reading.cancelled():
                raise _Broken("The agent gave up")
            if (error := reading.exception()) is not None:
                raise _Broken(_what(error)) from error
        finally:
            await cancelled(reading)
        return "cancelled" if await self._complete() else "completed"

    async def _read(self) -> None:
        answer = self._connector.answer(self._claimed, self._definition)
        async with aclosing(answer) as pieces:
            async for piece in pieces:
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
            return await self._persist(self._extend)
        self._news.clear()
        if not any(self._unsent):
            return False
        if self._units_sent:
            left_s = self._sign_of_life_s + COALESCE_S - self._loop.time()
            await asyncio.wait([reading], timeout=max(0.0, left_s))
        return await self._delta()

    async def _extend(self) -> bool:
        is_cancelled = await self._turns.extend(self._session_id, self._turn_id, fence=self._fence)
        self._sign_of_life_s = self._loop.time()
        return is_cancelled

    async def _delta(self) -> bool:
        """Send all that is unsent. A repeat must send the same text again, so it is joined first."""
        text = self._unsent[0] if len(self._unsent) == 1 else "".join(self._unsent)
        count = len(self._unsent)
        if not text:
            return False

        async def send() -> bool:
            return await self._turns.delta(
                self._session_id, self._turn_id, fence=self._fence, text=text, offset=self._units_sent
            )

        is_cancelled = await self._persist(send)
        if not self._units_sent:
            metrics.FIRST_DELTA_SECONDS.of(self._agent).observe(self._loop.time() - self._started_s)
        del self._unsent[:count]
        self._units_sent += utf16_units(text)
        self._sign_of_life_s = self._loop.time()
        return is_cancelled

    async def _complete(self) -> bool:
        """The tail first, so that what was streamed is the whole answer."""
        if any(self._unsent) and await self._delta():
            return True
        content = "".join(self._said)
        message_id = self._claimed.turn.message_id
        body = agent_body(message_id, content, self._claimed.agent_id) if content else None

        async def complete() -> bool:
            return await self._turns.complete(self._session_id, self._turn_id, fence=self._fence, body=body)

        return await self._persist(complete)

    async def _fail(self, code: str, message: str) -> Outcome:
        log.warning("turn_attempt_failed", **self._ids, code=code, attempt=self._claimed.turn.attempt)

        async def fail() -> bool:
            return await self._turns.fail(
                self._session_id, self._turn_id, fence=self._fence, code=code, message=message, retry=True
            )

        return "cancelled" if await fail() else "failed"

    async def _persist(self, write: Callable[[], Awaitable[bool]]) -> bool:
        """Repeat a write while Redis is away or full; the attempt's deadline ends it."""
        while True:
            try:
                return await write()
            except StorageError as error:
                log.warning("turn_write_repeated", **self._ids, code=error.code)
                await asyncio.sleep(RETRY_S)

    @property
    def _ids(self) -> dict[str, str]:
        return {
            "session_id": self._session_id,
            "turn_id": self._turn_id,
            "agent_id": self._definition.agent_id,
        }

    def _count(self, outcome: Outcome) -> None:
        metrics.TURNS.of(self._agent, outcome).inc()
        metrics.TURN_SECONDS.of(self._agent).observe(self._loop.time() - self._started_s)


class _Broken(Exception):
    """The connector raised; the message is fit for the log and the caller: it holds no content."""


def _what(error: BaseException) -> str:
    return f"The agent failed with {type(error).__name__}"

"""What workers write to the turns in their hands: each is one store call, over whichever replica.

Its reply says whose turn it is, so that a write is a sign of life of its worker
on every replica, and what an answer says of itself is counted once.
"""

from __future__ import annotations

import asyncio

from sessions_api.agents.desk import Desk
from sessions_api.agents.presences import Presences
from sessions_api.agents.tally import count_answer
from sessions_api.domain.access import Grant
from sessions_api.domain.ids import SessionId, TurnId
from sessions_api.domain.messages import utf16_units
from sessions_api.domain.turns import Answer
from sessions_api.errors import AnswerTooLarge
from sessions_api.store import Store
from sessions_api.store.turns import MAX_ANSWER_CHARS
from sessions_api.store.written import Written
from sessions_api.telemetry import metrics
from sessions_api.wire.messages import answer_around, answer_body


class Work:
    """A worker's writes; each returns True if the turn was cancelled, and nothing was written then.

    *grant*: whose sessions the worker may write to; the fence proves the attempt.
    """

    def __init__(self, store: Store, desk: Desk, presences: Presences) -> None:
        self._turns = store.turns
        self._desk = desk
        self._presences = presences

    async def delta(
        self, session_id: SessionId, turn_id: TurnId, *, grant: Grant, fence: str, text: str, offset: int
    ) -> bool:
        """Append *text* at *offset*, in UTF-16 units.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound, TurnLost, DeltaGap
            AnswerTooLarge: the turn has failed for good.
        """
        written = await self._turns.delta(
            session_id, turn_id, grant=grant, fence=fence, text=text, offset=offset
        )
        return self._seen(written)

    async def extend(
        self, session_id: SessionId, turn_id: TurnId, *, grant: Grant, fence: str, wait_s: float = 0
    ) -> bool:
        """Hold the turn for another lease; with *wait_s* stay, to be told when somebody ends it.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound, TurnLost
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        written = await self._turns.extend(session_id, turn_id, grant=grant, fence=fence)
        if self._seen(written) or not wait_s:
            return written.is_cancelled
        try:
            async with (
                asyncio.timeout_at(began_s + wait_s),
                self._desk.watch(written.agent_id, turn_id) as watched,
            ):
                if watched.heard_s > began_s:  # it may have been ended before hints were heard
                    written = await self._turns.extend(session_id, turn_id, grant=grant, fence=fence)
                    if written.is_cancelled:
                        return True
                await watched.stop.wait()
        except TimeoutError:
            return False
        return self._seen(await self._turns.extend(session_id, turn_id, grant=grant, fence=fence))

    async def complete(
        self, session_id: SessionId, turn_id: TurnId, *, grant: Grant, fence: str, answer: Answer
    ) -> bool:
        """End the turn with *answer*.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound, TurnLost
            AnswerTooLarge: the turn has failed for good.
        """
        if answer.content is None:
            written = await self._turns.complete(
                session_id,
                turn_id,
                grant=grant,
                fence=fence,
                around=answer_around(answer),
                is_more=answer.is_more,
            )
        elif utf16_units(answer.content) <= MAX_ANSWER_CHARS:
            written = await self._turns.complete(
                session_id, turn_id, grant=grant, fence=fence, body=answer_body(answer.content, answer)
            )
        else:
            return await self._fail_too_large(session_id, turn_id, grant, fence)
        if written.is_end:
            count_answer(metrics.agent(written.agent_id), answer)
        return self._seen(written)

    async def _fail_too_large(self, session_id: SessionId, turn_id: TurnId, grant: Grant, fence: str) -> bool:
        is_cancelled = await self.fail(
            session_id,
            turn_id,
            grant=grant,
            fence=fence,
            code="ANSWER_TOO_LARGE",
            message=f"The answer exceeds {MAX_ANSWER_CHARS} characters",
            retry=False,
            pause_ms=0,
        )
        if is_cancelled:
            return True
        raise AnswerTooLarge(turn_id, MAX_ANSWER_CHARS)

    async def fail(
        self,
        session_id: SessionId,
        turn_id: TurnId,
        *,
        grant: Grant,
        fence: str,
        code: str,
        message: str,
        retry: bool,
        pause_ms: int,
    ) -> bool:
        """Give the attempt up; another follows with *retry*, if any is left.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound, TurnLost
        """
        written = await self._turns.fail(
            session_id,
            turn_id,
            grant=grant,
            fence=fence,
            code=code,
            message=message,
            retry=retry,
            pause_ms=pause_ms,
        )
        return self._seen(written)

    async def release(self, session_id: SessionId, turn_id: TurnId, *, grant: Grant, fence: str) -> bool:
        """Hand the turn back at once; the attempt does not count.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound, TurnLost
        """
        return self._seen(await self._turns.release(session_id, turn_id, grant=grant, fence=fence))

    def _seen(self, written: Written) -> bool:
        """Whether the turn was cancelled; its worker lives."""
        if written.worker:
            self._presences.works(written.agent_id, written.worker)
        return written.is_cancelled

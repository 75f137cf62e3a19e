"""One turn in one worker: the handler at work, its text on the way out, the lease held meanwhile.

Whatever ends the turn elsewhere (a cancel from any device, another worker after
a lapsed lease, the session's end) is told by the reply to any of the writes; the
long-polling extend is there so that a handler that says nothing learns of it too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, Final, Literal

from sessions_api.sdk.draft import Draft, well_formed
from sessions_api.sdk.link import Away, Link, Refused, turn_path
from sessions_api.sdk.logs import say
from sessions_api.sdk.spans import span_of
from sessions_api.sdk.turn import Answer, Turn, TurnFailed

Handler = Callable[[Turn], AsyncIterable[str] | Awaitable[str | Answer | None]]
Outcome = Literal["completed", "failed", "cancelled", "lost", "released"]

PACE_S: Final = 0.03
"""Between two deltas; the first leaves at once."""
DELTA_UNITS: Final = 50_000
CLAIM_LEASE_S: Final = 10.0
"""A claim's; each write makes it 30 s from then."""
EXTEND_WAIT_S: Final = 10.0
"""An extend's longest wait: two may get lost before the lease lapses."""
EXTEND_PACE_S: Final = 0.5
"""Before the first extend, and between two that a service which is about to stop answers early."""
RELEASE_S: Final = 5.0
PATIENCE_S: Final = 5.0
"""After which a handler that goes on although it was cancelled is named in the log."""


class _Over(Exception):
    """The turn is no longer this worker's."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Attempt:
    """Runs the handler on a claimed turn, to one outcome."""

    def __init__(self, link: Link, handler: Handler, claimed: Mapping[str, Any]) -> None:
        self.turn = Turn(claimed)
        self._link = link
        self._handler = handler
        self._path = turn_path(self.turn.session.id, self.turn.id)
        self._fence: str = claimed["fence"]
        loop = asyncio.get_running_loop()
        self._began_s = loop.time()
        self._deadline_s = self._began_s + _time_left_s(claimed)
        self._draft = Draft()
        self._over: asyncio.Future[Outcome] = loop.create_future()
        self._ids: dict[str, Any] = {
            "turn": self.turn.id,
            "session": self.turn.session.id,
            "attempt": self.turn.attempt,
        }

    def release(self) -> None:
        """Stop the handler and hand the turn back; the attempt does not count."""
        self._stop("released")

    async def run(self) -> Outcome:
        """Work until the turn has its outcome; raises nothing."""
        sending = asyncio.create_task(self._watched(self._send()))
        extending = asyncio.create_task(self._watched(self._extend()))
        working = asyncio.create_task(self._work(sending, extending))
        tasks = {working, sending, extending}
        try:
            left_s = self._deadline_s - self._began_s
            await asyncio.wait({working, self._over}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            self._stop("lost")  # by its deadline, if by nothing else
            if working.done():
                outcome = working.result()
            else:
                outcome = self._over.result()
                await self._interrupt(working, outcome)
        finally:
            self._stop("released")  # cancelled itself: a handler that ends by that has not failed
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        level = logging.INFO if outcome in {"completed", "cancelled"} else logging.WARNING
        seconds = round(asyncio.get_running_loop().time() - self._began_s, 3)
        say(level, f"turn_{outcome}", **self._ids, seconds=seconds)
        return outcome

    async def _interrupt(self, working: asyncio.Task[Outcome], outcome: Outcome) -> None:
        working.cancel()
        if outcome == "released":
            await self._hand_back()
        elif outcome == "failed":
            await self._fail("AGENT_ERROR", "The agent's answer was refused.", retry=False)
        await asyncio.wait({working}, timeout=PATIENCE_S)
        if not working.done():
            say(logging.WARNING, "handler_goes_on_although_cancelled", **self._ids)
            await asyncio.wait({working})

    def _stop(self, outcome: Outcome) -> None:
        if not self._over.done():
            self._over.set_result(outcome)

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        """*work*, which tells the whole attempt when the turn is over."""
        try:
            await work
        except _Over as over:
            self._stop(over.outcome)
        except Refused as refused:
            say(logging.ERROR, "write_refused", **self._ids, reason=refused)
            self._stop("failed")

    # ------------------------------------------------------------ the handler

    async def _work(self, sending: asyncio.Task[None], extending: asyncio.Task[None]) -> Outcome:
        try:
            with span_of(self.turn):
                answer = await self._handle()
            self._draft.close()
            await sending
            if self._over.done():
                return self._over.result()
            extending.cancel()  # behind the completion it would be told that the turn is lost
            return await self._complete(answer)
        except _Over as over:
            return over.outcome
        except BaseException as error:
            if not isinstance(error, Exception | asyncio.CancelledError):
                raise
            if self._over.done():
                if isinstance(error, Exception):
                    say(logging.WARNING, "handler_failed_when_stopped", exc_info=error, **self._ids)
                return self._over.result()
            sending.cancel()
            extending.cancel()
            return await self._explain(error)

    async def _handle(self) -> Answer | None:
        """The handler's answer; None if it has streamed it."""
        given = self._handler(self.turn)
        if isinstance(given, AsyncIterable):
            async with AsyncExitStack() as stack:
                if (close := getattr(given, "aclose", None)) is not None:
                    stack.push_async_callback(close)
                async for piece in given:
                    if not isinstance(piece, str):
                        raise TypeError(f"the handler yielded {type(piece).__name__}; it yields text")
                    await self._draft.add(piece)
            return None
        if not isinstance(given, Awaitable):
            raise TypeError("the handler is no `async def`")
        answer = await given
        if answer is None:
            return Answer()
        if isinstance(answer, str):
            return Answer(answer)
        if not isinstance(answer, Answer):
            raise TypeError(f"the handler returned {type(answer).__name__}; it returns text or an Answer")
        return answer

    async def _complete(self, answer: Answer | None) -> Outcome:
        body = self.turn.ending(answer)
        if answer is not None:
            body["content"] = well_formed(answer.content)
        await self._write("complete", body)
        return "completed"

    async def _explain(self, error: BaseException) -> Outcome:
        """Tell the service why there is no answer; what was raised may quote the user and stays here."""
        match error:
            case TurnFailed():
                say(logging.WARNING, "handler_gave_up", **self._ids, code=error.code)
                return await self._fail(
                    error.code, error.message, retry=error.retry, retry_after_s=error.retry_after_s
                )
            case Refused():
                say(logging.ERROR, "answer_refused", **self._ids, reason=error)
                return await self._fail("AGENT_ERROR", "The agent's answer was refused.", retry=False)
            case _:
                say(logging.ERROR, "handler_failed", exc_info=error, **self._ids)
                message = f"The agent failed: {type(error).__name__}."
                return await self._fail("AGENT_ERROR", message, retry=True)

    # ------------------------------------------------------------ the writes

    async def _send(self) -> None:
        """Send what the handler says, until it has said all."""
        loop = asyncio.get_running_loop()
        while await self._draft.has_more():
            began_s = loop.time()
            piece = self._draft.peek(DELTA_UNITS)
            try:
                await self._write("delta", {"text": piece, "offset": self._draft.offset})
                self._draft.arrived(piece)
            except Refused as refused:
                expected = refused.details.get("expected")  # a failover may have lost what had arrived
                if refused.code != "DELTA_GAP" or not self._draft.rewind(expected):
                    raise
            await self._draft.closed_within(PACE_S - (loop.time() - began_s))

    async def _extend(self) -> None:
        """Hold the lease, and learn within a moment that the turn is over; most are before the first."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(EXTEND_PACE_S)
        while True:
            began_s = loop.time()
            await self._write("extend", {}, wait_s=EXTEND_WAIT_S)
            await asyncio.sleep(max(0.0, EXTEND_PACE_S - (loop.time() - began_s)))

    async def _fail(self, code: str, message: str, *, retry: bool, retry_after_s: float = 0.0) -> Outcome:
        body: dict[str, Any] = {"code": code, "message": message[:1000], "retry": retry}
        if retry_after_s > 0:
            body["retryAfterMs"] = round(retry_after_s * 1000)
        try:
            await self._write("fail", body)
        except _Over as over:
            return over.outcome
        except Refused as refused:
            say(logging.ERROR, "failure_refused", **self._ids, reason=refused)
            if code != "AGENT_ERROR":
                return await self._fail("AGENT_ERROR", "The agent failed.", retry=retry)
        return "failed"

    async def _hand_back(self) -> None:
        until_s = min(self._deadline_s, asyncio.get_running_loop().time() + RELEASE_S)
        try:
            await self._link.write(f"{self._path}/release", {"fence": self._fence}, until_s=until_s)
        except (Away, Refused) as error:  # its lease ends by itself
            say(logging.WARNING, "turn_left_to_its_lease", **self._ids, reason=error)

    async def _write(self, kind: str, body: Mapping[str, Any], *, wait_s: float | None = None) -> None:
        """One write, repeated until it has arrived.

        Raises:
            _Over: the turn is no longer ours, or its deadline has come.
            Refused: what was written is not allowed, or leaves a hole.
        """
        whole = {"fence": self._fence, **body}
        path = f"{self._path}/{kind}"
        try:
            reply = await self._link.write(path, whole, until_s=self._deadline_s, wait_s=wait_s)
        except Away as error:
            raise _Over("lost") from error
        except Refused as refused:
            if refused.code in {"TURN_LOST", "ANSWER_TOO_LARGE"} or refused.status in {404, 410}:
                say(logging.WARNING, "turn_taken", **self._ids, code=refused.code)
                raise _Over("lost") from refused
            raise
        if reply.get("cancelled"):
            raise _Over("cancelled")


def _time_left_s(claimed: Mapping[str, Any]) -> float:
    """From the claim to the turn's deadline, without this machine's clock: the lease began with the claim."""
    until = datetime.fromisoformat(claimed["deadline"]) - datetime.fromisoformat(claimed["leaseUntil"])
    return until.total_seconds() + CLAIM_LEASE_S

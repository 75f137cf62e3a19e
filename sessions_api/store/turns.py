"""Turns: claimed, answered bit by bit, completed, failed, cancelled.

A worker's write names its turn and its fence. It finds its own turn open (done),
its own earlier success (the same again), the turn cancelled (told, nothing is
written), another attempt or the end of its own (:class:`TurnLost`), or no such turn.
What it replies and counts is in ``written.py``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from sessions_api.domain.access import EVERYTHING, Grant
from sessions_api.domain.ids import AgentId, MessageId, SessionId, TurnId
from sessions_api.domain.messages import utf16_units
from sessions_api.domain.turns import ClaimedTurn, Turn
from sessions_api.errors import (
    AnswerTooLarge,
    DeltaGap,
    SessionExpired,
    SessionNotFound,
    TurnLost,
    TurnNotFound,
)
from sessions_api.store.loader import load
from sessions_api.store.pages import Messages, read_messages
from sessions_api.store.records import entry_of, turn_of
from sessions_api.store.scripts import unknown
from sessions_api.store.state import read_state, session_of
from sessions_api.store.written import Written, count_became, count_lost, read_written

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sessions_api.domain.messages import LogEntry
    from sessions_api.store.connection import Script
    from sessions_api.store.lines import Arg
    from sessions_api.store.ready import Ready
    from sessions_api.store.scripts import Scripts
    from sessions_api.store.written import Outcome

CLAIM = load("claim")
DELTA = load("delta")
EXTEND = load("extend")
COMPLETE = load("complete")
FAIL = load("fail")
CANCEL = load("cancel")
ABANDON = load("abandon")
TURN = load("turn")
ANSWER = load("answer")

MAX_ANSWER_CHARS = 100_000
HISTORY_BYTES = 256 * 1024
NOTHING_SAID = Messages([], has_more=False)
FEW = 8


class Claim(msgspec.Struct, frozen=True):
    """*turn* is None if there was none to take; *next*: another session of the agent with work."""

    turn: ClaimedTurn | None
    next: SessionId | None


class Turns:
    """The work of agents; each method is one script and one round trip, where it does not say otherwise."""

    def __init__(self, scripts: Scripts, ready: Ready) -> None:
        self._scripts = scripts
        self._ready = ready

    async def read(self, session_id: SessionId, turn_id: TurnId, *, grant: Grant) -> Turn:
        """The turn, also of an expired session.

        Raises:
            SessionNotFound, TurnNotFound
        """
        match await self._scripts.look(TURN, session_id, grant, turn_id):
            case [b"ok", _, _, record]:
                return turn_of(record)
            case [b"unknown", *_]:
                raise TurnNotFound(turn_id)
            case reply:
                raise unknown(TURN, reply)

    async def answer(
        self, session_id: SessionId, turn_id: TurnId, *, grant: Grant, after: int = 0
    ) -> LogEntry | None:
        """The message that answers a turn, None if there is none; *after*: its question's cursor.

        Raises:
            SessionNotFound
        """
        match await self._scripts.look(ANSWER, session_id, grant, turn_id, after):
            case [b"ok", _, entry]:
                return entry_of(entry)
            case [b"none", _]:
                return None
            case reply:
                raise unknown(ANSWER, reply)

    async def claim(
        self,
        session_id: SessionId,
        *,
        agent_id: AgentId,
        worker: str,
        fence_bits: str,
        message_id: MessageId,
        turn_ms: int,
        max_attempts: int,
        history: int = 50,
    ) -> Claim:
        """Take the session's oldest queued turn; *fence_bits* are 64 random bits, drawn per claim.

        *history*: how many messages from before it come along. Where there are any
        they are a second round trip, and not part of the first: most claims of a
        service with several replicas find the turn taken, and would read for nothing.
        """
        of = self._scripts.keyspace.of(session_id)
        reply = await self._scripts.redis.script(
            CLAIM,
            of.all(),
            (of.sid, b"", worker, fence_bits, message_id, turn_ms, max_attempts, agent_id),
        )
        match self._scripts.checked(CLAIM, session_id, reply):
            case [b"claimed", _, now, following, was_lapsed, record, asked, fields]:
                session = session_of(session_id, now, fields)
                if was_lapsed:
                    count_lost(agent_id)
                messages = [entry_of(entry) for entry in asked]
                past = NOTHING_SAID
                if history and messages[0].prev:
                    past = await self._past(of.log, messages[0].cursor, history, fields)
                turn = ClaimedTurn(
                    session_id=session_id,
                    agent_id=session.agent_id,
                    user_id=session.user_id,
                    metadata=session.metadata,
                    turn=turn_of(record),
                    messages=messages,
                    history=past.entries[::-1],
                    more=past.has_more,
                    now_ms=int(now),
                )
                return Claim(turn, _session_id(following))
            case [b"taken", _, following]:
                return Claim(None, _session_id(following))
            case _:
                raise unknown(CLAIM, reply)

    def _past(self, log: bytes, before: int, history: int, fields: list[bytes]) -> Awaitable[Messages]:
        is_small = read_state(fields[0]).log_bytes <= 4 * HISTORY_BYTES
        return read_messages(
            self._scripts.redis,
            log,
            limit=history,
            high=b"(%d-0" % before,
            max_bytes=HISTORY_BYTES,
            page_entries=None if is_small else FEW,  # of what may be megabytes, most would not be kept
        )

    async def delta(
        self,
        session_id: SessionId,
        turn_id: TurnId,
        *,
        fence: str,
        text: str,
        offset: int,
        was_tried: bool = False,
        grant: Grant = EVERYTHING,
    ) -> Written:
        """Append *text* at *offset* (UTF-16 units) of the running answer.

        *was_tried*: an earlier call of the same may have done it, and nobody counted it.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound, TurnLost
            DeltaGap: *offset* leaves a hole.
            AnswerTooLarge: the turn has failed for good.
        """
        units = utf16_units(text)
        return await self._write(
            DELTA,
            session_id,
            turn_id,
            (fence, text, units, offset, MAX_ANSWER_CHARS),
            grant,
            is_first_text=offset == 0 and units > 0,
            was_tried=was_tried,
        )

    async def extend(
        self, session_id: SessionId, turn_id: TurnId, *, fence: str, grant: Grant = EVERYTHING
    ) -> Written:
        """Hold the turn for another lease.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound
            TurnLost: also past the attempt's deadline.
        """
        return await self._write(EXTEND, session_id, turn_id, (fence,), grant)

    async def complete(
        self,
        session_id: SessionId,
        turn_id: TurnId,
        *,
        fence: str,
        body: bytes | None = None,
        around: tuple[bytes, bytes] | None = None,
        is_more: bool = False,
        last: str = "",
        offset: int = 0,
        was_tried: bool = False,
        grant: Grant = EVERYTHING,
    ) -> Written:
        """The answer (None: empty) enters the log and ends the turn.

        Its JSON comes without ``id`` and ``authorId``, which the script puts in
        front. With *around* the content is what was streamed: it stands between the
        two as a JSON string. Where that is nothing the answer is empty, and is
        stored only if there *is more* to it.

        *last*: what of the answer in *body* was not streamed yet, from *offset* (UTF-16
        units) on. Followers hear it as they would by :meth:`delta`, which it saves.
        *was_tried*: as there.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound, TurnLost
            DeltaGap: *offset* is not where the streamed text ends; nothing was written.
        """
        before, after = around or (body or b"", b"")
        units = utf16_units(last)
        return await self._write(
            COMPLETE,
            session_id,
            turn_id,
            (fence, before, after, int(is_more), last, units, offset),
            grant,
            "completed",
            is_first_text=offset == 0 and units > 0,
            was_tried=was_tried,
        )

    async def fail(
        self,
        session_id: SessionId,
        turn_id: TurnId,
        *,
        fence: str,
        code: str,
        message: str,
        retry: bool,
        pause_ms: int = 0,
        grant: Grant = EVERYTHING,
    ) -> Written:
        """Give the attempt up: with *retry* another one follows, if any is left.

        It follows after the backoff or *pause_ms*, whichever is longer, a minute at most.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound, TurnLost
        """
        args = (fence, "retry" if retry else "final", code, message, pause_ms)
        return await self._write(FAIL, session_id, turn_id, args, grant, "failed")

    async def release(
        self, session_id: SessionId, turn_id: TurnId, *, fence: str, grant: Grant = EVERYTHING
    ) -> Written:
        """Hand the turn back at once; the attempt does not count.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound, TurnLost
        """
        args = (fence, "release", "", "", 0)
        return await self._write(FAIL, session_id, turn_id, args, grant, "released")

    async def _write(
        self,
        script: Script,
        session_id: SessionId,
        turn_id: TurnId,
        args: tuple[Arg, ...],
        grant: Grant,
        outcome: Outcome = "",
        *,
        is_first_text: bool = False,
        was_tried: bool = False,
    ) -> Written:
        reply = await self._scripts.run_noting_repeats(script, session_id, grant, turn_id, *args)
        if was_tried:
            reply = reply._replace(repeated=True)
        value = self._scripts.checked(script, session_id, reply.value)
        written = read_written(reply, outcome, is_first_text=is_first_text)
        if value[0] == b"large":
            raise AnswerTooLarge(turn_id, MAX_ANSWER_CHARS)
        if written is not None:
            return written
        match value:
            case [b"lost", _, b"taken" | b"ended" | b"late" as why, state]:
                raise TurnLost(turn_id, state.decode(), why.decode())
            case [b"unknown", _]:
                raise TurnNotFound(turn_id)
            case [b"gap", _, expected]:
                raise DeltaGap(turn_id, int(expected))
            case _:
                raise unknown(script, value)

    async def cancel(self, session_id: SessionId, turn_id: TurnId, *, grant: Grant, by: str = "user") -> Turn:
        """End a turn; what was said so far stays. A turn that has ended is returned as it is.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound
        """
        match await self._scripts.run(CANCEL, session_id, grant, turn_id, by):
            case [b"ok", _, became, record]:
                count_became(became)
                return turn_of(record)
            case [b"unknown", _]:
                raise TurnNotFound(turn_id)
            case reply:
                raise unknown(CANCEL, reply)

    async def abandon(self, session_id: SessionId, *, code: str, message: str) -> int:
        """Fail every open turn of the session for good: nobody will answer. How many there were.

        A session that is over or gone has none.
        """
        try:
            reply = await self._scripts.run(ABANDON, session_id, EVERYTHING, code, message)
        except (SessionExpired, SessionNotFound):
            return 0
        match reply:
            case [b"ok", _, became, abandoned]:
                count_became(became)
                return int(abandoned)
            case _:
                raise unknown(ABANDON, reply)

    async def abandon_all(self, agent_id: AgentId, *, code: str, message: str) -> int:
        """:meth:`abandon` for all of the agent's sessions that ``Ready.open_of`` finds; how many turns."""
        total = 0
        while session_ids := await self._ready.open_of(agent_id):
            counts = await asyncio.gather(
                *(self.abandon(session_id, code=code, message=message) for session_id in session_ids)
            )
            total += sum(counts)
            if not any(counts):
                break  # what is left is gone or over, and the keepers' to clear away
        return total


def _session_id(text: bytes) -> SessionId | None:
    return SessionId(text.decode()) if text else None

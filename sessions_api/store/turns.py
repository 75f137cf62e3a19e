"""Turns: claimed, answered bit by bit, completed, failed, cancelled.

A worker's write names its turn and its fence. It finds its own turn open (done),
its own earlier success (the same again), the turn cancelled (told, nothing is
written), or another attempt or final failure (:class:`TurnLost`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from sessions_api.domain.ids import PARTITIONS, AgentId, AppName, MessageId, SessionId, TurnId
from sessions_api.domain.messages import utf16_units
from sessions_api.domain.turns import ClaimedTurn, Turn
from sessions_api.errors import AnswerTooLarge, DeltaGap, TurnLost, TurnNotFound
from sessions_api.store.records import entry_of, turn_of
from sessions_api.store.scripts import load, session_of, unknown
from sessions_api.telemetry import metrics

if TYPE_CHECKING:
    from sessions_api.domain.messages import LogEntry
    from sessions_api.store.connection import Script
    from sessions_api.store.scripts import Scripts

CLAIM = load("claim")
DELTA = load("delta")
EXTEND = load("extend")
COMPLETE = load("complete")
FAIL = load("fail")
CANCEL = load("cancel")
TURN = load("turn")
ANSWER = load("answer")
STALE = load("stale")

MAX_ANSWER_CHARS = 100_000
STALE_READY_MS = 500


class Claim(msgspec.Struct, frozen=True):
    """*turn* is None if there was none to take; *next*: another session of the agent with work."""

    turn: ClaimedTurn | None
    next: SessionId | None


class Turns:
    """The work of agents; each method is one script and one round trip, ``next_ready`` aside."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def read(self, session_id: SessionId, turn_id: TurnId, *, app: AppName | None) -> Turn:
        """The turn, also of an expired session.

        Raises:
            SessionNotFound, TurnNotFound
        """
        match await self._scripts.look(TURN, session_id, app, turn_id):
            case [b"ok", _, _, record]:
                return turn_of(record)
            case [b"unknown", *_]:
                raise TurnNotFound(turn_id)
            case reply:
                raise unknown(TURN, reply)

    async def answer(
        self, session_id: SessionId, turn_id: TurnId, *, app: AppName | None, after: int = 0
    ) -> LogEntry | None:
        """The message that answers a turn, None if there is none; *after*: its question's cursor.

        Raises:
            SessionNotFound
        """
        match await self._scripts.look(ANSWER, session_id, app, turn_id, after):
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
        """Take the session's oldest queued turn; *fence_bits* are 64 random bits, drawn per claim."""
        of = self._scripts.keyspace.of(session_id)
        reply = await self._scripts.redis.script(
            CLAIM,
            of.all(),
            (of.sid, b"", worker, fence_bits, message_id, turn_ms, max_attempts, history, agent_id),
        )
        match self._scripts.checked(CLAIM, session_id, reply):
            case [b"claimed", _, now, following, record, messages, past, more, fields]:
                session = session_of(session_id, now, fields)
                turn = ClaimedTurn(
                    session_id=session_id,
                    agent_id=session.agent_id,
                    user_id=session.user_id,
                    metadata=session.metadata,
                    turn=turn_of(record),
                    messages=[entry_of(entry) for entry in messages],
                    history=[entry_of(entry) for entry in past],
                    more=more == 1,
                    now_ms=int(now),
                )
                return Claim(turn, _session_id(following))
            case [b"taken", _, following]:
                return Claim(None, _session_id(following))
            case _:
                raise unknown(CLAIM, reply)

    async def delta(
        self, session_id: SessionId, turn_id: TurnId, *, fence: str, text: str, offset: int
    ) -> bool:
        """Append *text* at *offset* (UTF-16 units) of the running answer; True if it was cancelled.

        Raises:
            SessionNotFound, SessionExpired, TurnLost
            DeltaGap: *offset* leaves a hole.
            AnswerTooLarge: the turn has failed for good.
        """
        reply = await self._scripts.run(
            DELTA, session_id, None, turn_id, fence, text, utf16_units(text), offset, MAX_ANSWER_CHARS
        )
        match reply:
            case [b"gap", _, expected]:
                raise DeltaGap(turn_id, int(expected))
            case [b"large", _]:
                raise AnswerTooLarge(turn_id, MAX_ANSWER_CHARS)
            case _:
                return _is_cancelled(DELTA, reply, turn_id)

    async def extend(self, session_id: SessionId, turn_id: TurnId, *, fence: str) -> bool:
        """Hold the turn for another lease; True if it was cancelled.

        Raises:
            SessionNotFound, SessionExpired, TurnLost
        """
        return _is_cancelled(
            EXTEND, await self._scripts.run(EXTEND, session_id, None, turn_id, fence), turn_id
        )

    async def complete(
        self, session_id: SessionId, turn_id: TurnId, *, fence: str, body: bytes | None
    ) -> bool:
        """The answer (None: empty) enters the log and ends the turn; True if it was cancelled.

        Raises:
            SessionNotFound, SessionExpired, TurnLost
        """
        reply = await self._scripts.run(COMPLETE, session_id, None, turn_id, fence, body or b"")
        return _is_cancelled(COMPLETE, reply, turn_id)

    async def fail(
        self, session_id: SessionId, turn_id: TurnId, *, fence: str, code: str, message: str, retry: bool
    ) -> bool:
        """Give the attempt up: with *retry* another one follows, if any is left. True if cancelled.

        Raises:
            SessionNotFound, SessionExpired, TurnLost
        """
        how = "retry" if retry else "final"
        reply = await self._scripts.run(FAIL, session_id, None, turn_id, fence, how, code, message)
        return _is_cancelled(FAIL, reply, turn_id)

    async def release(self, session_id: SessionId, turn_id: TurnId, *, fence: str) -> bool:
        """Hand the turn back at once; the attempt does not count. True if it was cancelled.

        Raises:
            SessionNotFound, SessionExpired, TurnLost
        """
        reply = await self._scripts.run(FAIL, session_id, None, turn_id, fence, "release", "", "")
        return _is_cancelled(FAIL, reply, turn_id)

    async def cancel(
        self, session_id: SessionId, turn_id: TurnId, *, app: AppName | None, by: str = "user"
    ) -> Turn:
        """End a turn; what was said so far stays. A turn that has ended is returned as it is.

        Raises:
            SessionNotFound, SessionExpired, TurnNotFound
        """
        match await self._scripts.run(CANCEL, session_id, app, turn_id, by):
            case [b"ok", _, became, record]:
                _count(became)
                return turn_of(record)
            case [b"unknown", _]:
                raise TurnNotFound(turn_id)
            case reply:
                raise unknown(CANCEL, reply)

    async def next_ready(self, agent_id: AgentId) -> list[SessionId]:
        """The agent's first session with work in each partition. One round trip for all 64."""
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        batches = await asyncio.gather(
            *(
                redis.command(
                    b"ZRANGEBYLEX",
                    keyspace.partition(number).ready,
                    f"[{agent_id}:",
                    f"({agent_id};",
                    b"LIMIT",
                    0,
                    1,
                    safe=True,
                )
                for number in range(PARTITIONS)
            )
        )
        return [SessionId(member[-36:].decode()) for batch in batches for member in batch]

    async def stale_ready(self, partition: int, limit: int = 100) -> list[tuple[AgentId, SessionId]]:
        """For each agent whose work waits for longer than half a second, its oldest session here."""
        key = self._scripts.keyspace.partition(partition).ready
        members = await self._scripts.redis.script(STALE, [key], (STALE_READY_MS, limit))
        return [(AgentId(member[:36].decode()), SessionId(member[-36:].decode())) for member in members]

    def wake(self, agent_id: AgentId, session_id: SessionId) -> None:
        """Hint again that a session of the agent has work; may get lost, as hints do."""
        self._scripts.redis.post(b"PUBLISH", self._scripts.keyspace.wake(agent_id), session_id)


def _session_id(text: bytes) -> SessionId | None:
    return SessionId(text.decode()) if text else None


def _is_cancelled(script: Script, reply: list[Any], turn_id: TurnId) -> bool:
    match reply[0]:
        case b"ok":
            _count(*reply[2:])
            return False
        case b"cancelled":
            return True
        case b"lost":
            raise TurnLost(turn_id)
        case _:
            raise unknown(script, reply)


def _count(became: bytes = b"kept") -> None:
    """Count what the end of a turn did to its session."""
    match became:
        case b"renewed":
            metrics.RENEWALS.of("turn").inc()
        case b"warned" | b"expired":
            metrics.count_due(became.decode(), lag_ms=0)
        case _:
            pass

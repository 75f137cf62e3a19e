"""The log of a session: appended to, paged through, replayed to followers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from sessions_api.domain.access import EVERYTHING, Grant, is_of_token
from sessions_api.domain.ids import MessageId, SessionId, TurnId
from sessions_api.domain.limits import Standing
from sessions_api.domain.messages import LogEntry
from sessions_api.domain.turns import Draft
from sessions_api.errors import (
    AgentUnavailable,
    BacklogFull,
    IdempotencyMismatch,
    SessionBusy,
    SessionExpired,
)
from sessions_api.store.limits import Asked, in_script, refused, standings
from sessions_api.store.loader import load
from sessions_api.store.pages import read_messages
from sessions_api.store.parts import from_those_there
from sessions_api.store.records import draft_of, entry_of
from sessions_api.store.scripts import expired_of, unknown
from sessions_api.store.state import read_state, session_of
from sessions_api.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sessions_api.domain.messages import NewMessage
    from sessions_api.domain.sessions import OnBusy, Session
    from sessions_api.store.scripts import Scripts
    from sessions_api.store.sessions import Once
    from sessions_api.store.state import State

APPEND = load("append")
SPEAK = load("speak")
HISTORY = load("history")
REPLAY = load("replay")

MAX_CURSOR = 2**53
PAGE_ENTRIES = 200
PAGE_BYTES = 256 * 1024
MAX_PROVEN = 10_000


class Appended(msgspec.Struct, frozen=True):
    """An accepted message: where it stands in the log and which turn answers it ("": none).

    *is_repeat*: an idempotency key had it accepted before; *session* may be
    expired by now.
    """

    session: Session
    message_id: MessageId
    cursor: int
    turn_id: TurnId
    was_renewed: bool
    is_repeat: bool
    standings: tuple[Standing, ...] = ()
    """How it stands with the limits that were asked for; none for a repeat, which is not counted."""


class HistoryPage(msgspec.Struct, frozen=True):
    """Messages, newest first; *has_more* in the direction that was asked."""

    entries: list[LogEntry]
    has_more: bool


class Replay(msgspec.Struct, frozen=True):
    """What a follower joins with; all read at one instant.

    *session* is None once it is over, then *expired* says how, and *is_settled*
    whether what its end writes is in the log already. *complete*: the page ends
    at the session's cursor. *oldest*: the log's first cursor, 0 if empty.
    """

    session: Session | None
    expired: SessionExpired | None
    newest: int
    oldest: int
    draft: Draft | None
    entries: list[LogEntry]
    complete: bool
    is_settled: bool


class Position(msgspec.Struct, frozen=True):
    """Where a session stands: what a follower compares to know that it missed nothing."""

    cursor: int
    rev: int
    end_ms: int
    is_over: bool


class Log:
    """What was said in sessions; each method is one round trip, where it does not say otherwise."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._proven: OrderedDict[tuple[Grant, SessionId], None] = OrderedDict()

    async def check_opens(self, session_id: SessionId, grant: Grant) -> None:
        """Nothing, if *grant* opens the session, live or expired. A round trip, for a key once a session.

        To be awaited before what no script guards: a page of the log, a channel, a place
        among the followers. Their time, or a limit, would tell a stranger that there is a session.
        A key is asked about once, since application and agent of a session never change, and
        a token not at all, since it is never shown for another session (api/auth.py).

        Raises:
            SessionNotFound
        """
        if grant == EVERYTHING or is_of_token(grant):
            return
        proof = (grant, session_id)
        if proof not in self._proven:
            await self._scripts.look(HISTORY, session_id, grant, 1, keys=1)
        self._proven[proof] = None
        self._proven.move_to_end(proof)
        if len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)

    async def append(
        self,
        session_id: SessionId,
        *,
        grant: Grant,
        message: NewMessage,
        turn_id: TurnId,
        on_busy: OnBusy | None = None,
        once: Once | None = None,
        is_agent_away: bool = False,
        limits: Sequence[Asked] = (),
    ) -> Appended:
        """A user's message enters the log and gets its turn (*turn_id*, unless it joins one).

        Raises:
            SessionNotFound, SessionExpired
            RateLimited: one of *limits* refuses it; none is charged for it.
            AgentUnavailable: *is_agent_away*, and the message is no repeat of one that was accepted.
            SessionBusy: ``reject``, and a turn is open.
            BacklogFull: 100 messages or 4 MiB wait already.
            IdempotencyMismatch: the key came with other content before.
        """
        limit_keys, limit_args = in_script(self._scripts.keyspace.of(session_id), limits)
        reply = await self._scripts.run(
            APPEND,
            session_id,
            grant,
            message.message_id,
            turn_id,
            message.body,
            on_busy or b"",
            once.fingerprint if once else b"",
            int(is_agent_away),
            message.trace,
            *limit_args,
            once=once.digest if once else message.message_id,
            more_keys=limit_keys,
        )
        match reply:
            case [b"ok" | b"repeated" as word, _, now, message_id, cursor, turn, renewed, fields, stands]:
                if word == b"ok" and int(renewed):
                    metrics.RENEWALS.of("message").inc()
                return Appended(
                    session=session_of(session_id, now, fields),
                    message_id=MessageId(message_id.decode()),
                    cursor=int(cursor),
                    turn_id=TurnId(turn.decode()),
                    was_renewed=int(renewed) == 1,
                    is_repeat=word == b"repeated",
                    standings=standings(limits, stands) if stands else (),
                )
            case [b"limited", _, index, retry_after_ms]:
                raise refused(limits, index, retry_after_ms)
            case [b"away", _, agent_id]:
                raise AgentUnavailable(agent_id.decode())
            case [b"busy", _, turn, state]:
                raise SessionBusy(session_id, turn.decode(), state.decode())
            case [b"backlog", _, queued]:
                raise BacklogFull(session_id, int(queued))
            case [b"mismatch", _]:
                raise IdempotencyMismatch
            case _:
                raise unknown(APPEND, reply)

    async def speak(
        self,
        session_id: SessionId,
        *,
        grant: Grant,
        message: NewMessage,
        once: Once | None = None,
    ) -> Appended:
        """A message that nobody asked for enters the log, by the agent or the system.

        It gets no turn and renews nothing. A body that does not begin with its
        ``authorId`` is by the session's agent.

        Raises:
            SessionNotFound, SessionExpired
            IdempotencyMismatch: the key came with other content before.
        """
        reply = await self._scripts.run(
            SPEAK,
            session_id,
            grant,
            message.message_id,
            message.body,
            once.fingerprint if once else b"",
            once=once.digest if once else message.message_id,
        )
        match reply:
            case [b"ok" | b"repeated" as word, _, now, message_id, cursor, fields]:
                return Appended(
                    session=session_of(session_id, now, fields),
                    message_id=MessageId(message_id.decode()),
                    cursor=int(cursor),
                    turn_id=TurnId(""),
                    was_renewed=False,
                    is_repeat=word == b"repeated",
                )
            case [b"mismatch", _]:
                raise IdempotencyMismatch
            case _:
                raise unknown(SPEAK, reply)

    async def history(
        self,
        session_id: SessionId,
        *,
        grant: Grant,
        limit: int,
        before: int | None = None,
        after: int | None = None,
        ended: bool = False,
    ) -> HistoryPage:
        """One page of messages, newest first; both bounds are exclusive cursors.

        With *after* alone these are the oldest of the newer ones. The log also holds
        turns that failed or were cancelled; a page counts messages only, and takes
        another round trip where many of the others lie between, and where a key reads
        the session for the first time.

        Raises:
            SessionNotFound
            SessionExpired: unless *ended* asks for the log of an expired session.
        """
        await self.check_opens(session_id, grant)
        # Redis refuses to look before its very first stream id, and ids of more than 64 bits.
        low = b"-" if after is None else b"(%d-0" % max(0, min(after, MAX_CURSOR))
        high = b"+" if before is None else b"(%d-0" % max(1, min(before, MAX_CURSOR))
        is_forward = after is not None and before is None
        # First the page, then whether it may be shown: a session that may be read now could be
        # read a moment ago, so whatever comes between the two, the page is one that was there.
        page, reply = await asyncio.gather(
            read_messages(
                self._scripts.redis,
                self._scripts.keyspace.of(session_id).log,
                limit=limit,
                low=low,
                high=high,
                is_forward=is_forward,
            ),
            self._scripts.look(HISTORY, session_id, grant, int(ended), keys=1),
        )
        if reply[0] != b"ok":
            raise unknown(HISTORY, reply)
        return HistoryPage(page.entries[::-1] if is_forward else page.entries, page.has_more)

    async def replay(
        self, session_id: SessionId, *, grant: Grant, after: int | None, limit: int = PAGE_ENTRIES
    ) -> Replay:
        """The session, its draft, and the entries after *after*, oldest first (None: none).

        Raises:
            SessionNotFound
        """
        low = "" if after is None else max(0, min(after, MAX_CURSOR))
        reply = await self._scripts.look(REPLAY, session_id, grant, low, limit, PAGE_BYTES)
        match reply:
            case [b"ok", _, now, fields, record, text, oldest, complete, entries]:
                session = session_of(session_id, now, fields)
                return Replay(
                    session=session,
                    expired=None,
                    newest=session.cursor,
                    oldest=int(oldest),
                    draft=draft_of(record, text) if record else None,
                    entries=[entry_of(entry) for entry in entries],
                    complete=complete == 1,
                    is_settled=False,
                )
            case [b"expired", _, _, _, _, _, settled, fields, oldest, complete, entries]:
                self._scripts.report_unsettled(session_id, reply)
                return Replay(
                    session=None,
                    expired=expired_of(session_id, reply),
                    newest=read_state(fields[0]).cursor,
                    oldest=int(oldest),
                    draft=None,
                    entries=[entry_of(entry) for entry in entries],
                    complete=complete == 1,
                    is_settled=settled == b"settled",
                )
            case _:
                raise unknown(REPLAY, reply)

    async def positions(self, session_ids: list[SessionId]) -> dict[SessionId, Position | None]:
        """Where each session stands, None if it is gone; without those whose server is away. One round trip.

        Raises:
            StorageUnavailable: all servers are.
        """
        redis, keyspace = self._scripts.redis, self._scripts.keyspace

        async def state(session_id: SessionId) -> tuple[SessionId, bytes | None]:
            key = keyspace.of(session_id).session
            return session_id, await redis.command(b"HGET", key, b"state", safe=True)

        time, states = await asyncio.gather(
            redis.command(b"TIME", safe=True), from_those_there(map(state, session_ids))
        )
        now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        return {
            session_id: _position(read_state(packed), now_ms) if packed else None
            for session_id, packed in (told for told in states if told is not None)
        }


def _position(state: State, now_ms: int) -> Position | None:
    end_ms = max(state.expires_ms, state.held_until_ms)
    if now_ms >= end_ms + state.retention_ms:
        return None
    return Position(state.cursor, state.rev, end_ms, bool(state.reason) or now_ms >= end_ms)

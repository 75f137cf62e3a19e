r"""What the scripts publish, as the events that followers are told.

A payload is all that one script has to tell: for each fact
``<type> <cursor> <prev> <rev> <now_ms> <bytes> <args…>\n``, words that need no JSON,
then so many bytes that are copied, and a line feed. It is parsed once per process,
and rendered once for all its followers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import msgspec
import structlog

from sessions_api.domain.agents import AgentState
from sessions_api.domain.ids import SessionId
from sessions_api.domain.messages import LogEntry, utf16_units
from sessions_api.domain.sessions import Session
from sessions_api.domain.turns import Draft
from sessions_api.errors import SessionExpired, StorageFault
from sessions_api.live.closing import Closing
from sessions_api.wire import events as wire
from sessions_api.wire.instants import iso
from sessions_api.wire.messages import entry_data
from sessions_api.wire.sessions import session_json

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGGED: Final = frozenset({"message.created", "turn.failed", "turn.cancelled"})

LINE_FEED: Final = ord("\n")

log = structlog.get_logger(__name__)

_encode = msgspec.json.Encoder().encode


class Event:
    """One event, as followers get it; *data* is JSON.

    *cursor* and *prev* are 0 for what is not in the log. *rev* is the session's
    when it was published, 0 for what the hub says itself. The members after
    ``closing`` are what the hub and a waiting poster look at; only some types have them.
    """

    __slots__ = (
        "_json",
        "_sse",
        "attempt",
        "closing",
        "cursor",
        "data",
        "end_ms",
        "entry",
        "id",
        "message_id",
        "offset",
        "prev",
        "rev",
        "session_id",
        "status",
        "text",
        "time_ms",
        "turn_id",
        "type",
        "units",
    )

    def __init__(
        self,
        type_: str,
        session_id: SessionId,
        time_ms: int,
        data: bytes,
        *,
        cursor: int = 0,
        prev: int = 0,
        rev: int = 0,
    ) -> None:
        self.type = type_
        self.session_id = session_id
        self.time_ms = time_ms
        self.data = data
        self.cursor = cursor
        self.prev = prev
        self.rev = rev
        self.id = str(cursor) if cursor else ""
        """Where a reconnect goes on (SSE ``id:``); empty where the event moves no position."""
        self.closing: Closing | None = None
        """Set on the last event of a stream."""
        self.turn_id = ""
        self.message_id = ""
        self.status = ""
        """Of an answer in the log: ``complete`` or ``cancelled``."""
        self.attempt = 0
        self.offset = 0
        self.units = 0
        """Length of a delta, in UTF-16 units."""
        self.text = b""
        self.end_ms = 0
        """The session's new deadline, where the event says one."""
        self.entry: LogEntry | None = None
        self._json: bytes | None = None
        self._sse: bytes | None = None

    @property
    def json(self) -> bytes:
        """The event as one JSON object."""
        if self._json is None:
            self._json = wire.event_json(
                self.type, self.session_id, self.time_ms, self.data, cursor=self.cursor, prev=self.prev
            )
            if self.type == "session.snapshot" and self.id:  # a position, and no entry of the log
                self._json = f'{{"cursor":{self.id},'.encode() + self._json[1:]
        return self._json

    @property
    def sse(self) -> bytes:
        """The event as a frame of ``text/event-stream``; only what is in the log carries an ``id:``."""
        if self._sse is None:
            front = f"id: {self.id}\nevent: {self.type}\ndata: " if self.id else f"event: {self.type}\ndata: "
            self._sse = front.encode() + self.json + b"\n\n"
            self._json = None  # a process serves one session mostly one way; the other is made again
        return self._sse

    @property
    def size(self) -> int:
        """About the bytes it takes in a queue."""
        return len(self.data) + 160

    def __repr__(self) -> str:
        return f"Event({self.type}, cursor={self.cursor}, rev={self.rev})"


def of_payload(session_id: SessionId, payload: bytes) -> Iterator[Event]:
    """The events of a published *payload*, in their order.

    A fact that this release does not know is left out, and logged: whoever misses it finds another
    ``rev`` or ``prev`` in the next one, and reads.

    Raises:
        StorageFault: it is none that our scripts publish.
    """
    for words, body in facts_of(payload):
        try:
            yield _of_fact(session_id, words, body)
        except (ValueError, IndexError):
            log.warning("fact_unknown", session_id=session_id, fact=" ".join(words)[:200])


def facts_of(payload: bytes) -> Iterator[tuple[list[str], bytes]]:
    """The words and the body of each fact.

    Raises:
        StorageFault: from where on it is none that our scripts publish.
    """
    start = 0
    while start < len(payload):
        try:
            body = payload.index(b"\n", start) + 1
            words = payload[start : body - 1].decode("ascii").split(" ")
            end = body + int(words[5])
            is_whole = end >= body and payload[end] == LINE_FEED
        except (ValueError, IndexError) as error:
            raise _unreadable(payload[start:]) from error
        if not is_whole:
            raise _unreadable(payload[start:])
        yield words, payload[body:end]
        start = end + 1


def _unreadable(payload: bytes) -> StorageFault:
    return StorageFault(f"published on a live channel: {payload[:80]!r}")


def _of_fact(session_id: SessionId, words: list[str], body: bytes) -> Event:
    kind, cursor, prev, rev, now, _, *args = words
    event = Event(kind, session_id, int(now), b"{}", cursor=int(cursor), prev=int(prev), rev=int(rev))
    if kind == "turn.delta":
        _read_delta(event, args, body)
    elif kind in LOGGED:
        _read_entry(event, args, body)
    elif kind.startswith("turn."):
        _read_turn(event, args)
    else:
        _read_session(event, args)
    return event


def _read_delta(event: Event, args: list[str], body: bytes) -> None:
    event.turn_id, event.message_id, index, offset = args[:4]
    event.offset = int(offset)
    event.text = body
    text = body.decode(errors="replace")
    event.units = len(body) if body.isascii() else utf16_units(text)
    event.data = (
        (
            f'{{"turnId":"{event.turn_id}","messageId":"{event.message_id}","index":{int(index)},'
            f'"offset":{event.offset},"text":'
        ).encode()
        + _encode(text)
        + b"}"
    )


def _read_entry(event: Event, args: list[str], body: bytes) -> None:
    turn, status = args[:2]
    event.turn_id = "" if turn == "-" else turn
    event.status = "" if status == "-" else status
    kind = "message" if event.type == "message.created" else event.type
    event.entry = LogEntry(b"%d" % event.cursor, b"%d" % event.prev, kind.encode(), body)
    event.data = entry_data(event.entry)


def _read_turn(event: Event, args: list[str]) -> None:
    event.turn_id = args[0]
    data: msgspec.Struct
    match event.type:
        case "turn.queued":
            data = wire.TurnQueued(event.turn_id)
        case "turn.started":
            event.attempt, event.message_id = int(args[1]), args[2]
            data = wire.TurnStarted(event.turn_id, event.attempt, event.message_id)
        case "turn.completed":
            event.message_id = "" if args[1] == "-" else args[1]
            cursor = int(args[2])
            data = wire.TurnCompleted(
                event.turn_id, event.message_id or msgspec.UNSET, cursor or msgspec.UNSET
            )
        case _:
            raise ValueError(event.type)
    event.data = _encode(data)


def _read_session(event: Event, args: list[str]) -> None:
    data: msgspec.Struct
    match event.type:
        case "session.renewed":
            event.end_ms = int(args[0])
            data = wire.SessionRenewed(iso(event.end_ms), int(args[1]), cast("wire.RenewedBy", args[2]))
        case "session.expiring":
            deadline_ms = int(args[0])
            minutes = round(max(0, deadline_ms - event.time_ms) / 60_000, 3)
            data = wire.SessionExpiring(
                minutes, iso(deadline_ms), "max_duration" if args[1] == "max_duration" else "timeout"
            )
        case "session.expired":
            event.end_ms = int(args[0])
            data = _over(event.end_ms, args[1])
        case "session.updated" | "session.ended" | "tokens.revoked":
            return
        case _:
            raise ValueError(event.type)
    event.data = _encode(data)


def of_entry(session_id: SessionId, entry: LogEntry) -> Event:
    """The event of an *entry* that was read from the log."""
    kind = "message.created" if entry.kind == "message" else entry.kind
    event = Event(kind, session_id, entry.cursor, entry_data(entry), cursor=entry.cursor, prev=entry.prev)
    event.turn_id = entry.turn_id or ""
    event.status = entry.status or ""
    event.entry = entry
    return event


def snapshot(session: Session, draft: Draft | None, *, is_start: bool) -> Event:
    """What there is to know of a session now.

    *is_start*: the client named no position, so this is its first: it carries the cursor.
    """
    turn = b"null"
    if draft is not None:
        turn = _encode(
            wire.RunningTurn(
                turn_id=draft.turn_id,
                message_id=draft.message_id,
                attempt=draft.attempt,
                index=draft.index,
                offset=draft.units,
                text=draft.text,
            )
        )
    data = session_json(session)[:-1] + b',"turn":' + turn + b"}"
    event = Event("session.snapshot", session.session_id, session.now_ms, data, rev=session.rev)
    if is_start:
        event.id = str(session.cursor)
    return event


def updated(session: Session) -> Event:
    """The configuration changed; the event is published bare, the session read when it is told."""
    data = session_json(session)
    return Event("session.updated", session.session_id, session.now_ms, data, rev=session.rev)


def availability(session_id: SessionId, time_ms: int, agent_id: str, state: AgentState) -> Event:
    """Whether the session's agent is there; no fact of the session, so it has no ``rev``."""
    since = iso(state.since_ms) if state.since_ms else msgspec.UNSET
    data = wire.AgentAvailability(agent_id, state.state, since)
    return Event("agent.availability", session_id, time_ms, _encode(data))


def gap(session_id: SessionId, time_ms: int, data: wire.Gap) -> Event:
    return Event("gap", session_id, time_ms, _encode(data))


def expired(session_id: SessionId, over: SessionExpired) -> Event:
    return Event("session.expired", session_id, over.expires_ms, _encode(_over(over.expires_ms, over.reason)))


def ended(session_id: SessionId, time_ms: int) -> Event:
    return Event("session.ended", session_id, time_ms, b"{}")


def reconnect(session_id: SessionId, time_ms: int, after_ms: int) -> Event:
    return Event("reconnect", session_id, time_ms, _encode(wire.Reconnect(after_ms)))


def closing(session_id: SessionId, time_ms: int, why: Closing, *, end: int | None = None) -> Event:
    """The last event; *end*: the last cursor of a session that is over, so that nobody comes back."""
    event = Event("closing", session_id, time_ms, _encode(wire.Closing(why.code, why.retry)))
    event.closing = why
    if end is not None:
        event.id = f"{end}.end"
    return event


def _over(expired_ms: int, reason: str) -> wire.SessionOver:
    return wire.SessionOver(iso(expired_ms), "max_duration" if reason == "max_duration" else "timeout")

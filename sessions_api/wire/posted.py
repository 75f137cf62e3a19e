"""What a poster of a message gets: one shape that all clients of the reference read.

Its versions 1.6, 1.7.0 and 1.7.2 each answered differently, and its npm client
unwraps ``data``; the full reply is a superset of the four. The minimal one
(``Prefer: return=minimal``) leaves the copies out.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from sessions_api.domain.messages import LogEntry
from sessions_api.domain.sessions import Session
from sessions_api.wire.instants import iso
from sessions_api.wire.messages import Message, entry_data, read_message
from sessions_api.wire.timeouts import TimeoutConfigInfo

NO_SERVER: Final = "00000000-0000-0000-0000-000000000000"
"""The reference's id of its own message server; there is none here."""


class RawMessage(msgspec.Struct):
    """The message as it was sent."""

    content: str
    attachments: list[dict[str, Any]] | UnsetType = UNSET


class UserMessage(msgspec.Struct):
    """The accepted message under all the names it ever had; ``created_at`` is milliseconds."""

    id: str
    content: str
    author_id: str = msgspec.field(name="authorId")
    created_at: str = msgspec.field(name="createdAt")
    metadata: dict[str, Any]
    channel_id: str
    author: str = msgspec.field(name="author_id")
    created_ms: int = msgspec.field(name="created_at")
    source_type: Literal["user"]
    raw_message: RawMessage
    message_server_id: str


class AgentResponse(msgspec.Struct, rename="camel"):
    """The answer; ``message`` is it as history has it, absent where nothing was said."""

    text: str
    content: str
    thought: str | None
    actions: list[Any]
    providers: list[Any]
    response_id: str | None
    in_reply_to: str
    status: Literal["complete", "cancelled"]
    message: Message | UnsetType = UNSET


class SessionStatus(msgspec.Struct, rename="camel"):
    """What the message did to the session's time."""

    expires_at: str
    renewal_count: int
    was_renewed: bool
    is_near_expiration: bool


class PostedMinimal(msgspec.Struct, rename="camel"):
    """The reply without the copies."""

    user_message: UserMessage
    session_status: SessionStatus
    turn_id: str
    cursor: int
    agent_response: AgentResponse | UnsetType | None = UNSET


class PostedData(msgspec.Struct, rename="camel"):
    """The copy that the npm client of the reference unwraps."""

    success: bool
    user_message: UserMessage
    session_status: SessionStatus
    agent_response: AgentResponse | UnsetType | None = UNSET


class Posted(msgspec.Struct, rename="camel"):
    """The reply to an accepted message; ``agentResponse`` only where the poster waited."""

    success: bool
    id: str
    content: str
    author_id: str
    created_at: str
    metadata: dict[str, Any]
    user_message: UserMessage
    session_status: SessionStatus
    turn_id: str
    cursor: int
    data: PostedData
    agent_response: AgentResponse | UnsetType | None = UNSET


class SpokenMinimal(msgspec.Struct, rename="camel"):
    """The reply to a message of an agent or the system, without the copies."""

    message: Message
    session_status: SessionStatus
    cursor: int


class SpokenData(msgspec.Struct, rename="camel"):
    """The copy that the npm client of the reference unwraps."""

    success: bool
    message: Message
    session_status: SessionStatus


class Spoken(msgspec.Struct, rename="camel"):
    """The reply to a message of an agent or the system, who speak unasked: no turn answers it."""

    success: bool
    id: str
    content: str
    author_id: str
    created_at: str
    metadata: dict[str, Any]
    message: Message
    session_status: SessionStatus
    cursor: int
    data: SpokenData


class Chunk(msgspec.Struct, rename="camel"):
    """SSE ``chunk``: a piece of the answer; ``offset`` is where it goes, in UTF-16 units."""

    message_id: str
    chunk: str
    index: int
    offset: int
    turn_id: str


class Restart(msgspec.Struct, rename="camel"):
    """SSE ``restart``: the text so far is void; another attempt began, or the answer is other than it."""

    message_id: str
    attempt: int
    turn_id: str


class StreamError(msgspec.Struct, rename="camel"):
    """SSE ``error``, in the reference's shape."""

    error: str
    code: str
    retryable: bool
    request_id: str
    turn_id: str
    agent_code: str | UnsetType = UNSET
    """Why the turn failed, in its own word."""


_encode = msgspec.json.Encoder().encode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class PostedReply:
    """Puts the parts together, as bytes: what occurs several times is encoded once."""

    def __init__(
        self,
        session: Session,
        *,
        message_id: str,
        content: str,
        metadata: bytes,
        attachments: bytes | None,
        cursor: int,
        turn_id: str,
        was_renewed: bool,
    ) -> None:
        self._message_id = message_id
        self._cursor = cursor
        self._turn_id = turn_id
        content_json = _encode(content)
        author = _encode(session.user_id)
        self._basic = b"".join(
            (
                b'{"id":"',
                message_id.encode(),
                b'","content":',
                content_json,
                b',"authorId":',
                author,
                b',"createdAt":"',
                iso(cursor).encode(),
                b'","metadata":',
                _encode(_merged(session, metadata)),
            )
        )
        """The members that the reference's version 1.6 had, without the closing brace."""
        raw = b'{"content":' + content_json
        if attachments is not None:
            raw += b',"attachments":' + attachments
        self.user_message = b"".join(
            (
                self._basic,
                b',"channel_id":"',
                session.session_id.encode(),
                b'","author_id":',
                author,
                b',"created_at":%d,"source_type":"user","raw_message":' % cursor,
                raw,
                b'},"message_server_id":"',
                NO_SERVER.encode(),
                b'"}',
            )
        )
        """The JSON of :class:`UserMessage`."""
        self._status = _encode(
            SessionStatus(iso(session.expires_ms), session.renewals, was_renewed, session.is_near_expiration)
        )

    def json(self, *, minimal: bool, answer: bytes | None = None) -> bytes:
        """The reply's JSON; *answer*: the JSON of ``agentResponse``, None to leave it out."""
        shared = b'"userMessage":' + self.user_message
        if answer is not None:
            shared += b',"agentResponse":' + answer
        shared += b',"sessionStatus":' + self._status
        position = b',"turnId":"%b","cursor":%d' % (self._turn_id.encode(), self._cursor)
        if minimal:
            return b"{" + shared + position + b"}"
        return b"".join(
            (
                self._basic,
                b',"success":true,',
                shared,
                position,
                b',"data":{"success":true,',
                shared,
                b"}}",
            )
        )

    def answer(self, entry: LogEntry | None, *, is_cancelled: bool) -> bytes:
        """The JSON of ``agentResponse`` for the *entry* that answers, None if nothing was said."""
        if entry is None:
            empty = AgentResponse(
                "", "", None, [], [], None, self._message_id, "cancelled" if is_cancelled else "complete"
            )
            return _encode(empty)
        message = read_message(entry)
        thought, actions, providers = (
            message.metadata.get(name) for name in ("thought", "actions", "providers")
        )
        front = _encode(
            AgentResponse(
                message.content,
                message.content,
                thought if isinstance(thought, str) else None,
                actions if isinstance(actions, list) else [],
                providers if isinstance(providers, list) else [],
                message.id,
                self._message_id,
                "cancelled" if is_cancelled else "complete",
            )
        )
        return front[:-1] + b',"message":' + entry_data(entry) + b"}"


def spoken_json(session: Session, entry: LogEntry, *, minimal: bool) -> bytes:
    """The reply to what an agent or the system said: *entry*, as history has it."""
    message = read_message(entry)
    status = SessionStatus(
        iso(session.expires_ms),
        session.renewals,
        was_renewed=False,
        is_near_expiration=session.is_near_expiration,
    )
    if minimal:
        return _encode(SpokenMinimal(message, status, entry.cursor))
    return _encode(
        Spoken(
            success=True,
            id=message.id,
            content=message.content,
            author_id=message.author_id,
            created_at=message.created_at,
            metadata=message.metadata,
            message=message,
            session_status=status,
            cursor=entry.cursor,
            data=SpokenData(success=True, message=message, session_status=status),
        )
    )


def _merged(session: Session, metadata: bytes) -> dict[str, Any]:
    """The session's metadata, over it the message's, over both what only we may say."""
    merged = _decode_object(session.metadata) if len(session.metadata) > 2 else {}
    if len(metadata) > 2:
        merged |= _decode_object(metadata)
    merged |= {
        "sessionId": session.session_id,
        "agentId": session.agent_id,
        "userId": session.user_id,
        "timeoutConfig": TimeoutConfigInfo.of(session.config),
    }
    return merged

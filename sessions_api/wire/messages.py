"""Messages and turns as callers see them.

The log stores a message's JSON but for what its position gives (cursor and
createdAt). These are put in front here by joining bytes, so that a page of
history or a replay decodes nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from sessions_api.domain.messages import LogEntry
from sessions_api.domain.turns import Answer, Turn, TurnState
from sessions_api.wire.instants import iso, iso_of

Role = Literal["user", "agent", "system"]


class Message(msgspec.Struct, rename="camel"):
    """One message of a session's history."""

    cursor: int
    created_at: str
    id: str
    content: str
    author_id: str
    is_agent: bool
    role: Role
    metadata: dict[str, Any]
    turn_id: str | UnsetType = UNSET
    status: Literal["complete", "cancelled"] | UnsetType = UNSET
    attachments: list[dict[str, Any]] | UnsetType = UNSET


class MessageBody(msgspec.Struct, rename="camel"):
    """What the log stores of a message: :class:`Message` without what its position gives."""

    author_id: str | UnsetType
    """Unset in what is appended for a user: ``append.lua`` puts the session's user in front."""
    id: str
    content: str
    is_agent: bool
    role: Role
    metadata: msgspec.Raw
    attachments: msgspec.Raw | UnsetType = UNSET


class HistoryCursors(msgspec.Struct):
    """``before`` leads to the next older page, ``after`` to the next newer one."""

    before: int
    after: int


class History(msgspec.Struct, rename="camel"):
    """A page of messages, newest first."""

    messages: list[Message]
    has_more: bool
    cursors: HistoryCursors | UnsetType = UNSET


class TurnProblem(msgspec.Struct):
    """Why a turn failed."""

    code: str
    message: str


class TurnInfo(msgspec.Struct, rename="camel"):
    """One turn: the agent's duty to answer, from queue to outcome."""

    turn_id: str
    session_id: str
    state: TurnState
    attempt: int
    messages: list[int]
    """Cursors of the user messages it answers."""
    queued_at: str
    started_at: str | UnsetType = UNSET
    ended_at: str | UnsetType = UNSET
    not_before: str | UnsetType = UNSET
    """The end of the pause before the next attempt."""
    deadline: str | UnsetType = UNSET
    message_id: str | UnsetType = UNSET
    answer: int | UnsetType = UNSET
    """The answer's cursor in the history."""
    cancelled_by: str | UnsetType = UNSET
    superseded_by: str | UnsetType = UNSET
    error: TurnProblem | UnsetType = UNSET

    @classmethod
    def of(cls, turn: Turn, session_id: str) -> TurnInfo:
        return cls(
            turn.turn_id,
            session_id,
            turn.state,
            turn.attempt,
            turn.messages,
            iso(turn.queued_ms),
            _instant(turn.started_ms),
            _instant(turn.ended_ms),
            _instant(turn.not_before_ms) if turn.state == "queued" else UNSET,
            _instant(turn.deadline_ms) if turn.state == "running" else UNSET,
            turn.message_id or UNSET,
            turn.answer or UNSET,
            turn.by or UNSET,
            turn.superseded_by or UNSET,
            UNSET if turn.error is None else TurnProblem(turn.error.code, turn.error.message),
        )


def _instant(ms: int) -> str | UnsetType:
    return iso(ms) if ms else UNSET


_encode = msgspec.json.Encoder().encode
_body_decoder = msgspec.json.Decoder(MessageBody)
_message_decoder = msgspec.json.Decoder(Message)
_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def user_body(
    message_id: str,
    content: str,
    author_id: str | None = None,
    metadata: bytes = b"{}",
    attachments: bytes | None = None,
) -> bytes:
    """The stored JSON of a user's message; *metadata* and *attachments* are compact JSON.

    Without *author_id* it is by the session's user.
    """
    return _encode(
        MessageBody(
            author_id or UNSET,
            message_id,
            content,
            is_agent=False,
            role="user",
            metadata=msgspec.Raw(metadata),
            attachments=UNSET if attachments is None else msgspec.Raw(attachments),
        )
    )


def answer_body(content: str, answer: Answer) -> bytes | None:
    """The JSON of an answer that says *content*; None if there is nothing to store.

    Without ``id`` and ``authorId``, as all of these: ``complete.lua`` puts them in front.
    """
    if not content and not answer.is_more:
        return None
    front, back = answer_around(answer)
    return front + _encode(content) + back


def answer_around(answer: Answer) -> tuple[bytes, bytes]:
    """What stands before and after the content, for an answer whose text only Redis has."""
    back = b',"isAgent":true,"role":"agent","metadata":' + _answer_metadata(answer)
    if answer.attachments is not None:
        back += b',"attachments":' + answer.attachments
    return b'{"content":', back + b"}"


def _answer_metadata(answer: Answer) -> bytes:
    """The metadata to store with an *answer*: its own, and what it cost as ``usage``."""
    if answer.usage is None:
        return answer.metadata
    members = _raw_members(answer.metadata) | {"usage": msgspec.Raw(answer.usage)}
    return _encode(members)


def spoken_body(
    message_id: str,
    content: str,
    *,
    role: Literal["agent", "system"],
    author_id: str | None = None,
    metadata: bytes = b"{}",
    attachments: bytes | None = None,
) -> bytes:
    """The stored JSON of a message that answers nothing: an agent speaks first, or the system does.

    Without *author_id* the script that appends it puts the author in front.
    """
    return _encode(
        MessageBody(
            author_id or UNSET,
            message_id,
            content,
            is_agent=role == "agent",
            role=role,
            metadata=msgspec.Raw(metadata),
            attachments=UNSET if attachments is None else msgspec.Raw(attachments),
        )
    )


def read_body(body: bytes) -> MessageBody:
    """The stored JSON of a message, decoded; its metadata stays bytes."""
    return _body_decoder.decode(body)


def read_message(entry: LogEntry) -> Message:
    """A message of the log, decoded whole."""
    return _message_decoder.decode(entry_data(entry))


def entry_data(entry: LogEntry) -> bytes:
    """The JSON of an entry: a Message, or the data of ``turn.failed`` or ``turn.cancelled``."""
    position, _, kind, body = entry
    if kind != b"message":
        return body
    return b'{"cursor":%b,"createdAt":"%b",%b' % (position, iso_of(position), body[1:])


def messages_json(entries: list[LogEntry]) -> bytes:
    """*entries*, which are messages all of them, as an array of :class:`Message`."""
    if not entries:
        return b"[]"
    parts: list[bytes] = []
    for position, _, _, body in entries:  # as entry_data has it, without making each of them first
        parts += b',{"cursor":', position, b',"createdAt":"', iso_of(position), b'",', body[1:]
    parts[0] = b'[{"cursor":'
    parts.append(b"]")
    return b"".join(parts)


def history_json(entries: list[LogEntry], *, has_more: bool) -> bytes:
    """The reply of ``GET …/messages``: *entries* newest first, copied."""
    parts = [b'{"messages":', messages_json(entries)]
    parts.append(b',"hasMore":true' if has_more else b',"hasMore":false')
    if entries:
        parts.append(b',"cursors":{"before":%b,"after":%b}' % (entries[-1].position, entries[0].position))
    parts.append(b"}")
    return b"".join(parts)

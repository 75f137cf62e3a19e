"""A claimed turn without a store: what a connector is asked."""

from __future__ import annotations

from time import time_ns
from typing import Any

import msgspec

from sessions_api.agents.connectors import Connector
from sessions_api.domain.agents import AgentDefinition, AgentKind
from sessions_api.domain.ids import AgentId, MessageId, TurnId
from sessions_api.domain.messages import AnswerStatus, EntryKind, LogEntry
from sessions_api.domain.turns import Answer, ClaimedTurn, Turn
from sessions_api.wire.messages import answer_body, user_body

AGENT = AgentId("7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11")
USER = "11111111-1111-4111-8111-111111111111"
SESSION = "22222222-2222-4222-8222-222222222222"
TURN = TurnId("33333333-3333-4333-8333-333333333333")
MESSAGE = MessageId("44444444-4444-4444-8444-444444444444")


def entry(
    body: bytes,
    *,
    cursor: int = 1_700_000_000_000,
    kind: EntryKind = "message",
    status: AnswerStatus | None = None,
) -> LogEntry:
    return LogEntry.of(cursor, kind=kind, turn_id=TURN if status else "", status=status, body=body)


def user(content: str, attachments: list[dict[str, Any]] | None = None) -> LogEntry:
    encoded = None if attachments is None else msgspec.json.encode(attachments)
    return entry(user_body(MESSAGE, content, USER, attachments=encoded))


def agent(content: str, status: AnswerStatus = "complete") -> LogEntry:
    body = answer_body(content, Answer())
    assert body is not None
    return entry(
        b'{"id":"%b","authorId":"%b",' % (MESSAGE.encode(), AGENT.encode()) + body[1:], status=status
    )


def turn(
    *messages: LogEntry, history: list[LogEntry] | None = None, attempt: int = 1, now_ms: int = 0
) -> ClaimedTurn:
    """A turn that asks *messages*, by default one that says "Hello there"."""
    now_ms = now_ms or time_ns() // 1_000_000
    asked = list(messages) or [user("Hello there")]
    return ClaimedTurn(
        session_id=SESSION,
        agent_id=AGENT,
        user_id=USER,
        metadata=b'{"plan":"gold"}',
        turn=Turn(
            TURN,
            "running",
            [each.cursor for each in asked],
            attempt=attempt,
            lease_ms=now_ms + 10_000,
            deadline_ms=now_ms + 300_000,
            fence="a-fence",
            message_id=MESSAGE,
        ),
        messages=asked,
        history=history or [],
        more=False,
        now_ms=now_ms,
    )


def definition(kind: AgentKind, config: dict[str, object]) -> AgentDefinition:
    return AgentDefinition(AGENT, "Tested", kind, config=config)


async def heard(
    connector: Connector, asked: ClaimedTurn, definition: AgentDefinition
) -> tuple[list[str], Answer | None]:
    """The pieces that hold text, and how the answer ended."""
    pieces: list[str] = []
    end: Answer | None = None
    async for piece in connector.answer(asked, definition):
        assert end is None, "an Answer is the last"
        if isinstance(piece, Answer):
            end = piece
        elif piece:
            pieces.append(piece)
    return pieces, end

"""The worker protocol: what a claim hands out, and what workers send.

A turn's messages and history are copied byte by byte, like every page of a log.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sessions_api.domain.traces import traceparent_of, tracestate_of
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.wire.answers import TOKENS
from sessions_api.wire.inputs import Attachment, Metadata
from sessions_api.wire.instants import iso
from sessions_api.wire.messages import Message, messages_json

MAX_WORKER_CHARS = 100
MAX_CAPACITY = 1000
MAX_CODE_CHARS = 64
MAX_MESSAGE_CHARS = 1000

_encode = msgspec.json.Encoder().encode

Fence = Annotated[
    str, Meta(min_length=1, max_length=100, description="As the claim gave it; every claim draws a new one.")
]


class TurnSession(msgspec.Struct, rename="camel"):
    """The session that a turn belongs to."""

    session_id: str
    agent_id: str
    user_id: str
    metadata: dict[str, Any]


class Claimed(msgspec.Struct, rename="camel"):
    """A turn in a worker's hands, until ``leaseUntil`` unless it writes or extends; oldest messages first."""

    turn_id: str
    fence: str
    attempt: int
    message_id: str
    """Of the answer, if this attempt brings one."""
    deadline: str
    """The end of this attempt, whatever it extends."""
    lease_until: str
    session: TurnSession
    messages: list[Message]
    """The user's, which the turn answers."""
    history: list[Message]
    """What was said before them."""
    more: bool
    """Whether there is older history than that."""
    traceparent: str | UnsetType = UNSET
    """Of the request that brought the message (W3C Trace Context), if it had one."""
    tracestate: str | UnsetType = UNSET


class Written(msgspec.Struct):
    """A worker's write: done, or the turn was cancelled and nothing is written."""

    cancelled: bool


class ClaimInput(msgspec.Struct, rename="camel"):
    """Who asks for a turn."""

    worker: Annotated[str, Meta(pattern="^[A-Za-z0-9._:-]{1,100}$", description="A name of its own.")]
    capacity: (
        Annotated[int, Meta(ge=0, le=MAX_CAPACITY, description="Turns it takes at once; 1. 0 says goodbye.")]
        | UnsetType
        | None
    ) = UNSET


class DeltaInput(msgspec.Struct, rename="camel"):
    """More of the running answer; never a half of a surrogate pair."""

    fence: Fence
    text: str
    offset: Annotated[int, Meta(ge=0, le=2**31, description="Where it belongs, in UTF-16 units.")]


class FenceInput(msgspec.Struct, rename="camel"):
    """Which claim it was."""

    fence: Fence


class CompleteInput(msgspec.Struct, rename="camel"):
    """The end of an answer."""

    fence: Fence
    content: (
        Annotated[
            str,
            Meta(
                description="The whole answer, at most 100,000 characters; absent: what was streamed. "
                "Empty, and without metadata, attachments and usage, it is no message."
            ),
        ]
        | UnsetType
        | None
    ) = UNSET
    metadata: (
        Annotated[
            Metadata,
            Meta(
                extra_json_schema={
                    "properties": {
                        "thought": {"type": ["string", "null"]},
                        "actions": {"type": ["array", "null"]},
                    }
                }
            ),
        ]
        | UnsetType
        | None
    ) = UNSET
    attachments: Annotated[list[Attachment], Meta(max_length=16)] | UnsetType | None = UNSET
    usage: (
        Annotated[
            dict[str, Any],
            Meta(
                description="inputTokens, outputTokens and what else there is to say; kept as metadata.",
                extra_json_schema={
                    "properties": {name: {"type": ["number", "null"], "minimum": 0} for name in TOKENS}
                },
            ),
        ]
        | UnsetType
        | None
    ) = UNSET


class FailInput(msgspec.Struct, rename="camel"):
    """Why an attempt is given up."""

    fence: Fence
    code: Annotated[str, Meta(pattern="^[A-Z0-9_]{1,64}$")]
    message: Annotated[str, Meta(max_length=MAX_MESSAGE_CHARS, description="For the user.")]
    retry: (
        Annotated[bool, Meta(description="Whether another attempt follows, if any is left; true.")]
        | UnsetType
        | None
    ) = UNSET
    retry_after_ms: (
        Annotated[
            float, Meta(ge=0, description="Pause before it, if longer than the backoff; a minute at most.")
        ]
        | UnsetType
        | None
    ) = UNSET


def claimed_json(claimed: ClaimedTurn, *, is_held: bool = True) -> bytes:
    """The JSON of :class:`Claimed`; of a turn that its reader does not hold, without fence, lease, trace."""
    turn = claimed.turn
    held = {"fence": turn.fence, "leaseUntil": iso(turn.lease_ms)} if is_held else {}
    if is_held and claimed.trace:  # who is asked by HTTP has them as headers
        held["traceparent"] = traceparent_of(claimed.trace)
        if state := tracestate_of(claimed.trace):
            held["tracestate"] = state
    front = _encode(
        {
            "turnId": turn.turn_id,
            "attempt": turn.attempt,
            "messageId": turn.message_id,
            "deadline": iso(turn.deadline_ms),
            **held,
            "session": {
                "sessionId": claimed.session_id,
                "agentId": claimed.agent_id,
                "userId": claimed.user_id,
                "metadata": msgspec.Raw(claimed.metadata),
            },
            "more": claimed.more,
        }
    )
    messages, history = messages_json(claimed.messages), messages_json(claimed.history)
    return b"".join((front[:-1], b',"messages":', messages, b',"history":', history, b"}"))

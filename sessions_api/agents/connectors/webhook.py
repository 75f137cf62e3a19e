"""Asks an agent that is a web server: one signed POST for each attempt, as Standard Webhooks has it.

The receiver gets::

    POST <url>
    webhook-id: <turnId>               the same for all attempts: what to dedupe by
    webhook-timestamp: <seconds>
    webhook-signature: v1,<base64>
    webhook-attempt: 1
    traceparent, tracestate            where the message came with them, or this service traces

    {"type": "turn", "timestamp": …, "data": {a turn as a worker claims it, without fence, lease and trace}}

It answers with 204 (nothing to say) or 2xx and one of::

    application/json     {"content", "metadata"?, "attachments"?, "usage"?}
    text/plain           the content, passed on as it comes
    text/event-stream    event: delta   {"text"}
                         event: done    {"content"?, "metadata"?, "attachments"?, "usage"?}
                         event: error   {"code", "message", "retry"?, "retryAfterMs"?}

A stream has to end in ``done`` or ``error``: one that just stops may be a receiver that died.
"""

from __future__ import annotations

import binascii
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import httpx2
import msgspec
from msgspec import Meta
from standardwebhooks.webhooks import EmptyWebhookSecretError
from standardwebhooks.webhooks import Webhook as Signer

from sessions_api.agents.connectors.failure import AgentCode, AttemptFailed
from sessions_api.agents.connectors.outgoing import Outgoing, content_type, events, failure_of, whole
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.turns import Answer, ClaimedTurn
from sessions_api.wire.answers import misfits
from sessions_api.wire.claims import claimed_json
from sessions_api.wire.instants import iso

MAX_METADATA_BYTES: Final = 10_240
"""Of an answer's metadata and usage as compact JSON, as for every message."""
MAX_ATTACHMENTS: Final = 16
_ACCEPT: Final = "text/event-stream, application/json, text/plain"
_encode = msgspec.json.Encoder().encode
_Shape = TypeVar("_Shape")


class Webhook:
    """The ``config`` of a definition says ``url`` and ``secret`` (``whsec_…``)."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing

    async def answer(
        self, turn: ClaimedTurn, definition: AgentDefinition
    ) -> AsyncGenerator[str | Answer, None]:
        body = _body(turn)
        async with self._outgoing.post(
            str(definition.config.get("url", "")),
            body,
            agent_id=definition.agent_id,
            headers={
                "content-type": "application/json",
                "accept": _ACCEPT,
                **_signature(turn, body, str(definition.config.get("secret", ""))),
            },
            silent_s=definition.turn_timeout_ms / 1000,
            trace=turn.trace,
        ) as reply:
            if not reply.is_success:
                raise failure_of(reply)
            async with aclosing(_read(reply)) as pieces:
                async for piece in pieces:
                    yield piece


def _body(turn: ClaimedTurn) -> bytes:
    front = f'{{"type":"turn","timestamp":"{iso(turn.now_ms)}","data":'
    return front.encode() + claimed_json(turn, is_held=False) + b"}"


def _signature(turn: ClaimedTurn, body: bytes, secret: str) -> dict[str, str]:
    """The headers. The time is Redis's at the claim: a replica with a wrong clock signs well."""
    turn_id = turn.turn.turn_id
    at = datetime.fromtimestamp(turn.now_ms // 1000, UTC)
    try:
        signature = Signer(secret).sign(turn_id, at, body.decode())
    except (EmptyWebhookSecretError, binascii.Error, ValueError):
        raise AttemptFailed("AGENT_REFUSED", "The agent has no usable secret", retry=False) from None
    return {
        "webhook-id": turn_id,
        "webhook-timestamp": str(turn.now_ms // 1000),
        "webhook-signature": signature,
        "webhook-attempt": str(turn.turn.attempt),
    }


# ---------------------------------------------------------------- the answer


class _Reply(msgspec.Struct, frozen=True):
    """A JSON answer, and what ``done`` carries."""

    content: str | None = None
    metadata: dict[str, Any] | None = None
    attachments: Annotated[list[dict[str, Any]], Meta(max_length=MAX_ATTACHMENTS)] | None = None
    usage: dict[str, Any] | None = None

    def answer(self) -> Answer:
        for each in self.attachments or ():
            if not isinstance(each.get("url", each.get("data")), str):
                raise AttemptFailed(
                    "AGENT_ERROR", "The agent's answer has an attachment without url and data"
                )
        for bad in misfits(self.metadata, self.usage):
            raise AttemptFailed("AGENT_ERROR", f"The agent's answer is unusable: {bad.field} {bad.reason}")
        metadata = _encode(self.metadata or {})
        usage = _encode(self.usage) if self.usage else None
        if len(metadata) + len(usage or b"") > MAX_METADATA_BYTES:
            raise AttemptFailed("AGENT_ERROR", f"The agent's metadata exceeds {MAX_METADATA_BYTES} bytes")
        attachments = _encode(self.attachments) if self.attachments else None
        return Answer(self.content, metadata, attachments, usage)


class _Delta(msgspec.Struct, frozen=True):
    text: str


class _Error(msgspec.Struct, frozen=True, rename="camel"):
    code: Annotated[str, Meta(pattern="^[A-Z0-9_]{1,64}$")] = "AGENT_ERROR"
    message: Annotated[str, Meta(max_length=1000)] = "The agent failed"
    retry: bool = True
    retry_after_ms: Annotated[float, Meta(ge=0)] = 0


async def _read(reply: httpx2.Response) -> AsyncGenerator[str | Answer, None]:
    match content_type(reply):
        case "text/event-stream":
            async with aclosing(_streamed(reply)) as pieces:
                async for piece in pieces:
                    yield piece
        case "text/plain":
            async for text in reply.aiter_text():
                yield text
        case "application/json":
            body = await whole(reply)
            yield _decoded(body, _Reply).answer() if body else Answer(content="")
        case _:
            if await whole(reply):
                raise AttemptFailed("AGENT_ERROR", "The agent's answer is no JSON, text or event stream")
            yield Answer(content="")  # 204, or another 2xx without a body


async def _streamed(reply: httpx2.Response) -> AsyncGenerator[str | Answer, None]:
    async with aclosing(events(reply)) as stream:
        async for event in stream:
            match event.event:
                case "delta":
                    yield _decoded(event.data, _Delta).text
                case "done":
                    yield _decoded(event.data or "{}", _Reply).answer()
                    return
                case "error":
                    error = _decoded(event.data or "{}", _Error)
                    raise AttemptFailed(
                        AgentCode(error.code),
                        error.message,
                        retry=error.retry,
                        pause_s=error.retry_after_ms / 1000,
                    )
                case _:  # of a later version of this protocol
                    pass
    raise AttemptFailed("AGENT_ERROR", "The agent's answer broke off")


def _decoded(text: str | bytes, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(text, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise AttemptFailed("AGENT_ERROR", "The agent's answer has not the agreed form") from None

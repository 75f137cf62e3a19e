"""The bodies of requests, as the OpenAPI document describes them.

``api/bodies.py`` reads them: it has to name every bad field at once, in the
reference's words, which a decoder into these Structs could not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sessions_api.domain.agents import AgentKind
from sessions_api.domain.sessions import OnBusy
from sessions_api.wire.messages import Role

UUID = Annotated[
    str,
    Meta(
        pattern="^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
        description="Any version, any case; compared without case, echoed as sent.",
    ),
]
Transport = Literal["http", "sse", "websocket", "sync", "stream"]
Metadata = Annotated[
    dict[str, Any], Meta(description="At most 10,240 bytes of compact JSON, at most 16 levels deep.")
]


class TimeoutInput(msgspec.Struct, rename="camel"):
    """Any of the four; what is not named comes from the agent, then from the environment.

    Numbers may be numeric strings. ``maxDurationMinutes`` must not be below the
    timeout, ``warningThresholdMinutes`` must be below it.
    """

    timeout_minutes: float | UnsetType = UNSET
    auto_renew: bool | UnsetType = UNSET
    max_duration_minutes: float | UnsetType = UNSET
    warning_threshold_minutes: float | UnsetType = UNSET


class TimeoutPatch(msgspec.Struct, rename="camel"):
    """As a merge patch: ``null`` returns a field to the tier below."""

    timeout_minutes: float | UnsetType | None = UNSET
    auto_renew: bool | UnsetType | None = UNSET
    max_duration_minutes: float | UnsetType | None = UNSET
    warning_threshold_minutes: float | UnsetType | None = UNSET


class CreateSession(msgspec.Struct, rename="camel"):
    """Who talks to whom; unknown members are ignored."""

    agent_id: UUID
    user_id: UUID
    metadata: Metadata | UnsetType | None = UNSET
    timeout_config: TimeoutInput | UnsetType | None = UNSET
    on_busy: OnBusy | UnsetType | None = UNSET


class Attachment(msgspec.Struct, rename="camel"):
    """``url`` or ``data`` is needed; unknown members are kept. A ``url`` is no script."""

    url: str | UnsetType | None = UNSET
    data: str | UnsetType | None = UNSET
    content_type: str | UnsetType | None = UNSET
    name: str | UnsetType | None = UNSET
    size: Annotated[float, Meta(ge=0)] | UnsetType | None = UNSET


class SendMessage(msgspec.Struct, rename="camel"):
    """A message of the user; unknown members are ignored."""

    content: str
    metadata: Metadata | UnsetType | None = UNSET
    attachments: Annotated[list[Attachment], Meta(max_length=16)] | UnsetType | None = UNSET
    transport: Transport | UnsetType | None = UNSET
    mode: (
        Annotated[Transport, Meta(description="The old name of transport, used where that is absent.")]
        | UnsetType
        | None
    ) = UNSET
    on_busy: OnBusy | UnsetType | None = UNSET
    role: (
        Annotated[
            Role,
            Meta(
                description="agent and system speak unasked: no turn answers, nothing is renewed; "
                "content may then have 100,000 characters, transport is websocket."
            ),
        ]
        | UnsetType
        | None
    ) = UNSET
    timeout_ms: (
        Annotated[float, Meta(ge=1, le=300000, description="How long http and sse wait; 25,000.")]
        | UnsetType
        | None
    ) = UNSET


class PutAgent(msgspec.Struct, rename="camel"):
    """A definition; it takes the place of the one before, whole."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    kind: AgentKind
    config: (
        Annotated[
            dict[str, Any],
            Meta(
                description="By kind. echo: delayMs. worker: nothing. webhook: url, secret (made, and shown "
                "once, where it is left out). openai: baseUrl, model, apiKey, system, temperature, "
                "maxTokens. A secret written as `********` stays what it is."
            ),
        ]
        | UnsetType
        | None
    ) = UNSET
    session: TimeoutPatch | UnsetType | None = UNSET
    on_busy: OnBusy | UnsetType | None = UNSET
    history: (
        Annotated[int, Meta(ge=0, le=1000, description="Messages that a turn brings along; 50.")]
        | UnsetType
        | None
    ) = UNSET
    turn_timeout_ms: (
        Annotated[int, Meta(ge=1000, le=86400000, description="The longest life of one attempt; 300,000.")]
        | UnsetType
        | None
    ) = UNSET
    max_attempts: Annotated[int, Meta(ge=1, le=20, description="3.")] | UnsetType | None = UNSET
    concurrency: (
        Annotated[int, Meta(ge=1, le=1000, description="Turns that one replica runs of it at once; 64.")]
        | UnsetType
        | None
    ) = UNSET

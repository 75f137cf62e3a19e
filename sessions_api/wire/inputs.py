"""The bodies of requests, as the OpenAPI document describes them.

``api/bodies.py`` reads them: it has to name every bad field at once, in the
reference's words, which a decoder into these Structs could not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sessions_api.domain.sessions import OnBusy

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
    """``url`` or ``data`` is needed; unknown members are kept."""

    url: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    content_type: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    size: Annotated[float, Meta(ge=0)] | UnsetType = UNSET


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
    role: Literal["user"] | UnsetType | None = UNSET
    timeout_ms: (
        Annotated[float, Meta(ge=1, le=300000, description="How long http and sse wait; 25,000.")]
        | UnsetType
        | None
    ) = UNSET

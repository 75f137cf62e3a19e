"""Session tokens and access keys, as callers see them; no secret but the one token that was just made."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sessions_api.domain.access import Right

LIFE_S = (1, 86_400)


class TokenInput(msgspec.Struct, rename="camel"):
    """What the token may do (``scopes``; read, send, renew and cancel), and for how long (900 s)."""

    scopes: list[Right] | UnsetType | None = UNSET
    ttl_seconds: Annotated[int, Meta(ge=LIFE_S[0], le=LIFE_S[1])] | UnsetType = UNSET


class TokenInfo(msgspec.Struct, rename="camel"):
    """A token that was made just now; it is shown nowhere else."""

    token: str
    session_id: str
    scopes: list[Right]
    expires_at: str


class TokensRevoked(msgspec.Struct):
    """Every token of the session that was made before this has ended."""

    success: bool
    message: str


class KeyInfo(msgspec.Struct, rename="camel"):
    """An access key; ``lastUsedAt`` is within seconds, and absent for one that never was."""

    id: str
    app: str
    scopes: list[str]
    last_used_at: str | UnsetType = UNSET


class KeyList(msgspec.Struct):
    """Every access key that opens this service now."""

    keys: list[KeyInfo]

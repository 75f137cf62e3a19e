"""The settings that all replicas on one Redis must share, as each tells the others.

Everything is shared that is not named in ``OWN``, so that a new setting is compared
unless somebody says why it need not be. No value is a secret: of access keys and
agents a digest is told, of agents' secrets nothing.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

from sessions_api.wire.agentconfig import masked
from sessions_api.wire.timeouts import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sessions_api.access.keyring import Key
    from sessions_api.domain.agents import AgentDefinition
    from sessions_api.settings.fields import Settings

OWN: Final = frozenset(
    {
        # where it is, and how it gets to Redis
        "host", "port", "redis_url", "redis_password_file", "sessions_data_dir", "sessions_metrics_port",
        "sessions_trusted_proxies", "sessions_workers",
        # what part of the work it takes, and how much of it
        "sessions_keeper", "sessions_dispatcher", "sessions_dispatcher_turns", "sessions_drain_seconds",
        "sessions_redis_deadline_ms", "sessions_max_followers", "sessions_max_followers_per_session",
        # what it says of itself
        "log_level", "log_format", "ignored", "trace_exporters",
    }
)  # fmt: skip
"""A replica's own: two may differ in these and serve every session alike."""


def shared(settings: Settings, keys: Iterable[Key]) -> dict[str, str]:
    """Variable → value, of those that must be the same everywhere; *keys* are the access keys of now."""
    found = {
        field.name.upper(): _text(getattr(settings, field.name))
        for field in msgspec.structs.fields(type(settings))
        if field.name not in {*OWN, "agents", "sessions_keys", "sessions_keys_file", "sessions_agents_file"}
    }
    # By content: the same may come from a file here and from the environment there.
    found["SESSIONS_AGENTS_FILE"] = _digest(map(_definition, settings.agents))
    found["SESSIONS_KEYS"] = _digest(
        f"{key.id} {key.app} {','.join(sorted(key.scopes))} {key.digest.hex()}".encode() for key in keys
    )
    return found


def _text(value: object) -> str:
    return plain(value) if isinstance(value, int | float) else str(value)


def _definition(agent: AgentDefinition) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(agent, config=masked(agent)), order="sorted")


def _digest(parts: Iterable[bytes]) -> str:
    found = sorted(parts)
    return f"{len(found)}, {sha256(b'/'.join(found)).hexdigest()[:16]}" if found else "none"

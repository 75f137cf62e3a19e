"""Access keys, for their operator: which there are, and when each was used last."""

from __future__ import annotations

from msgspec import UNSET

from sessions_api.api.replies import Reply, reply
from sessions_api.api.requests import Request
from sessions_api.wire.instants import iso
from sessions_api.wire.tokens import KeyInfo, KeyList


async def list_(request: Request) -> Reply:
    """Every key by its id; never a secret, nor the hash of one."""
    state = request.state
    used = await state.store.key_uses.read()
    keys = [
        KeyInfo(key.id, key.app, sorted(key.scopes), iso(used[key.id]) if key.id in used else UNSET)
        for key in sorted(state.keyring.keys(), key=lambda key: key.id)
    ]
    return reply(KeyList(keys))

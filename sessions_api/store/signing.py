"""The keys that session tokens are signed with: in Redis, the same for all replicas, renewed by themselves.

Whoever reads Redis reads every conversation anyway, so keeping them there gives
nothing away, and nobody has to hand out or rotate a secret of their own.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from sessions_api.store.loader import load

if TYPE_CHECKING:
    from sessions_api.store.connection import Redis
    from sessions_api.store.keys import Keyspace

SIGNING = load("signing")
ROTATE_MS: Final = 24 * 3_600_000
LONGEST_LIFE_S: Final = 24 * 3_600
"""Of a token: none outlives the key that it was signed with."""
KEEP_MS: Final = ROTATE_MS + LONGEST_LIFE_S * 1000 + 3_600_000
SETTLED_MS: Final = 15_000
"""A new key signs once it is so old, so that every replica has read it by then."""


class SigningKey(msgspec.Struct, frozen=True):
    """*id* stands in a token's header (``kid``)."""

    id: str
    created_ms: int
    secret: str


class SigningKeys:
    """This process's copy of the keys; :meth:`refresh` keeps it fresh."""

    def __init__(self, redis: Redis, keyspace: Keyspace) -> None:
        self._redis = redis
        self._key = keyspace.signing
        self._keys: dict[str, SigningKey] = {}
        self._current = ""

    def get(self, key_id: str) -> SigningKey | None:
        """The key of this id, which is None if it is unknown or no longer trusted."""
        return self._keys.get(key_id)

    @property
    def ids(self) -> frozenset[str]:
        """The keys that are trusted."""
        return frozenset(self._keys)

    @property
    def current(self) -> SigningKey | None:
        """The one to sign with; None before the first :meth:`refresh`."""
        return self._keys.get(self._current)

    async def refresh(self) -> None:
        """Read the keys, and make a new one if it is time. One round trip.

        Raises:
            StorageError: Redis cannot be asked now; the copy stays.
        """
        await self._read(ROTATE_MS, is_leak=False)

    async def replace(self) -> None:
        """Trust none of them any more: every session token ends, on other replicas within seconds.

        Raises:
            StorageError
        """
        await self._read(0, is_leak=True)

    async def _read(self, rotate_ms: int, *, is_leak: bool) -> None:
        args = (secrets.token_hex(6), secrets.token_hex(32), rotate_ms, KEEP_MS, int(is_leak))
        now, *flat = await self._redis.script(SIGNING, [self._key], args)
        found = [
            SigningKey(key_id.decode(), int(created), secret.decode())
            for key_id, created, secret in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        ]
        self._keys = {key.id: key for key in found}
        settled = [key for key in found if int(now) - key.created_ms >= SETTLED_MS]
        # Without a settled one, the oldest: it has been there for longest.
        chosen = max(settled, key=_age) if settled else min(found, key=_age)
        self._current = chosen.id


def _age(key: SigningKey) -> tuple[int, str]:
    return key.created_ms, key.id

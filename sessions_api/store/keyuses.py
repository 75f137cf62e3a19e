"""When each access key was used last, over all replicas: what tells an operator that an old one may go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessions_api.store.loader import load

if TYPE_CHECKING:
    from collections.abc import Collection

    from sessions_api.store.connection import Redis
    from sessions_api.store.keys import Keyspace

USED = load("used")
MOST: Final = 1_000
"""Ids in one call; Lua's unpack takes no more than a few thousand."""


class KeyUses:
    """The last use of keys, by Redis's clock, to within the seconds that replicas collect them for."""

    def __init__(self, redis: Redis, keyspace: Keyspace) -> None:
        self._redis = redis
        self._key = keyspace.key_uses

    async def note(self, key_ids: Collection[str]) -> None:
        """These were used just now.

        Raises:
            StorageError
        """
        ids = sorted(key_ids)
        for start in range(0, len(ids), MOST):
            await self._redis.script(USED, [self._key], ids[start : start + MOST])

    async def read(self) -> dict[str, int]:
        """Key id → milliseconds of its last use.

        Raises:
            StorageError
        """
        flat = await self._redis.command(b"HGETALL", self._key, safe=True)
        return {key.decode(): int(ms) for key, ms in zip(flat[::2], flat[1::2], strict=True)}

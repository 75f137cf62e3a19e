"""The replicas of the service that live, and what each says of itself.

Each gives a sign of life with its version, its schema and a digest of the settings
that all must share; the settings themselves stand once under that digest, however
many replicas have them. A sign of life is one call, and it brings back what the
others say, so that a mixture is noticed by everybody at no further cost.

Keepers stand in ``replicas`` as well, from which partitions are shared out. Every
release does that, so an older one, which says nothing of itself, is seen there.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sessions_api.store.keys import SCHEMA
from sessions_api.store.loader import load
from sessions_api.store.scripts import unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sessions_api.store.scripts import Scripts

PRESENCE = load("presence")
UNTOLD: Final = "unknown"
"""The version of a replica that does not tell it: of a release before those that do."""


class Replica(msgspec.Struct, frozen=True):
    """A replica that lives; *digest* is that of its settings."""

    replica_id: str
    version: str = UNTOLD
    schema: str = UNTOLD
    digest: str = ""
    keeps: bool = True


class Identity:
    """What this replica says of itself; :attr:`settings` may be set anew while it runs."""

    def __init__(
        self,
        replica_id: str,
        *,
        version: str = "0",
        settings: Mapping[str, str] | None = None,
        keeps: bool = True,
    ) -> None:
        self.replica_id = replica_id
        self.version = version
        self.keeps = keeps
        self.settings = dict(settings or {})

    @property
    def settings(self) -> dict[str, str]:
        """Those that all replicas must share, by name; no secret among them."""
        return self._settings

    @settings.setter
    def settings(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self.text = msgspec.json.encode(dict(sorted(settings.items())))
        self.digest = sha256(self.text).hexdigest()[:16]


class Replicas:
    """Signs of life."""

    def __init__(self, scripts: Scripts) -> None:
        self._redis = scripts.redis
        keyspace = scripts.keyspace
        self._keys = [keyspace.replicas, keyspace.told, keyspace.settings]
        self._stored = ""  # the digest whose settings are known to be stored

    async def present(self, me: Identity, ttl_ms: int) -> list[Replica]:
        """This replica lives for *ttl_ms* more; all that live. Its settings go along where they are missing.

        Raises:
            StorageError
        """
        text = b"" if self._stored == me.digest else me.text
        match await self._call(me, ttl_ms, text):
            case [b"known" | b"unknown" as word, keepers, told]:
                self._stored = me.digest if word == b"known" else ""
                return list(_alive(keepers, told))
            case reply:
                raise unknown(PRESENCE, reply)

    async def leave(self, me: Identity) -> None:
        """This replica says goodbye.

        Raises:
            StorageError
        """
        await self._call(me, 0, b"")
        self._stored = ""

    async def settings(self, digest: str) -> dict[str, str]:
        """The settings with this digest; empty if nobody has them any more.

        Raises:
            StorageError
        """
        text = await self._redis.command(b"HGET", self._keys[2], digest, safe=True)
        return msgspec.json.decode(text, type=dict[str, str]) if text else {}

    async def alive(self) -> list[Replica]:
        """All that live, for who is none of them: nothing is written.

        Raises:
            StorageError
        """
        seconds, _ = await self._redis.command(b"TIME", safe=True)
        now_ms = int(seconds) * 1000
        scores = await self._redis.command(b"ZRANGEBYSCORE", self._keys[0], f"({now_ms}", b"+inf", safe=True)
        flat = await self._redis.command(b"HGETALL", self._keys[1], safe=True)
        told: list[bytes] = []
        for replica, line in zip(flat[::2], flat[1::2], strict=True):
            until_ms, keeps, rest = line.split(b" ", 2)
            if int(until_ms) > now_ms:
                told += [replica, keeps, *rest.rsplit(b" ", 1)]
        return list(_alive(sorted(scores), told))

    async def _call(self, me: Identity, ttl_ms: int, text: bytes) -> Any:
        says = f"{me.version} {SCHEMA}"
        args = (me.replica_id, ttl_ms, int(me.keeps), says, me.digest, text)
        return await self._redis.script(PRESENCE, self._keys, args)


def _alive(keepers: list[bytes], told: list[bytes]) -> Iterator[Replica]:
    """Replicas by what they say, then keepers that say nothing; each in order of its id."""
    rows = sorted(zip(told[::4], told[1::4], told[2::4], told[3::4], strict=True))
    for replica, keeps, says, digest in rows:
        version, _, schema = says.decode().partition(" ")
        yield Replica(replica.decode(), version, schema, digest.decode(), keeps == b"1")
    known = {row[0] for row in rows}
    yield from (Replica(keeper.decode()) for keeper in keepers if keeper not in known)

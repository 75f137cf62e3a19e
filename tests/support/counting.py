"""A Redis Cluster seen through the connection under test, and callers whose every call is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sessions_api.errors import StorageUnavailable
from sessions_api.store.cluster import Cluster, Node
from sessions_api.store.connection import Redis
from sessions_api.store.slots import slot_of
from tests.support.faulty import COUNT
from tests.support.waiting import until


def topology(redis: Redis) -> Cluster:
    assert isinstance(redis.topology, Cluster)
    return redis.topology


def served_by(redis: Redis, key: str) -> int:
    """The port of the server that *redis* sends commands on *key* to."""
    link = topology(redis).serving(slot_of(key.encode()))
    assert isinstance(link, Node)
    return link.host.port


class Counting:
    """Callers that count, one after the other, each in a key of its own."""

    def __init__(self, redis: Redis, keys: list[str]) -> None:
        self._redis = redis
        self.acknowledged = dict.fromkeys(keys, 0)
        self.repeated = dict.fromkeys(keys, 0)
        self.refused: list[StorageUnavailable] = []
        self.longest_s = dict.fromkeys(keys, 0.0)
        self._is_over = False

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[Counting]:
        tasks = [asyncio.create_task(self._count(key)) for key in self.acknowledged]
        try:
            await until(lambda: all(self.acknowledged.values()))
            yield self
            before = dict(self.acknowledged)
            await until(lambda: all(count > before[key] for key, count in self.acknowledged.items()))
        finally:
            self._is_over = True
            await asyncio.gather(*tasks)

    async def _count(self, key: str) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_over:
            began_s = loop.time()
            try:
                reply = await self._redis.script_reply(COUNT, [key], ["x"])
            except StorageUnavailable as error:
                self.refused.append(error)
                self.repeated[key] += 1
            else:
                self.acknowledged[key] += 1
                self.repeated[key] += reply.repeated
            self.longest_s[key] = max(self.longest_s[key], loop.time() - began_s)

    async def stored(self) -> dict[str, int]:
        return {key: int(await self._redis.command("GET", key, safe=True)) for key in self.acknowledged}

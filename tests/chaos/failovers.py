"""What befalls primaries that have replicas, with sentinels and in a cluster.

Each returns when the topology is whole again: a second blow to a primary whose
replica has not caught up yet would take all there is, which nobody promises to
survive.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from sessions_api.store.keys import TAGS
from sessions_api.store.slots import slot_of
from tests.chaos.storages import Cluster, Storage, WithSentinels
from tests.support.cluster import ClusterNode, ClusterServer
from tests.support.sentinel import Sentinels, eventually

MOVES = 6
"""Partitions that move in one migration."""


def failovers_of(storage: Storage) -> Failovers:
    if isinstance(storage, WithSentinels):
        return OfSentinels(storage.sentinels)
    assert isinstance(storage, Cluster)
    return OfCluster(storage.cluster)


class Failovers(ABC):
    @abstractmethod
    async def kill(self, target: int, seconds: float) -> None:
        """SIGKILL of a primary; so long after another one took over, it comes back as a replica."""

    @abstractmethod
    async def stop(self, target: int, seconds: float) -> None:
        """SIGSTOP of a primary for so long, whether another one takes over by then or not."""

    @abstractmethod
    async def fail_over(self, target: int) -> None:
        """Planned."""


class OfSentinels(Failovers):
    def __init__(self, sentinels: Sentinels) -> None:
        self._sentinels = sentinels

    async def kill(self, target: int, seconds: float) -> None:
        del target  # there is one
        primary = self._sentinels.primary
        await asyncio.to_thread(primary.kill)
        await asyncio.to_thread(self._sentinels.until_moved, primary.port)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(primary.start)
        await self._whole()

    async def stop(self, target: int, seconds: float) -> None:
        del target
        primary = self._sentinels.primary
        primary.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            primary.resume()
        await self._whole()

    async def fail_over(self, target: int) -> None:
        how = ("COORDINATED",) if target % 2 else ()
        await asyncio.to_thread(self._sentinels.failover, *how)
        await self._whole()

    async def _whole(self) -> None:
        await asyncio.to_thread(self._make_whole)

    def _make_whole(self) -> None:
        sentinels = self._sentinels
        eventually(lambda: not any("failover" in each.state()["flags"] for each in sentinels.sentinels))
        primary = sentinels.primary
        for node in sentinels.nodes:
            if node is not primary and not node.is_following(primary):
                node.follow(primary)  # the sentinels would see to it, 10 s from now
        eventually(sentinels.is_whole)


class OfCluster(Failovers):
    def __init__(self, cluster: ClusterServer) -> None:
        self._cluster = cluster

    def _primary(self, target: int) -> ClusterNode:
        primaries = self._cluster.primaries
        return primaries[target % len(primaries)]

    async def kill(self, target: int, seconds: float) -> None:
        primary = await asyncio.to_thread(self._primary, target)
        replica = await asyncio.to_thread(self._cluster.replica_of, primary)
        await asyncio.to_thread(primary.kill)
        await asyncio.to_thread(eventually, lambda: replica.is_primary)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(primary.start)
        await asyncio.to_thread(self._cluster.settle)

    async def stop(self, target: int, seconds: float) -> None:
        primary = await asyncio.to_thread(self._primary, target)
        primary.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            primary.resume()
        await asyncio.to_thread(self._cluster.settle)

    async def fail_over(self, target: int) -> None:
        primary = await asyncio.to_thread(self._primary, target)
        replica = await asyncio.to_thread(self._cluster.replica_of, primary)
        await asyncio.to_thread(replica.call, "CLUSTER", "FAILOVER")
        await asyncio.to_thread(eventually, lambda: replica.is_primary)
        await asyncio.to_thread(self._cluster.settle)

    async def migrate(self, target: int, seconds: float) -> None:
        """Some partitions, one after the other, each to the primary after its own."""
        for number in range(MOVES):
            tag = TAGS[(target + number * len(TAGS) // MOVES) % len(TAGS)]
            await asyncio.to_thread(self._move, slot_of(f"{{{tag}}}".encode()))
            await asyncio.sleep(seconds / MOVES)
        await asyncio.to_thread(self._cluster.settle)

    def _move(self, slot: int) -> None:
        primaries = self._cluster.primaries
        owner = self._cluster._owner(slot)
        self._cluster.migrate(slot, primaries[(primaries.index(owner) + 1) % len(primaries)])

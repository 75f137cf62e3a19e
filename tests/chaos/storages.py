"""Where the sessions of a schedule are kept: one server, a primary with sentinels, or a cluster."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from tests.chaos.schedule import Topology
from tests.support.cluster import ClusterNode, ClusterServer
from tests.support.proxy import Proxy
from tests.support.sentinel import Sentinels
from tests.support.servers import RealServer, launch


class Storage(ABC):
    """What of a topology replicas, faults and the reader need to know."""

    @abstractmethod
    async def start(self, stack: AsyncExitStack, folder: Path, replicas: int) -> list[str]:
        """Bring it up until *stack* ends; the URL that each replica is given."""

    @property
    @abstractmethod
    def servers(self) -> Sequence[RealServer]:
        """Those with data, running or not."""

    @property
    @abstractmethod
    def primaries(self) -> Sequence[RealServer]:
        """Those that are written to, by what is known now."""

    async def keys(self) -> dict[bytes, int]:
        """Every key and its TTL in milliseconds, -1 without one."""

        def read() -> dict[bytes, int]:
            return {
                key: server.call("PTTL", key)
                for server in self.primaries
                for key in server.keys()  # noqa: SIM118  no dict
            }

        return await asyncio.to_thread(read)


class Single(Storage):
    """One Valkey with an append-only file that is synced before each reply, and a proxy for each replica.

    With ``appendfsync everysec`` a kill while a sync is under way may take what
    was acknowledged meanwhile; then followers are told ``gap: rewound``.
    """

    server: RealServer
    proxies: list[Proxy]

    async def start(self, stack: AsyncExitStack, folder: Path, replicas: int) -> list[str]:
        server = await asyncio.to_thread(launch, "valkey", folder / "redis")
        assert isinstance(server, RealServer)
        self.server = server
        stack.callback(server.stop)
        await asyncio.to_thread(self.sync_always)
        self.proxies = [await stack.enter_async_context(Proxy(server.url)) for _ in range(replicas)]
        return [proxy.url for proxy in self.proxies]

    def sync_always(self) -> None:
        """After each start of the server."""
        self.server.config_set("appendfsync", "always")

    @property
    def servers(self) -> Sequence[RealServer]:
        return [self.server]

    @property
    def primaries(self) -> Sequence[RealServer]:
        return [self.server]


class WithSentinels(Storage):
    """A primary, two replicas of it, three sentinels."""

    sentinels: Sentinels

    async def start(self, stack: AsyncExitStack, folder: Path, replicas: int) -> list[str]:
        self.sentinels = Sentinels("valkey", folder / "redis")
        stack.callback(self.sentinels.stop)
        await asyncio.to_thread(self.sentinels.start)
        return [self.sentinels.url] * replicas

    @property
    def servers(self) -> Sequence[RealServer]:
        return self.sentinels.nodes

    @property
    def primaries(self) -> Sequence[RealServer]:
        return [self.sentinels.primary]


class Cluster(Storage):
    """Three primaries, a replica of each."""

    cluster: ClusterServer

    async def start(self, stack: AsyncExitStack, folder: Path, replicas: int) -> list[str]:
        self.cluster = ClusterServer("cluster", folder / "redis", primaries=3, replicas=3)
        stack.callback(self.stop)
        await asyncio.to_thread(self.cluster.start)
        return [self.cluster.url] * replicas

    def stop(self) -> None:
        for node in self.cluster.nodes:
            node.kill()

    @property
    def servers(self) -> Sequence[ClusterNode]:
        return self.cluster.nodes

    @property
    def primaries(self) -> Sequence[ClusterNode]:
        return self.cluster.primaries


STORAGES: dict[Topology, Callable[[], Storage]] = {
    "single": Single,
    "sentinel": WithSentinels,
    "cluster": Cluster,
}

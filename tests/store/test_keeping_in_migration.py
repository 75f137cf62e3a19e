"""The lease of a partition whose slot moves to another primary, key by key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from sessions_api.store.slots import slot_of
from tests.support.cluster import ClusterServer, cluster_kinds
from tests.support.replicas import stores
from tests.support.servers import running


@pytest.fixture(scope="module", params=cluster_kinds())
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterServer]:
    with running(ClusterServer(request.param, tmp_path_factory.mktemp("cluster"), primaries=2)) as cluster:
        yield cluster


async def test_stays_with_its_replica(cluster: ClusterServer) -> None:
    """It is renewed before, while and after it moves, and nobody else gets it."""
    async with stores(cluster.url, 1) as [store]:
        key = store.keyspace.partition(0).keeper
        slot = slot_of(key)
        owner = await asyncio.to_thread(cluster.serving, key)
        target = next(node for node in cluster.primaries if node is not owner)

        async def is_kept() -> bool:
            return await store.alarms.keep(0, "one", 60_000) and not await store.alarms.keep(0, "two", 60_000)

        assert await is_kept()
        await asyncio.to_thread(cluster.begin_migration, slot, target)
        assert await is_kept()
        await asyncio.to_thread(cluster.move_keys, slot, owner, target)
        assert await is_kept()
        await asyncio.to_thread(cluster.end_migration, slot, target)
        assert await is_kept()
        assert await asyncio.to_thread(target.call, "PTTL", key) > 30_000
        await store.alarms.yield_(0, "one")
        assert await store.alarms.keep(0, "two", 60_000)

"""A cluster that changes under its callers: slots that move, primaries that are replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from sessions_api.store.connection import Redis
from sessions_api.store.slots import slot_of
from tests.support.cluster import ClusterNode, ClusterServer, cluster_kinds
from tests.support.counting import Counting, served_by, topology
from tests.support.faulty import COUNT, ECHO
from tests.support.servers import running
from tests.support.waiting import until

one = pytest.mark.servers("cluster")
both = pytest.mark.servers("cluster", "cluster62")


@pytest.fixture(scope="module", params=cluster_kinds())
def _replicated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterServer]:
    kind: str = request.param
    with running(ClusterServer(kind, tmp_path_factory.mktemp(kind), replicas=3)) as cluster:
        yield cluster


@pytest.fixture
def replicated(_replicated: ClusterServer) -> ClusterServer:
    """Three primaries with a replica each, empty; who is primary is for the test to ask."""
    _replicated.clean()
    return _replicated


class TestMigration:
    """Slot by slot, key by key, as ``redis-cli --cluster reshard`` does it."""

    @both
    async def test_a_moved_slot_is_followed_at_once(self, server: ClusterServer) -> None:
        async with Redis.from_url(server.url) as redis:
            await redis.script(COUNT, ["{m}1"], ["x"])
            source = server.serving("{m}1")
            target = next(node for node in server.primaries if node is not source)
            server.migrate(slot_of(b"{m}1"), target)
            try:
                assert await redis.script(COUNT, ["{m}1"], ["x"]) == [2, b"x"]
                assert served_by(redis, "{m}1") == target.port
                assert redis.stats.repeats == 0, "no pause"
            finally:
                server.migrate(slot_of(b"{m}1"), source)

    @both
    async def test_what_has_gone_ahead_is_asked_for_there(self, server: ClusterServer) -> None:
        """ASK, with the key on the other side; NOSCRIPT there is answered there."""
        async with Redis.from_url(server.url) as redis:
            target = next(node for node in server.primaries if node is not server.serving("{m}1"))
            slot = slot_of(b"{m}1")
            source = server.begin_migration(slot, target)
            try:
                echoes = await asyncio.gather(*(redis.script(ECHO, ["{m}1"], [n]) for n in range(100)))
                others = await asyncio.gather(*(redis.command("ECHO", str(n)) for n in range(100)))
                writes = await asyncio.gather(*(redis.script(COUNT, ["{m}1"], ["x"]) for _ in range(50)))
                assert echoes == [[b"{m}1", str(n).encode()] for n in range(100)]
                assert others == [str(n).encode() for n in range(100)]
                assert sorted(count for count, _ in writes) == list(range(1, 51))
                assert served_by(redis, "{m}1") == source.port, "an exception, and no move"
                assert target.call("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
            finally:
                server.move_keys(slot, source, target)
                server.end_migration(slot, target)
                server.migrate(slot, source)

    @both
    async def test_a_script_whose_keys_are_on_both_sides_waits(self, server: ClusterServer) -> None:
        async with Redis.from_url(server.url, deadline_ms=20_000) as redis:
            for key in ("{m}1", "{m}2"):
                await redis.command("SET", f"test:{key}", "1")
            target = next(node for node in server.primaries if node is not server.serving("{m}1"))
            slot = slot_of(b"{m}1")
            source = server.begin_migration(slot, target)
            keys = ["test:{m}1", "test:{m}2", "test:{m}none"]
            both_keys = asyncio.create_task(redis.script(ECHO, keys, ["x"]))
            await until(lambda: redis.stats.repeats >= 2)
            assert not both_keys.done()

            server.move_keys(slot, source, target, batch=1)
            server.end_migration(slot, target)

            assert await both_keys == [b"test:{m}1", b"x"]
            server.migrate(slot, source)

    @one
    async def test_under_load_is_no_error_to_anybody(self, server: ClusterServer) -> None:
        keys = [f"{{m}}{n}" for n in range(8)] + [f"{{other{n}}}" for n in range(8)]
        async with Redis.from_url(server.url) as redis:
            counting = Counting(redis, keys)
            slot = slot_of(b"{m}")
            async with counting.going_on():
                for _ in range(3):
                    source = server.serving("{m}")
                    target = next(node for node in server.primaries if node is not source)
                    await asyncio.to_thread(server.migrate, slot, target)

            assert counting.refused == []
            assert await counting.stored() == counting.acknowledged

    @one
    async def test_to_a_server_that_is_new(self, server: ClusterServer, tmp_path: Any) -> None:
        """It has no slot yet, so no map names it: ASK does. Left without slots again, its line is closed."""
        cluster = ClusterServer("cluster", tmp_path, primaries=1)
        newcomer = ClusterNode("valkey", tmp_path / "new", cluster_allow_replica_migration="no")
        with running(cluster):
            cluster.nodes.append(newcomer)
            newcomer.start()
            try:
                newcomer.call("CLUSTER", "MEET", "127.0.0.1", cluster.port)
                await until(lambda: _has_met(cluster, newcomer))
                cluster.settle()
                async with Redis.from_url(cluster.url) as redis:
                    topology(redis)._linger_s = 0.2
                    assert len(redis.topology.primaries) == 1
                    source = cluster.begin_migration(slot_of(b"k"), newcomer)
                    assert await redis.script(COUNT, ["k"], ["x"]) == [1, b"x"]
                    assert newcomer.port in {node.host.port for node in topology(redis)._nodes.values()}
                    cluster.move_keys(slot_of(b"k"), source, newcomer)
                    cluster.end_migration(slot_of(b"k"), newcomer)
                    assert await redis.script(COUNT, ["k"], ["x"]) == [2, b"x"]
                    await until(lambda: len(redis.topology.primaries) == 2)

                    cluster.migrate(slot_of(b"k"), source)

                    def is_left() -> bool:
                        topology(redis).refresh()
                        return newcomer.port not in {
                            node.host.port for node in topology(redis)._nodes.values()
                        }

                    await until(is_left)
                    assert await redis.script(COUNT, ["k"], ["x"]) == [3, b"x"]
            finally:
                newcomer.stop()

    @one
    async def test_that_is_atomic_is_no_error_to_anybody(self, server: ClusterServer) -> None:
        """Valkey 9: the keys are sent ahead, and the slot changes hands at once."""
        source = server.serving("{m}")
        if b"migrateslots" not in _subcommands(source):
            pytest.skip("the server cannot migrate slots atomically")
        target = next(node for node in server.primaries if node is not source)
        keys = [f"{{m}}{n}" for n in range(8)] + [f"{{other{n}}}" for n in range(4)]
        async with Redis.from_url(server.url) as redis:
            counting = Counting(redis, keys)
            async with counting.going_on():
                await _migrate_atomically(redis, source, target, "{m}")
            await _migrate_atomically(redis, target, source, "{m}")

            assert counting.refused == []
            assert await counting.stored() == counting.acknowledged


def _has_met(cluster: ClusterServer, newcomer: ClusterNode) -> bool:
    return all(node.state()["cluster_known_nodes"] == "2" for node in (cluster.nodes[0], newcomer))


def _subcommands(node: ClusterNode) -> set[bytes]:
    return {line.split(b" ")[0].lower() for line in node.call("CLUSTER", "HELP") if isinstance(line, bytes)}


async def _migrate_atomically(redis: Redis, source: ClusterNode, target: ClusterNode, key: str) -> None:
    slot = slot_of(key.encode())
    source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.node_id)

    def is_there() -> bool:
        topology(redis).refresh()
        return served_by(redis, key) == target.port

    await until(is_there)


class TestFailover:
    async def test_as_planned_is_a_stall_and_nothing_else(self, replicated: ClusterServer) -> None:
        """``CLUSTER FAILOVER``: nothing lost, nothing done twice, no error to a caller."""
        async with Redis.from_url(replicated.url) as redis:
            counting = Counting(redis, [f"k{n}" for n in range(12)])
            async with counting.going_on():
                primary = replicated.serving("k0")
                replica = replicated.replica_of(primary)
                await asyncio.to_thread(replicated.promote, replica)
                await until(lambda: served_by(redis, "k0") == replica.port)

            assert counting.refused == []
            stored = await counting.stored()
            for key, count in counting.acknowledged.items():
                assert count <= stored[key] <= count + counting.repeated[key]

    async def test_of_a_killed_primary_stalls_its_own_calls_only(self, replicated: ClusterServer) -> None:
        """Whatever was acknowledged is there; callers of other shards do not notice."""
        async with Redis.from_url(replicated.url, deadline_ms=15_000) as redis:
            keys = [f"k{n}" for n in range(12)]
            counting = Counting(redis, keys)
            primary = replicated.serving("k0")
            affected = [key for key in keys if replicated.serving(key) is primary]
            others = [key for key in keys if key not in affected]
            async with counting.going_on():
                replica = replicated.replica_of(primary)
                before = {key: counting.acknowledged[key] for key in others}
                primary.kill()
                await until(lambda: served_by(redis, "k0") == replica.port, within_s=30)
                meanwhile = {key: counting.acknowledged[key] - before[key] for key in others}

            assert counting.refused == []
            stored = await counting.stored()
            for key in keys:
                assert counting.acknowledged[key] <= stored[key]
                assert stored[key] <= counting.acknowledged[key] + counting.repeated[key]
            assert min(meanwhile.values()) > 20, "others went on while it was away"
            slowest_s = max(counting.longest_s[key] for key in others)
            assert slowest_s < max(counting.longest_s[key] for key in affected) / 2

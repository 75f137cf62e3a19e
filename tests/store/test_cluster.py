"""A cluster as it is found, and with a server away that nobody replaces."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sessions_api.errors import SettingsError, StorageUnavailable
from sessions_api.store import cluster as cluster_module
from sessions_api.store.connection import Redis
from sessions_api.store.inspection import servers_of, uncovered
from sessions_api.store.seeds import ClusterAddress
from sessions_api.store.slots import slot_of
from tests.support.cluster import ClusterNode, ClusterServer
from tests.support.counting import served_by, topology
from tests.support.faulty import ECHO
from tests.support.ports import free_port
from tests.support.servers import TestServer, running
from tests.support.waiting import eventually, until

one = pytest.mark.servers("cluster")
both = pytest.mark.servers("cluster", "cluster62")


class TestUrl:
    def test_names_seeds_and_whom_we_are(self) -> None:
        address = ClusterAddress("redis+cluster://me:s3cret@a.example:1,[::1]:2,c/0?health_check_interval=3")

        assert [str(seed) for seed in address.seeds] == ["a.example:1", "[::1]:2", "c:6379"]
        assert address.of(address.seeds[1]).url == "redis://me:s3cret@[::1]:2?health_check_interval=3"
        assert "s3cret" not in repr(address)

    def test_may_ask_for_tls(self) -> None:
        address = ClusterAddress("rediss+cluster://a:1")

        assert address.of(address.seeds[0]).url == "rediss://a:1"

    @pytest.mark.parametrize(
        "url",
        [
            "redis+cluster://a:1/3",
            "redis+cluster://a:1?db=2",
            "redis+cluster://",
            "redis+cluster://a:1,b:x",
            "redis+cluster://a:1?no_such_argument=1",
            "rediss+cluster://a:1?ssl_ca_certs=/nowhere",
        ],
    )
    def test_that_is_unusable_says_so(self, url: str) -> None:
        with pytest.raises(SettingsError):
            Redis.from_url(url)


class TestStart:
    @both
    async def test_knows_who_serves_what(self, server: ClusterServer) -> None:
        async with Redis.from_url(server.url) as redis:
            assert redis.is_up
            assert redis.circuit == "closed"
            for key in ("a", "b", "c", "{tag}x"):
                assert served_by(redis, key) == server.serving(key).port
                assert await redis.script(ECHO, [key], ["x"]) == [key.encode(), b"x"]
            assert redis.stats.repeats == 0

    @one
    async def test_with_seeds_that_are_away(self, server: ClusterServer) -> None:
        away = ",".join(f"127.0.0.1:{free_port()}" for _ in range(3))

        async with Redis.from_url(f"redis+cluster://{away},127.0.0.1:{server.port}") as redis:
            assert redis.is_up
            assert len(redis.topology.primaries) == 3

    async def test_without_a_cluster_refuses_fast_and_finds_one_that_comes(self, tmp_path: Any) -> None:
        cluster = ClusterServer("cluster", tmp_path, primaries=1)
        async with Redis.from_url(cluster.url, deadline_ms=10_000) as redis:
            assert not redis.is_up
            waiting = asyncio.create_task(redis.ping())
            await until(lambda: redis.circuit == "open")
            with pytest.raises(StorageUnavailable):
                await waiting
            with pytest.raises(StorageUnavailable):
                await redis.script(ECHO, ["key"], ["x"])

            with running(cluster):
                await until(lambda: redis.is_up)

                assert redis.circuit == "closed"
                assert await redis.script(ECHO, ["key"], ["x"]) == [b"key", b"x"]

    @one
    async def test_with_a_seed_that_was_reset(self, server: ClusterServer, tmp_path: Any) -> None:
        """It knows of nobody; the others do. Neither the service nor doctor takes its word."""
        with running(ClusterNode("valkey", tmp_path)) as blank:
            url = f"redis+cluster://127.0.0.1:{blank.port},127.0.0.1:{server.port}"
            async with Redis.from_url(url) as redis:
                assert len(redis.topology.primaries) == 3
                topology(redis).refresh()
                assert await redis.script(ECHO, ["key"], ["x"]) == [b"key", b"x"]
                assert uncovered(await servers_of(redis)) == 0
            async with Redis.from_url(f"redis+cluster://127.0.0.1:{blank.port}", deadline_ms=300) as redis:
                with pytest.raises(StorageUnavailable, match="knows of no server"):
                    await redis.ping()
                with pytest.raises(StorageUnavailable, match="knows of no server"):
                    await servers_of(redis)

    async def test_with_a_seed_that_knows_a_part_finds_the_others(
        self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They were away at the start. It lost its ``nodes.conf``, say, and claims what it has keys of."""
        monkeypatch.setattr(cluster_module, "REFRESH_S", 0.2)
        cluster = ClusterServer("cluster", tmp_path / "cluster")
        with running(ClusterNode("valkey", tmp_path / "stray")) as stray:
            stray.call("CLUSTER", "ADDSLOTS", 1, 2, 3)
            async with Redis.from_url(
                f"redis+cluster://127.0.0.1:{stray.port},127.0.0.1:{cluster.port}"
            ) as redis:
                assert [node.host.port for node in topology(redis).primaries] == [stray.port]
                with running(cluster):
                    await until(lambda: len(redis.topology.primaries) == 3)
                    assert await redis.script(ECHO, ["key"], ["x"]) == [b"key", b"x"]

    @pytest.mark.servers("valkey")
    async def test_at_a_server_that_is_no_cluster_says_so(self, server: TestServer) -> None:
        async with Redis.from_url(f"redis+cluster://127.0.0.1:{server.port}") as redis:
            with pytest.raises(StorageUnavailable, match="cluster support disabled"):
                await redis.ping()

    @one
    async def test_of_a_single_server_at_a_cluster_says_so(self, server: ClusterServer) -> None:
        async with Redis.from_url(f"redis://127.0.0.1:{server.port}") as redis:
            with pytest.raises(StorageUnavailable, match=r"redis\+cluster://"):
                await asyncio.gather(*(redis.script(ECHO, [key], ["x"]) for key in "abcdefgh"))

    @one
    async def test_logs_in_everywhere(self, server: ClusterServer) -> None:
        for node in server.nodes:
            node.call("ACL", "SETUSER", "someone", "on", ">s3cret", "~*", "&*", "+@all")
        try:
            async with Redis.from_url(server.url.replace("://", "://someone:s3cret@")) as redis:
                for link in redis.topology.primaries:
                    assert await redis.command("ACL", "WHOAMI", at=link) == b"someone"
        finally:
            for node in server.nodes:
                node.call("ACL", "DELUSER", "someone")

    @one
    async def test_takes_servers_as_they_announce_themselves(self, server: ClusterServer) -> None:
        for node in server.nodes:
            node.call("CONFIG", "SET", "cluster-announce-hostname", "localhost")
            node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")
        try:
            await _same_view(server, b"localhost")
            async with Redis.from_url(server.url) as redis:
                assert {link.server.split(":")[0] for link in redis.topology.primaries} == {"localhost"}
                assert await redis.script(ECHO, ["a"], ["x"]) == [b"a", b"x"]
            for node in server.nodes:
                node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "unknown-endpoint")
            async with Redis.from_url(server.url) as redis:
                assert {link.server.split(":")[0] for link in redis.topology.primaries} == {"127.0.0.1"}
                assert await redis.script(ECHO, ["a"], ["x"]) == [b"a", b"x"]
        finally:
            for node in server.nodes:
                node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")
                node.call("CONFIG", "SET", "cluster-announce-hostname", "")
            await _same_view(server, b"127.0.0.1")


async def _same_view(server: ClusterServer, host: bytes) -> None:
    async def is_same() -> bool:
        return all(row[2][0] == host for node in server.nodes for row in node.call("CLUSTER", "SLOTS"))

    await eventually(is_same)


class TestOutage:
    """One primary away, with nobody to take over."""

    @one
    async def test_of_one_opens_its_circuit_alone(self, server: ClusterServer) -> None:
        async with Redis.from_url(server.url, deadline_ms=500) as redis:
            lost = server.serving("k0")
            other = next(f"k{n}" for n in range(100) if server.serving(f"k{n}") is not lost)
            lost.kill()
            with pytest.raises(StorageUnavailable):
                await redis.script(ECHO, ["k0"], ["x"])
            await until(lambda: redis.circuit == "open")

            trips = redis.stats.round_trips
            with pytest.raises(StorageUnavailable, match=str(lost.port)):
                await redis.script(ECHO, ["k0"], ["x"])
            assert await redis.script(ECHO, [other], ["x"]) == [other.encode(), b"x"]
            await redis.ping()
            assert redis.is_up
            assert redis.stats.round_trips - trips < 20, "the refused one cost none"

            lost.start()
            await until(lambda: redis.circuit == "closed")
            server.settle()
            assert await redis.script(ECHO, ["k0"], ["x"]) == [b"k0", b"x"]

    async def test_of_one_that_comes_back_blank_hurts_nobody_elses(self, tmp_path: Any) -> None:
        """It lost its disk. What it says of the cluster, which is nothing, is not believed."""
        with running(ClusterServer("cluster", tmp_path)) as cluster:
            async with Redis.from_url(cluster.url, deadline_ms=500) as redis:
                lost = cluster.nodes[0]  # whom the URL names first
                other = next(f"k{n}" for n in range(100) if cluster.serving(f"k{n}") is not lost)
                lost.call("CLUSTER", "RESET", "HARD")
                for _ in range(200):
                    topology(redis).refresh()
                    assert await redis.script(ECHO, [other], ["x"]) == [other.encode(), b"x"]
                    await asyncio.sleep(0.01)

    async def test_of_slots_that_nobody_serves_is_refused_at_once_after_a_while(self, tmp_path: Any) -> None:
        with running(ClusterServer("cluster", tmp_path)) as cluster:
            async with Redis.from_url(cluster.url, deadline_ms=500) as redis:
                owner, slot = cluster.serving("k0"), slot_of(b"k0")
                for node in cluster.nodes:
                    node.call("CLUSTER", "DELSLOTS", slot)
                await until(lambda: redis.circuit == "open")
                with pytest.raises(StorageUnavailable, match="nobody serves the slot"):
                    await redis.script(ECHO, ["k0"], ["x"])
                assert topology(redis).serving(slot).is_open_circuit
                assert redis.is_up

                owner.call("CLUSTER", "ADDSLOTS", slot)
                await until(lambda: redis.circuit == "closed")
                cluster.settle()
                assert await redis.script(ECHO, ["k0"], ["x"]) == [b"k0", b"x"]

    @one
    async def test_that_is_short_is_waited_for(self, server: ClusterServer) -> None:
        async with Redis.from_url(server.url, deadline_ms=20_000) as redis:
            lost = server.serving("k0")
            lost.kill()
            call = asyncio.create_task(redis.script(ECHO, ["k0"], ["x"]))
            await until(lambda: redis.stats.failed_connects >= 8)
            assert not call.done()
            assert redis.circuit == "closed", "patience: another may take over"

            lost.start()

            assert await call == [b"k0", b"x"]

    @one
    async def test_of_a_hung_one_is_noticed_by_its_overdue_reply(self, server: ClusterServer) -> None:
        async with Redis.from_url(server.url, deadline_ms=20_000, reply_timeout_s=0.3) as redis:
            hung = server.serving("k0")
            hung.pause()
            call = asyncio.create_task(redis.script(ECHO, ["k0"], ["x"]))
            await until(lambda: redis.stats.timeouts >= 1)
            await redis.ping()
            hung.resume()

            assert await call == [b"k0", b"x"]

    @one
    async def test_of_all_is_survived(self, server: ClusterServer) -> None:
        async with Redis.from_url(server.url) as redis:
            for node in server.nodes:
                node.kill()
            await until(lambda: not redis.is_up)
            for node in server.nodes:
                node.start()

            await until(lambda: all(link.line is not None for link in redis.topology.primaries))
            server.settle()
            assert await redis.script(ECHO, ["k0"], ["x"]) == [b"k0", b"x"]

    @one
    async def test_costs_no_flood_of_questions(self, server: ClusterServer) -> None:
        """While a primary is away the map is asked for a few times a second, however many callers wait."""
        async with Redis.from_url(server.url, deadline_ms=2_000) as redis:
            lost = server.serving("k0")
            lost.kill()
            await asyncio.gather(
                *(redis.script(ECHO, ["k0"], [n]) for n in range(500)), return_exceptions=True
            )
            asked = sum(
                node.calls().get("cluster|slots", node.calls().get("cluster", 0))
                for node in server.nodes
                if node is not lost
            )
            assert 0 < asked < 40

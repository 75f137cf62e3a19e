"""`sessions-api doctor` behind Sentinel and on a Cluster: each server by itself, and all of them together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from sessions_api.cli.doctor import examined
from sessions_api.cli.doctor.findings import Finding, folded
from sessions_api.cli.errors import CommandError
from sessions_api.settings import Settings
from tests.support.cluster import ClusterNode, ClusterServer
from tests.support.ports import free_port
from tests.support.sentinel import NAME, Node, Sentinel, Sentinels
from tests.support.sentinel import eventually as eventually_true
from tests.support.servers import running

pytestmark = pytest.mark.timeout(120)
SETTINGS = {"maxmemory": "1gb", "hash-max-listpack-value": "1024"}


def tune(*nodes: Node | ClusterNode, **more: str) -> None:
    for node in nodes:
        for name, value in (
            SETTINGS | {name.replace("_", "-"): value for name, value in more.items()}
        ).items():
            node.call("CONFIG", "SET", name, value)


async def findings(url: str, **env: str) -> dict[str, list[Finding]]:
    """By check."""
    found: dict[str, list[Finding]] = {}
    for finding in await examined(url, Settings.from_env(env)):
        found.setdefault(finding.check, []).append(finding)
    return found


def bad(found: dict[str, list[Finding]]) -> dict[str, str]:
    return {row.check: row.verdict for rows in found.values() for row in rows if row.verdict != "ok"}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with running(Sentinels("valkey", tmp_path_factory.mktemp("sentinels"))) as group:
        yield group


@pytest.fixture
def sentinels(group: Sentinels) -> Sentinels:
    """Whole, and set as docs/operations.md has it."""
    group.heal()
    tune(*group.nodes, min_replicas_to_write="1", min_replicas_max_lag="10")
    return group


class TestSentinel:
    async def test_whole_is_found_well(self, sentinels: Sentinels) -> None:
        """The primary by name and address, quorum, replicas; and each of the three servers for itself."""
        found = await findings(sentinels.url)

        assert bad(found) == {}
        [topology] = found["topology"]
        assert f"'{NAME}' at 127.0.0.1:{sentinels.primary.port}" in topology.found
        assert "3 of 3 sentinels answer" in topology.found
        assert found["quorum"][0].found == "quorum 2 of 3 sentinels"
        assert found["standbys"][0].found == "2 of 2 replicas can take over"
        assert len(found["replication"]) == 2
        assert {row.server for row in found["persistence"]} == {
            f"127.0.0.1:{node.port}" for node in sentinels.nodes
        }
        [folded_row] = folded(found["persistence"])
        assert folded_row.server.count("127.0.0.1:") == 3

    async def test_that_lets_a_lone_primary_write_is_warned_of(self, sentinels: Sentinels) -> None:
        sentinels.primary.call("CONFIG", "SET", "min-replicas-to-write", "0")

        found = await findings(sentinels.url)

        assert bad(found) == {"lone-primary": "warn"}
        assert "min-replicas-to-write 1" in found["lone-primary"][0].fix

    async def test_with_a_sentinel_away_is_warned_of(self, sentinels: Sentinels) -> None:
        """Also one that REDIS_URL names and nobody runs."""
        strange = sentinels.url.replace("redis+sentinel://", f"redis+sentinel://127.0.0.1:{free_port()},")

        found = await findings(strange)

        assert bad(found) == {"topology": "warn"}
        assert "3 of 4 sentinels answer" in found["topology"][0].found

    async def test_without_a_majority_has_no_failover(self, sentinels: Sentinels) -> None:
        for sentinel in sentinels.sentinels[1:]:
            sentinel.kill()
        eventually_true(lambda: is_outvoted(sentinels.sentinels[0]))

        found = await findings(sentinels.url)

        assert bad(found).items() >= {"topology": "fail", "quorum": "fail"}.items()
        assert "NOQUORUM" in found["quorum"][0].found

    async def test_durability_is_held_against_its_replicas(self, sentinels: Sentinels) -> None:
        replicated = {"SESSIONS_DURABILITY": "replicated"}
        asked_one = await findings(sentinels.url, **replicated)
        asked_two = await findings(sentinels.url, SESSIONS_REDIS_REPLICAS="2", **replicated)
        asked_three = await findings(sentinels.url, SESSIONS_REDIS_REPLICAS="3", **replicated)

        assert [rows["durability"][0].verdict for rows in (asked_one, asked_two, asked_three)] == [
            "ok", "warn", "fail",
        ]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    server = ClusterServer("cluster", tmp_path_factory.mktemp("cluster"), replicas=3)
    server.start()
    tune(*server.nodes, cluster_require_full_coverage="no")
    yield server
    server.stop()


class TestCluster:
    async def test_whole_is_found_well(self, cluster: ClusterServer) -> None:
        """Every slot, every primary's replica, how the partitions are spread; and each server for itself."""
        found = await findings(cluster.url)

        assert bad(found) == {}
        assert "3 primaries and 3 replicas, every slot is served" in found["topology"][0].found
        assert found["standbys"][0].found == "every primary has a replica"
        assert "64 partitions over 3 primaries, 21 to 22 each" in found["spread"][0].found
        assert len(found["persistence"]) == 6
        assert len(found["rights"]) == 3
        assert len(found["notifications"]) == 3

    async def test_that_stops_whole_for_one_shard_or_waits_for_long_is_warned_of(
        self, cluster: ClusterServer
    ) -> None:
        """Be it by the setting of one server of six."""
        one, two = cluster.nodes[2], cluster.nodes[4]
        timeout_ms = one.config_get("cluster-node-timeout")
        tune(two, cluster_require_full_coverage="yes")
        tune(one, cluster_node_timeout="60000")
        try:
            found = await findings(cluster.url)
        finally:
            tune(two, cluster_require_full_coverage="no")
            tune(one, cluster_node_timeout=timeout_ms)

        assert bad(found) == {"coverage": "warn", "failover-time": "warn"}
        assert found["coverage"][0].found.endswith(f": 127.0.0.1:{two.port}")
        assert found["failover-time"][0].found.endswith(f": 127.0.0.1:{one.port}")

    async def test_of_which_one_server_is_badly_set_names_it(self, cluster: ClusterServer) -> None:
        one = cluster.primaries[1]
        one.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            found = await findings(cluster.url)
        finally:
            one.call("CONFIG", "SET", "maxmemory-policy", "noeviction")

        assert bad(found) == {"eviction": "fail"}
        [row] = [row for row in found["eviction"] if row.verdict == "fail"]
        assert row.server == f"127.0.0.1:{one.port}"

    async def test_spoken_to_as_one_server_is_told_how_it_is_named(self, cluster: ClusterServer) -> None:
        with pytest.raises(CommandError, match=r"redis\+cluster://"):
            await findings(cluster.primaries[0].url)


async def test_a_sentinel_is_no_server_and_is_told_how_it_is_named(sentinels: Sentinels) -> None:
    with pytest.raises(CommandError, match=r"redis\+sentinel://"):
        await findings(sentinels.sentinels[0].url)


def is_outvoted(sentinel: Sentinel) -> bool:
    try:
        sentinel.call("SENTINEL", "CKQUORUM", NAME)
    except redis.ResponseError as refused:
        return "NOQUORUM" in str(refused)
    return False

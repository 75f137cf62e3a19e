"""The service on a Cluster and on Sentinels of every make that other tests have no such group of.

Valkey 9 has its own: ``test_cluster.py``, ``test_sentinel.py``; Redis 6.2 has clusters in tests/store.
Debian's Redis 7 speaks TLS alone here, to the service and among its servers, and lets in nobody who
shows no certificate: no server of it has a port without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sessions_api.domain.ids import SessionId
from sessions_api.store.keys import Keyspace
from sessions_api.store.slots import slot_of
from tests.support.cluster import ClusterServer
from tests.support.commands import command
from tests.support.papers import Papers
from tests.support.sentinel import NAME, Sentinels
from tests.support.servers import binaries, makes_between, running
from tests.support.service import Service
from tests.support.talk import AWAY, on_thread, talking

pytestmark = pytest.mark.timeout(120)
WITH_TLS = "debian"
HERE = [*binaries(), *makes_between()]
CLUSTERS = [make for make in HERE if make not in {"valkey", "redis62"}]
SENTINELS = [make for make in HERE if make != "valkey"]


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module", params=CLUSTERS)
def cluster(
    request: pytest.FixtureRequest, papers: Papers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterServer]:
    """Three primaries, each with a replica."""
    make = request.param
    folder = tmp_path_factory.mktemp("cluster")
    shown = papers if make == WITH_TLS else None
    with running(ClusterServer("cluster", folder, replicas=3, makes=[make] * 6, papers=shown)) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=SENTINELS)
def sentinels(
    request: pytest.FixtureRequest, papers: Papers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sentinels]:
    make = request.param
    shown = papers if make == WITH_TLS else None
    with running(Sentinels(make, tmp_path_factory.mktemp("group"), papers=shown)) as group:
        yield group


@contextmanager
def serving(redis_url: str, folder: Path, **env: str) -> Iterator[list[Service]]:
    """Two replicas of the service; at the end they stop, with nothing in their logs that is a bug."""
    with ExitStack() as stack:
        services = [
            stack.enter_context(Service(folder, redis_url=redis_url, env=env, name=name))
            for name in ("one", "two")
        ]
        yield services
        for service in services:
            assert service.stop() == 0, service.log[-3000:]
            service.assert_no_bug_logged(allowed=AWAY)


class TestCluster:
    async def test_loses_nothing_to_moved_slots_and_planned_failovers(
        self, cluster: ClusterServer, tmp_path: Path
    ) -> None:
        """What one replica publishes, on a shard's channel since Redis 7, the other's followers get."""
        with serving(cluster.url, tmp_path) as services:
            async with talking(services) as talk:
                for chat in talk.chats:
                    key = Keyspace().of(SessionId(chat.session_id)).session
                    source = cluster.serving(key)
                    target = next(node for node in cluster.primaries if node is not source)
                    await on_thread(cluster.migrate, slot_of(key), target)
                await talk.go_on()
                for primary in cluster.primaries:
                    await on_thread(cluster.promote, cluster.replica_of(primary))
                await talk.go_on()

            assert talk.lost == 0

    def test_is_looked_at_by_doctor(self, cluster: ClusterServer) -> None:
        cluster.settle()
        looked = command("doctor", "--redis-url", cluster.url)

        assert "3 primaries" in looked.stdout, looked
        if cluster.papers:
            assert_refused_without_a_certificate(cluster.url, cluster.papers)


class TestSentinel:
    async def test_loses_nothing_that_replicas_have(self, sentinels: Sentinels, tmp_path: Path) -> None:
        """A planned failover, then the primary is killed."""
        with serving(sentinels.url, tmp_path, SESSIONS_DURABILITY="replicated") as services:
            async with talking(services) as talk:
                await on_thread(sentinels.failover)
                await talk.go_on()
                await on_thread(sentinels.heal)
                sentinels.primary.kill()
                await talk.go_on()
            assert talk.lost == 0
            for service in services:
                assert any(record["event"] == "primary_leaving" for record in service.records())
            sentinels.heal()

    def test_is_looked_at_by_doctor(self, sentinels: Sentinels) -> None:
        looked = command("doctor", "--redis-url", sentinels.url)

        found = f"primary {NAME!r} at 127.0.0.1:{sentinels.primary.port}, 3 of 3 sentinels answer"
        assert found in looked.stdout
        if sentinels.papers:
            assert_refused_without_a_certificate(sentinels.url, sentinels.papers)


def assert_refused_without_a_certificate(url: str, papers: Papers) -> None:
    trusting = f"{url.partition('?')[0]}?ssl_ca_certs={papers['ca.pem']}"
    refused = command("doctor", "--redis-url", trusting)

    assert refused.returncode != 0, refused.stdout
    assert "does not answer" in refused.stderr
    assert refused.stderr.count("\n") == 1, refused.stderr

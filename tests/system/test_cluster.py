"""Two replicas of the service on a Redis Cluster: conversations go on through failovers and moving slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from sessions_api.domain.ids import SessionId
from sessions_api.store.keys import Keyspace
from sessions_api.store.slots import slot_of
from tests.support.client import ECHO, Api, eventually, some_id
from tests.support.cluster import ClusterNode, ClusterServer, cluster_kinds
from tests.support.load import Chat, Follower, chatting, check, followed
from tests.support.servers import running
from tests.support.service import Service
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

# The deadline is above any stall on a busy machine: what is proven is that a stall is all there is.
ENV = {
    "SESSIONS_ENV": "test",
    "SESSION_MIN_TIMEOUT_MINUTES": "0.005",
    "SESSION_RETENTION_MINUTES": "0.2",
    "SESSIONS_REDIS_DEADLINE_MS": "8000",
}
AWAY = frozenset({"redis_circuit_opened"})
SESSIONS = 6


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    """Three primaries, each with a replica."""
    with running(ClusterServer("cluster", tmp_path_factory.mktemp("cluster"), replicas=3)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def replicas(cluster: ClusterServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    services = [
        Service(tmp_path_factory.mktemp("replicas"), redis_url=cluster.url, env=ENV, name=name)
        for name in ("one", "two")
    ]
    for service in services:
        service.start()
    yield services
    cluster.mend()
    for service in services:
        assert service.stop() == 0, service.log[-3000:]
        service.assert_no_bug_logged(allowed=AWAY)


@pytest.fixture
def urls(cluster: ClusterServer, replicas: list[Service]) -> list[str]:
    cluster.mend()
    for service in replicas:
        service.wait_until_ready()
    return [service.url for service in replicas]


def key_of(chat: Chat) -> bytes:
    return Keyspace().of(SessionId(chat.session_id)).session


@asynccontextmanager
async def conversing(urls: list[str]) -> AsyncIterator[tuple[list[Chat], list[Follower]]]:
    """Sessions in which somebody talks until the end of the block; afterwards nothing may be missing."""
    async with chatting(urls, sessions=SESSIONS) as chats, followed(chats) as followers:
        is_over = asyncio.Event()

        async def talk(chat: Chat, at: int) -> None:
            number = 0
            while not is_over.is_set() or number < 3:
                await chat.post(f"{number}", at=at + number)
                number += 1
                await asyncio.sleep(0.1)  # every message leaves its key, which a migration has to move

        talking = [asyncio.create_task(talk(chat, at)) for at, chat in enumerate(chats)]
        try:
            await until(lambda: all(len(chat.acknowledged) >= 2 for chat in chats))
            yield chats, followers
            counts = [len(chat.acknowledged) for chat in chats]
            await until(
                lambda: all(
                    len(chat.acknowledged) >= count + 2 for chat, count in zip(chats, counts, strict=True)
                ),
                within_s=40,
            )
        finally:
            is_over.set()
            await asyncio.gather(*talking)
        await check(chats, followers)


class TestFailover:
    async def test_as_planned_is_noticed_by_nobody(self, cluster: ClusterServer, urls: list[str]) -> None:
        """``CLUSTER FAILOVER`` of every primary, one after the other: no request is refused."""
        async with conversing(urls) as (chats, _):
            for primary in cluster.primaries:
                replica = cluster.replica_of(primary)
                await asyncio.to_thread(cluster.promote, replica)
                await until(lambda replica=replica: replica.is_primary)  # type: ignore[misc]
                await asyncio.to_thread(cluster.settle)

        assert [chat.refusals for chat in chats] == [[] for _ in chats]

    async def test_by_a_kill_stalls_the_sessions_of_one_shard(
        self, cluster: ClusterServer, urls: list[str]
    ) -> None:
        """503 with Retry-After past the deadline, never 500; the other shards' sessions notice nothing."""
        async with conversing(urls) as (chats, _):
            primary = cluster.serving(key_of(chats[0]))
            theirs = [chat for chat in chats if cluster.serving(key_of(chat)) is not primary]
            before = [len(chat.acknowledged) for chat in theirs]
            replica = cluster.replica_of(primary)
            await asyncio.to_thread(primary.kill)
            await until(lambda: replica.is_primary, within_s=30)
            meanwhile = [len(chat.acknowledged) - count for chat, count in zip(theirs, before, strict=True)]

        assert {status for chat in chats for status, _ in chat.refusals} <= {503}
        assert all(count >= 3 for count in meanwhile), meanwhile
        assert [chat.refusals for chat in theirs] == [[] for _ in theirs]


class TestMigration:
    async def test_of_partitions_key_by_key(self, cluster: ClusterServer, urls: list[str]) -> None:
        """``SETSLOT`` and ``MIGRATE``, there and back, of every partition that is spoken in."""
        async with conversing(urls) as (chats, _):
            for chat in chats[:3]:
                source = cluster.serving(key_of(chat))
                target = next(node for node in cluster.primaries if node is not source)
                slot = slot_of(key_of(chat))
                moved = await asyncio.to_thread(cluster.migrate, slot, target)
                assert moved >= 3
                await asyncio.to_thread(cluster.migrate, slot, source)

        assert [chat.refusals for chat in chats] == [[] for _ in chats]

    async def test_of_partitions_at_once(self, cluster: ClusterServer, urls: list[str]) -> None:
        """``CLUSTER MIGRATESLOTS`` of Valkey 9."""
        async with conversing(urls) as (chats, _):
            for chat in chats:
                source = cluster.serving(key_of(chat))
                target = next(node for node in cluster.primaries if node is not source)
                await asyncio.to_thread(cluster.migrate_at_once, slot_of(key_of(chat)), source, target)

        assert [chat.refusals for chat in chats] == [[] for _ in chats]


def opened_at(primary: ClusterNode, cluster: ClusterServer, api: Api, **fields: object) -> str:
    """A session that *primary* has."""
    while True:
        session_id: str = api.create(agentId=ECHO, userId=some_id(), **fields)["sessionId"]
        if cluster.serving(Keyspace().of(SessionId(session_id)).session) is primary:
            return session_id


def test_expiry_is_told_on_every_shard(cluster: ClusterServer, urls: list[str]) -> None:
    """Warned and ended at their time, whichever primary has them and whichever replica is asked."""
    apis = [Api(url) for url in urls]
    config = {"timeoutMinutes": 0.02, "warningThresholdMinutes": 0.01, "autoRenew": False}
    try:
        for number, primary in enumerate(cluster.primaries):
            session_id = opened_at(primary, cluster, apis[0], timeoutConfig=config)
            with apis[number % 2].events(session_id) as stream:
                names = [event.name for event in stream.until("session.expired")]
            assert names.count("session.expiring") == 1
            assert apis[1].call("GET", f"/{session_id}").status_code == 410
    finally:
        for api in apis:
            api.close()


@pytest.mark.parametrize("kind", [kind for kind in cluster_kinds() if kind != "cluster"])
def test_on_redis_6(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without sharded pub/sub, the same."""
    with (
        running(ClusterServer(kind, tmp_path_factory.mktemp(kind))) as cluster,
        Service(tmp_path_factory.mktemp("service"), redis_url=cluster.url, env=ENV) as service,
    ):
        api = Api(service.url)
        for number in range(6):
            session_id = api.session()
            with api.events(session_id) as stream:
                stream.next()
                answer = api.ask(session_id, f"hello {number}")["agentResponse"]["text"]
                seen = [
                    event.data["data"]["content"]
                    for event in stream.until("turn.completed")
                    if event.name == "message.created"
                ]
            assert seen == [f"hello {number}", answer]
        assert eventually(lambda: api.call("GET", "/health").json()["status"] == "healthy")
        api.close()
        service.assert_no_bug_logged()

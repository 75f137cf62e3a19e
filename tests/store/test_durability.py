"""With ``replicas``: what a caller is told is done is in Redis's replicas too, and costs one WAIT a batch."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import count

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import OpId
from sessions_api.errors import NotReplicated, StorageError, StorageFault
from sessions_api.store import Redis, Store
from sessions_api.store.asked import counted_trips
from sessions_api.store.connection import Script
from sessions_api.store.keys import Keyspace
from sessions_api.store.loader import load
from sessions_api.store.replicated import TOLD, UNTOLD
from tests.support.cluster import ClusterServer
from tests.support.proxy import Proxy
from tests.support.sentinel import Node, eventually
from tests.support.servers import TestServer, binaries
from tests.support.stores import opened, say
from tests.support.waiting import until

ECHO = Script("append", "return {KEYS[1], ARGV[1]}")  # of the name alone it is one that is told


READS = frozenset(
    "EXISTS GET HGET HGETALL HKEYS HLEN HMGET PTTL STRLEN TIME XLEN XRANGE XREVRANGE ZCARD ZCOUNT "
    "ZLEXCOUNT ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZREVRANGEBYLEX ZSCORE".split()
)  # fmt: skip


@pytest.fixture(scope="module", params=[kind for kind in ("valkey", "redis62") if kind in binaries()])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Node, Node]]:
    nodes: list[Node] = []
    try:
        for name in ("primary", "replica"):
            nodes.append(Node(request.param, tmp_path_factory.mktemp(name)))
            nodes[-1].start()
        nodes[1].follow(nodes[0])
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            node.kill()


@pytest.fixture
def primary(pair: tuple[Node, Node]) -> Node:
    """An empty server with one replica that has everything."""
    primary, replica = pair
    replica.resume()
    primary.mend_replication()
    primary.clean()
    eventually(lambda: replica.is_following(primary))
    return primary


@pytest.fixture
def replica(primary: Node, pair: tuple[Node, Node]) -> Node:
    return pair[1]


@asynccontextmanager
async def opened_store(url: str, *, replicas: int = 1, deadline_ms: int = 2500) -> AsyncIterator[Store]:
    async with Redis.from_url(url, replicas=replicas, deadline_ms=deadline_ms) as redis:
        store = Store(redis, Keyspace())
        await store.open()
        yield store


async def heartbeats(store: Store, number: int, *, at_once: int) -> None:
    session = await opened(store)
    numbers = count()

    async def beat() -> None:
        while (op := next(numbers)) < number:
            await store.sessions.heartbeat(session.session_id, grant=EVERYTHING, op=OpId(f"op{op}"))

    await asyncio.gather(*(beat() for _ in range(at_once)))


class TestScripts:
    def test_each_that_writes_is_told_or_is_not(self) -> None:
        """A new script has to be in one of the two lists, unless it only reads."""
        names = {path.name.removesuffix(".lua") for path in (files("sessions_api.store") / "lua").iterdir()}
        names.discard("lib")

        assert not TOLD & UNTOLD
        assert names >= TOLD | UNTOLD
        for name in sorted(names):
            is_writing = bool(commands_of(name) - READS)
            assert is_writing == (name in TOLD | UNTOLD), (name, commands_of(name) - READS)


def commands_of(name: str) -> set[str]:
    """What a script calls; empty text for a name that is not written there."""
    calls: list[str] = re.findall(r"redis\.p?call\(('\w+'|)", load(name).source.decode())
    return {command.strip("'") for command in calls}


class TestAcknowledged:
    async def test_means_that_the_replica_has_it(self, primary: Node, replica: Node) -> None:
        """At the moment of the answer, not soon after."""
        async with opened_store(primary.url) as store:
            session = await opened(store)
            for number in range(50):
                appended = await say(store, session.session_id, f"m{number}", on_busy="merge")
                entries = replica.call("XLEN", store.keyspace.of(session.session_id).log)
                assert entries == number + 1, appended.cursor

    async def test_never_without_the_replica(self, primary: Node, replica: Node) -> None:
        """The write is done; its caller hears NotReplicated, within its deadline."""
        async with opened_store(primary.url, deadline_ms=2000) as store:
            session = await opened(store)
            primary.cut_replication()

            with pytest.raises(NotReplicated) as refused:
                await say(store, session.session_id)

            assert refused.value.retryable
            assert refused.value.retry_after_s == 1
            assert "0 of 1 replicas" in refused.value.reason
            assert primary.call("XLEN", store.keyspace.of(session.session_id).log) == 1
            assert replica.call("EXISTS", store.keyspace.of(session.session_id).log) == 0

    async def test_once_a_replica_is_back_within_the_deadline(self, primary: Node, replica: Node) -> None:
        async with opened_store(primary.url, deadline_ms=20_000) as store:
            session = await opened(store)
            primary.cut_replication()
            saying = asyncio.create_task(say(store, session.session_id))
            await until(lambda: store.redis.stats.repeats > 0)
            assert not saying.done()

            primary.mend_replication()

            assert (await saying).is_repeat is False
            assert replica.call("XLEN", store.keyspace.of(session.session_id).log) == 1

    async def test_of_a_repeat_through_another_process_too(self, primary: Node, replica: Node) -> None:
        """It writes nothing itself, and must not be told that what it found is safe."""
        async with (
            opened_store(primary.url, deadline_ms=20_000) as first,
            opened_store(primary.url) as second,
        ):
            session = await opened(first)
            await say(second, session.session_id, "warm", on_busy="merge")
            replica.pause()
            grant, op = EVERYTHING, OpId("op1")
            beating = asyncio.create_task(first.sessions.heartbeat(session.session_id, grant=grant, op=op))
            key = first.keyspace.of(session.session_id).session
            await until(lambda: b"op1" in primary.call("HGET", key, "state"))

            with pytest.raises(NotReplicated):
                await second.sessions.heartbeat(session.session_id, grant=grant, op=op)

            replica.resume()
            await beating
            await second.sessions.heartbeat(session.session_id, grant=grant, op=op)

    async def test_takes_as_many_replicas_as_were_asked_for(self, primary: Node) -> None:
        async with opened_store(primary.url, replicas=2, deadline_ms=2000) as store:
            with pytest.raises(NotReplicated, match="1 of 2 replicas"):
                await opened(store)

    async def test_is_not_asked_for_reads_and_the_services_own_writes(
        self, primary: Node, replica: Node
    ) -> None:
        """They go on while no replica is there, and do not wait behind those that wait."""
        async with opened_store(primary.url, deadline_ms=1500) as store:
            session = await opened(store)
            primary.cut_replication()
            saying = asyncio.create_task(say(store, session.session_id))
            await until(lambda: primary.call("XLEN", store.keyspace.of(session.session_id).log) == 1)

            assert (await store.sessions.read(session.session_id, grant=EVERYTHING)).cursor > 0
            assert (await store.alarms.ring(session.session_id)).outcome == "idle"
            assert await store.alarms.keep(0, "replica", 4000)
            assert not saying.done()
            with pytest.raises(NotReplicated):
                await saying

    async def test_leaves_keys_with_a_life(self, primary: Node) -> None:
        async with opened_store(primary.url) as store:
            session = await opened(store)
            tag = store.keyspace.of(session.session_id).session.decode().split("{")[1].split("}")[0]

        assert 0 < primary.call("TTL", f"sa:commit:{{{tag}}}") <= 3600


class TestErrors:
    async def test_of_a_script_are_told_as_ever(self, primary: Node) -> None:
        async with Redis.from_url(primary.url, replicas=1) as redis:
            with pytest.raises(StorageFault):
                await redis.script(Script("append", "return redis.call('NOSUCH')"), ["test:key"])
            assert await redis.script(ECHO, ["test:key"], ["x"]) == [b"test:key", b"x"]
            assert redis.stats.losses == 0

    async def test_of_a_full_redis_are_told_as_ever_and_deletes_go_on(self, primary: Node) -> None:
        async with opened_store(primary.url) as store:
            session = await opened(store)
            primary.config_set("maxmemory", "1")

            with pytest.raises(StorageError) as refused:
                await say(store, session.session_id)
            await store.sessions.end(session.session_id, grant=EVERYTHING)

            assert refused.value.code == "STORAGE_FULL"

    async def test_of_a_lost_line_are_repeats_with_nothing_twice(self, primary: Node) -> None:
        """Cut between the write and the replicas' word for it."""
        async with Proxy(primary.url) as proxy, opened_store(proxy.url, deadline_ms=20_000) as store:
            session = await opened(store)
            for number in range(8):
                proxy.drop_reply(lambda command: command[0] == b"WAIT")
                await say(store, session.session_id, f"m{number}", on_busy="merge")

            assert proxy.dropped == 8
            assert primary.call("XLEN", store.keyspace.of(session.session_id).log) == 8

    async def test_of_a_cancelled_caller_hurt_nobody_else(self, primary: Node) -> None:
        async with Redis.from_url(primary.url, replicas=1) as redis:
            for round_ in range(50):
                calls = [
                    asyncio.create_task(redis.script(ECHO, ["test:key"], [f"{round_}-{n}"]))
                    for n in range(10)
                ]
                for _ in range(round_ % 5):
                    await asyncio.sleep(0)
                for call in calls[::2]:
                    call.cancel()
                for n, call in enumerate(calls):
                    if n % 2:
                        assert await call == [b"test:key", f"{round_}-{n}".encode()]
                await asyncio.gather(*calls, return_exceptions=True)
            assert redis.stats.losses == 0

    async def test_leave_no_task_and_no_caller_behind(self, primary: Node) -> None:
        async with opened_store(primary.url, deadline_ms=20_000) as store:
            session = await opened(store)
            primary.cut_replication()
            saying = asyncio.create_task(say(store, session.session_id))
            await until(lambda: store.redis.stats.repeats > 0)
        with pytest.raises(StorageError):
            await saying


class TestCluster:
    async def test_each_primary_has_its_own_batches_and_replicas(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Of each write one replica has word, of none two."""
        cluster = ClusterServer("cluster", tmp_path_factory.mktemp("cluster"), replicas=3)
        try:
            await asyncio.to_thread(cluster.start)
            async with opened_store(cluster.url) as store:
                users = [f"11111111-1111-4111-8111-{number:012d}" for number in range(30)]
                sessions = await asyncio.gather(*(opened(store, user) for user in users))
                await asyncio.gather(*(say(store, session.session_id) for session in sessions))
                assert len(store.redis.topology.primaries) == 3
            async with opened_store(cluster.url, replicas=2, deadline_ms=2000) as store:
                with pytest.raises(NotReplicated, match="1 of 2 replicas"):
                    await opened(store)
        finally:
            cluster.stop()


class TestCost:
    async def test_is_one_wait_for_all_that_came_meanwhile(self, primary: Node) -> None:
        """A hundred callers at once cost far fewer than a hundred waits; none waits for a second batch."""
        async with opened_store(primary.url) as store:
            await heartbeats(store, 10, at_once=10)
            primary.call("CONFIG", "RESETSTAT")
            trips = store.redis.stats.round_trips

            await heartbeats(store, 2000, at_once=100)

            calls = primary.calls()
            assert calls["evalsha"] >= 2000
            assert calls["wait"] <= 2000 / 10
            assert store.redis.stats.round_trips - trips <= calls["wait"] + 100  # and what else the test asks

    async def test_is_one_trip_for_one_caller(self, primary: Node) -> None:
        async with opened_store(primary.url) as store:
            session = await opened(store)
            await say(store, session.session_id, "warm", on_busy="merge")

            with counted_trips() as trips:
                await say(store, session.session_id, "x", on_busy="merge")

            assert len(trips) == 1

    @pytest.mark.servers("valkey")
    async def test_is_nothing_when_it_is_off(self, server: TestServer) -> None:
        """One line, and no command more."""
        async with Redis.from_url(server.url) as redis:
            assert redis._told is redis.topology
            await redis.script(ECHO, ["test:key"], ["x"])
            before = redis.stats.commands

            await redis.script(ECHO, ["test:key"], ["x"])

            assert redis.stats.commands - before == 1
            assert redis.stats.connects == 1

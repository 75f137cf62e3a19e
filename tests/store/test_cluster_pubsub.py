"""Sessions' channels and notifications on a cluster: heard at each primary, once, wherever the slot is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from sessions_api.domain.ids import SessionId, UserId, partition_of_user
from sessions_api.store import Redis, Store
from sessions_api.store.cluster import Cluster
from sessions_api.store.fleet import Shards, live_subscriber
from sessions_api.store.keys import Keyspace
from sessions_api.store.slots import slot_of
from tests.support.cluster import ClusterNode, ClusterServer
from tests.support.hints import hinting
from tests.support.servers import binaries, running
from tests.support.stores import CONFIG, opened, say
from tests.support.waiting import eventually, until

one = pytest.mark.servers("cluster")
both = pytest.mark.servers("cluster", "cluster62")


class Follower:
    """Who follows sessions as the hub does, and notes what it hears."""

    def __init__(self, store: Store, *, probe_s: float = 1.0) -> None:
        self.heard: list[tuple[bytes, bytes]] = []
        self.returned: list[bytes] = []
        self._store = store
        topology = store.redis.topology
        assert isinstance(topology, Cluster)
        self.shards = Shards(
            store.redis,
            topology,
            on_message=lambda *message: self.heard.append(message),
            on_resubscribed=self._on_resubscribed,
            probe_s=probe_s,
        )

    def _on_resubscribed(self, channels: Sequence[bytes]) -> None:
        self.returned += channels

    async def __aenter__(self) -> Self:
        await self.shards.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.shards.stop()

    async def follow(self, session_id: SessionId) -> bytes:
        channel = self._store.keyspace.of(session_id).live
        async with asyncio.timeout(20):
            await self.shards.subscribe(channel)
        return channel

    def is_at(self, node: ClusterNode, channel: bytes) -> bool:
        """All that is wanted is confirmed, *channel* by *node*, which the map has as a primary."""
        cluster = self.shards.cluster
        serving = cluster.serving(slot_of(channel))
        return (
            self.shards.is_up and serving.server == f"127.0.0.1:{node.port}" and serving in cluster.primaries
        )

    def messages(self, session_id: SessionId) -> list[bytes]:
        """The contents of the messages that were heard of the session."""
        channel = self._store.keyspace.of(session_id).live
        return [
            payload.split(b'"content":"')[1].split(b'"')[0]
            for found, payload in self.heard
            if found == channel and payload.startswith(b"message.created ")
        ]


@asynccontextmanager
async def opened_store(server: ClusterServer, **settings: Any) -> AsyncIterator[Store]:
    async with Redis.from_url(server.url, **settings) as redis:
        store = Store(redis, Keyspace())
        await store.open()
        yield store


def user_at(store: Store, node: ClusterNode, server: ClusterServer) -> str:
    """A user whose sessions *node* serves."""
    for number in range(10_000):
        user = f"11111111-1111-4111-8111-{number:012}"
        key = store.keyspace.partition(partition_of_user(UserId(user))).due
        if server.serving(key) is node:
            return user
    raise AssertionError(node)


async def a_session_at_each(store: Store, server: ClusterServer) -> list[SessionId]:
    return [(await opened(store, user_at(store, node, server))).session_id for node in server.primaries]


class TestShards:
    @both
    async def test_are_heard_at_every_primary_and_once(self, server: ClusterServer) -> None:
        """On Redis 6.2 classically, which every server hears of: subscribed at one of them alone."""
        async with opened_store(server) as store, Follower(store) as near, Follower(store) as far:
            sessions = await a_session_at_each(store, server)
            assert len(sessions) == 3
            for session_id in sessions:
                await near.follow(session_id)
                await far.follow(session_id)

            for number in range(5):
                for session_id in sessions:
                    await say(store, session_id, f"m{number}")

            said = [f"m{number}".encode() for number in range(5)]
            everybodys = [(follower, session_id) for follower in (near, far) for session_id in sessions]
            await until(lambda: all(len(who.messages(session_id)) >= 5 for who, session_id in everybodys))
            assert all(who.messages(session_id) == said for who, session_id in everybodys)
            assert near.shards.is_up
            assert near.returned == []

    @one
    async def test_are_published_to_subscribers_of_the_shard_only(self, server: ClusterServer) -> None:
        """The bus of the cluster has nothing to do with it."""
        async with opened_store(server) as store, Follower(store) as follower:
            (session_id, *_) = await a_session_at_each(store, server)
            channel = await follower.follow(session_id)

            assert server.serving(channel).call("PUBSUB", "SHARDNUMSUB", channel) == [channel, 1]
            assert all(node.call("PUBSUB", "NUMSUB", channel) == [channel, 0] for node in server.nodes)
            follower.shards.unsubscribe(channel)
            await until(
                lambda: server.serving(channel).call("PUBSUB", "SHARDNUMSUB", channel) == [channel, 0]
            )

    async def test_while_servers_are_upgraded_one_by_one(self, tmp_path: Path) -> None:
        """Each server is asked for what it can; scripts publish as the server can that they run at."""
        if "redis62" not in binaries():
            pytest.skip("no Redis 6.2 here")
        with running(ClusterServer("cluster", tmp_path, makes=["redis62", "valkey", "redis62"])) as server:
            async with opened_store(server) as store, Follower(store) as follower:
                sessions = await a_session_at_each(store, server)
                for session_id in sessions:
                    await follower.follow(session_id)
                for session_id in sessions:
                    await say(store, session_id, "hello")

                await until(lambda: all(follower.messages(session_id) for session_id in sessions))
                assert all(follower.messages(session_id) == [b"hello"] for session_id in sessions)

    @one
    async def test_that_are_forbidden_are_classic_at_both_ends(self, server: ClusterServer) -> None:
        """A user of Redis from before: its rights have no sharded pub/sub."""
        for node in server.nodes:
            node.call("ACL", "SETUSER", "old", "on", ">x", "~*", "&*", "+@all", "-spublish", "-ssubscribe")
        try:
            async with Redis.from_url(server.url.replace("://", "://old:x@")) as redis:
                store = Store(redis, Keyspace())
                await store.open()
                async with Follower(store) as follower:
                    sessions = await a_session_at_each(store, server)
                    for session_id in sessions:
                        await follower.follow(session_id)
                        await say(store, session_id, "hello")

                    await until(lambda: all(follower.messages(session_id) for session_id in sessions))
                    assert all(follower.messages(session_id) == [b"hello"] for session_id in sessions)
        finally:
            for node in server.nodes:
                node.call("ACL", "DELUSER", "old")

    @both
    async def test_go_with_their_slot(self, server: ClusterServer) -> None:
        """Who listens there is told that something may be missing; who listens elsewhere is not."""
        async with opened_store(server) as store, Follower(store) as follower:
            sessions = await a_session_at_each(store, server)
            channels = [await follower.follow(session_id) for session_id in sessions]
            slot = slot_of(channels[0])
            target = next(node for node in server.primaries if node is not server.serving(channels[0]))
            source = server.begin_migration(slot, target)
            try:
                server.move_keys(slot, source, target)
                server.end_migration(slot, target)

                if server.kind == "cluster":  # told by the server itself; before Redis 7 none does that
                    await until(lambda: follower.returned == [channels[0]])
                await say(store, sessions[0], "after")
                await until(lambda: follower.returned == [channels[0]])
                await say(store, sessions[0], "later")
                await until(lambda: b"later" in follower.messages(sessions[0]))
                await say(store, sessions[1], "elsewhere")
                await until(lambda: follower.messages(sessions[1]) == [b"elsewhere"])
            finally:
                server.migrate(slot, source)

    @one
    async def test_wait_for_a_server_that_is_away(self, server: ClusterServer) -> None:
        async with opened_store(server, deadline_ms=20_000) as store, Follower(store) as follower:
            sessions = await a_session_at_each(store, server)
            lost = server.serving(store.keyspace.of(sessions[0]).live)
            await follower.follow(sessions[1])
            lost.kill()
            following = asyncio.create_task(follower.follow(sessions[0]))
            await say(store, sessions[1], "meanwhile")
            await until(lambda: follower.messages(sessions[1]) == [b"meanwhile"])
            assert not following.done()
            assert not follower.shards.is_up

            lost.start()
            await following
            server.settle()
            await say(store, sessions[0], "back")

            await until(lambda: follower.messages(sessions[0]) == [b"back"])
            await until(lambda: follower.shards.is_up)

    @one
    async def test_of_a_hung_server_are_found_deaf_by_the_probe(self, server: ClusterServer) -> None:
        async with (
            opened_store(server, deadline_ms=20_000) as store,
            Follower(store, probe_s=0.1) as follower,
        ):
            (session_id, *_) = await a_session_at_each(store, server)
            channel = await follower.follow(session_id)
            hung = server.serving(channel)
            hung.pause()
            await until(lambda: follower.shards.stats.timeouts >= 1)
            hung.resume()

            await until(lambda: follower.returned == [channel])
            await say(store, session_id, "back")
            await until(lambda: follower.messages(session_id) == [b"back"])

    @one
    async def test_of_other_servers_lose_nothing_with_one(self, server: ClusterServer) -> None:
        async with opened_store(server) as store, Follower(store) as follower:
            sessions = await a_session_at_each(store, server)
            channels = [await follower.follow(session_id) for session_id in sessions]

            server.serving(channels[0]).call("CLIENT", "KILL", "TYPE", "pubsub")

            await until(lambda: follower.returned == [channels[0]])

    @one
    async def test_of_a_single_server_are_classic(self, server: ClusterServer) -> None:
        """Replicas of an older release listen classically: there, nothing changes."""
        node = ClusterNode("valkey", server.nodes[0].folder / "single", cluster_enabled="no")
        node.start()
        try:
            async with Redis.from_url(node.url) as redis:
                subscriber = live_subscriber(
                    redis, on_message=lambda *_: None, on_resubscribed=lambda _: None, key_prefix=b"sa:"
                )
                assert not isinstance(subscriber, Shards)
        finally:
            node.stop()

    @one
    async def test_asked_for_before_the_start_are_subscribed_by_it(self, server: ClusterServer) -> None:
        async with opened_store(server) as store:
            follower = Follower(store)
            (session_id, *_) = await a_session_at_each(store, server)
            following = asyncio.create_task(follower.follow(session_id))
            await asyncio.sleep(0)
            async with follower:
                await following
                await say(store, session_id, "hello")
                await until(lambda: follower.messages(session_id) == [b"hello"])


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    with running(ClusterServer("cluster", tmp_path_factory.mktemp("replicated"), replicas=3)) as cluster:
        yield cluster


class TestFailover:
    @pytest.mark.parametrize("is_planned", [True, False], ids=["planned", "killed"])
    async def test_takes_channels_and_hints_along(self, replicated: ClusterServer, is_planned: bool) -> None:
        """Followers go on at the new primary, and its alarms are heard of; nothing is heard twice."""
        replicated.clean()
        async with (
            opened_store(replicated, deadline_ms=20_000) as store,
            Follower(store) as follower,
            hinting(store) as hints,
        ):
            primary = replicated.primaries[0]
            user = user_at(store, primary, replicated)
            session_id = (await opened(store, user)).session_id
            channel = await follower.follow(session_id)
            replica = replicated.replica_of(primary)
            if is_planned:
                await asyncio.to_thread(replicated.promote, replica)
            else:
                primary.kill()
            await opened(store, user)  # whichever command is next learns of the new primary
            # Told of once more, if the old primary confirmed it as a replica, as it may, before it moved.
            await until(lambda: follower.is_at(replica, channel), within_s=30)
            assert set(follower.returned) == {channel}

            await say(store, session_id, "after")
            await until(lambda: follower.messages(session_id))
            await until(lambda: hints.are_on)
            passing = await opened(store, user, config=SOON)
            await until(lambda: passing.session_id in hints.heard, within_s=20)
            replicated.mend()
            await say(store, session_id, "later")

            await until(lambda: follower.messages(session_id) == [b"after", b"later"])
            assert replicated.serving(channel) is replica


SOON = CONFIG.__class__(60, False, CONFIG.max_duration_ms, 1)


class TestHints:
    @both
    async def test_come_from_every_primary(self, server: ClusterServer) -> None:
        """Their events are each server's own, and so is the setting that makes them."""
        for node in server.nodes:
            node.config_set("notify-keyspace-events", "")
        async with opened_store(server) as store, hinting(store) as hints:
            await eventually(lambda: _all_on(server))

            sessions = [
                (await opened(store, user_at(store, node, server), config=SOON)).session_id
                for node in server.primaries
            ]

            await until(lambda: sorted(hints.heard) == sorted(sessions))

    @one
    async def test_are_asked_for_again_at_a_server_that_restarted(self, server: ClusterServer) -> None:
        async with opened_store(server, deadline_ms=20_000) as store, hinting(store):
            node = server.nodes[1]
            node.restart_with(notify_keyspace_events="")

            await eventually(lambda: _all_on(server))
            node.restart_with(notify_keyspace_events="Ex")


async def _all_on(server: ClusterServer) -> bool:
    return all(
        set("Ex") <= set(node.config_get("notify-keyspace-events").replace("A", "x")) for node in server.nodes
    )

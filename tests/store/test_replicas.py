"""Replicas know of each other: who lives, of which release, with which settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog

from sessions_api.keeper.keeper import Keeper
from sessions_api.keeper.membership import Membership
from sessions_api.store import Store
from sessions_api.store.keys import SCHEMA
from sessions_api.store.replicas import UNTOLD, Identity, Replica
from sessions_api.telemetry import metrics
from tests.support.replicas import stores
from tests.support.servers import RealServer, TestServer
from tests.support.waiting import eventually, until

LONG_MS = 60_000
HOUR = {"SESSION_RETENTION_MINUTES": "60"}
DAY = {"SESSION_RETENTION_MINUTES": "1440"}


def differing() -> dict[str, float]:
    """The gauge of this process, by what differs."""
    return {what: metrics.REPLICAS_DIFFERING.labels(what)._value.get() for what in metrics.REPLICAS_DIFFER_IN}


def ids(replicas: list[Replica]) -> list[str]:
    return [replica.replica_id for replica in replicas]


class TestSignsOfLife:
    async def test_bring_back_who_else_lives(self, store: Store) -> None:
        a, b = Identity("a", version="1.2"), Identity("b", keeps=False)

        assert ids(await store.replicas.present(b, LONG_MS)) == ["b"]
        alive = await store.replicas.present(a, LONG_MS)

        assert alive == [
            Replica("a", "1.2", str(SCHEMA), a.digest, keeps=True),
            Replica("b", "0", str(SCHEMA), b.digest, keeps=False),
        ]
        await store.replicas.leave(b)
        assert ids(await store.replicas.present(a, LONG_MS)) == ["a"]

    async def test_end_by_themselves(self, store: Store) -> None:
        await store.replicas.present(Identity("dead"), 1)

        async def is_alone() -> bool:
            return ids(await store.replicas.present(Identity("living"), LONG_MS)) == ["living"]

        await eventually(is_alone)

    async def test_are_read_by_who_gives_none(self, store: Store, server: TestServer) -> None:
        """As doctor does; what is past does not count, and nothing is written."""
        await store.replicas.present(Identity("a", version="1", settings=HOUR), LONG_MS)
        await store.replicas.present(Identity("dead"), 1)
        await until(lambda: server.call("ZSCORE", "sa:replicas", "dead") is not None)
        before = server.call("HGETALL", "sa:told:{sa:replicas}")

        async def only_a() -> bool:
            return ids(await store.replicas.alive()) == ["a"]

        await eventually(only_a)
        assert server.call("HGETALL", "sa:told:{sa:replicas}") == before

    async def test_of_a_release_that_does_not_tell_count_as_a_keepers(
        self, store: Store, server: TestServer
    ) -> None:
        """It says that it lives, as every release does, and nothing of itself."""
        server.call("ZADD", "sa:replicas", 99_999_999_999_999, "old")

        alive = await store.replicas.present(Identity("new"), LONG_MS)

        assert alive[1] == Replica("old", UNTOLD, UNTOLD, "", keeps=True)
        assert await store.replicas.alive() == alive

    @pytest.mark.servers("valkey")
    async def test_cost_one_call_of_one_script(self, store: Store, server: RealServer) -> None:
        """The settings go along once, however many signs follow and however many replicas have the same."""
        first, second = Identity("a", settings=HOUR), Identity("b", settings=HOUR)
        await store.replicas.present(first, LONG_MS)
        sent = store.redis.stats.scripts["presence"]

        for _ in range(3):
            await store.replicas.present(first, LONG_MS)
        await store.replicas.present(second, LONG_MS)

        assert store.redis.stats.scripts["presence"] == sent + 4
        assert server.call("HLEN", "sa:settings:{sa:replicas}") == 1


class TestSettings:
    async def test_are_stored_as_long_as_a_replica_has_them(self, store: Store, server: TestServer) -> None:
        a, b = Identity("a", settings=HOUR), Identity("b", settings=DAY)
        await store.replicas.present(a, LONG_MS)
        await store.replicas.present(b, LONG_MS)
        assert await store.replicas.settings(a.digest) == HOUR
        assert await store.replicas.settings(b.digest) == DAY

        await store.replicas.leave(b)

        assert await store.replicas.settings(b.digest) == {}
        assert server.call("HKEYS", "sa:settings:{sa:replicas}") == [a.digest.encode()]

    async def test_that_were_lost_are_told_again(self, store: Store, server: TestServer) -> None:
        a = Identity("a", settings=HOUR)
        await store.replicas.present(a, LONG_MS)
        server.flush()

        await store.replicas.present(a, LONG_MS)
        await store.replicas.present(a, LONG_MS)

        assert await store.replicas.settings(a.digest) == HOUR

    async def test_that_changed_while_it_runs_are_told(self, store: Store) -> None:
        """As access keys do, whose file is read again."""
        a = Identity("a", settings=HOUR)
        await store.replicas.present(a, LONG_MS)
        old = a.digest

        a.settings = DAY
        await store.replicas.present(a, LONG_MS)

        assert await store.replicas.settings(a.digest) == DAY
        assert await store.replicas.settings(old) == {}


class TestADifference:
    @asynccontextmanager
    async def pair(self, url: str, *others: Identity) -> AsyncIterator[list[Membership]]:
        async with stores(url, 1 + len(others)) as found:
            mine = Identity("mine", version="2", settings=HOUR)
            yield [Membership(store, me) for store, me in zip(found, (mine, *others), strict=True)]

    async def test_in_settings_is_logged_once_and_stands_in_the_gauge(self, redis_url: str) -> None:
        """With the names of what differs; an end is logged as well."""
        theirs = [Identity(name, version="2", settings=DAY) for name in ("b", "c")]
        async with self.pair(redis_url, *theirs) as (mine, *others):
            await mine.give_sign()
            assert differing() == {"version": 0, "settings": 0}
            with structlog.testing.capture_logs() as logs:
                for other in others:
                    await other.give_sign()
                logs.clear()
                for _ in range(3):
                    await mine.give_sign()

                assert [entry["event"] for entry in logs] == ["replicas_differ"]
                assert logs[0]["settings"] == ["SESSION_RETENTION_MINUTES"]
                assert logs[0]["replicas"] == ["b", "c"]
                assert differing() == {"version": 0, "settings": 2}

                for other in others:
                    await other.leave()
                logs.clear()
                await mine.give_sign()
                assert [entry["event"] for entry in logs] == ["replicas_agree"]
            assert differing() == {"version": 0, "settings": 0}

    async def test_of_version_is_a_difference_too(self, redis_url: str, server: TestServer) -> None:
        """Also of one that tells none."""
        async with self.pair(redis_url, Identity("b", version="1", settings=HOUR)) as (mine, other):
            await other.give_sign()
            server.call("ZADD", "sa:replicas", 99_999_999_999_999, "old")
            with structlog.testing.capture_logs() as logs:
                await mine.give_sign()
                await mine.give_sign()

            assert [entry["event"] for entry in logs] == ["replicas_of_other_versions"]
            assert (logs[0]["here"], len(logs[0]["there"])) == ("2", 2)
            assert differing() == {"version": 2, "settings": 0}
            assert mine.keepers == 3
            await mine.leave()
            assert differing() == {"version": 0, "settings": 0}


class TestAReplicaThatKeepsNothing:
    async def test_is_seen_and_takes_no_share(self, redis_url: str) -> None:
        async with stores(redis_url, 2) as (first, second):
            keeper = Keeper(first, replica_id="keeps")
            other = Keeper(second, replica_id="serves", is_keeping=False)
            await keeper.start()
            await other.start()
            try:
                await until(lambda: ids(other.membership.alive) == ["keeps", "serves"])
                await until(lambda: ids(keeper.membership.alive) == ["keeps", "serves"])
                await until(lambda: len(keeper.kept) == 64)
                assert keeper.membership.keepers == 1
            finally:
                await asyncio.gather(keeper.stop(), other.stop())
            assert await first.replicas.alive() == []

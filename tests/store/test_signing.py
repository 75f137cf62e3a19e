"""The keys that tokens are signed with: the same on every replica, a new one a day, none gone too early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sessions_api.access.tokens import Tokens
from sessions_api.domain.access import RIGHTS
from sessions_api.errors import StorageError, Unauthenticated
from sessions_api.store import Redis, Store
from sessions_api.store.keys import Keyspace
from sessions_api.store.signing import KEEP_MS, LONGEST_LIFE_S, ROTATE_MS, SETTLED_MS, SIGNING, SigningKeys
from tests.support.replicas import stores
from tests.support.servers import TestServer
from tests.support.stores import opened

pytestmark = pytest.mark.servers("valkey", "redis62", "fakeredis")
SECOND_MS = 1_000


@pytest.fixture
async def replicas(server: TestServer) -> AsyncIterator[list[Store]]:
    """Two that have read the keys."""
    async with stores(server.url, 2) as both:
        for store in both:
            await store.signing.refresh()
        yield both


def age(server: TestServer, by_ms: int) -> None:
    """Let so much time pass for the keys: each was made that much earlier."""
    for key_id, value in server.call("HGETALL", "sa:signing").items():
        created, secret = value.split()
        server.call("HSET", "sa:signing", key_id, b"%d %b" % (int(created) - by_ms, secret))


def stored(server: TestServer) -> set[str]:
    """The ids of the keys in Redis."""
    return {key.decode() for key in server.call("HKEYS", "sa:signing")}


def current(store: Store) -> str:
    key = store.signing.current
    assert key is not None
    return key.id


class TestFirst:
    async def test_is_made_at_the_first_look_and_signs_at_once(self, server: TestServer) -> None:
        async with Redis.from_url(server.url) as redis:
            keys = SigningKeys(redis, Keyspace())
            before = keys.current

            await keys.refresh()

            (key_id,) = stored(server)
            key = keys.get(key_id)
            assert key is not None
            assert (before, keys.current) == (None, key)
            assert len(bytes.fromhex(key.secret)) == 32

    async def test_is_one_for_replicas_that_look_at_the_same_moment(self, server: TestServer) -> None:
        async with stores(server.url, 4) as many:
            await asyncio.gather(*(store.signing.refresh() for store in many))

            assert {current(store) for store in many} == stored(server)
            assert len(stored(server)) == 1

    async def test_is_made_for_the_first_token(self, server: TestServer, store: Store) -> None:
        """A service without access keys has none of these, until somebody wants a token."""
        session = await opened(store)
        assert stored(server) == set()

        issued = await Tokens(store.signing).issue(session, frozenset(RIGHTS), 60)

        assert Tokens(store.signing).caller(issued.token).session_id == session.session_id
        assert stored(server) == {current(store)}

    async def test_without_it_there_is_no_token(self, store: Store) -> None:
        session = await opened(store)
        await store.redis.stop()

        with pytest.raises(StorageError):
            await Tokens(store.signing).issue(session, frozenset(RIGHTS), 60)

    async def test_stays_while_redis_cannot_be_asked(self, server: TestServer) -> None:
        async with Redis.from_url(server.url) as redis:
            keys = SigningKeys(redis, Keyspace())
            await keys.refresh()

        with pytest.raises(StorageError):
            await keys.refresh()

        assert keys.current is not None


class TestRotation:
    async def test_comes_after_a_day(self, server: TestServer, replicas: list[Store]) -> None:
        (first,) = stored(server)
        age(server, ROTATE_MS - SECOND_MS)
        await replicas[0].signing.refresh()
        assert stored(server) == {first}

        age(server, SECOND_MS)
        await asyncio.gather(*(store.signing.refresh() for store in replicas))

        assert len(stored(server)) == 2

    async def test_the_new_key_signs_once_every_replica_has_read_it(
        self, server: TestServer, replicas: list[Store]
    ) -> None:
        """A replica that knew it first would make tokens that others call forged."""
        near, far = replicas
        (old,) = stored(server)
        age(server, ROTATE_MS)
        await near.signing.refresh()
        (new,) = stored(server) - {old}

        assert current(near) == current(far) == old
        assert near.signing.get(new) is not None
        age(server, SETTLED_MS - SECOND_MS)
        await near.signing.refresh()
        assert current(near) == old
        age(server, SECOND_MS)
        await near.signing.refresh()
        assert current(near) == new
        await far.signing.refresh()
        assert current(far) == new

    async def test_the_old_key_is_known_until_its_last_token_has_ended(
        self, server: TestServer, replicas: list[Store]
    ) -> None:
        """It signs for a day, until the next is settled; then its tokens live for another."""
        (old,) = stored(server)
        last_ms = ROTATE_MS + SETTLED_MS + LONGEST_LIFE_S * 1000
        age(server, last_ms + 60 * SECOND_MS)
        await replicas[0].signing.refresh()
        assert replicas[0].signing.get(old) is not None

        age(server, KEEP_MS - last_ms)
        await replicas[0].signing.refresh()

        assert replicas[0].signing.get(old) is None
        assert old not in stored(server)
        assert len(stored(server)) == 1, "the one that was made meanwhile"

    async def test_of_days_without_a_replica_leaves_one_that_signs(
        self, server: TestServer, replicas: list[Store]
    ) -> None:
        (old,) = stored(server)
        age(server, 10 * ROTATE_MS)

        await asyncio.gather(*(store.signing.refresh() for store in replicas))

        assert len(stored(server)) == 1
        assert old not in stored(server)
        assert {current(store) for store in replicas} == stored(server)

    async def test_a_look_that_is_repeated_makes_one_key(self, server: TestServer, store: Store) -> None:
        """The first reply was lost: the repeat finds its own key, also where others were to be forgotten."""
        for number, is_leak in enumerate((0, 1)):
            args = (f"mine{number}", "5ec4e7" * 10, 0, KEEP_MS, is_leak)
            replies = [await store.redis.script(SIGNING, [store.keyspace.signing], args) for _ in range(2)]

            assert replies[0][1:] == replies[1][1:]
            assert f"mine{number}" in stored(server)
        assert stored(server) == {"mine1"}


class TestReplace:
    async def test_ends_every_token_on_this_replica_at_once_and_on_others_with_their_next_look(
        self, server: TestServer, replicas: list[Store]
    ) -> None:
        near, far = replicas
        tokens = [Tokens(store.signing) for store in replicas]
        session = await opened(near)
        issued = [(await each.issue(session, frozenset(RIGHTS), 60)).token for each in tokens]
        for each in tokens:
            assert {each.caller(token).session_id for token in issued} == {session.session_id}

        await near.signing.replace()
        with pytest.raises(Unauthenticated):
            tokens[0].caller(issued[0])
        await far.signing.refresh()

        for each in tokens:
            for token in issued:
                with pytest.raises(Unauthenticated):
                    each.caller(token)
        assert len(stored(server)) == 1
        fresh = await tokens[0].issue(session, frozenset(RIGHTS), 60)
        assert tokens[1].caller(fresh.token).session_id == session.session_id

    async def test_signs_with_the_new_key_at_once(self, server: TestServer, replicas: list[Store]) -> None:
        """There is no other to sign with until it has settled."""
        before = current(replicas[0])

        await replicas[0].signing.replace()

        assert {current(replicas[0])} == stored(server)
        assert current(replicas[0]) != before

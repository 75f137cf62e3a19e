"""Limits that are asked and waited for, and those that a session's script applies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

import pytest

from sessions_api.domain.ids import new_session_id
from sessions_api.domain.limits import Limit, Standing
from sessions_api.errors import RateLimited, StorageFull, StorageUnavailable
from sessions_api.store import Redis
from sessions_api.store.asked import counted_trips
from sessions_api.store.connection import Script
from sessions_api.store.keys import Keyspace
from sessions_api.store.limits import TAKE, Asked, Limits, in_script, refused, standings
from tests.support.faulty import proxied
from tests.support.servers import RealServer, TestServer
from tests.support.stores import USER
from tests.support.waiting import eventually, until

HOUR_S = 3_600
KEY = Keyspace().limit("ip", "192.0.2.1")
real = pytest.mark.servers("valkey", "redis62", "debian")


@pytest.fixture
async def limits(redis: Redis) -> AsyncIterator[Limits]:
    limits = Limits(redis, Keyspace())
    yield limits
    await limits.stop()


async def take(limits: Limits, limit: Limit, subject: str = "192.0.2.1") -> Standing:
    return await limits.take("ip", subject, limit)


async def taken(redis: Redis, limit: Limit, count: int = 1) -> tuple[str, int, int, int, float]:
    """The script's own words."""
    word, *numbers = await redis.script(TAKE, [KEY], (limit.quota, limit.window_s * 1000, count))
    admitted, left, retry_after_ms, reset_ms = map(float, numbers)
    return word.decode(), int(admitted), int(left), int(retry_after_ms), reset_ms


def now_ms(server: TestServer) -> float:
    """Redis's clock, which decides."""
    seconds, micros = map(int, server.call("TIME"))
    return seconds * 1000 + micros / 1000


async def exhaust(limits: Limits, limit: Limit) -> int:
    """Take until refused; how many were admitted."""
    admitted = 0
    while True:
        try:
            await take(limits, limit)
        except RateLimited:
            return admitted
        admitted += 1


class TestTake:
    async def test_admits_the_quota_at_once_and_then_refuses(self, limits: Limits) -> None:
        limit = Limit(5, HOUR_S)

        stood = [await take(limits, limit) for _ in range(5)]

        assert [standing.left for standing in stood] == [4, 3, 2, 1, 0]
        assert (stood[0].policy, stood[0].limit) == ("ip", limit)
        assert 0 < stood[0].reset_s <= HOUR_S / 5
        with pytest.raises(RateLimited) as refusal:
            await take(limits, limit)
        assert (refusal.value.policy, refusal.value.quota, refusal.value.window_s) == ("ip", 5, HOUR_S)
        assert 0 < refusal.value.retry_after_s <= HOUR_S / 5

    @pytest.mark.parametrize("quota", [1, 7, 130])
    async def test_is_exact_where_an_interval_is_no_whole_number(self, limits: Limits, quota: int) -> None:
        """A seventh of a day, added up seven times, is a day."""
        assert await exhaust(limits, Limit(quota, 86_400)) == quota

    async def test_is_one_round_trip(self, limits: Limits) -> None:
        await take(limits, Limit(5, HOUR_S))

        with counted_trips() as trips:
            await take(limits, Limit(5, HOUR_S))

        assert len(trips) == 1

    async def test_admits_one_more_after_each_interval_and_never_more(
        self, limits: Limits, server: TestServer
    ) -> None:
        """No edge of a window lets twice the quota pass: what passed never exceeds quota plus time."""
        limit = Limit(4, 1)
        started_ms = now_ms(server)
        admitted = await exhaust(limits, limit)

        async def some_more() -> bool:
            nonlocal admitted
            admitted += await exhaust(limits, limit)
            assert admitted <= limit.quota + (now_ms(server) - started_ms) / limit.interval_ms
            return admitted >= 2 * limit.quota + 1

        await eventually(some_more)

    async def test_whoever_waits_as_long_as_told_is_admitted(self, redis: Redis, server: TestServer) -> None:
        """And nobody is much earlier: both by Redis's clock."""
        limit = Limit(10, 1)
        asked_ms = now_ms(server)
        word, _, left, retry_after_ms, _ = await taken(redis, limit, 100)
        told_ms = now_ms(server)
        assert (word, left) == ("limited", 0)
        assert 0 < retry_after_ms <= limit.interval_ms

        async def is_admitted() -> bool:
            again_ms = now_ms(server)
            word, *_ = await taken(redis, limit)
            assert word == "ok" or again_ms < told_ms + retry_after_ms
            assert word == "limited" or now_ms(server) >= asked_ms + retry_after_ms - 1
            return word == "ok"

        await eventually(is_admitted)

    async def test_counts_several_at_once_as_many_as_fit(self, redis: Redis) -> None:
        limit = Limit(5, HOUR_S)

        assert (await taken(redis, limit, 3))[:4] == ("ok", 3, 2, 0)
        assert (await taken(redis, limit, 0))[:4] == ("ok", 0, 2, 0)
        assert (await taken(redis, limit, 4))[:3] == ("limited", 2, 0)
        assert (await taken(redis, limit, 4))[:3] == ("limited", 0, 0)

    async def test_what_is_given_back_may_be_taken_again(self, limits: Limits, server: TestServer) -> None:
        """And nobody gets more than the quota by it."""
        limit = Limit(3, HOUR_S)
        await exhaust(limits, limit)

        await limits.give_back("ip", "192.0.2.1", limit)
        assert (await take(limits, limit)).left == 0
        for _ in range(5):
            await limits.give_back("ip", "192.0.2.1", limit)

        assert not server.keys()
        assert await exhaust(limits, limit) == 3

    async def test_leaves_keys_that_go_with_their_window(self, limits: Limits, server: TestServer) -> None:
        for number in range(3):
            await take(limits, Limit(2, 1), str(number))
            assert server.call("PTTL", Keyspace().limit("ip", str(number))) != -1

        await until(lambda: not server.keys())

    async def test_subjects_and_policies_share_nothing(self, limits: Limits) -> None:
        limit = Limit(1, HOUR_S)
        await take(limits, limit)

        assert (await take(limits, limit, "192.0.2.2")).left == 0
        assert (await limits.take("key", "192.0.2.1", limit)).left == 0

    async def test_replicas_share_the_count(self, redis: Redis, server: TestServer) -> None:
        limit = Limit(50, HOUR_S)
        async with Redis.from_url(server.url) as other:
            replicas = [Limits(redis, Keyspace()), Limits(other, Keyspace())]
            calls = [take(replica, limit) for replica in replicas for _ in range(40)]
            results = await asyncio.gather(*calls, return_exceptions=True)

        assert sum(isinstance(result, Standing) for result in results) == 50
        assert sum(isinstance(result, RateLimited) for result in results) == 30

    async def test_a_lower_quota_holds_at_once_and_locks_nobody_out(self, redis: Redis) -> None:
        """Half of the old quota was used: half of the new one is left."""
        await taken(redis, Limit(100, HOUR_S), 50)

        assert (await taken(redis, Limit(10, HOUR_S)))[:3] == ("ok", 1, 4)
        await taken(redis, Limit(100, HOUR_S), 100)
        word, _, _, retry_after_ms, _ = await taken(redis, Limit(10, HOUR_S))
        assert word == "limited"
        assert retry_after_ms <= Limit(10, HOUR_S).interval_ms

    @pytest.mark.parametrize("ahead_ms", [HOUR_S * 1000, 10 * 365 * 86_400_000])
    async def test_an_instant_far_ahead_locks_out_for_a_window_at_most(
        self, redis: Redis, server: TestServer, ahead_ms: int
    ) -> None:
        """The clock was set back, or the window was an hour before."""
        server.call("SET", KEY, f"{now_ms(server) + ahead_ms:.9f}", "PX", ahead_ms)

        limit = Limit(100, 1)
        word, _, left, retry_after_ms, reset_ms = await taken(redis, limit)

        assert (word, left, retry_after_ms, reset_ms) == ("limited", 0, 10, 1000)
        assert server.call("PTTL", KEY) <= 1000

        async def is_whole_again() -> bool:
            return (await taken(redis, limit, 0))[2] == limit.quota

        await eventually(is_whole_again)

    async def test_a_repeat_after_a_lost_reply_may_count_twice(self, server: TestServer) -> None:
        """It errs towards refusing."""
        limit = Limit(5, HOUR_S)
        async with proxied(server) as (proxy, redis):
            limits = Limits(redis, Keyspace())
            await take(limits, limit)
            proxy.drop_reply(lambda command: command[0] == b"EVALSHA")

            assert (await take(limits, limit)).left == 2
            assert proxy.dropped == 1


LIB = (files("sessions_api.store") / "lua" / "lib" / "limits.lua").read_text()
SEVERAL = Script(
    "several",
    LIB
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limits = read_limits(now, 2, 3)
local index, retry_after_ms = refusing(limits)
if index then return {'limited', index, retry_after_ms} end
return {'ok', charge_all(limits, now)}
""",
)


class TestInAScript:
    """Several limits at once, in the slot of a session and behind its script's own keys and arguments."""

    OF = Keyspace().of(new_session_id(USER))

    async def run(self, redis: Redis, *asked: Asked) -> Any:
        keys, args = in_script(self.OF, asked)
        return await redis.script(SEVERAL, [self.OF.session, *keys], ("sid", "grant", *args))

    async def test_all_are_charged(self, redis: Redis) -> None:
        asked = ("session", "s", Limit(10, HOUR_S)), ("user", "u", Limit(60, 60))

        word, flat = await self.run(redis, *asked)

        assert word == b"ok"
        assert standings(asked, flat) == (
            Standing("session", asked[0][2], 9, 360),
            Standing("user", asked[1][2], 59, 1),
        )

    async def test_a_refusal_by_one_charges_none(self, redis: Redis, server: TestServer) -> None:
        wide, narrow = ("session", "s", Limit(10, HOUR_S)), ("user", "u", Limit(1, HOUR_S))
        await self.run(redis, narrow)
        keys = server.keys()

        word, index, retry_after_ms = await self.run(redis, wide, narrow)

        assert word == b"limited"
        refusal = refused([wide, narrow], index, retry_after_ms)
        assert (refusal.policy, refusal.quota, refusal.window_s) == ("user", 1, HOUR_S)
        assert 0 < refusal.retry_after_s <= HOUR_S
        assert server.keys() == keys
        assert (await self.run(redis, wide))[1][0] == 9

    async def test_of_several_the_longest_wait_is_told(self, redis: Redis) -> None:
        """Whoever waits for it is refused by none of them."""
        asked = [(f"p{n}", "s", Limit(1, window_s)) for n, window_s in enumerate((60, 600, 300), start=1)]
        await self.run(redis, *asked)

        _, index, retry_after_ms = await self.run(redis, *asked)

        assert index == 2
        assert 300_000 < retry_after_ms <= 600_000

    async def test_none_is_a_limit_too(self, redis: Redis) -> None:
        assert await self.run(redis) == [b"ok", []]

    async def test_a_script_of_its_own_and_take_count_alike(self, redis: Redis) -> None:
        """Milliseconds in one, their fractions in the other: the same instant."""
        limit = Limit(10, HOUR_S)
        await self.run(redis, ("ip", "x", limit))

        reply = await redis.script(TAKE, [self.OF.limit("ip", "x")], (10, HOUR_S * 1000, 1))

        assert reply[:3] == [b"ok", 1, 8]


class TestWithoutRedis:
    @real
    async def test_closed_says_that_redis_is_away(self, server: RealServer, limits: Limits) -> None:
        server.stop()

        with pytest.raises(StorageUnavailable):
            await take(limits, Limit(5, HOUR_S))

    @real
    async def test_local_counts_for_itself(self, server: RealServer, redis: Redis) -> None:
        """As many again as Redis would have admitted, by each process."""
        limits, limit = Limits(redis, Keyspace(), without_redis="local"), Limit(5, HOUR_S)
        assert await exhaust(limits, limit) == 5

        server.stop()

        assert await exhaust(limits, limit) == 5

    @real
    async def test_a_full_redis_is_told_or_done_without(self, server: RealServer, redis: Redis) -> None:
        limit = Limit(5, HOUR_S)
        server.config_set("maxmemory", "1")

        with pytest.raises(StorageFull):
            await take(Limits(redis, Keyspace()), limit)
        assert (await take(Limits(redis, Keyspace(), without_redis="local"), limit)).left == 4
        assert not server.keys()

"""Limits that are not waited for: what passes at once, what Redis is told, and what is owed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from time import monotonic

import pytest
from structlog.testing import capture_logs

from sessions_api.domain.limits import Limit, Standing
from sessions_api.errors import RateLimited, StorageUnavailable
from sessions_api.store import Redis
from sessions_api.store.keys import Keyspace
from sessions_api.store.limits import ASK_AGAIN_S, TAKE, Limits, _Account
from tests.support.faulty import proxied
from tests.support.servers import RealServer, TestServer
from tests.support.waiting import eventually, until

HOUR_S = 3_600
SUBJECT = "192.0.2.1"
real = pytest.mark.servers("valkey", "redis62", "debian")


@pytest.fixture
async def limits(redis: Redis) -> AsyncIterator[Limits]:
    limits = Limits(redis, Keyspace())
    yield limits
    await limits.stop()


@pytest.fixture
async def local(redis: Redis) -> AsyncIterator[Limits]:
    """As *limits*, and counts for itself while Redis is away."""
    limits = Limits(redis, Keyspace(), without_redis="local")
    yield limits
    await limits.stop()


def meter(limits: Limits, limit: Limit, subject: str = SUBJECT) -> Standing:
    return limits.meter("ip", subject, limit)


def pass_(limits: Limits, limit: Limit, count: int) -> int:
    """Ask *count* times in one tick; how many passed."""
    passed = 0
    for _ in range(count):
        try:
            meter(limits, limit)
        except RateLimited:
            continue
        passed += 1
    return passed


async def answered(limits: Limits) -> None:
    """Everything that passed was told, and the answers are here."""
    await until(lambda: not limits._counting)


async def left(redis: Redis, limit: Limit, subject: str = SUBJECT) -> int:
    """How many more Redis would admit."""
    key = Keyspace().limit("ip", subject)
    reply = await redis.script(TAKE, [key], (limit.quota, limit.window_s * 1000, 0))
    return int(reply[2])


class TestMeter:
    @pytest.mark.parametrize("quota", [1, 2, 7, 40])
    async def test_by_one_caller_after_the_other_is_exact(
        self, limits: Limits, redis: Redis, quota: int
    ) -> None:
        limit = Limit(quota, 86_400)
        stood = []
        for _ in range(quota):
            stood.append(meter(limits, limit))
            await answered(limits)

        with pytest.raises(RateLimited) as refusal:
            meter(limits, limit)

        assert [standing.left for standing in stood] == list(reversed(range(quota)))
        assert 0 < refusal.value.retry_after_s <= 86_400 // quota + 1
        assert await left(redis, limit) == 0

    async def test_of_an_unknown_subject_admits_the_quota_at_once(self, limits: Limits) -> None:
        assert pass_(limits, Limit(5, HOUR_S), 9) == 5

    async def test_tells_of_all_requests_of_a_tick_in_one_call(self, limits: Limits, redis: Redis) -> None:
        limit = Limit(100, HOUR_S)

        for _ in range(2):
            assert pass_(limits, limit, 30) == 30
            await answered(limits)

        assert redis.stats.scripts["take"] == 2
        assert await left(redis, limit) == 40

    async def test_costs_no_round_trip_of_its_own(self, limits: Limits, redis: Redis) -> None:
        """It leaves in one write with the command of the request that was let through."""
        limit = Limit(100, HOUR_S)
        meter(limits, limit)
        await answered(limits)
        trips = redis.stats.round_trips

        for subject in ("a", "b", "c"):
            meter(limits, limit, subject)
        await redis.ping()
        await answered(limits)

        assert redis.stats.round_trips == trips + 1
        assert await left(redis, limit, "c") == 99

    async def test_learns_what_other_replicas_let_through(self, limits: Limits, redis: Redis) -> None:
        limit = Limit(5, HOUR_S)
        other = Limits(redis, Keyspace())
        assert pass_(other, limit, 3) == 3
        await answered(other)

        assert meter(limits, limit).left == 4
        await answered(limits)

        assert meter(limits, limit).left == 0

    async def test_once_refused_by_redis_refuses_without_asking(self, limits: Limits, redis: Redis) -> None:
        limit = Limit(5, HOUR_S)
        for _ in range(5):
            await limits.take("ip", SUBJECT, limit)
        assert meter(limits, limit).left == 4
        await answered(limits)
        calls = redis.stats.scripts["take"]

        assert pass_(limits, limit, 100) == 0

        await answered(limits)
        assert redis.stats.scripts["take"] == calls

    async def test_whoever_waits_is_admitted_again(self, limits: Limits) -> None:
        limit = Limit(5, 1)
        assert 5 <= pass_(limits, limit, 100) < 100
        await answered(limits)

        await until(lambda: pass_(limits, limit, 1))

    async def test_replicas_let_through_one_trip_beyond_the_quota_and_owe_it(
        self, server: TestServer
    ) -> None:
        """In all, not again at each interval: what was too much is counted before anybody passes again."""
        limit = Limit(20, 1)
        async with AsyncExitStack() as stack:
            replicas = []
            for _ in range(2):
                redis = await stack.enter_async_context(Redis.from_url(server.url))
                replicas.append(Limits(redis, Keyspace()))
                stack.push_async_callback(replicas[-1].stop)
            started_s, passed = monotonic(), 0

            async def is_flowing_again() -> bool:
                nonlocal passed
                passed += sum([pass_(each, limit, limit.quota) for each in replicas])
                for each in replicas:
                    await answered(each)
                owed = sum(account.untold for each in replicas for account in each._accounts.values())
                in_time = limit.quota + (monotonic() - started_s) * 1000 / limit.interval_ms
                assert owed <= limit.quota
                assert passed - owed <= in_time + 1
                return passed >= 2 * limit.quota + 5

            await eventually(is_flowing_again)

    async def test_knows_the_subjects_used_last(self, redis: Redis) -> None:
        limits, limit = Limits(redis, Keyspace(), subjects=3), Limit(1, HOUR_S)
        for subject in "abc":
            meter(limits, limit, subject)

        with pytest.raises(RateLimited):
            meter(limits, limit, "a")
        meter(limits, limit, "d")

        assert [subject for _, subject in limits._accounts] == ["c", "a", "d"]
        assert meter(limits, limit, "b").left == 0
        await answered(limits)

    async def test_a_repeat_after_a_lost_reply_errs_towards_refusing(self, server: TestServer) -> None:
        limit = Limit(5, HOUR_S)
        async with proxied(server) as (proxy, redis):
            limits = Limits(redis, Keyspace())
            meter(limits, limit)
            await answered(limits)
            proxy.drop_reply(lambda command: command[0] == b"EVALSHA")

            meter(limits, limit)
            await answered(limits)

            assert proxy.dropped == 1
            assert await left(redis, limit) == 2
            assert pass_(limits, limit, 5) == 2
            await answered(limits)

    async def test_of_what_redis_cannot_count_goes_on_by_itself_and_is_logged(
        self, limits: Limits, server: TestServer
    ) -> None:
        """Somebody else's key of that name: our fault, and no reason to refuse a request."""
        key, limit = Keyspace().limit("ip", SUBJECT), Limit(5, HOUR_S)
        server.call("HSET", key, "a", "b")
        server.call("EXPIRE", key, 60)

        with capture_logs() as logs:
            for _ in range(5):
                meter(limits, limit)
                await answered(limits)

        assert {(each["event"], each["log_level"]) for each in logs} == {("limit_not_counted", "error")}
        with pytest.raises(RateLimited):
            meter(limits, limit)


class TestDebt:
    def test_of_what_is_there_again_is_forgotten(self) -> None:
        """An outage of an hour is not charged when it is over, only what was used last."""
        limit, account = Limit(10, 10), _Account(b"key")
        for _ in range(4):
            account.admit("ip", limit, 100.0)
            account.untold += 1

        account.admit("ip", limit, 102.5)

        assert account.untold == 2


class TestStop:
    async def test_leaves_no_task(self, server: TestServer) -> None:
        """Neither one that waits for an answer nor one that has not begun."""
        async with proxied(server) as (proxy, redis):
            limits, limit = Limits(redis, Keyspace()), Limit(5, HOUR_S)
            proxy.freeze()
            meter(limits, limit)
            await asyncio.sleep(0)
            meter(limits, limit)
            assert len(limits._counting) == 2

            await limits.stop()

            assert not limits._counting
            proxy.thaw()

    @real
    async def test_ends_the_search_for_redis(self, server: RealServer, limits: Limits) -> None:
        server.stop()
        meter(limits, Limit(5, HOUR_S))
        await until(lambda: limits._asking_on)

        await limits.stop()

        assert not limits._counting


def is_refused_for_redis(limits: Limits, limit: Limit) -> bool:
    try:
        meter(limits, limit)
    except StorageUnavailable:
        return True
    return False


@real
class TestWithoutRedis:
    async def test_closed_refuses_until_redis_answers(self, server: RealServer, limits: Limits) -> None:
        limit = Limit(1_000, HOUR_S)
        server.stop()
        await until(lambda: is_refused_for_redis(limits, limit))

        server.start()

        await until(lambda: not is_refused_for_redis(limits, limit))
        await answered(limits)
        assert not is_refused_for_redis(limits, limit)

    async def test_closed_is_open_again_before_the_next_request(
        self, server: RealServer, limits: Limits, redis: Redis
    ) -> None:
        """It looks for Redis by itself: nobody is refused who comes after the outage."""
        limit = Limit(5, HOUR_S)
        server.stop()
        meter(limits, limit)
        await until(lambda: limits._asking_on)

        server.start()
        await answered(limits)

        assert meter(limits, limit).left == 3
        await answered(limits)
        assert await left(redis, limit) == 3

    async def test_redis_is_asked_ten_times_a_second_at_most(
        self, server: RealServer, limits: Limits, redis: Redis
    ) -> None:
        limit = Limit(1_000, HOUR_S)
        server.stop()
        await until(lambda: is_refused_for_redis(limits, limit))
        await until(lambda: redis.circuit == "open")
        asked, since_s = redis.stats.scripts["take"], monotonic()

        await until(lambda: is_refused_for_redis(limits, limit) and redis.stats.scripts["take"] >= asked + 4)

        assert monotonic() - since_s >= 3 * ASK_AGAIN_S * 0.95

    async def test_local_counts_for_itself(self, server: RealServer, local: Limits, redis: Redis) -> None:
        """What passed meanwhile is counted when Redis is back."""
        limit = Limit(6, HOUR_S)
        assert pass_(local, limit, 2) == 2
        await answered(local)
        server.stop()

        assert pass_(local, limit, 2) == 2
        await until(lambda: local._asking_on)
        assert pass_(local, limit, 9) == 2

        server.start()
        await answered(local)
        assert await left(redis, limit) == 0

    async def test_with_a_full_redis_goes_on_by_itself(
        self, server: RealServer, limits: Limits, redis: Redis
    ) -> None:
        """Reads go on when Redis is full, and metered reads do, too; what passed is counted later."""
        limit = Limit(5, HOUR_S)
        server.config_set("maxmemory", "1")
        for _ in range(3):
            meter(limits, limit)
            await answered(limits)
        assert pass_(limits, limit, 2) == 2 == 5 - 3
        await answered(limits)
        assert pass_(limits, limit, 2) == 0

        server.config_set("maxmemory", "0")
        pass_(limits, limit, 1)
        await answered(limits)

        assert await left(redis, limit) == 0

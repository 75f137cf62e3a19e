"""The subscriber connection: what is published arrives in order, and a loss is never silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from sessions_api.errors import StorageUnavailable
from sessions_api.store.connection import Redis
from sessions_api.store.pubsub import Subscriber
from tests.support.proxy import Proxy
from tests.support.servers import RealServer, TestServer
from tests.support.waiting import until

one = pytest.mark.servers("valkey")


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


class Ears:
    """A subscriber, and what it was told."""

    def __init__(self, redis: Redis, **settings: Any) -> None:
        self.heard: list[tuple[bytes, bytes]] = []
        self.gaps = 0
        self.subscriber = Subscriber(
            redis, on_message=self._on_message, on_resubscribed=self._on_gap, **settings
        )

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        self.heard.append((channel, payload))

    def _on_gap(self) -> None:
        self.gaps += 1


@asynccontextmanager
async def listening(redis: Redis, **settings: Any) -> AsyncIterator[Ears]:
    ears = Ears(redis, **settings)
    await ears.subscriber.start()
    try:
        yield ears
    finally:
        await ears.subscriber.stop()


@pytest.fixture
async def ears(redis: Redis) -> AsyncIterator[Ears]:
    async with listening(redis) as ears:
        yield ears


class TestSubscribe:
    async def test_returns_when_the_server_has_confirmed(self, redis: Redis, ears: Ears) -> None:
        """What is published after subscribe() returned arrives, in its order."""
        await ears.subscriber.subscribe(b"news")

        expected = [(b"news", str(n).encode()) for n in range(200)]
        for _channel, payload in expected:
            redis.post("PUBLISH", "news", payload)

        await until(lambda: len(ears.heard) == 200)
        assert ears.heard == expected
        assert ears.gaps == 0

    async def test_again_returns_at_once(self, ears: Ears) -> None:
        await ears.subscriber.subscribe(b"news")
        before = ears.subscriber.stats.commands

        await ears.subscriber.subscribe(b"news")

        assert ears.subscriber.stats.commands == before

    async def test_of_many_in_one_tick_is_one_write(self, redis: Redis, ears: Ears) -> None:
        await until(lambda: ears.subscriber.is_up)
        before = ears.subscriber.stats.round_trips

        await asyncio.gather(*(ears.subscriber.subscribe(b"news:%d" % n) for n in range(300)))

        assert ears.subscriber.stats.round_trips - before == 1
        assert await redis.command("PUBLISH", "news:299", "x") == 1

    async def test_after_unsubscribe_waits_for_its_own_confirmation(self, redis: Redis, ears: Ears) -> None:
        """Left and joined again within one round trip: the first confirmation is not the second's."""
        for turn in range(20):
            first = asyncio.create_task(ears.subscriber.subscribe(b"news"))
            await asyncio.sleep(0)
            ears.subscriber.unsubscribe(b"news")
            await ears.subscriber.subscribe(b"news")
            await first

            assert await redis.command("PUBLISH", "news", str(turn)) == 1
            ears.subscriber.unsubscribe(b"news")
        expected = [(b"news", str(turn).encode()) for turn in range(20)]
        await until(lambda: ears.heard == expected)

    async def test_by_pattern(self, redis: Redis, ears: Ears) -> None:
        await ears.subscriber.psubscribe(b"news:*")

        await redis.command("PUBLISH", "news:1", "x")

        await until(lambda: ears.heard == [(b"news:1", b"x")])

    async def test_survives_a_cancelled_wait(self, redis: Redis, ears: Ears) -> None:
        """The channel stays wanted: another follower may wait for it too."""
        first = asyncio.create_task(ears.subscriber.subscribe(b"news"))
        second = asyncio.create_task(ears.subscriber.subscribe(b"news"))
        await asyncio.sleep(0)
        first.cancel()

        await second

        assert await redis.command("PUBLISH", "news", "x") == 1

    async def test_ends_with_the_subscriber(self, redis: Redis) -> None:
        async with Proxy(redis.address.url) as proxy, Redis.from_url(proxy.url) as behind:
            async with listening(behind) as ears:
                await until(lambda: ears.subscriber.is_up)
                proxy.freeze()
                waiting = asyncio.create_task(ears.subscriber.subscribe(b"news"))
                await asyncio.sleep(0)
            with pytest.raises(StorageUnavailable):
                await waiting


class TestUnsubscribe:
    async def test_ends_the_messages(self, redis: Redis, ears: Ears) -> None:
        await ears.subscriber.subscribe(b"news")
        ears.subscriber.unsubscribe(b"news")
        await ears.subscriber.subscribe(b"other")  # confirmed after the unsubscription

        assert await redis.command("PUBLISH", "news", "x") == 0


class TestCallback:
    async def test_that_raises_does_not_hurt_the_others(self, redis: Redis) -> None:
        heard = []

        def on_message(_channel: bytes, payload: bytes) -> None:
            heard.append(payload)
            raise ValueError(payload)

        subscriber = Subscriber(redis, on_message=on_message, on_resubscribed=lambda: None)
        await subscriber.start()
        await subscriber.subscribe(b"news")
        for n in range(3):
            await redis.command("PUBLISH", "news", n)

        await until(lambda: heard == [b"0", b"1", b"2"])
        assert subscriber.stats.losses == 0
        await subscriber.stop()


class TestLoss:
    @one
    async def test_by_a_killed_connection_is_told_each_time(
        self, server: RealServer, redis: Redis, ears: Ears
    ) -> None:
        """Once all subscriptions stand again: what is published from then on arrives."""
        await asyncio.gather(*(ears.subscriber.subscribe(b"news:%d" % n) for n in range(50)))
        for kills in range(1, 6):
            assert server.call("CLIENT", "KILL", "TYPE", "pubsub") == 1
            await until(partial(lambda gaps: ears.gaps == gaps, kills))

            assert await redis.command("PUBLISH", "news:49", kills) == 1
        await until(lambda: len(ears.heard) == 5)

    @pytest.mark.servers("valkey", "redis62", "debian")
    async def test_by_a_restarted_server_is_told(self, server: RealServer, redis: Redis, ears: Ears) -> None:
        await ears.subscriber.subscribe(b"news")

        await asyncio.to_thread(server.restart)

        await until(lambda: ears.gaps == 1)
        await until(lambda: redis.is_up)
        assert await redis.command("PUBLISH", "news", "x", safe=True) == 1

    @one
    async def test_while_away_keeps_new_wishes(self, server: TestServer) -> None:
        """A subscription made while Redis is away waits, and is confirmed on its return."""
        async with Proxy(server.url) as proxy, Redis.from_url(proxy.url) as redis, listening(redis) as ears:
            await ears.subscriber.subscribe(b"old")
            await ears.subscriber.subscribe(b"left")
            await proxy.refuse()
            await until(lambda: not ears.subscriber.is_up)
            waiting = asyncio.create_task(ears.subscriber.subscribe(b"new"))
            ears.subscriber.unsubscribe(b"left")
            await asyncio.sleep(0)

            await proxy.accept()

            await waiting
            await until(lambda: ears.gaps == 1)
            counts = [server.call("PUBLISH", channel, "x") for channel in ("old", "new", "left")]
            assert counts == [1, 1, 0]

    @one
    async def test_by_a_hung_server_is_noticed_by_the_probe(self, server: TestServer, redis: Redis) -> None:
        """Frozen in between, nothing is closed and no error comes: only the silence tells."""
        async with (
            Proxy(server.url) as proxy,
            Redis.from_url(proxy.url) as behind,
            listening(behind, probe_s=0.1) as ears,
        ):
            await ears.subscriber.subscribe(b"news")
            proxy.freeze()
            await until(lambda: ears.subscriber.stats.timeouts > 0)
            proxy.thaw()

            await until(lambda: ears.gaps == 1)
            await until(lambda: ears.subscriber.is_up)
            await redis.command("PUBLISH", "news", "x")
            await until(lambda: ears.heard == [(b"news", b"x")])

    @one
    async def test_by_a_paused_process_is_noticed_and_mended(self, server: RealServer, redis: Redis) -> None:
        async with listening(redis, probe_s=0.1) as ears:
            await ears.subscriber.subscribe(b"news")
            server.pause()
            await until(lambda: ears.subscriber.stats.timeouts > 0)
            server.resume()

            await until(lambda: ears.gaps > 0)
            await until(lambda: ears.subscriber.is_up)
            await redis.command("PUBLISH", "news", "x", safe=True)
            await until(lambda: (b"news", b"x") in ears.heard)

    async def test_is_not_seen_in_a_quiet_hour(self, redis: Redis) -> None:
        """No message for long is no loss: the probe is what is heard."""
        async with listening(redis, probe_s=0.02) as ears:
            await ears.subscriber.subscribe(b"news")
            before = redis.stats.commands
            await until(lambda: redis.stats.commands - before > 20)

            assert ears.subscriber.stats.timeouts == 0
            assert ears.heard == [], "the probe is nobody's message"

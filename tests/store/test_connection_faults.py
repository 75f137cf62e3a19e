"""The connection while Redis is hung, restarted or away: callers wait a while, never for ever."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import pytest

from sessions_api.errors import StorageUnavailable
from sessions_api.store.address import Address
from sessions_api.store.connection import Redis
from sessions_api.store.lifeline import OPEN_AFTER, Lifeline
from sessions_api.store.lines import LOOKS, Line, LineLost, Stats
from tests.support.faulty import COUNT, ECHO, proxied
from tests.support.ports import free_port
from tests.support.servers import RealServer, TestServer
from tests.support.waiting import until

real = pytest.mark.servers("valkey", "redis62", "debian")
one = pytest.mark.servers("valkey")


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


class TestHungServer:
    @one
    async def test_answers_within_the_deadline_and_recovers(self, server: RealServer) -> None:
        """A stopped process keeps its connections and says nothing: only overdue replies tell."""
        async with Redis.from_url(server.url, deadline_ms=600, reply_timeout_s=0.2) as redis:
            started_s = asyncio.get_running_loop().time()
            server.pause()
            results = await asyncio.gather(
                *(redis.script(ECHO, ["key"], [n]) for n in range(20)), return_exceptions=True
            )
            took_s = asyncio.get_running_loop().time() - started_s
            assert {type(result) for result in results} == {StorageUnavailable}
            assert took_s < 5, "a hang would be for ever"
            assert redis.stats.timeouts == 1
            assert not redis.is_up

            server.resume()
            await until(lambda: redis.is_up)
            assert await redis.script(ECHO, ["key"], ["back"]) == [b"key", b"back"]

    @one
    async def test_behind_a_half_open_connection_is_reached_by_a_new_one(self, server: TestServer) -> None:
        async with proxied(server, reply_timeout_s=0.2) as (proxy, redis):
            proxy.freeze()
            echo = asyncio.create_task(redis.script(ECHO, ["key"], ["x"]))
            await until(lambda: redis.stats.timeouts == 1)
            proxy.thaw()

            assert await echo == [b"key", b"x"]

    @one
    async def test_is_given_its_full_time(self, server: TestServer) -> None:
        """Four looks see the reply outstanding and let it be, the fifth does not."""
        async with Redis(Address(server.url), deadline_ms=10_000_000, reply_timeout_s=1000) as redis:
            line = redis.topology.primaries[0].line
            assert line is not None
            echo = line.send((b"ECHO", b"x"))
            line._flush()
            for _ in range(LOOKS):
                line._look()
            assert redis.is_up

            line._look()

            assert redis.stats.timeouts == 1
            with pytest.raises(LineLost):
                await echo

    @one
    async def test_is_not_blamed_for_a_loop_that_stood_still(self, server: TestServer) -> None:
        """After a second of our own blocking, the replies are there, unread."""
        async with Redis.from_url(server.url, reply_timeout_s=0.2) as redis:
            for _ in range(3):
                echo = asyncio.create_task(redis.command("ECHO", "x"))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                time.sleep(0.4)  # noqa: ASYNC251  that it blocks is the point

                assert await echo == b"x"
            assert redis.stats.timeouts == 0


class TestRestartedServer:
    @real
    async def test_costs_callers_a_wait_and_nothing_else(self, server: RealServer) -> None:
        async with Redis.from_url(server.url, deadline_ms=10_000) as redis:
            await redis.script(COUNT, ["test:count"], ["x"])
            stopped = asyncio.Event()
            refused = 0

            async def write() -> int:
                nonlocal refused
                writes = 0
                while not stopped.is_set():
                    try:
                        await redis.script(COUNT, ["test:count"], ["x"])
                        writes += 1
                    except StorageUnavailable:
                        # A start of over half a second opens the circuit: no deadline is waited out.
                        assert redis.stats.failed_connects >= OPEN_AFTER
                        refused += 1
                    await asyncio.sleep(0.001)
                return writes

            writers = [asyncio.create_task(write()) for _ in range(8)]
            await asyncio.to_thread(server.restart)
            await until(lambda: redis.stats.connects > 1 and redis.is_up)
            stopped.set()
            written = sum(await asyncio.gather(*writers))

            counted = int(await redis.command("GET", "test:count"))
            # Nothing acknowledged is missing; only what had an unknown outcome may stand there besides.
            unknown = redis.stats.repeats + min(refused, len(writers))
            assert written + 1 <= counted <= written + 1 + unknown


class TestAbsentServer:
    async def test_does_not_stop_the_start(self) -> None:
        async with Redis.from_url(f"redis://127.0.0.1:{free_port()}", deadline_ms=200) as redis:
            assert not redis.is_up
            with pytest.raises(StorageUnavailable):
                await redis.ping()

    @one
    async def test_opens_the_circuit_and_its_return_closes_it(self, server: TestServer) -> None:
        """After five failed tries calls are refused at once; one try every half second goes on."""
        async with proxied(server, deadline_ms=30_000) as (proxy, redis):
            await proxy.refuse()
            waiting = asyncio.create_task(redis.ping())
            await until(lambda: redis.circuit == "open")

            with pytest.raises(StorageUnavailable) as refused:
                await waiting
            assert refused.value.retry_after_s == 1
            before = redis.stats.commands
            with pytest.raises(StorageUnavailable):
                await redis.script(ECHO, ["key"], ["x"])
            assert redis.stats.commands == before

            await proxy.accept()
            await until(lambda: redis.circuit == "closed")
            assert await redis.script(ECHO, ["key"], ["x"]) == [b"key", b"x"]

    async def test_that_comes_in_time_is_waited_for(self, server: TestServer) -> None:
        """A call made while the connection is down gets its chance."""
        async with proxied(server, deadline_ms=30_000) as (proxy, redis):
            proxy.cut()
            await until(lambda: redis.stats.losses == 1)

            assert await redis.script(ECHO, ["key"], ["x"]) == [b"key", b"x"]

    @one
    async def test_that_comes_and_goes_is_not_a_busy_loop(self, server: TestServer) -> None:
        async with proxied(server) as (proxy, redis):
            for losses in range(1, 9):
                proxy.cut()
                await until(partial(lambda losses: redis.stats.losses == losses and redis.is_up, losses))

            assert redis.topology.primaries[0]._short_lives >= 7
            assert redis.circuit == "closed", "it did come back each time"


class TestStop:
    @one
    async def test_ends_though_a_connect_swallows_its_cancellation(self, server: TestServer) -> None:
        """As uvloop and redis-py do together now and then: the line that came up after all is closed."""
        begun = asyncio.Event()
        lines: list[Line] = []

        async def connect() -> Line:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lines.append(Line(Stats(), reply_timeout_s=1))
                await Address(server.url).connect(lines[0])
            return lines[0]

        lifeline = Lifeline(connect, name="stopped", stats=Stats())
        starting = asyncio.create_task(lifeline.start())
        await begun.wait()

        await lifeline.stop()

        await starting
        assert lines[0].reason == "closed by us"
        assert lifeline.line is None

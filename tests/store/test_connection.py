"""What the connection promises, and each snare of Redis clients that it must not step into."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import pytest

from sessions_api.errors import SettingsError, StorageFault, StorageFull, StorageUnavailable
from sessions_api.store.address import Address
from sessions_api.store.asked import counted_trips
from sessions_api.store.connection import Redis, Script
from tests.support.faulty import COUNT, ECHO, proxied
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.servers import RealServer, TestServer
from tests.support.waiting import until

real = pytest.mark.servers("valkey", "redis62", "debian")
one = pytest.mark.servers("valkey")


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops: taking over a transport is where they could differ."""
    return "asyncio", {"use_uvloop": request.param}


class TestScript:
    async def test_replies_in_undecoded_bytes(self, redis: Redis) -> None:
        assert await redis.script(ECHO, ["key"], ["ä\r\n"]) == [b"key", "ä\r\n".encode()]

    async def test_is_known_by_its_hash_after_the_first_call(self, redis: Redis) -> None:
        """Only the first call carries the source: EVALSHA, and EVAL where Redis does not know it."""
        for _ in range(3):
            await redis.script(ECHO, ["key"], ["value"])

        assert redis.stats.unknown_scripts == 1
        assert redis.stats.scripts == {"echo": 3}

    @real
    async def test_survives_a_script_flush_under_load(self, server: TestServer, redis: Redis) -> None:
        """A flushed script cache (or a failover to a server that never had it) is not seen by callers."""

        async def call(number: int) -> None:
            for turn in range(40):
                word = f"{number}-{turn}"
                assert await redis.script(ECHO, ["key"], [word]) == [b"key", word.encode()]

        async def flush() -> None:
            for _ in range(10):
                await asyncio.to_thread(server.call, "SCRIPT", "FLUSH")

        await asyncio.gather(flush(), *(call(number) for number in range(16)))

        assert redis.stats.unknown_scripts > 1

    async def test_that_fails_is_our_fault(self, redis: Redis) -> None:
        with pytest.raises(StorageFault, match="broken"):
            await redis.script(Script("broken", "return redis.call('NOSUCHCOMMAND')"), ["key"])

        assert redis.is_up

    async def test_on_a_key_of_another_type_is_our_fault(self, redis: Redis) -> None:
        await redis.command("SET", "test:string", "x")

        with pytest.raises(StorageFault):
            await redis.script(Script("wrong", "return redis.call('HGET', KEYS[1], 'f')"), ["test:string"])

    @real
    async def test_in_a_full_redis_says_so_and_reads_go_on(self, server: RealServer, redis: Redis) -> None:
        await redis.script(COUNT, ["test:count"], ["x"])
        server.config_set("maxmemory", "1")

        with pytest.raises(StorageFull):
            await redis.script(COUNT, ["test:count"], ["x"])
        with pytest.raises(StorageFull):
            await redis.command("SET", "test:string", "x")
        assert await redis.command("GET", "test:count") == b"1"

    @real
    async def test_without_permission_is_unavailable_and_says_why(self, server: TestServer) -> None:
        server.call("ACL", "SETUSER", "poor", "on", ">secret", "~*", "+ping", "-@all", "+ping")
        url = server.url.replace("redis://", "redis://poor:secret@")
        try:
            async with Redis.from_url(url) as redis:
                with pytest.raises(StorageUnavailable, match="NOPERM"):
                    await redis.script(ECHO, ["key"], ["value"])
        finally:
            server.call("ACL", "DELUSER", "poor")

    @real
    async def test_that_may_not_call_a_command_is_unavailable_too(self, server: TestServer) -> None:
        """Each make of server says it in words of its own: an operator's matter, no bug of ours."""
        write = Script("write", "return redis.call('SET', KEYS[1], '1')")
        server.call("ACL", "SETUSER", "poor", "on", ">secret", "~*", "-@all", "+ping", "+eval", "+evalsha")
        try:
            async with Redis.from_url(server.url.replace("redis://", "redis://poor:secret@")) as redis:
                with pytest.raises(StorageUnavailable, match="script"):
                    await redis.script(write, ["test:key"])
        finally:
            server.call("ACL", "DELUSER", "poor")


class TestBatch:
    async def test_holds_all_commands_of_one_tick(self, redis: Redis) -> None:
        await redis.script(ECHO, ["key"], [1])
        before = redis.stats.round_trips

        replies = await asyncio.gather(*(redis.script(ECHO, ["key"], [n]) for n in range(50)))
        more = await asyncio.gather(*(redis.command("ECHO", str(n)) for n in range(100)))

        assert replies == [[b"key", str(n).encode()] for n in range(50)]
        assert more == [str(n).encode() for n in range(100)]
        assert redis.stats.round_trips - before == 2

    async def test_is_counted_as_one_trip_of_a_request(self, redis: Redis) -> None:
        with counted_trips() as trips:
            await redis.script(ECHO, ["key"], [1])
        assert len(trips) == 2, "the script was not known yet"

        with counted_trips() as trips:
            await redis.script(ECHO, ["key"], [1])
            await asyncio.gather(*(redis.ping() for _ in range(5)))
        assert len(trips) == 2


class TestCancelledCaller:
    @one
    async def test_never_shifts_the_replies_of_others(self, server: TestServer) -> None:
        """Thousands of calls on a slow, jittery network, half of them cancelled at random points."""
        async with proxied(server) as (proxy, redis):
            proxy.jitter_s = 0.02
            wrong: list[Any] = []
            answered = 0

            async def call(word: str) -> None:
                nonlocal answered
                reply = await redis.script(ECHO, [word], [word])
                if reply != [word.encode(), word.encode()]:
                    wrong.append((word, reply))
                answered += 1

            async def caller(number: int) -> None:
                for turn in range(60):
                    task = asyncio.create_task(call(f"{number}-{turn}"))
                    if random.random() < 0.5:
                        await asyncio.sleep(random.uniform(0, 0.03))
                        task.cancel()
                    await asyncio.wait([task])

            await asyncio.gather(*(caller(number) for number in range(50)))

            assert wrong == []
            assert answered >= 1000
            assert redis.stats.connects == 1
            assert proxy.connections == 1


class TestDirtyConnection:
    @one
    async def test_is_dropped_before_anyone_gets_its_bytes(self, server: TestServer) -> None:
        """Bytes that nothing asked for would become the next caller's reply."""
        async with proxied(server) as (proxy, redis):
            proxy.inject(b"+OTHER-USERS-SECRET\r\n")
            await until(lambda: redis.stats.dirty == 1)

            assert await redis.command("ECHO", "mine", safe=True) == b"mine"
            assert proxy.connections == 2

    @one
    async def test_is_dropped_when_a_command_waits_to_be_written(self, server: TestServer) -> None:
        """A queued command has not been asked yet: no reply can be its own."""
        async with proxied(server) as (_proxy, redis):
            line = redis.topology.primaries[0].line
            assert line is not None
            mine = asyncio.create_task(redis.command("ECHO", "mine", safe=True))
            await asyncio.sleep(0)
            assert line.waiting == 1

            line.data_received(b"+OTHER-USERS-SECRET\r\n")

            assert await mine == b"mine"
            assert redis.stats.dirty == 1

    @one
    async def test_is_dropped_for_one_reply_too_many(self, server: TestServer) -> None:
        async with proxied(server) as (_proxy, redis):
            line = redis.topology.primaries[0].line
            assert line is not None
            mine = line.send((b"ECHO", b"mine"))
            line._flush()

            line.data_received(b"+mine\r\n+OTHER-USERS-SECRET\r\n")

            assert await mine == b"mine"
            assert redis.stats.dirty == 1
            assert not redis.is_up

    @one
    async def test_that_speaks_no_redis_is_dropped(self, server: TestServer) -> None:
        async with proxied(server) as (proxy, redis):
            proxy.freeze()
            mine = asyncio.create_task(redis.command("ECHO", "mine", safe=True))
            await until(lambda: proxy.commands[-1] == [b"ECHO", b"mine"])
            proxy.inject(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            proxy.thaw()

            assert await mine == b"mine"
            assert redis.stats.losses == 1


class TestRepeat:
    async def test_follows_a_lost_reply_exactly_once(self, server: TestServer) -> None:
        """The script ran, its reply was lost: we ask again, once. redis-py would have by itself, 10 times."""
        async with proxied(server) as (proxy, redis):
            await redis.script(COUNT, ["test:count"], ["first"])
            proxy.drop_reply(lambda command: command[0] == b"EVALSHA")

            reply = await redis.script_reply(COUNT, ["test:count"], ["again"])

            assert reply.value == [3, b"again"]
            assert reply.repeated, "the caller can tell that an earlier try may have been run"
            assert proxy.dropped == 1
            assert redis.stats.repeats == 1

    async def test_of_a_first_answer_is_none(self, redis: Redis) -> None:
        reply = await redis.script_reply(COUNT, ["test:count"], ["x"])

        assert reply == ([1, b"x"], False)

    async def test_is_refused_to_a_command_that_is_not_safe(self, server: TestServer) -> None:
        """A plain INCR whose outcome is unknown is the caller's to judge."""
        async with proxied(server) as (proxy, redis):
            proxy.drop_reply(lambda command: command[0] == b"INCR")

            with pytest.raises(StorageUnavailable, match="unknown"):
                await redis.command("INCR", "test:count")

            assert await redis.command("GET", "test:count", safe=True) == b"1"

    @pytest.mark.servers("valkey", "redis62")
    @pytest.mark.parametrize("word", ["LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "TRYAGAIN", "BUSY"])
    async def test_follows_a_refusal_that_will_pass(self, server: TestServer, word: str) -> None:
        """The refusal here is made by the script itself: the server passes it on as its own."""
        passing = Script(
            f"passing {word}",
            "if redis.call('INCR', KEYS[1]) < 3 then return redis.error_reply(ARGV[1]) end return 'ok'",
        )
        async with Redis.from_url(server.url) as redis:
            assert await redis.script(passing, [f"test:{word}"], [f"{word} for a while"]) == b"ok"
            assert redis.stats.repeats == 2

    @one
    async def test_ends_with_the_deadline(self, server: TestServer) -> None:
        refusing = Script("refusing", "return redis.error_reply('TRYAGAIN for ever')")
        async with Redis.from_url(server.url, deadline_ms=200) as redis:
            with pytest.raises(StorageUnavailable, match="TRYAGAIN"):
                await redis.script(refusing, ["key"])

            assert redis.stats.repeats > 1
            assert redis.is_up

    @one
    async def test_leaves_a_primary_that_became_a_replica(self, server: TestServer) -> None:
        async with proxied(server) as (proxy, redis):
            server.call("REPLICAOF", "127.0.0.1", free_port())
            try:
                write = asyncio.create_task(redis.script(COUNT, ["test:count"], ["x"]))
                await until(lambda: proxy.connections > 1)
            finally:
                server.call("REPLICAOF", "NO", "ONE")
            assert await write == [1, b"x"]


class TestConnection:
    async def test_that_is_stopped_refuses_and_leaves_nothing(self, server: TestServer) -> None:
        redis = Redis.from_url(server.url)
        with pytest.raises(StorageUnavailable, match="not started"):
            await redis.ping()
        await redis.start()
        call = asyncio.create_task(redis.script(ECHO, ["key"], ["x"]))
        await asyncio.sleep(0)

        await redis.stop()

        with pytest.raises(StorageUnavailable):
            await call
        with pytest.raises(StorageUnavailable, match="stopped"):
            await redis.ping()

    @one
    async def test_takes_no_more_than_it_can_wait_for(self, server: RealServer) -> None:
        async with Redis(Address(server.url), max_waiting=10) as redis:
            await redis.script(ECHO, ["key"], ["x"])

            results = await asyncio.gather(
                *(redis.script(ECHO, ["key"], ["x"]) for _ in range(20)), return_exceptions=True
            )

            assert [type(result) for result in results] == [list] * 10 + [StorageUnavailable] * 10

    @one
    async def test_a_flood_on_a_slow_network_is_refused_in_part_and_leaves_nothing_behind(
        self, server: RealServer
    ) -> None:
        async with Proxy(server.url) as proxy, Redis(Address(proxy.url), max_waiting=1_500) as redis:
            await redis.script(ECHO, ["key"], ["x"])
            proxy.jitter_s = 0.1

            for _ in range(2):
                results = await asyncio.gather(
                    *(redis.script(ECHO, ["key"], [number]) for number in range(2_000)),
                    return_exceptions=True,
                )
                answered = [result for result in results if not isinstance(result, BaseException)]
                refused = [result for result in results if isinstance(result, StorageUnavailable)]

                assert answered == [[b"key", str(number).encode()] for number in range(1_500)]
                assert len(refused) == 500
                line = redis.topology.link((b"PING",)).line
                assert line is not None
                assert line.waiting == 0
            assert redis.circuit == "closed"

    @one
    async def test_posts_hints_that_may_get_lost(self, server: RealServer, redis: Redis) -> None:
        redis.post("SET", "test:posted", "x")
        redis.post("HGET", "test:posted", "x")  # an error that nobody reads

        assert await redis.command("GET", "test:posted") == b"x"

    @one
    async def test_logs_in_and_selects_its_database(self, server: TestServer) -> None:
        server.call("ACL", "SETUSER", "someone", "on", ">s3cret", "~*", "&*", "+@all")
        try:
            url = server.url.replace("redis://", "redis://someone:s3cret@").removesuffix("0") + "3"
            async with Redis.from_url(url) as redis:
                assert await redis.command("ACL", "WHOAMI") == b"someone"
                assert b"db=3" in await redis.command("CLIENT", "INFO")
            async with Redis.from_url(url.replace("s3cret", "wrong"), deadline_ms=200) as redis:
                with pytest.raises(StorageUnavailable) as refused:
                    await redis.ping()
                assert "wrong" not in refused.value.reason
        finally:
            server.call("ACL", "DELUSER", "someone")

    @one
    @pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
    async def test_speaks_tls_and_trusts_nobody_unknown(self, server: TestServer, tmp_path: Path) -> None:
        certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
        request = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -subj /CN=test"
        await asyncio.to_thread(
            subprocess.run,
            [*request.split(), "-addext", "subjectAltName=IP:127.0.0.1"],
            check=True,
            capture_output=True,
        )
        tls = SSLContext(PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)

        async with Proxy(server.url, tls=tls) as proxy:
            async with Redis.from_url(f"{proxy.url}?ssl_ca_certs={certificate}") as redis:
                big = b"x" * 3_000_000
                assert await redis.script(ECHO, ["key"], [big]) == [b"key", big]
            async with Redis.from_url(proxy.url, deadline_ms=200) as stranger:
                with pytest.raises(StorageUnavailable, match="certificate"):
                    await stranger.ping()

    @pytest.mark.parametrize(
        "url", ["http://localhost", "redis://localhost/?socket_timeout=x", "redis://h/?huh=1"]
    )
    def test_refuses_an_unusable_url(self, url: str) -> None:
        with pytest.raises(SettingsError, match="Redis URL"):
            Redis.from_url(url)

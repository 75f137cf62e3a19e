"""`sessions-api doctor`: what it finds on one server, each fault with its fix, and what it may not see."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis as redis_py

import sessions_api
from sessions_api.cli.doctor import examined
from sessions_api.cli.doctor.findings import COLOURS, Finding
from sessions_api.cli.doctor.health import allocator
from sessions_api.cli.doctor.look import Look
from sessions_api.settings import Settings
from sessions_api.store.address import Address
from sessions_api.store.inspection import Server, commands_of_scripts
from tests.support.client import Api
from tests.support.commands import command
from tests.support.servers import RealServer, TestServer, launch
from tests.support.service import Service
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(120)
LUA = Path(sessions_api.__file__).parent / "store" / "lua"
GOOD = {"maxmemory": str(1 << 30), "packing": "1024"}
PASSWORD = "correct-horse-battery-staple"


class Report(NamedTuple):
    """What doctor found."""

    findings: list[Finding]

    def of(self, check: str) -> Finding:
        [finding] = [finding for finding in self.findings if finding.check == check]
        return finding

    @property
    def bad(self) -> dict[str, str]:
        """Check → verdict of all that is not well."""
        return {row.check: row.verdict for row in self.findings if row.verdict != "ok"}


async def report(url: str, **env: str) -> Report:
    """In this process: the command itself is put to the test below."""
    return Report(await examined(url, Settings.from_env(env)))


def tuned(server: RealServer) -> RealServer:
    """With the settings that the tests' own servers leave out."""
    is_old = server.info("server")["redis_version"].startswith("6.")
    server.config_set("maxmemory", GOOD["maxmemory"])
    server.config_set("hash-max-ziplist-value" if is_old else "hash-max-listpack-value", GOOD["packing"])
    return server


@pytest.fixture
def good(server: TestServer) -> RealServer:
    assert isinstance(server, RealServer)
    return tuned(server)


@pytest.mark.servers("valkey")
class TestTheCommand:
    def test_finds_a_good_server_well(self, good: RealServer) -> None:
        shown = command("doctor", "--redis-url", good.url)

        assert shown.returncode == 0, shown.stdout
        assert re.search(r"^0 fail, 0 warn, \d+ ok$", shown.stdout, re.MULTILINE)

    @pytest.mark.parametrize(
        "settings, status, verdict",
        [({"timeout": "5"}, 1, "warn"), ({"timeout": "5", "appendonly": "no"}, 2, "fail")],
    )
    def test_ends_with_the_worst_verdict(
        self, good: RealServer, settings: dict[str, str], status: int, verdict: str
    ) -> None:
        """As monitoring programs have it: 0, 1 or 2. People get the fix beside the fault, programs JSON."""
        with changed(good, settings):
            shown = command("doctor", "--redis-url", good.url)
            told = command("doctor", "--json", "--redis-url", good.url)

        assert shown.returncode == told.returncode == status
        assert "→ CONFIG SET timeout 0" in shown.stdout
        said = json.loads(told.stdout)
        assert said["verdict"] == verdict
        assert said["counts"] == {name: len(rows) for name, rows in by_verdict(said["findings"]).items()}
        [row] = [row for row in said["findings"] if row["check"] == "connections"]
        assert row.keys() == {"verdict", "check", "found", "costs", "fix", "server"}

    def test_tells_its_exit_status(self) -> None:
        assert "The exit status is 0" in command("doctor", "--help").stdout

    def test_says_where_it_looked(self, tmp_path: Path) -> None:
        refused = command("doctor", "--data-dir", str(tmp_path / "nothing"))

        assert refused.returncode == 2
        assert str(tmp_path / "nothing") in refused.stderr
        assert refused.stderr.count("\n") == 1


def by_verdict(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    return {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in COLOURS}


@pytest.mark.servers("valkey", "redis62")
class TestAGoodServer:
    async def test_is_left_as_it_was(self, good: RealServer) -> None:
        """It tries every command of the service, and no key is left of that."""
        found = await report(good.url)

        assert found.bad == {}
        assert (good.info("stats")["evicted_keys"], good.keys()) == (0, [])


class TestTheAllocator:
    @pytest.mark.parametrize(
        "name, used_mib, verdict",
        [("libc", 100, "warn"), ("libc", 10, "ok"), ("jemalloc-5.3.0", 100_000, "ok")],
    )
    def test_is_a_matter_where_much_is_in_memory(self, name: str, used_mib: int, verdict: str) -> None:
        info = {"mem_allocator": name, "used_memory": str(used_mib << 20)}

        found = allocator(Look(Server("a", Address("redis://a")), info=info))

        assert found is not None
        assert (found.verdict, found.found) == (verdict, name)


@pytest.mark.servers("valkey")
class TestAFault:
    @pytest.mark.parametrize(
        "settings, check, verdict, fix",
        [
            ({"maxmemory-policy": "allkeys-lru"}, "eviction", "fail", "maxmemory-policy noeviction"),
            ({"maxmemory": "0"}, "memory", "warn", "CONFIG SET maxmemory"),
            ({"appendonly": "no"}, "persistence", "fail", "appendonly yes"),
            ({"appendfsync": "no"}, "persistence", "warn", "appendfsync everysec"),
            ({"notify-keyspace-events": ""}, "notifications", "warn", "notify-keyspace-events Ex"),
            ({"hash-max-listpack-value": "64"}, "packing", "warn", "hash-max-listpack-value 1024"),
            ({"stream-node-max-bytes": "4096"}, "packing", "warn", "stream-node-max-bytes 1024"),
            ({"timeout": "5"}, "connections", "warn", "CONFIG SET timeout 0"),
            ({"tcp-keepalive": "0"}, "connections", "warn", "CONFIG SET tcp-keepalive 300"),
            (
                {"client-output-buffer-limit": "pubsub 1048576 524288 10"},
                "buffers",
                "warn",
                "pubsub 33554432 8388608 60",
            ),
        ],
    )
    async def test_of_a_setting_is_named_with_its_cost_and_fix(
        self, good: RealServer, settings: dict[str, str], check: str, verdict: str, fix: str
    ) -> None:
        with changed(good, settings):
            found = await report(good.url)

        finding = found.of(check)
        assert finding.verdict == verdict
        assert fix in finding.fix
        assert finding.costs
        assert found.bad.keys() == {check}

    @pytest.mark.parametrize("share, verdict", [(0.5, "ok"), (0.85, "warn"), (0.97, "fail")])
    async def test_is_that_memory_runs_out(self, good: RealServer, share: float, verdict: str) -> None:
        """The sooner the worse; what ends then is named."""
        good.call("SET", "test:filling", "x" * 20_000_000, "PX", 60_000)
        used = good.info("memory")["used_memory"]

        with changed(good, {"maxmemory": str(round(used / share))}):
            finding = (await report(good.url)).of("memory")

        assert finding.verdict == verdict
        assert ("STORAGE_FULL" in finding.costs) == (verdict != "ok")

    async def test_of_schema_says_what_this_release_reads(self, good: RealServer) -> None:
        good.call("HSET", "sa:meta", "schema", "99", "partitions", "64")

        found = await report(good.url)

        assert found.bad == {"schema": "fail"}
        assert "schema 99" in found.of("schema").found
        assert "SESSIONS_KEY_PREFIX" in found.of("schema").fix

    async def test_that_nobody_rings_the_alarms_is_one(self, good: RealServer) -> None:
        """With how late the oldest is."""
        partition = "sa:due:{p99}"
        good.call("ZADD", partition, int(time.time() * 1000) - 60_000, "5e551011-0000-4000-8000-000000000000")

        finding = (await report(good.url)).of("alarms")

        assert finding.verdict == "fail"
        late_s = int(re.search(r"the oldest by (\d+) s", finding.found)[1])  # type: ignore[index]
        assert 59 <= late_s <= 120
        assert "SESSIONS_KEEPER=on" in finding.fix

    async def test_of_an_index_without_sessions_is_seen(self, good: RealServer) -> None:
        members: list[Any] = [
            word for n in range(2000) for word in (9e15, f"5e551011-0000-4000-8000-{n:012x}")
        ]
        good.call("ZADD", "sa:due:{p99}", *members)

        finding = (await report(good.url)).of("standing-keys")

        assert finding.verdict == "warn"
        assert "due 2,000" in finding.found

    async def test_of_the_past_is_counted(self, good: RealServer) -> None:
        """Writes that were refused, until somebody resets the counters."""
        good.config_set("maxmemory", "1")
        with pytest.raises(redis_py.exceptions.OutOfMemoryError):
            good.call("SET", "test:full", "x")
        good.config_set("maxmemory", GOOD["maxmemory"])

        assert "1 writes refused" in (await report(good.url)).of("losses").found

        good.call("CONFIG", "RESETSTAT")
        assert (await report(good.url)).of("losses").verdict == "ok"

    async def test_of_durability_is_that_there_are_too_few_replicas(self, good: RealServer) -> None:
        found = await report(good.url, SESSIONS_DURABILITY="replicated")

        assert found.bad == {"durability": "fail"}
        assert "NOT_REPLICATED" in found.of("durability").costs


@pytest.mark.servers("valkey", "redis62")
class TestFewerRights:
    @pytest.mark.parametrize(
        "rules, check, names",
        [
            (["-xadd", "-zadd"], "rights", ["XADD", "ZADD"]),
            (["-del"], "rights", ["DEL"]),
            (["-eval"], "rights", ["scripts are refused"]),
            (["-config"], "visible", ["CONFIG GET is refused", "notify-keyspace-events"]),
            (["-info"], "visible", ["INFO is refused"]),
            (["-scan"], "contents", ["not to be seen"]),
            (["-subscribe"], "rights", ["SUBSCRIBE __keyevent@0__:expired"]),
        ],
    )
    async def test_are_said(self, good: RealServer, rules: list[str], check: str, names: list[str]) -> None:
        """What is missing, or what could not be seen for it; everything else is looked at."""
        with user(good, rules) as url:
            found = await report(url)

        assert found.bad.keys() == {check}
        said = " ".join(row.found for row in found.findings if row.check == check)
        assert all(name in said for name in names), said
        assert PASSWORD not in str(found)
        assert good.keys() == []

    def test_commands_that_are_tried_are_those_of_the_scripts(self) -> None:
        """Every one of them; a script that calls another is found by its text."""
        text = (LUA / "rights.lua").read_text()
        tried = set(re.findall(r"\b([A-Z]{3,}) = \{", text))

        assert set(commands_of_scripts()) <= tried
        assert {"XADD", "ZREM", "PUBLISH", "TIME"} <= set(commands_of_scripts())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    server = launch("valkey", tmp_path_factory.mktemp("redis"))
    assert isinstance(server, RealServer)
    yield tuned(server)
    server.stop()


class TestTheReplicas:
    async def test_are_compared(self, shared: RealServer, tmp_path: Path) -> None:
        """Who lives, of which release, who keeps what, and which settings are not the same where."""
        with Service(tmp_path / "one", redis_url=shared.url) as one:
            with closing(Api(one.url)) as api:
                api.ask(api.session(), "hello")

            alone = await report(shared.url)
            assert alone.bad == {}
            assert alone.of("replicas").found.startswith("one lives")
            assert alone.of("keepers").found.startswith("64 of 64 partitions are kept, 64 to 64")
            assert "1 live" in alone.of("contents").found
            clients = shared.call("CLIENT", "LIST").decode().splitlines()
            assert (
                len([line for line in clients if " cmd=client" not in line]) == 4
            )  # as operations.md has it
            assert alone.of("standing-keys").found.startswith("users 1, agents 1, due 1")

            env = {"SESSION_RETENTION_MINUTES": "90", "SESSIONS_LIMIT_CREATES_KEY": "7/1"}
            with Service(tmp_path / "two", redis_url=shared.url, env=env) as two:

                async def both_live() -> bool:
                    return (
                        (await report(shared.url)).of("replicas").found.startswith("2 live, 2 of them keep")
                    )

                await eventually(both_live, within_s=30)
                found = await report(shared.url)
                assert found.bad == {"settings": "warn"}
                for words in ("SESSION_RETENTION_MINUTES: ", "SESSIONS_LIMIT_CREATES_KEY: "):
                    assert words in found.of("settings").found
                assert "LOG_LEVEL" not in found.of("settings").found
                differ = [row for row in two.records() if row["event"] == "replicas_differ"]
                assert len(differ) == 1
                assert differ[0]["settings"] == ["SESSIONS_LIMIT_CREATES_KEY", "SESSION_RETENTION_MINUTES"]

    async def test_without_a_keeper_are_a_fault(self, shared: RealServer, tmp_path: Path) -> None:
        env = {"SESSIONS_KEEPER": "off", "SESSIONS_KEY_PREFIX": "none:"}
        with Service(tmp_path, redis_url=shared.url, env=env):
            found = await report(shared.url, **env)

        assert found.bad == {"replicas": "fail"}
        assert "SESSIONS_KEEPER=on" in found.of("replicas").fix


class TestReplicasOfRedis:
    @pytest.mark.servers("valkey")
    async def test_a_replica_of_redis_is_no_server_to_write_to(
        self, good: RealServer, tmp_path: Path
    ) -> None:
        """Its primary tells of it, and is looked at together with it."""
        replica = launch("valkey", tmp_path)
        assert isinstance(replica, RealServer)
        try:
            tuned(replica).call("REPLICAOF", "127.0.0.1", good.port)
            linked = lambda: replica.info("replication")["master_link_status"] == "up"  # noqa: E731
            _wait(linked)

            at_replica = (await report(replica.url)).of("topology")
            whole = await report(good.url)
        finally:
            replica.stop()

        assert at_replica.found == "the server is a replica"
        assert whole.bad == {}
        assert {row.server for row in whole.findings if row.check == "persistence"} == {
            f"127.0.0.1:{good.port}",
            f"127.0.0.1:{replica.port}",
        }


@contextmanager
def changed(server: RealServer, settings: dict[str, str]) -> Iterator[None]:
    before = {name: server.config_get(name) for name in settings}
    for name, value in settings.items():
        server.call("CONFIG", "SET", name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            server.call("CONFIG", "SET", name, value)


@contextmanager
def user(server: RealServer, rules: Sequence[str]) -> Iterator[str]:
    """A user with everything but what *rules* take away; its URL."""
    server.call("ACL", "SETUSER", "fewer", "on", f">{PASSWORD}", "~*", "&*", "+@all", *rules)
    try:
        yield f"redis://fewer:{PASSWORD}@127.0.0.1:{server.port}/0"
    finally:
        server.call("ACL", "DELUSER", "fewer")


def _wait(condition: Any) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)

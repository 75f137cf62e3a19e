"""deploy/redis/redis.conf: loaded as it stands by every server, and the same as the embedded server's."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from sessions_api.cli.doctor import server
from sessions_api.cli.doctor.look import look
from sessions_api.embedded import OPTIONS
from sessions_api.store import Redis
from sessions_api.store.inspection import servers_of
from tests.deploy.deployed import CHECKOUT, DEPLOY, DeployedRedis
from tests.support.client import eventually
from tests.support.ports import free_port
from tests.support.servers import OPTIONS as TESTED
from tests.support.servers import binaries

OURS_ALONE = {"bind", "protected-mode"}
RENAMED = {"hash-max-ziplist-value": "hash-max-listpack-value"}
WORSE = {
    "protected-mode": "yes",
    "appendonly": "no",
    "appendfsync": "no",
    "aof-load-truncated": "no",
    "save": "900 1",
    "maxmemory-policy": "allkeys-lru",
    "notify-keyspace-events": "",
    "hash-max-ziplist-value": "64",
    "stream-node-max-bytes": "4096",
}
"""Each setting as it should not be, but ``bind``, which is the test's own."""
OF_THE_MOMENT = {"latency", "clock", "fork", "fragmentation"}
OF_ITS_PROCESS = {"port", "unixsocketperm", "daemonize", "logfile"}


def written() -> dict[str, str]:
    """Setting → value."""
    lines = (DEPLOY / "redis" / "redis.conf").read_text().splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return {name: value.strip('"') for name, value in pairs}


class TestTheFile:
    def test_gives_each_setting_its_reason(self) -> None:
        lines = (DEPLOY / "redis" / "redis.conf").read_text().splitlines()

        for number, line in enumerate(lines):
            assert not line or line.startswith("#") or lines[number - 1].startswith("#"), line

    def test_is_what_the_embedded_server_has(self) -> None:
        """`dev` behaves as production does; so do the tests."""
        settings = {RENAMED.get(name, name): value for name, value in written().items()}

        assert {name: settings[name] for name in settings.keys() - OURS_ALONE} == {
            name: value for name, value in OPTIONS.items() if name not in OF_ITS_PROCESS
        }
        for name, value in TESTED.items():
            assert settings.get(name, "0") == value


def test_is_what_the_server_does(deployed: DeployedRedis) -> None:
    """Of Redis 6.2, 7 and Valkey, each with exactly this file."""
    for name, value in written().items():
        if name == "bind":  # the test's is loopback
            continue
        _, told = deployed.inspect("CONFIG", "GET", name)
        assert sorted(told.decode()) == sorted(value), (
            name
        )  # the server orders a setting's letters as it likes


def said_of_doctor() -> tuple[set[str], set[str]]:
    """What docs/operations.md says that doctor looks at, and what not."""
    page = (CHECKOUT / "docs" / "operations.md").read_text()
    [looks, not_at] = re.findall(r"Of it `doctor` looks at (.+); not at (.+)\.\n", page)[0]
    first, second = (set(re.findall(r"`([\w-]+)`", text)) & written().keys() for text in (looks, not_at))
    return first, second


async def verdicts(deployed: DeployedRedis) -> dict[str, str]:
    """What doctor finds, as the service's own user; but for what depends on the moment."""
    async with Redis.from_url(deployed.url) as redis:
        [alone] = await servers_of(redis)
        found = server.examine(await look(alone))
        return {each.check: each.verdict for each in found if each.check not in OF_THE_MOMENT}


async def test_doctor_sees_what_is_said_and_no_more(deployed: DeployedRedis) -> None:
    """Each setting made worse in turn: some are found, the others are named as not looked at."""
    looked_at, passed_over = said_of_doctor()
    assert looked_at | passed_over == written().keys()
    assert WORSE.keys() == written().keys() - {"bind"}

    well, noticed = await verdicts(deployed), set()
    for name, worse in WORSE.items():
        deployed.inspect("CONFIG", "SET", name, worse)
        try:
            if await verdicts(deployed) != well:
                noticed.add(name)
        finally:
            deployed.inspect("CONFIG", "SET", name, written()[name])
    eventually(lambda: not deployed.inspect("INFO", "persistence")["aof_rewrite_in_progress"])

    assert noticed == looked_at
    assert await verdicts(deployed) == well


def test_keeps_what_was_acknowledged(deployed: DeployedRedis) -> None:
    """The append-only file is in the working folder, which the compose file makes a volume."""
    deployed.call("SET", "sa:test", "kept", "PX", 60_000)

    deployed.__exit__()
    deployed.__enter__()

    assert deployed.call("GET", "sa:test") == b"kept"


@pytest.mark.parametrize("kind", sorted(binaries()))
def test_without_a_password_there_is_no_server(kind: str, tmp_path: Path) -> None:
    """With its placeholder users.acl is no valid file: whoever forgets the password opens nothing."""
    settings, users = DEPLOY / "redis" / "redis.conf", DEPLOY / "redis" / "users.acl"
    options = ["--port", str(free_port()), "--bind", "127.0.0.1", "--aclfile", str(users)]

    started = subprocess.run(
        [binaries()[kind], settings, *options], cwd=tmp_path, capture_output=True, timeout=10, check=False
    )

    assert started.returncode != 0


@pytest.mark.parametrize("content", ["", "\n", "too short\n"])
def test_an_empty_password_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(content)
    environment = os.environ | {"REDIS_PASSWORD_FILE": str(tmp_path / "password"), "TMPDIR": str(tmp_path)}

    started = subprocess.run(
        [DEPLOY / "redis" / "start"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )

    assert started.returncode == 1
    assert "fewer than 16 characters" in started.stderr
    assert not (tmp_path / "users.acl").exists()

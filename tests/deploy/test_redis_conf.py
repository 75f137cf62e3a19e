"""deploy/redis/redis.conf: loaded as it stands by every server, and the same as the embedded server's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sessions_api.embedded import OPTIONS
from tests.deploy.deployed import DEPLOY, DeployedRedis
from tests.support.ports import free_port
from tests.support.servers import OPTIONS as TESTED
from tests.support.servers import binaries

OURS_ALONE = {"bind", "protected-mode"}
RENAMED = {"hash-max-ziplist-value": "hash-max-listpack-value"}
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

"""The users of the deployed Redis: the service can do its work as its own, and nobody anything else."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

import sessions_api
from sessions_api.access import keyring
from sessions_api.domain.ids import AppName
from tests.deploy.deployed import DeployedRedis, allowed, users
from tests.deploy.life import Life
from tests.support.client import Api
from tests.support.commands import command
from tests.support.service import Service

pytestmark = pytest.mark.timeout(120)
LUA = Path(sessions_api.__file__).parent / "store" / "lua"

# Allowed, and yet not used in the life below.
RARE = {
    "exists": "finds what an index holds of lost sessions, after a keeper was away for a whole retention",
    "xdel": "trims a conversation of more than 10,000 entries or 8 MiB",
    "xlen": "counts the entries of one that is long enough to have so many",
}
LOOKING = {"memory|usage", "scan", "zcount"}
"""What doctor alone asks, of what is stored."""
TESTING = {
    "SESSIONS_ENV": "test",
    "SESSION_MIN_TIMEOUT_MINUTES": "0.005",
    "SESSION_RETENTION_MINUTES": "1",
}


def in_scripts() -> set[str]:
    """The commands that the Lua scripts call."""
    text = "\n".join(path.read_text() for path in LUA.rglob("*.lua"))
    return {name.lower() for name in re.findall(r"redis\.p?call\(\s*'(\w+)'", text)}


class Lived(NamedTuple):
    """What is on record after a life of the service."""

    service: Service
    refused: list[Any]
    called: set[str]
    """Before doctor came, which tries every command that a script has."""
    stats: dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def lived(deployed: DeployedRedis, tmp_path_factory: pytest.TempPathFactory) -> Lived:
    deployed.forget()
    line, key = keyring.mint(AppName("shop"), ["admin"])
    env = TESTING | {"SESSIONS_KEYS": line}
    service = Service(tmp_path_factory.mktemp("service"), redis_url=deployed.url, env=env)
    with service:
        with closing(Api(service.url)) as api:
            Life(api, key).live()
        called = {name for name, figures in deployed.stats().items() if figures["calls"]}
        looked = command("doctor", "--redis-url", deployed.url)
        assert looked.returncode == 0, looked.stdout + looked.stderr
        assert "\n0 fail, 0 warn" in looked.stdout, looked.stdout
    return Lived(service, deployed.inspect("ACL", "LOG"), called, deployed.stats())


class TestTheService:
    def test_lives_a_whole_life(self, lived: Lived) -> None:
        """Nothing it does is refused, in a script or out of one; the doctor finds nothing to mend."""
        assert lived.refused == []
        assert [name for name, figures in lived.stats.items() if figures.get("rejected_calls")] == []
        assert "NOPERM" not in lived.service.log
        assert "notifications_not_switched_on" not in lived.service.log
        lived.service.assert_no_bug_logged()

    def test_uses_all_that_it_is_allowed(self, lived: Lived) -> None:
        """A command that is no longer used leaves users.acl."""
        called = lived.called | LOOKING
        # Redis 6.2 counts a command's subcommands as one.
        used = {name for name in allowed() if name in called or name.partition("|")[0] in called}

        assert allowed() - used == RARE.keys()

    def test_needs_no_more_in_rare_cases(self) -> None:
        """Every command in a script is allowed, also of those that no life of a minute comes to."""
        assert in_scripts() <= allowed()
        assert RARE.keys() <= in_scripts()


class TestNobodyElse:
    def test_gets_in_without_the_password(self, deployed: DeployedRedis) -> None:
        for user, password in ((None, None), ("sessions", "wrong"), ("default", deployed.password)):
            with pytest.raises(redis.AuthenticationError):
                deployed.ask(user, password, "PING")

    @pytest.mark.parametrize(
        "refused",
        [
            "FLUSHALL", "FLUSHDB", "KEYS *", "SHUTDOWN NOSAVE", "MONITOR", "SAVE",
            "CONFIG SET dir /tmp", "CONFIG REWRITE", "ACL LIST", "ACL SETUSER sessions +@all",
            "CLIENT LIST", "CLIENT KILL TYPE normal", "SCRIPT FLUSH", "MODULE LIST", "REPLICAOF NO ONE",
            "SELECT 1", "MIGRATE 127.0.0.1 1 sa:meta 0 1", "RENAME sa:meta sa:other", "SLOWLOG GET",
        ],
    )  # fmt: skip
    def test_could_do_harm_through_the_service(self, deployed: DeployedRedis, refused: str) -> None:
        """Whoever takes the service over can read and write sessions, and cannot have the server."""
        with pytest.raises(redis.exceptions.NoPermissionError):
            deployed.call(*refused.split())

    @pytest.mark.parametrize(
        "refused",
        [
            ("SET", "other:key", "1"),
            ("GET", "xsa:meta"),
            ("PUBLISH", "other", "1"),
            ("EVAL", "return redis.call('GET', KEYS[1])", 1, "other:key"),
        ],
    )
    def test_has_their_keys_or_channels_read(
        self, deployed: DeployedRedis, refused: tuple[str | int, ...]
    ) -> None:
        """Other applications may share the server: only what begins with ``sa:`` is the service's."""
        with pytest.raises(redis.exceptions.NoPermissionError):
            deployed.call(*refused)


class TestTheFile:
    def test_holds_no_password(self) -> None:
        """The hash of one is put in when the server starts: a copied file opens no server."""
        assert [line.split()[:3] for line in users()] == [
            ["user", "default", "off"],
            ["user", "sessions", "on"],
        ]
        assert " #<sha256> " in users()[1]
        assert not re.search(r">|nopass|#[0-9a-f]{64}", users()[1].replace("#<sha256>", ""))

    def test_lists_the_commands_in_order(self) -> None:
        words = [word for word in users()[1].split() if word.startswith("+")]

        assert words == sorted(words)
        assert not [word for word in words if word.startswith("+@")]

"""Redis's operator: may do what the pages and doctor ask for, reads no session, and is not the service."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import redis

from sessions_api.cli import doctor
from tests.deploy.deployed import CHECKOUT, DEPLOY, DeployedRedis
from tests.deploy.peers import Peer, Peers, running
from tests.deploy.programs import until
from tests.support.ports import free_port

ASKED = {
    "ACL SETUSER": "somebody off",
    "CLUSTER FAILOVER": "",
    "CLUSTER INFO": "",
    "CLUSTER MIGRATESLOTS": "SLOTSRANGE 0 0 NODE nobody",
    "CLUSTER NODES": "",
    "CONFIG RESETSTAT": "",
    "CONFIG SET": "maxmemory 2gb",
    "INFO": "memory",
    "LATENCY DOCTOR": "",
    "MEMORY PURGE": "",
    "PING": "",
    "REPLICAOF HOST": "PORT",
    "SLOWLOG GET": "",
}
"""What an operator is told to do, with something for arguments."""

FAIL = {asked for asked in ASKED if asked.startswith("CLUSTER")} | {"REPLICAOF HOST"}
"""Since there is no Cluster, and no such host."""

LOOKING = {"config|get"}
"""What a setting is, before it is set."""
WHOLE = {"cluster", "latency", "memory", "replicaof", "slowlog"}
"""Each subcommand of these: none reads or writes what a key holds."""
OF_A_BACKUP = {"replconf", "sync"}
"""What ``--rdb`` says to a server."""
NAMES = r"ACL|CLIENT|CLUSTER|CONFIG|DEBUG|FAILOVER|INFO|LATENCY|MEMORY|PING|REPLICAOF|SHUTDOWN|SLOWLOG|WAIT"
COMMAND = re.compile(rf"\b({NAMES})\b(?: ([A-Z]{{3,}}))?")
BLOCK = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`|^    (docker .+)$", re.MULTILINE)
FIX = re.compile(r"""fix=f?(["'])(.+?)\1""")


def told() -> set[str]:
    """The commands for operators in the pages, and in what doctor says mends a finding."""
    said: list[str] = []
    for name in ("operations.md", "backup.md"):
        page = (CHECKOUT / "docs" / name).read_text()
        said += BLOCK.findall(page)
        said += ["".join(parts) for parts in INLINE.findall(BLOCK.sub("", page))]
    for path in Path(doctor.__file__).parent.glob("*.py"):
        # What the service's own user should be let call is not the operator's.
        said += [fix for _, fix in FIX.findall(path.read_text()) if not fix.startswith("let this user")]
    found = [COMMAND.findall(each) for each in said if "SENTINEL" not in each]  # those have no users
    return {" ".join(filter(None, words)) for each in found for words in each}


def rights() -> set[str]:
    [line] = (DEPLOY / "redis" / "operator.acl").read_text().splitlines()
    return {word.removeprefix("+") for word in line.split() if word.startswith("+")}


class TestTheOperator:
    def test_is_asked_for_no_more(self) -> None:
        """A command that a page or doctor names stands above, to be tried; and each of those is named."""
        assert told() == ASKED.keys()

    @pytest.mark.parametrize("asked", sorted(ASKED))
    def test_may_do_what_is_asked(self, deployed: DeployedRedis, asked: str) -> None:
        """Of every make: one that does not know a command, or has no Cluster, says that."""
        expected = pytest.raises(redis.ResponseError) if asked in FAIL else nullcontext()

        with expected as caught:
            deployed.operate(*f"{asked} {ASKED[asked]}".split())

        assert caught is None or not isinstance(caught.value, redis.exceptions.NoPermissionError)

    def test_may_do_nothing_that_is_not(self) -> None:
        needed = {asked.lower().replace(" ", "|") for asked in ASKED} | LOOKING | OF_A_BACKUP

        for asked in needed:
            assert {asked, asked.partition("|")[0]} & rights(), asked
        for right in rights() - WHOLE:
            assert right in needed
        assert {asked.partition("|")[0] for asked in needed} >= WHOLE

    @pytest.mark.parametrize(
        "refused",
        [
            "GET sa:meta", "HGETALL sa:meta", "XRANGE sa:log - +", "SCAN 0", "KEYS *", "DUMP sa:meta",
            "MEMORY USAGE sa:meta", "SET sa:meta 1", "DEL sa:meta", "MIGRATE 127.0.0.1 1 sa:meta 0 1",
            "SUBSCRIBE sa:live", "MONITOR", "FLUSHALL", "SHUTDOWN NOSAVE", "CLIENT LIST",
        ],
    )  # fmt: skip
    def test_reads_and_writes_no_session(self, deployed: DeployedRedis, refused: str) -> None:
        deployed.call("HSET", "sa:meta", "schema", "1")

        with pytest.raises(redis.exceptions.NoPermissionError):
            deployed.operate(*refused.split())

    def test_is_not_the_service(self, deployed: DeployedRedis) -> None:
        """Whoever takes the service over, with its password, is not the operator."""
        with pytest.raises(redis.AuthenticationError):
            deployed.ask("operator", deployed.password, "PING")


@pytest.fixture
def peers(tmp_path: Path) -> Peers:
    return Peers(tmp_path)


def server(peers: Peers, **environment: str) -> Peer:
    environment["REDIS_TOPOLOGY"] = "cluster"  # there the tests' own user can look as well
    return Peer(peers, "start", "redis", free_port(), environment, "--repl-diskless-sync-delay", "0")


def operator(peers: Peers, node: Peer, *words: str) -> str:
    """What ``docker compose exec redis sh /etc/valkey/operator …`` prints."""
    done = subprocess.run(
        ["sh", peers.folder / "redis" / "operator", "-p", str(node.port), *words],
        env=peers.environment(node.name),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli here")
class TestItsPassword:
    @pytest.fixture
    def file(self, peers: Peers) -> Path:
        return peers.folder / "redis" / "tmp" / "operator_password"

    @pytest.fixture
    def node(self, peers: Peers) -> Iterator[Peer]:
        with running([node := server(peers)]):
            until(node.role, "it answers")
            yield node

    def test_is_made_at_each_start_for_the_operator_alone(self, peers: Peers, node: Peer, file: Path) -> None:
        assert operator(peers, node, "PING") == "PONG"
        first = file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == stat.S_IRUSR | stat.S_IWUSR

        node.stop()
        node.start()
        until(node.role, "it answers")

        assert operator(peers, node, "PING") == "PONG"
        assert len({first, file.read_text(), peers.password + "\n"}) == 3

    def test_opens_what_a_backup_takes(self, peers: Peers, node: Peer, tmp_path: Path) -> None:
        """And nothing was tried that is refused."""
        operator(peers, node, "--rdb", str(tmp_path / "sessions.rdb"))

        assert (tmp_path / "sessions.rdb").read_bytes()[:5] == b"REDIS"
        assert node.refusals() == []

    def test_is_that_of_a_file_where_there_is_one(self, peers: Peers, tmp_path: Path) -> None:
        (own := tmp_path / "own").write_text("sixteen letters + 1\n")

        with running([node := server(peers, REDIS_OPERATOR_PASSWORD_FILE=str(own))]):
            until(node.role, "it answers")

            assert operator(peers, node, "PING") == "PONG"

    @pytest.mark.parametrize("content", [None, "", "too short\n"])
    def test_of_a_file_is_no_short_one(self, peers: Peers, content: str | None, tmp_path: Path) -> None:
        if content is not None:
            (tmp_path / "own").write_text(content)
        environment = peers.environment("redis") | {"REDIS_OPERATOR_PASSWORD_FILE": str(tmp_path / "own")}

        started = subprocess.run(
            [peers.folder / "redis" / "start"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )

        assert started.returncode != 0
        assert str(tmp_path / "own") in started.stderr

"""Redis as the two variants of the compose file start it: servers, Sentinels, a Cluster.

Each runs deploy/redis's own script with the environment of the compose file, in
which only addresses differ.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.deploy.deployed import DEPLOY
from tests.support.processes import ended, launched
from tests.support.servers import binaries


class Peers:
    """A folder, a password, and the processes that were started with them; all end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.password = secrets.token_hex(16)
        (folder / "password").write_text(self.password + "\n")
        (folder / "bin").mkdir()
        (folder / "bin" / "valkey-server").symlink_to(binaries()["valkey"])
        (folder / "bin" / "valkey-cli").symlink_to(shutil.which("redis-cli") or "/nowhere")
        shutil.copytree(DEPLOY / "redis", folder / "redis")
        # The test's own user, who looks at what the others may and did.
        with (folder / "redis" / "peers.acl").open("a") as users:
            users.write("user inspector on #<sha256> ~* &* +@all\n")

    def environment(self, name: str) -> dict[str, str]:
        for part in ("data", "tmp"):
            (self.folder / name / part).mkdir(parents=True, exist_ok=True)
        return os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "TMPDIR": str(self.folder / name / "tmp"),
            "REDIS_PASSWORD_FILE": str(self.folder / "password"),
        }

    def log(self, name: str) -> str:
        return (self.folder / name / "log").read_text(errors="replace")


class Peer:
    """One server or Sentinel; it keeps its port and its folder through restarts."""

    def __init__(
        self, peers: Peers, script: str, name: str, port: int, environment: Mapping[str, str], *words: str
    ) -> None:
        self.name = name
        self.port = port
        self._peers = peers
        self._script = script
        self._environment = environment
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = self._peers.environment(self.name) | dict(self._environment)
        folder = self._peers.folder / self.name
        command = [str(self._peers.folder / "redis" / self._script), "--port", str(self.port)]
        self._process = launched(
            [*command, "--bind", "127.0.0.1", *self._words],
            log=folder / "log",
            cwd=folder / "data",
            env=environment,
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        ended(process, number)

    def ask(self, *command: Any, user: str | None = "inspector") -> Any:
        """The reply to one command; None where nobody answers, or not yet."""
        password = self._peers.password if user else None
        try:
            with redis.Redis(
                host="127.0.0.1",
                port=self.port,
                username=user,
                password=password,
                protocol=2,
                socket_timeout=5,
                retry=Retry(NoBackoff(), 0),
            ) as client:
                return client.execute_command(*command)
        except (redis.ConnectionError, redis.TimeoutError):
            return None

    def role(self) -> str:
        told = self.ask("ROLE")
        return "" if told is None else str(told[0].decode())

    def refusals(self) -> list[Any]:
        """What users wanted and may not."""
        return list(self.ask("ACL", "LOG") or [])


@contextmanager
def running(peers: Sequence[Peer]) -> Iterator[None]:
    """Started here, and stopped whatever happens."""
    try:
        for peer in peers:
            peer.start()
        yield
    finally:
        for peer in peers:
            peer.stop()

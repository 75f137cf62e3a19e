"""Redis as the compose file starts it, by ``deploy/redis/start``, on a server binary of this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.ports import free_port
from tests.support.processes import ended, launched

CHECKOUT = Path(__file__).parents[2]
DEPLOY = CHECKOUT / "deploy"
START_TIMEOUT_S = 10.0


def allowed() -> set[str]:
    """The commands that the service's user may use, as ``users.acl`` writes them: ``config|get``."""
    [ours] = [line for line in users() if line.startswith("user sessions ")]
    return {word.removeprefix("+") for word in ours.split() if word.startswith("+")}


def users() -> list[str]:
    """The lines of ``users.acl``."""
    return (DEPLOY / "redis" / "users.acl").read_text().splitlines()


class DeployedRedis:
    """A server with the deployed settings and users, from entering to leaving.

    Beside the deployed users there is ``inspector``, who may do everything: the
    test's own, to look at what the others did.
    """

    def __init__(self, binary: Path, folder: Path) -> None:
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._inspectors = secrets.token_hex(16)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("bin", "data", "tmp"):
            (folder / name).mkdir(parents=True)
        shutil.copytree(DEPLOY / "redis", folder / "redis")
        with (folder / "redis" / "users.acl").open("a") as file:
            file.write(f"user inspector on >{self._inspectors} ~* &* +@all\n")
        (folder / "bin" / "valkey-server").symlink_to(binary)
        (folder / "password").write_text(self.password + "\n")

    @property
    def url(self) -> str:
        """For the service."""
        return f"redis://sessions:{self.password}@127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        environment = os.environ | {
            "PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}",
            "TMPDIR": str(self._folder / "tmp"),
            "REDIS_PASSWORD_FILE": str(self._folder / "password"),
        }
        start = self._folder / "redis" / "start"
        self._process = launched(
            [start, "--port", str(self.port), "--bind", "127.0.0.1", "--maxmemory", "1gb"],
            log=self._folder / "server.log",
            cwd=self._folder / "data",
            env=environment,
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.__exit__()
                raise AssertionError((self._folder / "server.log").read_text()[-2000:])
            time.sleep(0.01)
        return self

    def __exit__(self, *_exc: object) -> None:
        process, self._process = self._process, None
        ended(process)

    def _answers(self) -> bool:
        try:
            return bool(self.inspect("PING"))
        except redis.ConnectionError:
            return False

    def inspect(self, *command: Any) -> Any:
        """One command as the inspector; its reply."""
        return self.ask("inspector", self._inspectors, *command)

    def call(self, *command: Any) -> Any:
        """One command as the service's user; its reply, or the error as it is."""
        return self.ask("sessions", self.password, *command)

    def operate(self, *command: Any) -> Any:
        """One command as the operator; its reply, or the error as it is."""
        password = (self._folder / "tmp" / "operator_password").read_text().strip()
        return self.ask("operator", password, *command)

    def ask(self, user: str | None, password: str | None, *command: Any) -> Any:
        """One command as anybody, on a connection of its own."""
        with redis.Redis(
            host="127.0.0.1",
            port=self.port,
            username=user,
            password=password,
            protocol=2,
            socket_timeout=10,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            return client.execute_command(*command)

    def stats(self) -> dict[str, dict[str, int]]:
        """Command → its figures since the last :meth:`forget`, of calls inside scripts too."""
        found = self.inspect("INFO", "commandstats")
        return {name.removeprefix("cmdstat_"): figures for name, figures in found.items()}

    def forget(self) -> None:
        """Begin to count anew."""
        self.inspect("CONFIG", "RESETSTAT")
        self.inspect("ACL", "LOG", "RESET")

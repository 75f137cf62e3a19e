"""The processes a measurement needs: started on a core, waited for, ended by their pid."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bench.machine import ALL_CORES, CORES
from sessions_api.embedded import ending_with, find_server

START_S = 30.0
STOP_S = 30.0
POLL_S = 0.005
_ADDRESS = re.compile(r"Sessions API at http://127\.0\.0\.1:(\d+)\n")

DEPLOYED: Mapping[str, str] = {"hash-max-listpack-value": "1024", "stream-node-max-bytes": "1024"}
"""What deployed Redis servers should have set; see docs/operations.md, once it is there."""
DEFAULTS: Mapping[str, str] = {}
DURABLE: Mapping[str, str] = {"appendonly": "yes", "appendfsync": "everysec", "notify-keyspace-events": "Ex"}


class Server(NamedTuple):
    """A Redis server on a unix socket."""

    pid: int
    url: str


class Service(NamedTuple):
    """Something that answers HTTP on loopback."""

    pid: int
    port: int


@cache
def operators_server() -> Path:
    """A server on PATH, of release 7 or later, that has jemalloc, as distributions and images build theirs.

    Else the one that comes with the service. That has libc's allocator, with which what a script
    takes grows with what else is in memory: its short-lived objects lie in the gaps between.
    """
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            told = subprocess.check_output([path, "--version"], text=True)
            release = re.search(r"v=(\d+)", told)
            if "malloc=jemalloc" in told and release and int(release[1]) >= 7:
                return Path(path)
    return find_server()


@contextmanager
def redis_server(
    folder: Path,
    settings: Mapping[str, str],
    *,
    core: int | None = CORES.redis,
    binary: Path | None = None,
) -> Iterator[Server]:
    """A server with *settings*, its data in *folder*; *binary*: another than :func:`operators_server`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "redis.sock"
    own = {"port": "0", "save": "", "unixsocket": str(path), "dir": str(folder), "logfile": ""}
    options = {**own, **settings}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with process([str(binary or operators_server()), *words], folder / "redis.log", core=core) as pid:
        wait_until(lambda: _pongs(path), "Redis to answer", folder / "redis.log")
        yield Server(pid, f"unix://{path}")


@contextmanager
def moved(server: Server, core: int) -> Iterator[None]:
    """*server* runs on another core, for as long as nothing else needs that one."""
    before = os.sched_getaffinity(server.pid)
    os.sched_setaffinity(server.pid, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(server.pid, before)


@contextmanager
def service(folder: Path, redis_url: str, *, core: int = CORES.service, **settings: str) -> Iterator[Service]:
    """The service as ``sessions-api serve`` runs it, one worker, with the agent Echo known."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SESSION")}
    environ |= {"REDIS_URL": redis_url, "HOST": "127.0.0.1", "PORT": "0"}
    environ |= {"SESSIONS_DEV": "on", "LOG_LEVEL": "warning", "LOG_FORMAT": "json"} | settings
    command = [sys.executable, "-m", "sessions_api", "serve"]
    log = folder / f"service-{time.monotonic_ns()}.log"
    with process(command, log, core=core, environ=environ) as pid:
        # It takes a port itself and says which: one that was free a second ago may be another's by then.
        wait_until(lambda: _said_port(log) is not None, "the service to say its port", log)
        port = _said_port(log) or 0
        wait_until(lambda: listens(port), "the service to listen", log)
        yield Service(pid, port)


def _said_port(log: Path) -> int | None:
    found = _ADDRESS.search(log.read_text(errors="replace"))
    return int(found[1]) if found else None


@contextmanager
def process(
    command: Sequence[str], log: Path, *, core: int | None, environ: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A running process, its pid; *core*: where it runs, None for wherever it likes."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
            preexec_fn=_on_core(core),  # noqa: PLW1509  a few system calls, no lock
        )
    try:
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _on_core(core: int | None) -> Callable[[], None]:
    with_parent = ending_with(os.getpid())

    def prepare() -> None:
        os.sched_setaffinity(0, ALL_CORES if core is None else {core})
        if with_parent is not None:
            with_parent()

    return prepare


def wait_until(condition: Callable[[], bool], what: str, log: Path) -> None:
    """Poll until *condition* holds.

    Raises:
        RuntimeError: it does not within 30 s; the end of *log* is in the message.
    """
    deadline_s = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline_s:
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise RuntimeError(f"waited {START_S:g} s for {what}\n{tail}")
        time.sleep(POLL_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


def _pongs(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False

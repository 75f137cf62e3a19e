"""The service as its operators run it: ``sessions-api dev`` or ``serve`` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx2

from tests.support.processes import launched

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 30.0
_ADDRESS = re.compile(r"Sessions API at (http://\S+)")
_OURS = ("SESSION_", "SESSIONS_", "HOST", "PORT", "LOG_", "REDIS_URL", "PROMETHEUS_")


class Service:
    """One process of the service on a free port.

    Without *redis_url* it is ``dev`` with a server of its own in *folder*, else
    ``serve`` on that Redis, with Echo. *env* are its settings, *preload* a library
    that stands in front of libc. The log is JSON and kept in *folder*.
    """

    def __init__(
        self,
        folder: Path,
        *,
        redis_url: str = "",
        env: dict[str, str] | None = None,
        preload: str = "",
        name: str = "service",
    ) -> None:
        self._folder = folder
        self._redis_url = redis_url
        self._env = env or {}
        self._preload = preload
        self._log_path = folder / f"{name}.log"
        self._started = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, until_ready: bool = True) -> None:
        """Start it, and return once it is ready; a second start takes the same port again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._started = self._log_path.stat().st_size if self._log_path.exists() else 0
        command = [sys.executable, "-m", "sessions_api", *self._arguments()]
        self._process = launched(command, log=self._log_path, cwd=self._folder, env=self._environment())
        self._wait(self._has_address, "say its address")
        if until_ready:
            self.wait_until_ready()

    def _arguments(self) -> list[str]:
        port = str(self.port) if self.url else "0"
        if self._redis_url:
            return ["serve", "--redis-url", self._redis_url, "--port", port]
        return ["dev", "--data-dir", str(self._folder / "data"), "--port", port]

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        preload = {"LD_PRELOAD": self._preload} if self._preload else {}
        own = {"LOG_FORMAT": "json", "SESSIONS_DEV": "on", "PYTHONFAULTHANDLER": "1"}
        return inherited | own | preload | self._env

    def _has_address(self) -> bool:
        found = _ADDRESS.search(self.log)
        if found:
            self.url = found[1]
        return found is not None

    def wait_until_ready(self) -> None:
        self._wait(lambda: self.readiness() == 200, "be ready")

    def readiness(self) -> int:
        """The status of ``/readyz``; 0 if nothing answers."""
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code
        except httpx2.TransportError:
            return 0

    def _wait(self, condition: Any, what: str) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not condition():
            if not self.is_running or time.monotonic() > deadline_s:
                raise AssertionError(f"the service did not {what}:\n{self.log[-4000:]}")
            time.sleep(0.01)

    # ------------------------------------------------------------ its end

    def ask_to_stop(self) -> None:
        """SIGTERM, and no waiting."""
        self._signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        if self._process is None:
            return 0
        self.resume()
        self.ask_to_stop()
        return self.wait()

    def wait(self) -> int:
        """Until it has ended; returns the exit status."""
        assert self._process is not None
        process, self._process = self._process, None
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # its log then ends with where every thread stood
            process.wait()
            raise AssertionError(f"the service did not stop:\n{self.log[-4000:]}") from None

    def kill(self) -> None:
        """SIGKILL: no farewell."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    # ------------------------------------------------------------ what it said

    @property
    def log(self) -> str:
        """What was printed and logged since the last start."""
        if not self._log_path.exists():
            return ""
        return self._log_path.read_bytes()[self._started :].decode(errors="replace")

    def records(self) -> list[dict[str, Any]]:
        """The structured log records."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def assert_no_bug_logged(self, *, allowed: frozenset[str] = frozenset()) -> None:
        """No stack trace, and no record above a warning but the *allowed* events."""
        assert "Traceback" not in self.log, self.log[self.log.index("Traceback") - 500 :][:4000]
        bad = [
            record
            for record in self.records()
            if record.get("level") in {"error", "critical"} and record.get("event") not in allowed
        ]
        assert not bad, bad[:5]

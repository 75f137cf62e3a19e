"""The processes of a schedule: replicas, workers, and what is known of each from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2

from tests.support.processes import ended, launched
from tests.support.service import Service

PROGRAM = Path(__file__).with_name("agent_program.py")
LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
HOUR_S = 3600

REDIS_IS_AWAY = frozenset({"redis_circuit_opened"})
"""The only event above a warning that a fault outside of the service may log."""


class Replica(Service):
    """One replica of the service; each start may give it another clock."""

    def __init__(self, folder: Path, *, redis_url: str, env: dict[str, str], name: str) -> None:
        super().__init__(folder, redis_url=redis_url, env=env, name=name)
        self._clock_s = 0

    def set_clock(self, offset_s: int) -> None:
        """Of this machine's clock, from the next start on."""
        self._clock_s = offset_s

    def _environment(self) -> dict[str, str]:
        environment = super()._environment()
        if self._clock_s and LIBFAKETIME is not None:
            environment |= {
                "LD_PRELOAD": str(LIBFAKETIME),
                "FAKETIME": f"{self._clock_s:+d}s",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        return environment

    def is_listening(self) -> bool:
        """Whether it answers at all, whatever it says."""
        try:
            return httpx2.get(f"{self.url}/livez", timeout=5).status_code > 0
        except httpx2.TransportError:
            return False

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208  as Linux has it

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        text = httpx2.get(f"{self.url}/metrics", timeout=10).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def bugs(self) -> list[str]:
        """What it logged, in all its lives, that it should not have."""
        text = self._log_path.read_text(errors="replace") if self._log_path.exists() else ""
        found = []
        for line in text.splitlines():
            if line.startswith("{"):
                record = json.loads(line)
                if record.get("level") in {"error", "critical"} and record.get("event") not in REDIS_IS_AWAY:
                    found.append(f"{self._log_path.stem} logged {line[:2000]}")
            elif line.startswith("Traceback"):
                found.append(f"{self._log_path.stem} logged a stack trace")
        return found


class Worker:
    """A process of the SDK's, which speaks to one replica and waits for it while it is away."""

    def __init__(self, folder: Path, url: str, agent_id: str, *, name: str) -> None:
        self.name = name
        self._arguments = [url, agent_id]
        self._log_path = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = launched([sys.executable, PROGRAM, *self._arguments], log=self._log_path)

    def kill(self) -> None:
        process, self._process = self._process, None
        ended(process, signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        process, self._process = self._process, None
        return ended(process, within_s=20)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

"""Workers in processes of their own, to be killed and frozen; what they do is ``worker_program.py``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx2

from tests.support.client import eventually, some_id
from tests.support.processes import ended, launched

PROGRAM = Path(__file__).with_name("worker_program.py")


class WorkerProcess:
    """One worker of *agent_id* over the replicas at *urls*, from :meth:`start` until :meth:`kill`."""

    def __init__(
        self, folder: Path, agent_id: str, urls: Sequence[str], *, name: str = "worker", places: int = 1
    ) -> None:
        self.name = name
        self._gate = folder / f"{name}.gate"
        self._log_path = folder / f"{name}.jsonl"
        self._errors_path = folder / f"{name}.err"
        self._arguments = [agent_id, name, str(self._gate), str(places), *urls]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        self._process = launched(
            [sys.executable, PROGRAM, *self._arguments], log=self._log_path, errors=self._errors_path
        )
        return self

    def kill(self) -> None:
        """SIGKILL, also of one that is frozen."""
        process, self._process = self._process, None
        ended(process, signal.SIGKILL)
        errors = self._errors_path.read_text() if self._errors_path.exists() else ""
        assert not errors, errors[-3000:]

    def freeze(self) -> None:
        """It keeps its connections, and does nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    # ------------------------------------------------------------ what it does

    def open_gate(self) -> Self:
        """Let go on whatever it holds, now and later."""
        self._gate.touch()
        return self

    def did(self, event: str, turn_id: str = "") -> list[dict[str, Any]]:
        """What it says it did of this kind, to this turn."""
        text = self._log_path.read_text() if self._log_path.exists() else ""
        records = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return [
            record for record in records if record["event"] == event and turn_id in {"", record.get("turnId")}
        ]

    def does(self, event: str, turn_id: str = "") -> dict[str, Any]:
        """Wait until it did; the first record of it."""
        record: dict[str, Any] = eventually(lambda: self.did(event, turn_id), within_s=30)[0]
        return record


class Crew:
    """The workers of one test, over the replicas at *urls*; at its end they are killed."""

    def __init__(self, folder: Path, urls: Sequence[str]) -> None:
        self._folder = folder
        self._urls = urls
        self._hired: list[WorkerProcess] = []
        self._http = httpx2.Client(base_url=urls[0], timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.close()
        for worker in self._hired:
            worker.kill()

    def define(self, agent_id: str = "", /, **definition: Any) -> str:
        """A worker agent; its id. Whoever claims at the first replica finds it so from now on."""
        agent_id = agent_id or some_id()
        body = {"name": "Tested", "kind": "worker"} | definition
        response = self._http.put(f"/api/agents/{agent_id}", json=body)
        assert response.status_code in {200, 201}, response.text
        return agent_id

    def hire(self, agent_id: str, *, places: int = 1) -> WorkerProcess:
        """Another worker; returns when its agent is there."""
        name = f"worker-{len(self._hired)}"
        worker = WorkerProcess(self._folder, agent_id, self._urls, name=name, places=places)
        self._hired.append(worker.start())
        path = f"/api/agents/{agent_id}/availability"
        eventually(lambda: self._http.get(path).json()["workers"] > 0, within_s=30)
        return worker

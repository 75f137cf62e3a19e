"""``sessions-api …`` as processes of their own, as somebody types them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import httpx2

from tests.support.ports import free_port

START_S = 30.0
STOP_S = 30.0
OURS = ("SESSION_", "SESSIONS_", "REDIS_URL", "HOST", "PORT", "LOG_", "PROMETHEUS_")
AGENT = "00000000-0000-4000-8000-000000000001"
USER = "22222222-2222-4222-8222-222222222222"


def clean_environment(given: Mapping[str, str]) -> dict[str, str]:
    """This environment without what configures a service, and with what is *given*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return kept | dict(given)


def command(
    *words: str, env: Mapping[str, str] | None = None, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """``sessions-api`` with these words and this input, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sessions_api", *words],
        input=text or "",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=clean_environment(env or {}),
    )


class RunningService:
    """``sessions-api dev`` (or *words*) on a port that it keeps; its output goes to files in *folder*."""

    def __init__(
        self, folder: Path, *words: str, env: Mapping[str, str] | None = None, port: int | None = None
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.sessions = f"{self.url}/api/messaging/sessions"
        folder.mkdir(parents=True, exist_ok=True)
        self._out = (folder / "out.txt").open("a+")
        self._err = (folder / "err.txt").open("a+")
        given = {"PORT": str(self.port), "SESSIONS_DATA_DIR": str(folder / "data")} | dict(env or {})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sessions_api", *(words or ("dev",))],
            cwd=folder,
            env=clean_environment(given),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        try:
            self.until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
        self._out.close()
        self._err.close()

    def until_ready(self) -> None:
        """Wait until the service says that it is ready."""
        self.until_answers("/readyz", 200)

    def until_answers(self, path: str, status: int) -> None:
        """Wait until the service answers *path* with *status*."""
        deadline_s = time.monotonic() + START_S
        with httpx2.Client(trust_env=False) as client:
            while True:
                assert self.process.poll() is None, f"ended at its start: {self.err()}"
                try:
                    if client.get(self.url + path).status_code == status:
                        return
                except httpx2.TransportError:
                    pass
                assert time.monotonic() < deadline_s, f"{path} is never {status}: {self.err()}"
                time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def out(self) -> str:
        return (self.folder / "out.txt").read_text()

    def err(self) -> str:
        return (self.folder / "err.txt").read_text()

    def create(self, **more: object) -> str:
        """A new session's id."""
        body = {"agentId": AGENT, "userId": USER, **more}
        reply = httpx2.post(self.sessions, json=body, trust_env=False)
        assert reply.status_code == 201, reply.text
        session_id: str = reply.json()["sessionId"]
        return session_id

    def say(self, session_id: str, content: str) -> str:
        """The agent's answer."""
        reply = httpx2.post(
            f"{self.sessions}/{session_id}/messages",
            json={"content": content, "transport": "http"},
            timeout=30,
            trust_env=False,
        )
        assert reply.status_code == 201, reply.text
        answer: str = reply.json()["agentResponse"]["text"]
        return answer

    def history(self, session_id: str) -> list[str]:
        """What was said, oldest first."""
        reply = httpx2.get(f"{self.sessions}/{session_id}/messages", trust_env=False)
        assert reply.status_code == 200, reply.text
        return [message["content"] for message in reversed(reply.json()["messages"])]

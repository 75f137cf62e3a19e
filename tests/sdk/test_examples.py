"""What a newcomer copies runs as it is printed."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sessions_api.sdk
from tests.support.app import App
from tests.support.commands import clean_environment, command
from tests.support.service import Service
from tests.support.waiting import eventually

CHECKOUT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:3000"
AGENT = "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11"


def printed(page: str) -> str:
    """The worker that a page prints."""
    found = re.search(r"```python\n(from sessions_api.*?)```", (CHECKOUT / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@contextmanager
def running(code: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = clean_environment({"SESSIONS_URL": url, "PYTHONPATH": str(CHECKOUT)})
    process = subprocess.Popen(
        [sys.executable, code], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


async def is_there(app: App) -> bool:
    reply = await app.call("GET", f"/api/agents/{AGENT}/availability")
    return bool(reply.status_code == 200 and reply.json()["state"] == "available")


class TestWorker:
    @pytest.mark.parametrize("source", ["examples/worker.py", "README.md", "docs/agents.md"])
    async def test_answers_and_ends_when_told(
        self, service: Service, app: App, tmp_path: Path, source: str
    ) -> None:
        code = CHECKOUT / source
        if code.suffix == ".md":
            assert ADDRESS in printed(source)
            code = tmp_path / "worker.py"
            code.write_text(printed(source).replace(ADDRESS, service.url))

        with running(code, service.url) as process:
            await eventually(lambda: is_there(app))
            told = await asyncio.to_thread(
                command, "chat", "--agent", AGENT, env={"SESSIONS_URL": service.url}, text="hello there\n"
            )
            process.terminate()
            _, log = await asyncio.to_thread(process.communicate)

        assert told.stdout == "HELLO THERE \n", told.stderr
        assert process.returncode == 0
        assert b"worker_started" in log
        assert b"turn_completed" in log
        assert b"HELLO" not in log

    def test_is_the_one_in_the_packages_own_words(self) -> None:
        def lines(text: str) -> list[str]:
            return [line.strip() for line in text.splitlines() if line.strip()]

        code = lines(printed("README.md"))

        documentation = lines(sessions_api.sdk.__doc__ or "")
        start = documentation.index(code[0])
        assert documentation[start : start + len(code)] == code
        assert printed("README.md") == printed("docs/agents.md")


class TestImport:
    def test_brings_nothing_of_the_service_along(self) -> None:
        """An agent's process is as light as its HTTP client."""
        look = (
            "import sys, sessions_api.sdk; print([name for name in sys.modules if name.startswith(FOREIGN)])"
        )
        foreign = (
            "redis",
            "starlette",
            "uvicorn",
            "msgspec",
            "structlog",
            "prometheus",
            "sessions_api.store",
        )

        shown = subprocess.run(
            [sys.executable, "-c", look.replace("FOREIGN", repr(foreign))],
            capture_output=True,
            text=True,
            check=True,
            cwd=CHECKOUT,
        )

        assert shown.stdout.strip() == "[]"

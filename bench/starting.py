"""From the start of ``sessions-api dev`` on an empty folder to its first 201."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

from bench.figures import Figure, progress
from bench.processes import free_port, listens, process, wait_until
from sessions_api.domain.agents import ECHO_ID

PART = "Start of sessions-api dev"
BUDGET_S = 2.0
USER = "11111111-1111-4111-8111-111111111111"


async def run(folder: Path, *, rounds: int) -> tuple[list[Figure], dict[str, object]]:
    listening: list[float] = []
    created: list[float] = []
    for number in range(rounds):
        progress(f"start: {number + 1} of {rounds}")
        listening_s, created_s = _start(folder / str(number))
        listening.append(listening_s)
        created.append(created_s)
    figures = [
        Figure(PART, "to the first 201", median(created), "s", budget=BUDGET_S, note=f"median of {rounds}"),
        Figure(PART, "of which until it listens", median(listening), "s"),
    ]
    return figures, {"listening_s": listening, "created_s": created}


def _start(folder: Path) -> tuple[float, float]:
    """Seconds until it listens, and until a session was created."""
    folder.mkdir()
    port = free_port()
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("SESSION", "REDIS_URL"))
    }
    command = [
        sys.executable,
        "-m",
        "sessions_api",
        "dev",
        "--port",
        str(port),
        "--data-dir",
        str(folder / "data"),
    ]
    log = folder / "dev.log"
    started_s = time.perf_counter()
    with process(command, log, core=None, environ=environ):
        wait_until(lambda: listens(port), "sessions-api dev to listen", log)
        listening_s = time.perf_counter() - started_s
        wait_until(lambda: _creates(port), "a first 201", log)
        return listening_s, time.perf_counter() - started_s


def _creates(port: int) -> bool:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        body = json.dumps({"agentId": ECHO_ID, "userId": USER})
        client.request(
            "POST", "/api/messaging/sessions", body=body, headers={"Content-Type": "application/json"}
        )
        return client.getresponse().status == 201
    except OSError:
        return False
    finally:
        client.close()

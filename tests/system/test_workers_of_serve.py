"""`serve` with several processes: each is a replica of its own; none is missed, or outlives the others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import RunningService
from tests.support.ports import free_port
from tests.support.servers import TestServer, launch

pytestmark = pytest.mark.timeout(120)
WORKERS = 2
PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    server = launch("valkey", tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def env(redis: TestServer) -> dict[str, str]:
    return {
        "REDIS_URL": redis.url,
        "SESSIONS_DEV": "on",
        "SESSIONS_WORKERS": str(WORKERS),
        "SESSIONS_DRAIN_SECONDS": "2",
        "SESSIONS_METRICS_PORT": str(free_port()),
    }


@pytest.fixture(scope="module")
def service(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("service"), "serve", env=env) as running:
        yield running


def workers(service: RunningService) -> set[int]:
    """The processes that serve; beside them there is a helper of multiprocessing."""
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(word) for word in children if b"spawn_main" in _command_of(word)}


def _command_of(pid: str) -> bytes:
    """Nothing of one that is gone by now."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def gauge(port: str, name: str) -> float:
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def is_whole(service: RunningService, port: str) -> bool:
    """Everybody is there, and the partitions are shared out among them."""
    return (
        len(workers(service)) == WORKERS
        and gauge(port, "sessions_replicas") == WORKERS
        and gauge(port, "sessions_kept_partitions") == 64
    )


class TestAWorker:
    def test_that_is_killed_is_replaced(self, service: RunningService, env: dict[str, str]) -> None:
        """Its partitions and its metrics' gauges go to the others; what it had accepted is answered."""
        port = env["SESSIONS_METRICS_PORT"]
        until(lambda: is_whole(service, port))
        before = workers(service)
        dead = min(before)

        os.kill(dead, signal.SIGKILL)

        until(lambda: is_whole(service, port) and dead not in workers(service))
        assert len(workers(service) & before) == WORKERS - 1
        assert service.say(service.create(), "hello") == "echo: hello"

    def test_is_replaced_at_sighup_after_its_successor_is_there(
        self, service: RunningService, env: dict[str, str]
    ) -> None:
        """One by one, so that there is always one that serves; what is not answered is repeated."""
        port = env["SESSIONS_METRICS_PORT"]
        until(lambda: is_whole(service, port))
        before = workers(service)
        session_id = service.create()
        seen: set[int] = set()

        service.process.send_signal(signal.SIGHUP)

        def is_done() -> bool:
            seen.add(httpx2.get(f"{service.sessions}/{session_id}", trust_env=False).status_code)
            return len(workers(service)) == WORKERS and not workers(service) & before

        until(is_done)
        assert seen <= {200, 503}
        assert 200 in seen
        until(lambda: is_whole(service, port))
        assert "Traceback" not in service.err()

    def test_ends_with_its_supervisor(self, env: dict[str, str], tmp_path: Path) -> None:
        """Also with one that is killed: it would serve on, and nobody could stop or replace it."""
        own = env | {"SESSIONS_METRICS_PORT": "0"}
        service = RunningService(tmp_path, "serve", env=own)
        try:
            service.until_ready()
            until(lambda: service.err().count("store_opened") == WORKERS)
            left = workers(service)

            service.process.kill()
            service.process.wait()

            until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
            assert service.err().count("service_stopped") == WORKERS
        finally:
            service.__exit__()

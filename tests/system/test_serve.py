"""`serve`: on one Redis, with one process or several, and what they say when they cannot."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import RunningService, command
from tests.support.ports import free_port
from tests.support.servers import TestServer

pytestmark = pytest.mark.timeout(120)


class TestServe:
    def test_without_redis_says_what_to_do(self) -> None:
        refused = command("serve")

        assert refused.returncode == 2
        assert "REDIS_URL is not set" in refused.stderr

    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_an_unusable_address_is_one_line(self, workers: str) -> None:
        refused = command("serve", "--redis-url", "http://localhost", "--workers", workers)

        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert "Redis URL is unusable" in refused.stderr

    @pytest.mark.servers("valkey")
    def test_several_workers_share_port_and_metrics(self, tmp_path: Path, redis_url: str) -> None:
        """SIGTERM ends all of them; the folder of their metrics goes with them."""
        env = {"REDIS_URL": redis_url, "SESSIONS_DEV": "on", "TMPDIR": str(tmp_path)}
        with RunningService(tmp_path / "service", "serve", "--workers", "2", env=env) as service:
            session_id = service.create()
            assert service.say(session_id, "hello") == "echo: hello"
            assert list(tmp_path.glob("sessions-metrics-*"))
            workers = children(service.process.pid)
            assert len(workers) >= 2
            httpx2.delete(f"{service.sessions}/{session_id}", trust_env=False)

            assert service.stop(signal.SIGTERM) == 0

        assert not list(tmp_path.glob("sessions-metrics-*"))
        deadline_s = time.monotonic() + 10
        while [
            pid for pid in workers if Path(f"/proc/{pid}").exists()
        ]:  # among them a helper of multiprocessing
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        assert "Traceback" not in service.err()

    @pytest.mark.servers("valkey")
    @pytest.mark.parametrize("words", [("serve",), ("serve", "--workers", "2"), ("dev",)])
    def test_metrics_have_a_port_of_their_own_if_told_so(
        self, tmp_path: Path, redis_url: str, words: tuple[str, ...]
    ) -> None:
        """There is nothing else there, and on the other port no metrics."""
        own = free_port()
        env = {"REDIS_URL": redis_url, "SESSIONS_METRICS_PORT": str(own)}
        with RunningService(tmp_path, *words, env=env) as service:

            def status(port: int, path: str) -> int:
                return httpx2.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code

            assert (status(own, "/metrics"), status(service.port, "/metrics")) == (200, 404)
            assert (status(own, "/livez"), status(service.port, "/livez")) == (404, 200)

            refused = command(*words, env=env | {"PORT": str(free_port())})
            assert refused.returncode == 1
            assert "SESSIONS_METRICS_PORT" in refused.stderr

    @pytest.mark.servers("valkey")
    @pytest.mark.parametrize("words", [("serve",), ("serve", "--workers", "2"), ("dev",)])
    def test_a_redis_of_another_schema_is_refused_in_words(
        self, server: TestServer, words: tuple[str, ...]
    ) -> None:
        server.call("HSET", "sa:meta", "schema", "99")

        refused = command(*words, env={"REDIS_URL": server.url, "PORT": str(free_port())})

        assert refused.returncode == 1
        assert "schema 99" in refused.stderr
        assert "Traceback" not in refused.stderr

    def test_with_redis_away_starts_and_stops_in_order(self, tmp_path: Path) -> None:
        """Alive and not ready; Ctrl-C ends it without a stack."""
        service = RunningService(tmp_path, "serve", env={"REDIS_URL": f"redis://127.0.0.1:{free_port()}"})
        try:
            service.until_answers("/livez", 200)
            service.until_answers("/readyz", 503)

            assert service.stop(signal.SIGINT) == 0
            assert "Traceback" not in service.err()
        finally:
            service.__exit__()


def children(pid: int) -> list[int]:
    """The processes that *pid* started and that live."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

"""`sessions-api dev`: one command, a working service, sessions that stay."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import httpx2
import pytest

from tests.support.client import eventually
from tests.support.commands import RunningService, command
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(120)


class TestState:
    def test_survives_a_restart_and_a_kill(self, tmp_path: Path) -> None:
        """What was acknowledged is there after SIGTERM and start, and after SIGKILL and start."""
        with RunningService(tmp_path) as service:
            session_id = service.create()
            assert service.say(session_id, "one") == "echo: one"
            assert service.stop(signal.SIGTERM) == 0

        with RunningService(tmp_path) as service:
            assert service.history(session_id) == ["one", "echo: one"]
            assert service.say(session_id, "two") == "echo: two"
            service.stop(signal.SIGKILL)

        with RunningService(tmp_path) as service:
            assert service.history(session_id) == ["one", "echo: one", "two", "echo: two"]
            assert service.say(session_id, "three") == "echo: three"

    def test_survives_the_death_of_the_server_under_it(self, tmp_path: Path) -> None:
        """Somebody kills the embedded server: it is started again, and the log says so."""
        with RunningService(tmp_path) as service:
            session_id = service.create()
            assert service.say(session_id, "one") == "echo: one"

            os.kill(int((tmp_path / "data" / "server.pid").read_text()), signal.SIGKILL)
            eventually(lambda: "embedded_server_restarted" in service.out() + service.err(), within_s=30)
            service.until_ready()

            assert service.say(session_id, "two") == "echo: two"
            assert service.history(session_id) == ["one", "echo: one", "two", "echo: two"]
            assert service.stop(signal.SIGTERM) == 0

    def test_is_where_the_data_folder_says(self, tmp_path: Path) -> None:
        """Without SESSIONS_DATA_DIR it is ./.data; the printed lines tell."""
        with RunningService(tmp_path, env={"SESSIONS_DATA_DIR": ""}) as service:
            service.create()

            assert (tmp_path / ".data").is_dir()
            assert str(tmp_path / ".data") in service.out()


class TestCtrlC:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stops_everything_without_a_stack(self, tmp_path: Path, number: signal.Signals) -> None:
        """Also while somebody follows a session: the follower is told, the server's socket is gone."""
        with RunningService(tmp_path) as service:
            session_id = service.create()
            with httpx2.stream("GET", f"{service.sessions}/{session_id}/events", trust_env=False) as stream:
                lines = stream.iter_lines()
                while "session.snapshot" not in next(lines):
                    pass

                status = service.stop(number)
                rest = "\n".join(lines)

            assert status == 0
            assert "event: closing" in rest or "event: reconnect" in rest
            assert "Traceback" not in service.err()
            assert "stopped" in service.err()
            assert not (tmp_path / "data" / "server.sock").exists()


class TestSecondStart:
    def test_on_the_same_folder_says_so_in_one_line(self, tmp_path: Path) -> None:
        with RunningService(tmp_path) as service:
            again = command(
                "dev", env={"SESSIONS_DATA_DIR": str(tmp_path / "data"), "PORT": str(free_port())}
            )

            assert again.returncode != 0
            assert again.stderr.count("\n") == 1
            assert f"is in use by pid {service.process.pid}" in again.stderr
            assert service.create()

    def test_on_the_same_port_names_the_variable(self, tmp_path: Path) -> None:
        """And leaves no server behind: the folder is free for the next start."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]

            refused = command("dev", env={"SESSIONS_DATA_DIR": str(tmp_path / "data"), "PORT": str(port)})

        assert refused.returncode != 0
        assert refused.stderr.count("\n") == 1
        assert f"port {port} on 127.0.0.1 is in use" in refused.stderr
        assert "PORT" in refused.stderr
        with RunningService(tmp_path) as service:
            assert service.create()


class TestRedisUrl:
    @pytest.mark.servers("valkey")
    def test_is_used_instead_of_an_own_server(self, tmp_path: Path, redis_url: str) -> None:
        with RunningService(tmp_path, env={"REDIS_URL": redis_url}) as service:
            session_id = service.create()
            assert service.say(session_id, "hello") == "echo: hello"

            assert not (tmp_path / "data").exists()
            httpx2.delete(f"{service.sessions}/{session_id}", trust_env=False)


class TestBadSettings:
    def test_are_all_named_before_anything_starts(self, tmp_path: Path) -> None:
        env = {
            "PORT": "eighty",
            "SESSION_RETENTION_MINUTES": "0",
            "SESSIONS_DATA_DIR": str(tmp_path / "data"),
        }

        refused = command("dev", env=env)

        assert refused.returncode == 2
        assert "PORT='eighty': allowed is 0..65535" in refused.stderr
        assert "SESSION_RETENTION_MINUTES='0'" in refused.stderr
        assert not (tmp_path / "data").exists()


class TestChatPage:
    def test_is_the_file_in_examples(self, tmp_path: Path) -> None:
        with RunningService(tmp_path) as service:
            page = httpx2.get(f"{service.url}/chat", trust_env=False)

            assert page.status_code == 200
            assert page.text == Path("examples/chat.html").read_text()

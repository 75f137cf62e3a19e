"""Backup and restore as docs/operations.md has them: its very commands, and the conversation goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.client import Api, problem
from tests.support.servers import RealServer, launch
from tests.support.service import Service

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
COMMANDS = dict(re.findall(r"```sh (backup|restore|switch)\n(.+?)```", PAGE, re.DOTALL))
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        shutil.which("redis-cli") is None,
        reason="SKIPPED LOUDLY: no redis-cli; apt-get install redis-server",
    ),
]


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[RealServer]:
    server = launch("valkey", tmp_path / "redis")
    assert isinstance(server, RealServer)
    yield server
    server.stop()


@pytest.fixture
def service(lone: RealServer, tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "service", redis_url=lone.url) as service:
        yield service
        service.assert_no_bug_logged(allowed=frozenset({"redis_circuit_opened"}))


class Operator:
    """Who runs the page's commands, with the names in them."""

    def __init__(self, server: RealServer, backup: Path) -> None:
        self._server = server
        self._names = {"REDIS": server.url, "BACKUP": str(backup), "DATA": str(server.folder)}

    def run(self, name: str) -> None:
        done = subprocess.run(
            ["bash", "-eu", "-c", COMMANDS[name]],
            env=os.environ | self._names,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def lose_the_disk(self) -> None:
        self._server.kill()
        shutil.rmtree(self._server.folder)
        self._server.folder.mkdir()

    def start(self, *, appendonly: bool) -> None:
        settings = self._server.command_line()
        if not appendonly:
            settings += ["--appendonly", "no"]
        self._server.command_line = lambda: settings  # type: ignore[method-assign]
        self._server.start()
        del self._server.command_line


def contents(api: Api, session_id: str) -> list[str]:
    return [message["content"] for message in api.history(session_id)["messages"]][::-1]


def test_a_restored_conversation_goes_on_and_followers_know(
    lone: RealServer, service: Service, tmp_path: Path
) -> None:
    """What came after the backup is gone; whoever had heard of it is told; ends are where they were."""
    operator = Operator(lone, tmp_path / "sessions.rdb")
    with closing(Api(service.url)) as api:
        session_id = api.session()
        deleted = api.session()
        api.ask(session_id, "before")
        ends = api.get(session_id)["expiresAt"]
        operator.run("backup")
        key = {"Idempotency-Key": "after-the-backup"}
        api.call(
            "POST", f"/{session_id}/messages", json={"content": "after", "transport": "http"}, headers=key
        )
        assert contents(api, session_id) == ["before", "echo: before", "after", "echo: after"]
        cursor = api.get(session_id)["cursor"]
        api.call("DELETE", f"/{deleted}")

        operator.lose_the_disk()
        problem(api.call("GET", f"/{session_id}"), 503, "STORAGE_UNAVAILABLE")
        operator.run("restore")
        operator.start(appendonly=False)
        operator.run("switch")
        service.wait_until_ready()

        assert contents(api, session_id) == ["before", "echo: before"]
        assert api.get(session_id)["expiresAt"] == ends
        assert api.get(deleted)["sessionId"] == deleted
        with api.events(session_id, last_event_id=str(cursor)) as stream:
            [*_, gap] = stream.until("gap")
            assert gap.data["data"]["reason"] == "rewound"
        again = api.call(
            "POST", f"/{session_id}/messages", json={"content": "after", "transport": "http"}, headers=key
        )
        assert again.status_code == 201, "the record of the key went back as well"
        assert contents(api, session_id)[2:] == ["after", "echo: after"]

        lone.restart()
        service.wait_until_ready()
        assert contents(api, session_id) == ["before", "echo: before", "after", "echo: after"]


def test_a_server_with_an_append_only_file_does_not_look_at_a_snapshot(
    lone: RealServer, tmp_path: Path
) -> None:
    """The trap that the page warns of: it starts, empty, and says nothing."""
    operator = Operator(lone, tmp_path / "sessions.rdb")
    lone.call("SET", "test:kept", "1", "PX", 600_000)
    operator.run("backup")
    operator.lose_the_disk()
    operator.run("restore")

    operator.start(appendonly=True)

    assert lone.call("DBSIZE") == 0

"""The commands for people: what they print, how they fail, and how they end."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx2
import pytest

from sessions_api.cli import COMMANDS
from tests.support.commands import USER, RunningService, clean_environment, command
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(120)
SECONDS = {"SESSIONS_ENV": "test", "SESSION_MIN_TIMEOUT_MINUTES": "0.01"}
UNKNOWN = "99999999-9999-4999-8999-999999999999"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("service"), env=SECONDS) as service:
        yield service


def ask(service: RunningService, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return command(*words, env={"SESSIONS_URL": service.url}, text=text)


class TestHelp:
    def test_lists_every_command(self) -> None:
        shown = command("--help")

        assert shown.returncode == 0
        assert all(f"\n  {name} " in shown.stdout for name in COMMANDS)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_each_command_says_what_it_does(self, name: str) -> None:
        shown = command(name, "--help")

        assert shown.returncode == 0
        assert f"usage: sessions-api {name}" in shown.stdout
        assert "options:" in shown.stdout

    def test_an_unknown_command_is_told_the_known_ones(self) -> None:
        refused = command("start")

        assert refused.returncode == 2
        assert "'dev'" in refused.stderr
        assert "Traceback" not in refused.stderr


class TestErrors:
    @pytest.mark.parametrize("words", [("ls",), ("show", UNKNOWN), ("tail", UNKNOWN), ("chat",)])
    def test_without_a_service_say_how_to_start_one(self, words: tuple[str, ...]) -> None:
        refused = command(*words, env={"PORT": str(free_port())})

        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert "start one with `sessions-api dev`" in refused.stderr

    @pytest.mark.parametrize("name", ["show", "tail"])
    def test_an_unknown_session_is_one_line(self, service: RunningService, name: str) -> None:
        refused = ask(service, name, UNKNOWN)

        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert "SESSION_NOT_FOUND" in refused.stderr

    def test_something_else_on_the_port_is_recognised(self, service: RunningService) -> None:
        refused = command("ls", env={"SESSIONS_URL": f"{service.url}/docs"})

        assert refused.returncode == 1
        assert "Traceback" not in refused.stderr


class TestLs:
    def test_shows_a_table_of_one_user(self, service: RunningService) -> None:
        user = "44444444-4444-4444-8444-444444444444"
        ids = {service.create(userId=user) for _ in range(3)}

        lines = ask(service, "ls", "--user", user).stdout.splitlines()

        assert lines[0].split()[:3] == ["SESSION", "AGENT", "USER"]
        assert {line.split()[0] for line in lines[1:]} == ids

    def test_as_json_is_what_the_api_sends(self, service: RunningService) -> None:
        session_id = service.create()

        lines = ask(service, "ls", "--json", "--limit", "0").stdout.splitlines()

        assert session_id in {json.loads(line)["sessionId"] for line in lines}

    def test_stops_at_the_limit_and_says_so(self, service: RunningService) -> None:
        service.create()
        service.create()

        shown = ask(service, "ls", "--user", USER, "--limit", "1")

        assert len(shown.stdout.splitlines()) == 2
        assert "--limit" in shown.stderr


class TestShow:
    def test_tells_state_sources_and_messages(self, service: RunningService) -> None:
        session_id = service.create(timeoutConfig={"timeoutMinutes": 7})
        service.say(session_id, "hello")

        shown = ask(service, "show", session_id).stdout

        assert "timeoutMinutes          7 (from the session)" in shown
        assert "echo: hello" in shown

    def test_of_an_ended_session_what_was_said(self, service: RunningService) -> None:
        session_id = ended_session(service, "famous last words")

        shown = ask(service, "show", session_id)

        assert shown.returncode == 1
        assert "famous last words" in shown.stdout
        assert "SESSION_EXPIRED" in shown.stderr

    def test_what_others_wrote_cannot_steer_the_terminal(self, service: RunningService) -> None:
        session_id = service.create()
        service.say(session_id, "\x1b[2Jgone")

        assert "\x1b" not in ask(service, "show", session_id).stdout


class TestTail:
    def test_of_an_ended_session_shows_all_and_ends(self, service: RunningService) -> None:
        session_id = ended_session(service, "short")

        shown = ask(service, "tail", session_id, "--after", "0")

        assert shown.returncode == 0
        assert [line.split()[1] for line in shown.stdout.splitlines()] == [
            "message.created",
            "message.created",
            "session.expired",
            "closing",
        ]

    def test_goes_on_where_it_was_when_the_service_comes_back(self, tmp_path: Path) -> None:
        """The service is killed between two messages; each event is printed once, in order."""
        with RunningService(tmp_path) as first:
            session_id = first.create()
            first.say(session_id, "one")
            tail = subprocess.Popen(
                [sys.executable, "-m", "sessions_api", "tail", session_id, "--after", "0", "--json"],
                env=clean_environment({"SESSIONS_URL": first.url}),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            try:
                assert tail.stdout is not None
                events = map(json.loads, tail.stdout)
                said: list[str] = []
                while said != ["one", "echo: one"]:
                    event = next(events)
                    said += [event["data"]["content"]] if event["type"] == "message.created" else []
                first.stop(signal.SIGKILL)

                with RunningService(tmp_path, port=first.port) as second:
                    second.say(session_id, "two")
                    while len(said) < 4:
                        event = next(events)
                        said += [event["data"]["content"]] if event["type"] == "message.created" else []
                    httpx2.delete(f"{second.sessions}/{session_id}", trust_env=False)
                    said += [
                        event["data"]["content"] for event in events if event["type"] == "message.created"
                    ]

                assert said == ["one", "echo: one", "two", "echo: two"]
                assert tail.wait(20) == 0
            finally:
                tail.kill()
                tail.communicate()


class TestChat:
    def test_without_a_terminal_answers_line_by_line(self, service: RunningService) -> None:
        shown = ask(service, "chat", text="hello there\n\nhow are you\n")

        assert shown.returncode == 0
        assert shown.stdout == "echo: hello there\necho: how are you\n"
        assert shown.stderr.startswith("session ")

    def test_goes_on_with_a_session(self, service: RunningService) -> None:
        session_id = service.create()
        service.say(session_id, "before")

        shown = ask(service, "chat", "--session", session_id, text="after\n")

        assert shown.stdout.endswith("echo: after\n")
        assert service.history(session_id) == ["before", "echo: before", "after", "echo: after"]

    def test_a_session_that_is_over_takes_nothing_more(self, service: RunningService) -> None:
        session_id = ended_session(service, "short")

        shown = ask(service, "chat", "--session", session_id, text="too late\n")

        assert shown.returncode == 1
        assert "ended" in shown.stderr

    def test_in_a_terminal_counts_down_and_offers_a_new_session(self, service: RunningService) -> None:
        """The prompt holds the time left; after expiry, Enter starts another session."""
        with Terminal("chat", "--timeout", "0.06", env={"SESSIONS_URL": service.url}) as terminal:
            terminal.until("0:0", "› ")
            terminal.type("hello world\n")
            terminal.until("echo: hello world")
            terminal.until("has ended", "start a new session? [Y/n]")
            terminal.type("\n")
            terminal.until("› ")
            terminal.type("once more\n")
            terminal.until("echo: once more")
            terminal.type("/quit\n")

            assert terminal.wait() == 0


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *words: str, env: dict[str, str]) -> None:
        self._pid, self._screen = pty.fork()
        if self._pid == 0:
            os.environ.clear()
            os.environ.update(clean_environment(env | {"TERM": "xterm", "COLUMNS": "100"}))
            os.execv(sys.executable, [sys.executable, "-m", "sessions_api", *words])  # noqa: S606
        self._seen = ""
        self._raw = b""
        self._status: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._screen)

    def type(self, text: str) -> None:
        self._seen = ""
        os.write(self._screen, text.encode())

    def until(self, *texts: str) -> None:
        """Wait until all of *texts* have been shown since the last typing."""
        deadline_s = time.monotonic() + 20
        while not all(text in self._seen for text in texts):
            assert time.monotonic() < deadline_s, f"not shown: {texts} in {self._seen!r}"
            if select.select([self._screen], [], [], 0.1)[0]:
                self._seen += os.read(self._screen, 65536).decode(errors="replace")

    def wait(self) -> int:
        """The exit status."""
        deadline_s = time.monotonic() + 20
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
                return self._status
            assert time.monotonic() < deadline_s, "did not end"
            if select.select([self._screen], [], [], 0.05)[0]:
                try:
                    os.read(self._screen, 65536)
                except OSError:  # the other side has closed
                    time.sleep(0.01)


def ended_session(service: RunningService, content: str) -> str:
    """A session that said something and has expired."""
    config = {"timeoutMinutes": 0.01, "autoRenew": False, "warningThresholdMinutes": 0.005}
    session_id = service.create(timeoutConfig=config)
    service.say(session_id, content)
    deadline_s = time.monotonic() + 20
    while httpx2.get(f"{service.sessions}/{session_id}", trust_env=False).status_code != 410:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return session_id

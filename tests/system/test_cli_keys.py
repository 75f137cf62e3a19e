"""``sessions-api keys``: a key that is made opens, one that is removed does not; no secret is left behind."""

from __future__ import annotations

import argparse
import asyncio
import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from sessions_api.access.keyring import Keyring, mint
from sessions_api.cli import keys
from tests.support.commands import clean_environment, command
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)
AGENT = "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11"
USED = {"id": "key1", "app": "shop", "scopes": ["admin", "app"], "lastUsedAt": "2026-05-04T03:02:01.123Z"}
UNUSED = {"id": "key2abcdefgh", "app": "ops", "scopes": [f"agent:{AGENT}"]}
KEY = r"[a-z0-9]{12}\.[A-Za-z0-9_-]{43}"


def new(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return command("keys", "new", "--app", "shop", "--scope", "app", *words, env=env)


def opens(key: str, *, text: str = "", path: Path | None = None) -> bool:
    keyring = Keyring(text=text, path=path)
    keyring.load()
    return keyring.find(key) is not None


@contextmanager
def held_up(file: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """``sessions-api keys`` on *file* while another such command has it; it goes on after the block."""
    command = [sys.executable, "-m", "sessions_api", "keys", *words, "--file", str(file)]
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=clean_environment({}))
        try:
            asyncio.run(until(lambda: waits_for_a_lock(process.pid), within_s=30))
            yield process
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)
            process.wait(30)


def waits_for_a_lock(pid: int) -> bool:
    """As Linux tells it: a waiter's line has an arrow."""
    return re.search(rf"-> FLOCK +ADVISORY +WRITE {pid} ", Path("/proc/locks").read_text()) is not None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


class TestHelp:
    @pytest.mark.parametrize("verb", ["new", "ls", "rm"])
    def test_of_each_verb(self, verb: str) -> None:
        shown = command("keys", verb, "--help")

        assert shown.returncode == 0
        assert f"usage: sessions-api keys {verb}" in shown.stdout

    def test_without_a_verb_names_them(self) -> None:
        refused = command("keys")

        assert refused.returncode == 2
        assert "new | ls | rm" in refused.stderr


class TestNew:
    def test_prints_the_key_alone_to_the_output(self) -> None:
        """``KEY=$(sessions-api keys new …)`` holds the key and nothing else."""
        made = new()

        assert made.returncode == 0, made.stderr
        assert re.fullmatch(KEY + "\n", made.stdout)

    def test_without_a_file_shows_the_line_to_write_down(self) -> None:
        made = new("--scope", f"agent:{AGENT.upper()}")

        (line,) = re.findall(r"^ {4}(.*)$", made.stderr, re.MULTILINE)
        assert f" shop agent:{AGENT},app sha256:" in line
        assert opens(made.stdout.strip(), text=line)
        assert made.stdout.strip().partition(".")[2] not in made.stderr

    def test_makes_a_file_that_only_its_owner_may_read(self, file: Path) -> None:
        made = new("--file", str(file))

        assert made.returncode == 0, made.stderr
        assert file.stat().st_mode & 0o777 == 0o600
        assert opens(made.stdout.strip(), path=file)
        assert made.stdout.strip().partition(".")[2] not in file.read_text() + made.stderr

    @pytest.mark.parametrize("before", ["# ours\n", "# ours"])
    def test_appends_a_line_of_its_own(self, file: Path, before: str) -> None:
        """Also after an editor that left no newline at the end."""
        line, key = mint("other", ["admin"])
        file.write_text(f"{line}\n{before}")
        file.chmod(0o640)

        made = new(SESSIONS_KEYS_FILE=str(file))

        assert file.read_text().startswith(f"{line}\n# ours\n{made.stdout[:12]} shop app sha256:")
        assert file.read_text().count("\n") == 3
        assert file.stat().st_mode & 0o777 == 0o640
        assert opens(key, path=file)
        assert opens(made.stdout.strip(), path=file)

    @pytest.mark.parametrize(
        "words, told",
        [
            (["--app", "My Shop"], "'My Shop': an app is 1 to 32 of a-z, 0-9 and -"),
            (["--scope", "root"], "'root': a scope is admin, app or agent:<agentId>, which is a UUID"),
            (["--scope", "agent:support"], "'agent:support': a scope is"),
        ],
    )
    def test_refuses_what_no_key_may_be(self, words: list[str], told: str) -> None:
        refused = new(*words)

        assert (refused.returncode, refused.stdout) == (2, "")
        assert told in refused.stderr

    def test_needs_an_app_and_a_scope(self) -> None:
        assert "--app, --scope" in command("keys", "new").stderr

    def test_adds_nothing_to_a_file_that_the_service_would_refuse(self, file: Path) -> None:
        """The service would keep the keys it has, and the new one would not open."""
        file.write_text("what is this\n")

        refused = new("--file", str(file))

        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"sessions-api keys: {file}, line 1: it has 3 words" in refused.stderr
        assert file.read_text() == "what is this\n"

    @pytest.mark.parametrize("path, told", [("nowhere/keys", "No such file"), (".", "Is a directory")])
    def test_shows_no_key_that_was_not_written(self, tmp_path: Path, path: str, told: str) -> None:
        refused = new("--file", str(tmp_path / path))

        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"{tmp_path / path} cannot be changed: {told}" in refused.stderr

    def test_leaves_no_half_line_on_a_full_disk(self, file: Path) -> None:
        """Half a line would make the whole file one that the service refuses."""
        before = "#" * 1000 + "\n"
        file.write_text(before)
        words = [sys.executable, "-B", "-m", "sessions_api", "keys", "new", "--app", "shop", "--scope", "app"]

        refused = subprocess.run(
            ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *words, "--file", str(file)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=clean_environment({}),
        )

        assert (refused.returncode, refused.stdout) == (1, "")
        assert "cannot be changed: File too large" in refused.stderr
        assert file.read_text() == before


class TestRm:
    def test_removes_the_line_and_nothing_else(self, file: Path) -> None:
        (one, key), (two, gone), (three, last) = (mint("shop", ["app"]) for _ in range(3))
        file.write_bytes(f"# ours\n{one}\n\n  {two} # Ann's\n{three}".encode() + b" # Ren\xe9's")
        file.chmod(0o640)

        removed = command("keys", "rm", gone[:12], "--file", str(file))

        assert removed.stdout == f"key {gone[:12]} is removed from {file}\n"
        assert file.read_bytes() == f"# ours\n{one}\n\n{three}".encode() + b" # Ren\xe9's"
        assert file.stat().st_mode & 0o777 == 0o640
        assert list(file.parent.iterdir()) == [file]
        assert {key[:12], last[:12]} <= set(file.read_bytes().decode("latin-1").split())

    def test_keeps_the_file_where_no_other_could_have_its_owner(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its group is the container's, and whoever runs the command is not in it."""
        (one, _), (two, gone), (three, _) = (mint("shop", ["app"]) for _ in range(3))
        file.write_text(f"{one}\n{two}\n{three}\n")
        before = file.stat()

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "fchown", refuse)
        parser = argparse.ArgumentParser()
        keys.arguments(parser)
        status = keys.run(parser.parse_args(["rm", gone[:12], "--file", str(file)]))

        assert status == 0
        assert file.read_text() == f"{one}\n{three}\n"
        assert file.stat().st_ino == before.st_ino
        assert list(file.parent.iterdir()) == [file]

    def test_makes_a_running_keyring_forget_the_key(self, file: Path) -> None:
        key = new("--file", str(file)).stdout.strip()
        keyring = Keyring(path=file)
        keyring.load()
        assert keyring.find(key) is not None

        removed = command("keys", "rm", key[:12], env={"SESSIONS_KEYS_FILE": str(file)})

        assert "no key is left" in removed.stderr
        assert keyring.refresh()
        assert keyring.find(key) is None

    def test_leaves_a_link_to_the_file_a_link(self, file: Path, tmp_path: Path) -> None:
        key = new("--file", str(file)).stdout.strip()
        link = tmp_path / "link"
        link.symlink_to(file)

        removed = command("keys", "rm", key[:12], "--file", str(link))

        assert removed.returncode == 0, removed.stderr
        assert link.readlink() == file
        assert file.read_text() == ""

    def test_works_on_a_file_with_bad_lines(self, file: Path) -> None:
        """It is one way to put the file right."""
        file.write_text("key1 is nonsense\nkey2 too\n")

        assert command("keys", "rm", "key1", "--file", str(file)).returncode == 0
        assert file.read_text() == "key2 too\n"

    def test_says_that_the_id_is_not_there(self, file: Path) -> None:
        line, key = mint("shop", ["app"])
        file.write_text(f"# key1\n{line}\n")

        for words in ("key1", key[:11], "shop"):
            refused = command("keys", "rm", words, "--file", str(file))
            assert refused.returncode == 1
            assert refused.stderr == f"sessions-api keys: no key {words} is in {file}\n"
        assert file.read_text() == f"# key1\n{line}\n"

    def test_never_repeats_a_whole_key(self, file: Path) -> None:
        """A key is easily pasted where its id belongs, and a terminal's lines end up in many places."""
        _, key = mint("shop", ["app"])

        refused = command("keys", "rm", key, "--file", str(file))

        assert refused.returncode == 2
        assert "what stands before its dot" in refused.stderr
        assert key.partition(".")[2] not in refused.stderr

    def test_needs_a_file(self, file: Path) -> None:
        unnamed = command("keys", "rm", "key1")
        missing = command("keys", "rm", "key1", "--file", str(file))

        assert unnamed.stderr == "sessions-api keys: which file? Name it with --file or SESSIONS_KEYS_FILE\n"
        assert unnamed.returncode == 2
        assert missing.stderr == f"sessions-api keys: {file} cannot be changed: No such file or directory\n"
        assert not file.exists()

    def test_at_the_same_time_as_new_loses_no_key(self, file: Path) -> None:
        """`new` waits while `rm` works, and then writes to the file that `rm` has put in place."""
        file.write_text("")
        beside = file.with_suffix(".new")
        beside.write_text("# what `rm` leaves\n")

        with held_up(file, "new", "--app", "shop", "--scope", "app") as process:
            beside.replace(file)

        assert process.returncode == 0
        assert re.fullmatch(r"# what `rm` leaves\n[a-z0-9]{12} shop app sha256:\w{64}\n", file.read_text())

    def test_keeps_what_new_wrote_at_the_same_time(self, file: Path) -> None:
        line, key = mint("shop", ["app"])
        other, _ = mint("shop", ["app"])
        file.write_text(f"{line}\n")

        with held_up(file, "rm", key[:12]) as process, file.open("a") as end:
            end.write(f"{other}\n")

        assert process.returncode == 0
        assert file.read_text() == f"{other}\n"


class StandIn:
    """Answers every request with one reply, as a service would."""

    def __init__(self) -> None:
        self.status = 200
        self.reply: dict[str, Any] = {"keys": []}
        self.asked: list[str] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.asked.append(self.path)
                body = json.dumps(stand_in.reply).encode()
                self.send_response(stand_in.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing: a test's output is its own."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service() -> Iterator[StandIn]:
    stand_in = StandIn()
    thread = Thread(target=stand_in.server.serve_forever)
    thread.start()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()
    thread.join()


class TestLs:
    def test_shows_each_key_and_its_last_use(self, service: StandIn) -> None:
        service.reply = {"keys": [USED, UNUSED]}

        shown = command("keys", "ls", "--url", service.url)

        assert service.asked == ["/api/keys"]
        assert [re.split(r" {2,}", line) for line in shown.stdout.splitlines()] == [
            ["ID", "APP", "SCOPES", "LAST USED"],
            ["key1", "shop", "admin,app", "2026-05-04 03:02:01"],
            ["key2abcdefgh", "ops", f"agent:{AGENT}", "-"],
        ]

    def test_as_json_is_what_the_api_sends(self, service: StandIn) -> None:
        service.reply = {"keys": [USED, UNUSED]}

        shown = command("keys", "ls", "--json", env={"SESSIONS_URL": service.url})

        assert [json.loads(line) for line in shown.stdout.splitlines()] == [USED, UNUSED]

    def test_of_none_says_so(self, service: StandIn) -> None:
        shown = command("keys", "ls", "--url", service.url)

        assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "no keys\n")

    def test_tells_why_the_service_refuses(self, service: StandIn) -> None:
        service.status = 403
        service.reply = {"error": {"code": "FORBIDDEN", "message": "For admins", "requestId": "r1"}}

        shown = command("keys", "ls", "--url", service.url)

        assert shown.returncode == 1
        assert shown.stderr == "sessions-api keys: For admins (FORBIDDEN, request r1)\n"

"""``tools/audit``: a known vulnerability fails it, and nothing is passed over in silence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.deploy.deployed import CHECKOUT
from tests.support.ports import free_port

ADVISORY = {
    "id": "PYSEC-2026-1",
    "summary": "Reads more than it should",
    "affected": [
        {
            "package": {"name": "starlette", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
        }
    ],
}
LOCKS = ("requirements.lock", "requirements-otel.lock", "requirements-build.lock")
"""What goes into an image, with tracing or without, and what builds it."""
Pin = tuple[str, str]


class Advisories(ThreadingHTTPServer):
    """Answers as OSV does, with what :attr:`known` says of a package; or with *status* whatever is asked."""

    daemon_threads = True

    def __init__(self, *, status: int = 200) -> None:
        self.status = status
        self.known: dict[str, Any] = {}
        self.asked: set[Pin] = set()
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/query"


class _Answer(BaseHTTPRequestHandler):
    server: Advisories

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["package"]["name"]
        self.server.asked.add((name, asked["version"]))
        reply = json.dumps(self.server.known.get(name, {})).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    with Advisories() as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield server
        server.shutdown()
        serving.join()


def audit(*locks: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        [sys.executable, CHECKOUT / "tools" / "audit", *locks],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def pins(lock: str) -> set[Pin]:
    """Those that a machine like this one installs."""
    lines = (CHECKOUT / lock).read_text().splitlines()
    wanted = [Requirement(line.removesuffix(" \\")) for line in lines if line[:1].isalnum()]
    return {
        (each.name, str(each.specifier).removeprefix("=="))
        for each in wanted
        if each.marker is None or each.marker.evaluate()
    }


class TestAnswered:
    def test_asks_about_every_pin(self, advisories: Advisories) -> None:
        """Of the service and of what builds it, in the version that is locked."""
        looked_up = audit(AUDIT_ADVISORIES=advisories.url)

        assert looked_up.returncode == 0, looked_up.stderr
        wanted = set().union(*map(pins, LOCKS))
        assert len(wanted) > 15
        assert advisories.asked == wanted
        assert looked_up.stdout == f"0 known vulnerabilities in {len(wanted)} locked packages\n"

    def test_a_known_vulnerability_fails_it(self, advisories: Advisories) -> None:
        """And says which it is and which release is free of it."""
        advisories.known["starlette"] = {"vulns": [ADVISORY]}

        looked_up = audit(AUDIT_ADVISORIES=advisories.url)

        assert looked_up.returncode == 1, looked_up.stderr
        [line] = [line for line in looked_up.stdout.splitlines() if "PYSEC" in line]
        assert line.startswith("starlette ")
        assert "PYSEC-2026-1, fixed by 99.1: Reads more than it should" in line

    def test_a_lock_without_hashes_fails_it(self, advisories: Advisories, tmp_path: Path) -> None:
        """What is not pinned cannot be looked up."""
        lock = tmp_path / "some.lock"
        lock.write_text("starlette>=1\n")

        looked_up = audit(lock, AUDIT_ADVISORIES=advisories.url)

        assert looked_up.returncode == 2
        assert "hash" in looked_up.stderr

    @pytest.mark.parametrize("status", [400, 404, 429, 500])
    def test_an_answer_that_is_none_fails_it(self, advisories: Advisories, status: int) -> None:
        """A service that is there and does not answer the question is no reason to be content."""
        advisories.status = status

        looked_up = audit(AUDIT_ADVISORIES=advisories.url)

        assert looked_up.returncode == 2
        assert "the look-up failed" in looked_up.stderr


class TestUnanswered:
    def assert_skipped_loudly(self, skipped: subprocess.CompletedProcess[str]) -> None:
        assert skipped.returncode == 0, skipped.stderr
        assert skipped.stdout == ""
        first, second, third = skipped.stderr.splitlines()
        assert first.startswith("AUDIT SKIPPED: ")
        assert "CANNOT BE REACHED" in first
        assert second == f"NOT CHECKED FOR KNOWN VULNERABILITIES: {' '.join(LOCKS)}."
        assert "make audit" in third

    def test_without_a_network_it_says_what_it_did_not_check(self) -> None:
        self.assert_skipped_loudly(audit(AUDIT_ADVISORIES=f"http://127.0.0.1:{free_port()}/v1/query"))

    def test_behind_a_proxy_that_is_away_too(self) -> None:
        """With the address it has by itself."""
        self.assert_skipped_loudly(audit(https_proxy=f"http://127.0.0.1:{free_port()}"))

    @pytest.mark.parametrize("status", [403, 407, 502, 503])
    def test_behind_a_gateway_that_lets_nothing_through_too(
        self, advisories: Advisories, status: int
    ) -> None:
        advisories.status = status

        self.assert_skipped_loudly(audit(AUDIT_ADVISORIES=advisories.url))


def test_is_no_part_of_check() -> None:
    """CI's verdict on a commit does not change with what is published elsewhere."""
    makefile = (CHECKOUT / "Makefile").read_text()

    [check] = re.findall(r"^check:(.*?)##", makefile, re.MULTILINE)
    assert "audit" not in check
    assert re.search(r"^audit: .*\n\t@\$\(BIN\)/python tools/audit$", makefile, re.MULTILINE)

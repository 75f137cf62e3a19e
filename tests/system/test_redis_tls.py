"""TLS to Redis: all works over it, and what cannot be trusted is refused in one line that says why."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Self

import pytest
import redis

from sessions_api.embedded import ending_with
from tests.support.client import Api, eventually, problem, some_id
from tests.support.commands import command
from tests.support.papers import Papers
from tests.support.ports import free_port
from tests.support.servers import OPTIONS, START_TIMEOUT_S, binaries
from tests.support.service import Service

# Of the servers that the tests have, only Debian's is built with TLS.
BINARY = binaries().get("debian")
PASSWORD = "geheim-geheim"
TRUSTED = {"ssl_ca_certs": "ca.pem"}
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(BINARY is None, reason="no server with TLS here: apt-get install redis-server"),
]


class TlsServer:
    """A Redis, from entering to leaving; *options* say what it shows and asks for."""

    def __init__(self, folder: Path, papers: Papers, options: Mapping[str, str]) -> None:
        self.port = free_port()
        self.plain_port = free_port()
        self.papers = papers
        folder.mkdir()
        self._folder = folder
        self._options = OPTIONS | {
            "port": str(self.plain_port),
            "tls-port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(folder),
            "requirepass": PASSWORD,
            **options,
        }

    def __enter__(self) -> Self:
        options = [word for name, value in self._options.items() for word in (f"--{name}", value)]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(BINARY), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=ending_with(os.getpid()),  # noqa: PLW1509  two system calls, no lock
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.__exit__()
                raise AssertionError((self._folder / "log").read_text()[-2000:])
            time.sleep(0.01)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        with redis.Redis(port=self.plain_port, password=PASSWORD) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    def url(self, arguments: Mapping[str, str], *, scheme: str = "rediss", port: int = 0) -> str:
        """The address with redis-py's *arguments*; a value with a dot is one of the papers."""
        words = [
            f"{name}={self.papers[value] if '.' in value else value}" for name, value in arguments.items()
        ]
        return f"{scheme}://:{PASSWORD}@127.0.0.1:{port or self.port}/0?{'&'.join(words)}"


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, papers: Papers) -> Iterator[TlsServer]:
    """It shows who it is, and asks nobody."""
    folder = tmp_path_factory.mktemp("tls") / "redis"
    with TlsServer(folder, papers, {"tls-auth-clients": "no", **papers.shown_by("here")}) as server:
        yield server


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory, papers: Papers) -> Iterator[TlsServer]:
    """It lets in only who shows a certificate of its authority."""
    folder = tmp_path_factory.mktemp("asking") / "redis"
    with TlsServer(folder, papers, {"tls-auth-clients": "yes", **papers.shown_by("here")}) as server:
        yield server


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, papers: Papers) -> Iterator[TlsServer]:
    """Its certificate is of the right authority, and for another name."""
    folder = tmp_path_factory.mktemp("elsewhere") / "redis"
    with TlsServer(folder, papers, {"tls-auth-clients": "no", **papers.shown_by("elsewhere")}) as server:
        yield server


class TestTrusted:
    def test_everything_works(self, tls: TlsServer, tmp_path: Path) -> None:
        """Scripts, answers, and what one replica publishes to a follower at another."""
        url = tls.url(TRUSTED)
        with (
            Service(tmp_path / "one", redis_url=url) as one,
            Service(tmp_path / "two", redis_url=url) as two,
            closing(Api(one.url)) as near,
            closing(Api(two.url)) as far,
        ):
            session_id = near.session()
            with far.events(session_id) as stream:
                assert stream.next().name == "session.snapshot"
                assert near.ask(session_id, "hello")["agentResponse"]["text"] == "echo: hello"
                assert "turn.delta" in [event.name for event in stream.until("turn.completed")]
        for service in (one, two):
            assert PASSWORD not in service.log
            service.assert_no_bug_logged()

    def test_a_client_certificate_is_shown(self, asking: TlsServer) -> None:
        """Where Redis asks for one, it lets in who has it and nobody else."""
        shown = {"ssl_certfile": "client.pem", "ssl_keyfile": "client.key", "ssl_ca_certs": "ca.pem"}
        strange = shown | {"ssl_certfile": "stranger.pem", "ssl_keyfile": "stranger.key"}

        assert "ok    rights" in command("doctor", "--redis-url", asking.url(shown)).stdout
        for url in (asking.url(strange), asking.url(TRUSTED)):
            refused_by_doctor(url, "does not answer")


def refused_by_doctor(url: str, says: str) -> None:
    looked = command("doctor", "--redis-url", url)
    assert looked.returncode != 0, looked.stdout
    assert says in looked.stderr
    assert looked.stderr.count("\n") == 1, looked.stderr
    assert PASSWORD not in looked.stdout + looked.stderr


class TestDistrusted:
    @pytest.mark.parametrize("authority", [{}, {"ssl_ca_certs": "another-ca.pem"}])
    def test_is_a_server_of_an_unknown_authority(self, tls: TlsServer, authority: dict[str, str]) -> None:
        """Without ``ssl_ca_certs`` the machine's own authorities count, and ours is none of them."""
        refused_by_doctor(tls.url(authority), "certificate verify failed")

    def test_is_a_server_with_anothers_name(self, elsewhere: TlsServer) -> None:
        refused_by_doctor(elsewhere.url(TRUSTED), "IP address mismatch")

    def test_is_no_tls_where_it_was_asked_for(self, tls: TlsServer) -> None:
        """Nothing falls back to plain text, whichever side expects it."""
        refused_by_doctor(tls.url(TRUSTED, port=tls.plain_port), "Timeout connecting")
        refused_by_doctor(tls.url({}, scheme="redis"), "no connection")

    @pytest.mark.parametrize(
        "arguments, says",
        [
            ({"ssl_cert_reqs": "sometimes"}, "Redis URL is unusable"),
            ({"ssl_nonsense": "1"}, "Redis URL is unusable"),
            ({"ssl_ca_certs": "absent.pem"}, "No such file"),
            ({"ssl_ca_certs": "here.key"}, "no certificate"),
        ],
    )
    def test_an_argument_that_is_wrong_is_told(
        self, tls: TlsServer, arguments: dict[str, str], says: str
    ) -> None:
        refused_by_doctor(tls.url(arguments), says)

    def test_the_service_says_why_and_waits(self, tls: TlsServer, tmp_path: Path) -> None:
        """It is not ready, answers 503, and its log has the reason without a stack or the password."""
        service = Service(tmp_path, redis_url=tls.url({"ssl_ca_certs": "another-ca.pem"}))
        service.start(until_ready=False)
        try:
            eventually(lambda: service.readiness() == 503, within_s=20)
            eventually(lambda: "redis_circuit_opened" in service.log, within_s=20)
            with closing(Api(service.url)) as api:
                body = {"agentId": some_id(), "userId": some_id()}
                problem(api.call("POST", "", json=body), 503, "STORAGE_UNAVAILABLE")
        finally:
            assert service.stop() == 0

        [reason, *_] = [
            each["reason"] for each in service.records() if each["event"] == "redis_circuit_opened"
        ]
        assert "certificate verify failed" in reason
        assert PASSWORD not in service.log
        assert "Traceback" not in service.log

"""The balancers' files: valid, and their times and sizes fit those of the service."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, Self

import httpx2
import pytest
import uvicorn

from sessions_api.api.bodies import MAX_WAIT_MS
from sessions_api.api.endpoints.workers import MAX_ANSWER_BYTES
from sessions_api.cli.connections import Connection
from sessions_api.cli.serving import _config
from sessions_api.live.sse import BEAT_S
from sessions_api.settings import Settings
from tests.deploy.compose import services
from tests.deploy.deployed import DEPLOY
from tests.deploy.programs import HAProxy, Nginx, answers, checked, missing, nginx_files, until

HAPROXY = (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
NGINX = (DEPLOY / "nginx" / "nginx.conf").read_text()
INGRESS = (DEPLOY / "kubernetes" / "ingress.yaml").read_text()
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
LONGEST_ASKED_S = MAX_WAIT_MS / 1000
"""A poster's timeoutMs: no byte has to come for so long, and nothing is wrong."""


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)(ms|s|m|h)", text)
    assert found is not None, text
    return int(found[1]) * UNITS[found[2]]


def haproxy_s(name: str) -> float:
    [value] = re.findall(rf"^ +timeout {name} +(\S+)$", HAPROXY, re.MULTILINE)
    return seconds(value)


def nginx_s(name: str) -> float:
    values = re.findall(rf"^ +{name} (\S+);$", NGINX, re.MULTILINE)
    return seconds(values[-1])


def served() -> uvicorn.Config:
    """What runs the service, as it does."""
    return _config("unused", Settings())


class TestTheFiles:
    @pytest.mark.skipif(bool(missing("haproxy")), reason=missing("haproxy"))
    def test_of_haproxy_is_valid(self) -> None:
        """Also where names cannot be looked up: HAProxy starts before the replicas do."""
        result = checked("haproxy", "-c", "-f", DEPLOY / "haproxy" / "haproxy.cfg")

        assert result.returncode == 0, result.stdout + result.stderr
        warned = [line for line in result.stderr.splitlines() if "[WARNING]" in line]
        assert [line for line in warned if "could not resolve address" not in line] == []

    @pytest.mark.skipif(bool(missing("nginx")), reason=missing("nginx"))
    def test_of_nginx_is_valid(self, tmp_path: Path) -> None:
        file = nginx_files(tmp_path, [f"127.0.0.1:{port}" for port in (3001, 3002, 3003)], 3000)

        result = checked("nginx", "-t", "-p", tmp_path, "-c", file)

        assert result.returncode == 0, result.stderr
        assert "[warn]" not in result.stderr


class TestTimes:
    def test_cut_no_stream_that_is_idle(self) -> None:
        """Ten quiet minutes, or a day: the service says something before any patience ends, twice over."""
        ping_s = served().ws_ping_interval
        assert ping_s is not None
        for patience_s in (haproxy_s("client"), haproxy_s("server"), nginx_s("proxy_read_timeout")):
            assert patience_s > 2 * BEAT_S
        for patience_s in (haproxy_s("tunnel"), nginx_s("proxy_read_timeout")):
            assert patience_s > 2 * ping_s

    def test_cut_no_poster_who_waits(self) -> None:
        [ingress_s] = re.findall(r'proxy-read-timeout: "(\d+)"', INGRESS)
        for patience_s in (
            haproxy_s("client"),
            haproxy_s("server"),
            nginx_s("proxy_read_timeout"),
            float(ingress_s),
        ):
            assert patience_s >= LONGEST_ASKED_S + 30

    def test_are_short_for_a_head_that_does_not_come(self) -> None:
        """Shorter than the service's own, which a balancer's connection would use up otherwise."""
        assert haproxy_s("http-request") < Connection.arrival_s
        assert nginx_s("client_header_timeout") < Connection.arrival_s

    def test_keep_no_connection_that_the_service_closes(self) -> None:
        """One lets go first; HAProxy purges well before, and repeats what a closing connection swallowed."""
        kept_s = served().timeout_keep_alive

        [upstream] = re.findall(r"upstream api \{(.*?)\n    \}", NGINX, re.DOTALL)
        [nginx_keeps] = re.findall(r"keepalive_timeout (\S+);", upstream)
        assert seconds(nginx_keeps) < kept_s
        [purged] = re.findall(r"pool-purge-delay (\S+)", HAPROXY)
        assert seconds(purged) < kept_s / 2

    def test_let_streams_end_before_the_container_does(self) -> None:
        [hard] = re.findall(r"hard-stop-after (\S+)", HAPROXY)

        assert seconds(services()["balancer"]["stop_grace_period"]) > seconds(hard)
        assert services()["balancer"]["stop_signal"] == "SIGUSR1"  # HAProxy's word for: take no more

    def test_find_a_draining_replica_soon(self) -> None:
        """Well within its drain."""
        [every, fall] = re.findall(r"check inter (\S+) .* fall (\d+) ", HAPROXY)[0]

        assert seconds(every) * int(fall) < Settings().drain_seconds / 4


class TestSizes:
    def test_let_the_service_refuse_in_its_own_words(self) -> None:
        """The outer bound is above the largest body that any route takes."""
        [haproxy_bytes] = re.findall(r"req.hdr_val\(content-length\) gt (\d+)", HAPROXY)
        [nginx_mib] = re.findall(r"client_max_body_size (\d+)m;", NGINX)
        [ingress_mib] = re.findall(r"proxy-body-size: (\d+)m", INGRESS)

        for most_bytes in (int(haproxy_bytes), int(nginx_mib) * 2**20, int(ingress_mib) * 2**20):
            assert most_bytes >= 2 * MAX_ANSWER_BYTES

    def test_leave_the_service_room_beside_its_clients(self) -> None:
        """For HAProxy's checks, its idle connections, and whoever else asks a replica how it is."""
        [most] = re.findall(r"^    default-server .* maxconn (\d+) ", HAPROXY, re.MULTILINE)
        service_has = served().limit_concurrency
        descriptors = services()["balancer"]["ulimits"]["nofile"]

        assert service_has is not None
        assert int(most) <= service_has - 1_000
        assert int(most) > Settings().sessions_max_followers
        assert 2 * 3 * int(most) < descriptors

    def test_let_any_usual_message_be_repeated(self) -> None:
        """What HAProxy sends to another replica has to be in its buffer, with each character escaped."""
        [buffer] = re.findall(r"tune.bufsize (\d+)", HAPROXY)

        assert int(buffer) > Settings().session_max_content_chars * len(r"\u00e9") + 4096


class TestRepeats:
    def test_are_only_of_what_may_be_repeated(self) -> None:
        """A read, or what carries an Idempotency-Key; anything, where no connection came about."""
        [line] = re.findall(r"http-request disable-l7-retry unless (.*)", HAPROXY)
        assert line == "{ method GET HEAD OPTIONS } || { req.hdr(Idempotency-Key) -m found }"
        [reasons] = re.findall(r"retry-on (.*)", HAPROXY)
        assert set(reasons.split()) == {"conn-failure", "empty-response", "503"}

        assert "non_idempotent" not in NGINX + INGRESS


class Replica(ThreadingHTTPServer):
    """Runs from entering to leaving, ready until told otherwise.

    It hangs up on who asks for ``/broken``, says nothing to who asks for ``/silent``, and 503 to who asks
    for ``/away``. ``/stream`` has a first line at once, and a last one when :attr:`is_over` is set.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.is_ready = True
        self.is_over = threading.Event()
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.is_over.set()
        self.shutdown()
        self.server_close()


class _Answer(BaseHTTPRequestHandler):
    server: Replica

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/silent":
            self.server.is_over.wait(30)
        elif self.path == "/stream":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"first\n")
            self.server.is_over.wait(30)
            self.wfile.write(b"last\n")
        elif self.path != "/broken":
            self.send_response(200 if self.server.is_ready and self.path != "/away" else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def three(name: str, folder: Path, replicas: Sequence[Replica]) -> HAProxy | Nginx:
    """The balancer of this name before three of *replicas*, which may be the same."""
    addresses = [each.address for each in replicas]
    if name == "haproxy":
        return HAProxy(folder / name, addresses)
    return Nginx(folder / name, addresses)


@pytest.mark.skipif(bool(missing("haproxy", "nginx")), reason=missing("haproxy", "nginx"))
@pytest.mark.parametrize("name", ["haproxy", "nginx"])
class TestAReplicaThatSays503:
    """About a session whose Redis is away every replica says it: that tells nothing of the replica."""

    def test_goes_on_with_everybody_else(self, name: str, tmp_path: Path) -> None:
        with ExitStack() as stack:
            replicas = [stack.enter_context(Replica()) for _ in range(3)]
            balancer = three(name, tmp_path, replicas)
            stack.enter_context(balancer)
            with httpx2.Client(base_url=balancer.url, timeout=20, trust_env=False) as client:
                told = [client.get(path).status_code for path in ("/away", "/") * 50]

        assert Counter(zip(("/away", "/") * 50, told, strict=True)) == {("/away", 503): 50, ("/", 200): 50}

    def test_is_asked_while_another_is_dead(self, name: str, tmp_path: Path) -> None:
        """Which still is found out, and gone round."""
        with ExitStack() as stack:
            replicas = [stack.enter_context(Replica()) for _ in range(3)]
            balancer = three(name, tmp_path, replicas)
            stack.enter_context(balancer)
            replicas[0].shutdown()
            replicas[0].server_close()
            with httpx2.Client(base_url=balancer.url, timeout=20, trust_env=False) as client:
                told = [client.get(path).status_code for path in ("/away", "/") * 50]

        assert Counter(told[1::2]) == {200: 50}


@pytest.mark.skipif(bool(missing("haproxy")), reason=missing("haproxy"))
class TestAChange:
    """SIGUSR2 to HAProxy's master, as deploy/README.md has it."""

    CHANGED: ClassVar = {"http-request deny deny_status 404 if {": "http-request deny deny_status 403 if {"}

    @pytest.fixture
    def replica(self) -> Iterator[Replica]:
        with Replica() as replica:
            yield replica

    @pytest.fixture
    def haproxy(self, replica: Replica, tmp_path: Path) -> Iterator[HAProxy]:
        with HAProxy(tmp_path / "haproxy", [replica.address] * 3) as haproxy:
            yield haproxy

    def test_ends_no_stream(self, haproxy: HAProxy, replica: Replica) -> None:
        with httpx2.stream("GET", f"{haproxy.url}/stream", timeout=20, trust_env=False) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "first"
            assert answers(f"{haproxy.url}/metrics", 404)

            haproxy.change(self.CHANGED)
            haproxy.reload()
            until(lambda: answers(f"{haproxy.url}/metrics", 403), "the changed file counts")
            replica.is_over.set()

            assert list(lines) == ["last"]
        assert answers(f"{haproxy.url}/")

    def test_that_is_not_valid_changes_nothing(self, haproxy: HAProxy) -> None:
        haproxy.change({"balance leastconn": "balance by-chance"})
        haproxy.reload()
        until(lambda: "balance only supports" in haproxy.log, "it is refused")

        assert answers(f"{haproxy.url}/metrics", 404)
        assert answers(f"{haproxy.url}/")

        haproxy.change(self.CHANGED)
        haproxy.reload()
        until(lambda: answers(f"{haproxy.url}/metrics", 403), "the next one counts")


def errors_of_their_own() -> dict[int, str]:
    """Status → code, as deploy/README.md promises them."""
    page = (DEPLOY / "README.md").read_text()
    [line] = re.findall(r"^- \*\*Errors of its own\*\* (.+)$", page, re.MULTILINE)
    assert "`Retry-After`" in line
    return {int(status): code for status, code in re.findall(r"(\d{3}) `([A-Z_]+)`", line)}


@pytest.mark.skipif(bool(missing("haproxy", "nginx")), reason=missing("haproxy", "nginx"))
class TestErrorsOfTheirOwn:
    """Each is asked for, by a replica that earns it, from the deployed file with one time made short."""

    @pytest.fixture
    def replica(self) -> Iterator[Replica]:
        with Replica() as replica:
            yield replica

    @pytest.fixture(params=["haproxy", "nginx"])
    def balancer(
        self, request: pytest.FixtureRequest, replica: Replica, tmp_path: Path
    ) -> Iterator[HAProxy | Nginx]:
        addresses = [replica.address] * 3
        balancer = (
            HAProxy(tmp_path / "haproxy", addresses, edits={"timeout server 330s": "timeout server 500ms"})
            if request.param == "haproxy"
            else Nginx(
                tmp_path / "nginx", addresses, times={"proxy_read_timeout 330s": "proxy_read_timeout 500ms"}
            )
        )
        with balancer:
            yield balancer

    @staticmethod
    def told(balancer: HAProxy | Nginx, method: str, path: str) -> tuple[int, str]:
        """Status and code; the rest is as of every error of theirs."""
        reply = httpx2.request(method, balancer.url + path, timeout=20, trust_env=False)

        assert reply.headers["content-type"] == "application/json"
        assert int(reply.headers["retry-after"]) >= 1
        error = reply.json()["error"]
        assert error["retryable"] is True
        assert error["message"]
        return reply.status_code, error["code"]

    @pytest.mark.parametrize("method", ["GET", "POST"])
    @pytest.mark.parametrize("path, status", [("/broken", 502), ("/silent", 504)])
    def test_say_when_to_come_again(
        self, balancer: HAProxy | Nginx, method: str, path: str, status: int
    ) -> None:
        assert self.told(balancer, method, path) == (status, errors_of_their_own()[status])

    def test_say_so_too_where_no_replica_is_there(self, balancer: HAProxy | Nginx, replica: Replica) -> None:
        """HAProxy knows; nginx asks, and finds nobody."""
        status = 503 if isinstance(balancer, HAProxy) else 502
        replica.is_ready = False
        if isinstance(balancer, HAProxy):
            until(lambda: balancer.ready_replicas() == 0, "HAProxy finds none ready")
        replica.shutdown()
        replica.server_close()

        assert self.told(balancer, "GET", "/") == (status, errors_of_their_own()[status])

    def test_are_all_tried(self) -> None:
        assert errors_of_their_own().keys() == {502, 503, 504}

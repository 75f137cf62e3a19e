"""The lines for HTTPS that stand in the balancers' files as comments: HTTP/1.1 and 2, streams, WebSockets."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.deploy.programs import HAProxy, Nginx, checked, missing, until
from tests.support.client import BASE, ECHO, Stream, some_id
from tests.support.ports import free_port
from tests.support.servers import TestServer, launch
from tests.support.service import Service

pytestmark = pytest.mark.skipif(bool(missing("haproxy", "nginx")), reason=missing("haproxy", "nginx"))


class Secured:
    """A balancer that speaks TLS, by a certificate of an authority that the test's clients trust."""

    def __init__(self, port: int, trust: ssl.SSLContext) -> None:
        self.port = port
        self.trust = trust
        self.url = f"https://localhost:{port}"

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, verify=self.trust, timeout=20, trust_env=False)

    def negotiated(self, *offered: str) -> str | None:
        """The protocol that it chooses of those *offered*."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the other tests look at the certificate
        context.set_alpn_protocols(list(offered))
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            return secured.selected_alpn_protocol()


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    redis: TestServer = launch("valkey", tmp_path_factory.mktemp("redis"))
    env = {"SESSIONS_TRUSTED_PROXIES": "127.0.0.1"}
    with Service(tmp_path_factory.mktemp("service"), redis_url=redis.url, env=env) as service:
        yield service
        service.assert_no_bug_logged()
    redis.stop()


@contextmanager
def haproxy(folder: Path, address: str, port: int, certificate: trustme.LeafCert) -> Iterator[None]:
    pem = folder / "certificate.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    lines = {
        "#bind :8443 ssl crt /run/secrets/certificate.pem": f"bind 127.0.0.1:{port} ssl crt {pem}",
        "#http-response": "http-response",
    }
    with HAProxy(folder / "haproxy", [address] * 3, edits=lines):
        yield


@contextmanager
def nginx(folder: Path, address: str, port: int, certificate: trustme.LeafCert) -> Iterator[None]:
    pem, key = folder / "certificate.pem", folder / "certificate_key.pem"
    certificate.private_key_pem.write_to_path(key)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(pem, append=True)
    lines = {
        "#listen 8443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
        "#ssl_certificate     /run/secrets/certificate.pem;": f"ssl_certificate {pem};",
        "#ssl_certificate_key /run/secrets/certificate_key.pem;": f"ssl_certificate_key {key};",
        "#ssl_protocols": "ssl_protocols",
        "#add_header": "add_header",
    }
    with Nginx(folder / "nginx", [address] * 3, edits=lines):
        yield


@pytest.fixture(scope="module", params=[haproxy, nginx], ids=["haproxy", "nginx"])
def secured(
    request: pytest.FixtureRequest, replica: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    port = free_port()
    certificate = authority.issue_cert("localhost")
    folder = tmp_path_factory.mktemp("secured")
    with request.param(folder, f"127.0.0.1:{replica.port}", port, certificate):
        yield Secured(port, trust)


def shown(port: int) -> bytes:
    """The certificate that is shown on this port."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def test_a_renewed_certificate_is_shown_once_haproxy_reads_it(replica: Service, tmp_path: Path) -> None:
    """Written in place of the old one, then SIGUSR2, as deploy/README.md has it."""
    port, pem, authority = free_port(), tmp_path / "certificate.pem", trustme.CA()
    old, new = (authority.issue_cert("localhost").private_key_and_cert_chain_pem for _ in range(2))
    old.write_to_path(pem)
    lines = {
        "#bind :8443 ssl crt /run/secrets/certificate.pem": f"bind 127.0.0.1:{port} ssl crt {pem}",
    }
    with HAProxy(tmp_path / "haproxy", [f"127.0.0.1:{replica.port}"] * 3, edits=lines) as balancer:
        first = shown(port)
        new.write_to_path(pem)
        assert shown(port) == first

        balancer.reload()
        until(lambda: shown(port) != first, "the new certificate is shown")

        assert ssl.DER_cert_to_PEM_cert(shown(port)).encode() in pem.read_bytes()


def created(client: httpx2.Client) -> str:
    reply = client.post(BASE, json={"agentId": ECHO, "userId": some_id()})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["sessionId"])


class TestHttps:
    def test_serves_and_tells_browsers_to_stay(self, secured: Secured) -> None:
        with secured.client() as client:
            reply = client.get(f"{BASE}/{created(client)}")

        assert reply.status_code == 200
        assert reply.headers["strict-transport-security"] == "max-age=31536000"

    def test_offers_http_2_and_http_1(self, secured: Secured) -> None:
        assert secured.negotiated("h2", "http/1.1") == "h2"
        assert secured.negotiated("http/1.1") == "http/1.1"

    @pytest.mark.skipif(bool(missing("curl")), reason=missing("curl"))
    def test_by_http_2_is_the_same_service(self, secured: Secured) -> None:
        """A request, and a stream that shows its first event while it is open."""
        with secured.client() as client:
            url = f"{secured.url}{BASE}/{created(client)}"

        got = checked("curl", "-sk", "--http2", "-w", " %{http_version} %{http_code}", url)
        followed = checked("curl", "-skN", "--http2", "-m", "2", f"{url}/events")

        assert got.stdout.endswith(" 2 200"), got.stdout
        assert "event: session.snapshot" in followed.stdout
        assert followed.returncode == 28  # curl's own time was over: the stream was open

    async def test_streams_and_converses(self, secured: Secured) -> None:
        """By the asyncio client: the one of threads reads and writes one TLS connection at a time, and now
        and then its handshake hung on a busy machine, behind either balancer, and never without TLS.
        """
        with secured.client() as client:
            session_id = created(client)
            with client.stream("GET", f"{BASE}/{session_id}/events") as reply:
                assert Stream(reply).next().name == "session.snapshot"
            said: dict[str, Any] = {"type": "message", "ref": "1", "content": "hello"}
            url = f"{secured.url.replace('https', 'wss')}{BASE}/{session_id}/ws"
            async with connect(url, ssl=secured.trust, subprotocols=[Subprotocol("sessions.v1")]) as socket_:
                await socket_.send(json.dumps(said))
                async for text in socket_:
                    if json.loads(text)["type"] == "turn.completed":
                        break
                else:
                    pytest.fail("the conversation ended before its turn")

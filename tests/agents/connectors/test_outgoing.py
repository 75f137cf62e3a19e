"""Guarded HTTP, where it goes: to checked addresses, redirected or not, and to names that TLS proves."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from sessions_api.agents.connectors.addresses import Address
from sessions_api.agents.connectors.outgoing import Outgoing
from tests.agents.connectors.conftest import Site, ask, failing
from tests.support.asked import AGENT
from tests.support.waiting import until

LOOPBACK = [ip_network("127.0.0.0/8")]


def resolving(*answers: Sequence[str]) -> Callable[[str, int], asyncio.Future[list[Address]]]:
    """A resolver that says each of *answers* once, the last one ever after."""
    left = list(answers)

    def resolve(_host: str, _port: int) -> asyncio.Future[list[Address]]:
        now = left.pop(0) if len(left) > 1 else left[0]
        found: asyncio.Future[list[Address]] = asyncio.get_running_loop().create_future()
        found.set_result([ip_address(address) for address in now])
        return found

    return resolve


class TestAddresses:
    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            "localhost",
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "017700000001",
            "[::1]",
            "[::ffff:7f00:1]",
            "0.0.0.0",  # noqa: S104  asked for, not bound to
        ],
    )
    async def test_of_this_machine_are_refused(self, site: Site, host: str) -> None:
        """In every spelling that a resolver understands; the user is not told the address."""
        outgoing = Outgoing()

        with capture_logs() as logs:
            failed = await failing(outgoing, site.url(host))

        assert (failed.code, failed.retry) == ("AGENT_UNREACHABLE", False)
        assert failed.message == "The agent's address is not permitted"
        assert [(each["event"], each["agent_id"]) for each in logs] == [("outgoing_address_refused", AGENT)]
        assert not site.seen

    async def test_that_do_not_answer_are_logged_with_their_agent(self) -> None:
        with capture_logs() as logs:
            failed = await failing(Outgoing(LOOPBACK), "http://127.0.0.1:1/")

        assert failed.code == "AGENT_UNREACHABLE"
        assert [(each["event"], each["agent_id"]) for each in logs] == [("outgoing_failed", AGENT)]

    async def test_are_reached_if_allowed(self, site: Site, outgoing: Outgoing) -> None:
        assert await ask(outgoing, site.url()) == b"fine"

    async def test_are_those_that_were_checked(self, site: Site) -> None:
        """A name that is harmless when asked and hostile a moment later is asked only once."""
        asked = resolving(["127.0.0.1"], ["10.9.9.9"])
        outgoing = Outgoing(LOOPBACK, resolve=asked)

        assert await ask(outgoing, site.url("rebinding.test")) == b"fine"

        await outgoing.aclose()
        assert (await failing(outgoing, site.url("rebinding.test"))).retry is False
        assert len(site.seen) == 1

    async def test_that_are_closed_are_passed_over(self, site: Site) -> None:
        """Of several addresses the connection goes to one that is permitted."""
        outgoing = Outgoing(LOOPBACK, resolve=resolving(["10.9.9.9", "::1", "127.0.0.1"]))

        assert await ask(outgoing, site.url("mixed.test")) == b"fine"

        await outgoing.aclose()

    async def test_that_do_not_answer_give_way_to_the_next(self, site: Site) -> None:
        """127.0.0.2 has nobody on that port."""
        outgoing = Outgoing(LOOPBACK, resolve=resolving(["127.0.0.2", "127.0.0.1"]))

        assert await ask(outgoing, site.url("two.test")) == b"fine"

        await outgoing.aclose()

    async def test_that_nobody_knows_may_be_known_later(self) -> None:
        """A name without address is no verdict: the attempt is repeated."""

        async def resolve(_host: str, _port: int) -> list[Address]:
            raise OSError("no such name")

        failed = await failing(Outgoing(resolve=resolve), "http://nowhere.test/")

        assert (failed.code, failed.retry) == ("AGENT_UNREACHABLE", True)

    async def test_that_nobody_listens_at_may_be_served_later(self, outgoing: Outgoing) -> None:
        async with Site() as gone:
            url = gone.url()

        failed = await failing(outgoing, url)

        assert (failed.code, failed.retry) == ("AGENT_UNREACHABLE", True)

    async def test_are_not_taken_from_the_environment(
        self, site: Site, outgoing: Outgoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A proxy would resolve the name itself, past every check."""
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")

        assert await ask(outgoing, site.url()) == b"fine"

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://example.org/",
            "file:///etc/passwd",
            "http:///path",
            "no url",
            "http://user:pw@example.org/",
            "http://[::1",
            "",
        ],
    )
    async def test_that_are_no_url_are_refused(self, outgoing: Outgoing, url: str) -> None:
        failed = await failing(outgoing, url)

        assert (failed.code, failed.retry) == ("AGENT_REFUSED", False)


def redirecting(status: int, location: str) -> Callable[[Request], Response]:
    return lambda _request: Response(status_code=status, headers={"location": location})


class TestRedirects:
    @pytest.mark.parametrize("status", [307, 308])
    async def test_keep_the_request(self, site: Site, outgoing: Outgoing, status: int) -> None:
        async with Site(redirecting(status, site.url())) as first:
            assert await ask(outgoing, first.url()) == b"fine"

        [(method, _, body)] = site.seen
        assert (method, body) == ("POST", b"{}")

    @pytest.mark.parametrize("status", [300, 301, 302, 303, 304])
    async def test_that_turn_a_post_into_a_get_are_refused(
        self, site: Site, outgoing: Outgoing, status: int
    ) -> None:
        async with Site(redirecting(status, site.url())) as first:
            failed = await failing(outgoing, first.url())

        assert (failed.code, failed.retry) == ("AGENT_REFUSED", False)
        assert not site.seen

    async def test_take_no_secret_to_another_origin(self, site: Site, outgoing: Outgoing) -> None:
        """Another port is another origin; the same one keeps it."""
        async with Site() as first:
            first.answer = lambda request: (
                redirecting(307, site.url())(request)
                if request.url.path == "/again"
                else redirecting(307, "/again")(request)
            )
            await ask(outgoing, first.url(), authorization="Bearer sk-1")

            assert [headers.get("authorization") for _, headers, _ in first.seen] == ["Bearer sk-1"] * 2
        [(_, headers, _)] = site.seen
        assert "authorization" not in headers

    async def test_do_not_lead_to_a_closed_address(self, site: Site) -> None:
        """The check stands where the connection is made, so a redirect passes it too."""
        outgoing = Outgoing([ip_network("127.0.0.1/32")])
        async with Site(redirecting(307, site.url("127.0.0.2"))) as first:
            failed = await failing(outgoing, first.url())
            await outgoing.aclose()

        assert failed.message == "The agent's address is not permitted"
        assert not site.seen

    async def test_end_after_three(self, outgoing: Outgoing) -> None:
        async with Site(redirecting(307, "/asked")) as first:
            failed = await failing(outgoing, first.url())

            assert len(first.seen) == 4
        assert failed.message == "The agent redirects too often"


@pytest.fixture
def right_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server at right.test has; its certificate is trusted."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    made += ["-subj", "/CN=right.test", "-addext", "subjectAltName=DNS:right.test", "-days", "1"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


class TestCertificates:
    @pytest.mark.parametrize("starts", [True, False])
    async def test_are_read_once_and_off_the_loop(
        self, site: Site, monkeypatch: pytest.MonkeyPatch, *, starts: bool
    ) -> None:
        """Begun at the start, or by the first requests; new connections need no second reading."""
        read, threads = httpx2.create_ssl_context, []

        def reading() -> ssl.SSLContext:
            threads.append(threading.current_thread())
            return read()

        monkeypatch.setattr(httpx2, "create_ssl_context", reading)
        outgoing = Outgoing(LOOPBACK, resolve=resolving(["127.0.0.1"]))
        if starts:
            outgoing.start()
            await until(lambda: len(threads) == 1)
        for _ in range(2):
            assert await asyncio.gather(*(ask(outgoing, site.url()) for _ in range(3))) == [b"fine"] * 3
            await outgoing.aclose()

        assert len(threads) == 1
        assert threads[0] is not threading.main_thread()

    async def test_that_could_not_be_read_are_read_again(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, failures = httpx2.create_ssl_context, [OSError("no such file")]

        def reading() -> ssl.SSLContext:
            if failures:
                raise failures.pop()
            return read()

        monkeypatch.setattr(httpx2, "create_ssl_context", reading)
        outgoing = Outgoing(LOOPBACK, resolve=resolving(["127.0.0.1"]))
        with pytest.raises(OSError, match="no such file"):
            await ask(outgoing, site.url())

        assert await ask(outgoing, site.url()) == b"fine"
        await outgoing.aclose()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
class TestTLS:
    async def test_verifies_the_name_though_it_connects_by_number(self, right_test: ssl.SSLContext) -> None:
        """The certificate is for right.test; the same server under another name is nobody."""
        outgoing = Outgoing(LOOPBACK, resolve=resolving(["127.0.0.1"]))

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfine")
                await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=right_test) as server:
            port = server.sockets[0].getsockname()[1]

            assert await ask(outgoing, f"https://right.test:{port}/") == b"fine"
            failed = await failing(outgoing, f"https://wrong.test:{port}/")

        await outgoing.aclose()
        assert (failed.code, failed.retry) == ("AGENT_UNREACHABLE", True)

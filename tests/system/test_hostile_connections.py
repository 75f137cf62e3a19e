"""Connections that mean harm to the service: too many, no HTTP, or two requests in one; others are served."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions_api.cli.connections import MAX_PIPELINED, SPARE
from tests.support.client import BASE, Api, eventually
from tests.support.service import Service
from tests.support.target import (
    CHUNKED,
    LAST,
    LIVEZ,
    POST,
    asking,
    refused,
    replies_to,
    resident_kb,
    soft_limit,
)
from tests.support.wire import Reply, Wire, handshake

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("others_are_served")]
IDLE = 10_000
MOST_KB_EACH = 12
MOST = 100
ORDINARY = LAST.replace(b"/livez", f"{BASE}/health".encode())


class TestMany:
    def test_idle_connections_cost_little_and_keep_nobody_out(self, target: Service, target_api: Api) -> None:
        """Ten thousand that say nothing: a good client is answered, and each costs a few KiB."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        count = IDLE if most == resource.RLIM_INFINITY else min(IDLE, most - 2_000)
        if count < IDLE:
            print(f"\nONLY {count} IDLE CONNECTIONS: the hard limit of file descriptors is {most}")
        before_kb = resident_kb(target.pid)
        with ExitStack() as stack, soft_limit(most):
            for number in range(count):
                stack.enter_context(Wire(target.port, source=f"127.0.0.{1 + number // 4_000}"))
            eventually(lambda: target_api.http.get("/livez").status_code == 200)
            target_api.ask(target_api.session())
            each_kb = (resident_kb(target.pid) - before_kb) / count

        assert each_kb < MOST_KB_EACH

    def test_more_than_may_be_are_told_so(self, full: Service) -> None:
        """The bound leaves descriptors for Redis and agents; newcomers get 503 until there is room."""
        with filled(full):
            reply = eventually(lambda: told_to_go(full.port))

            assert (reply.status, reply.code) == (503, "OVERLOADED")
            assert reply.body["error"]["details"] == {"limit": MOST}
            assert reply.body["error"]["retryable"]
            assert reply.headers["retry-after"] == "5"
            assert told_to_go(full.port, b"") is not None, "silence is no way to stay"
        eventually(lambda: told_to_go(full.port) is None)

    def test_a_full_process_answers_its_probes(self, full: Service) -> None:
        """Else the kubelet would end it, and all of its clients came to the next one."""
        with filled(full):
            eventually(lambda: told_to_go(full.port))
            for path in (b"/livez", b"/readyz?"):
                assert told_to_go(full.port, LAST.replace(b"/livez", path)) is None, path
            assert len(replies_to(full, LIVEZ + b"Content-Length: 9\r\n\r\n")) == 1, "no second one after it"
            for asks in (ORDINARY, handshake("no-session")):
                answered, told = replies_to(full, LIVEZ + b"\r\n", asks)
                assert (answered.status, told.code) == (200, "OVERLOADED")
            with ExitStack() as stack:
                silent = [stack.enter_context(Wire(full.port)) for _ in range(SPARE + 4)]
                assert [wire.reply().code for wire in silent[SPARE:]] == ["OVERLOADED"] * 4, "at once"
                assert [wire.reply().code for wire in silent[:SPARE]] == ["OVERLOADED"] * SPARE
            assert told_to_go(full.port, LAST) is None


@pytest.fixture
def full(target: Service) -> Iterator[Service]:
    """It may have :data:`MOST` connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (2 * MOST, hard))
    try:
        yield target
    finally:
        resource.prlimit(target.pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def filled(service: Service) -> Iterator[None]:
    """As many connections as may be, which say nothing."""
    with ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(Wire(service.port))
        yield


def told_to_go(port: int, asks: bytes = ORDINARY) -> Reply | None:
    """What a new connection is told that *asks*, if that is no answer to it."""
    with Wire(port) as wire:
        wire.send(asks)
        (reply,) = wire.replies()
    return reply if reply.status != 200 else None


class TestNoHttp:
    @pytest.mark.parametrize(
        "sent",
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00",
            b"\x16\x03\x01\x00\xf5\x01\x00\x00\xf1\x03\x03" + bytes(range(256)),
            b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"get /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"G" * 20_000 + b" /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"CONNECT localhost:6379 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET\t/livez\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /livez HTTP/1.1\nHost: localhost\n\n",
            b"GET /livez\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET http:// HTTP/1.1\r\nHost: localhost\r\n\r\n",
            LIVEZ + b"X: a\r\n b\r\n\r\n",
            LIVEZ + b"X : a\r\n\r\n",
            LIVEZ + b"X: a\x00b\r\n\r\n",
            LIVEZ + b"X: a\rb\r\n\r\n",
            LIVEZ + b"X: a\nY: b\r\n\r\n",
        ],
        ids="http2 tls ssl2 ssh resp case long connect tab lf nul nohost fold space nul2 cr lf2".split(),
    )
    def test_is_refused_once_and_hung_up_on(self, target: Service, sent: bytes) -> None:
        assert refused(target, sent).status == 400

    @pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "M-SEARCH", "SOURCE", "UNLINK"])
    def test_a_method_of_others_is_a_405(self, target: Service, method: str) -> None:
        (reply,) = replies_to(target, LAST.replace(b"GET", method.encode()))

        assert (reply.status, reply.code) == (405, "METHOD_NOT_ALLOWED")


class TestSmuggling:
    """No bytes can be one request to a proxy and another, or two, to us: in doubt, none."""

    @pytest.mark.parametrize(
        "framing",
        [
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            b"Content-Length: 5\r\nContent-Length: 6\r\n",
            b"Content-Length: 5\r\nContent-Length: 5\r\n",
            b"Content-Length: 5, 5\r\n",
            b"Content-Length: +5\r\n",
            b"Content-Length: 0x5\r\n",
            b"Content-Length: 5 5\r\n",
            b"Content-Length: 99999999999999999999\r\n",
            b"Content-Length : 5\r\n",
            b"Transfer-Encoding: xchunked\r\n",
            b"Transfer-Encoding: chunked, identity\r\n",
            b"Transfer-Encoding: identity\r\n",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            b"Transfer-Encoding: \x0bchunked\r\n",
            b"Transfer-Encoding: chunked\x00\r\n",
            b"Host: localhost\r\n",
            b"Host: elsewhere\r\n",
        ],
    )
    def test_a_request_of_doubtful_length_or_host_is_refused(self, target: Service, framing: bytes) -> None:
        assert refused(target, POST + framing + b"\r\n0\r\n\r\n" + LAST).status == 400

    @pytest.mark.parametrize(
        "chunk", [b"5\nhello\r\n", b"0x5\r\n", b"-1\r\n", b"fffffffffffffffff\r\n", b"5 ;\r\n"]
    )
    def test_so_is_a_chunk_of_doubtful_length(self, target: Service, chunk: bytes) -> None:
        assert refused(target, CHUNKED + chunk + b"0\r\n\r\n" + LAST).status == 400

    @pytest.mark.parametrize(
        "framing", [b"Content-Length: %d\r\n" % len(LAST), b"Transfer-Encoding: chunked\r\n"]
    )
    def test_the_body_of_an_upgrade_is_no_request(self, target: Service, framing: bytes) -> None:
        """Also where it comes a while after the head: the parser looks for no body in an upgrade."""
        head = POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + framing + b"\r\n"

        with Wire(target.port) as wire:
            wire.send(head)
            first = wire.reply()
            wire.send(LAST)

            assert first.status == 400
            assert wire.replies() == []

    def test_an_upgrade_that_we_do_not_know_is_ignored(self, target: Service) -> None:
        upgrade = LIVEZ + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"

        assert [reply.status for reply in replies_to(target, upgrade, LAST)] == [200, 200]

    def test_a_trailer_is_no_header(self, target: Service) -> None:
        """What a proxy checks or sets among the headers cannot be sent behind the body instead."""
        trailers = b"Host: localhost\r\nX-Request-Id: trailer\r\nAuthorization: Bearer x\r\n"
        head = CHUNKED.replace(b"Host: localhost", b"Host: elsewhere").replace(
            b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"
        )

        (reply,) = replies_to(target, head + b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n")

        assert (reply.status, reply.headers["x-request-id"]) == (403, "hostile")

    def test_what_is_no_http_behind_a_request_is_told_behind_its_answer(
        self, target: Service, target_api: Api
    ) -> None:
        """Not instead of it: who asked would take a refusal for the answer."""
        replies = replies_to(target, asking(target_api) + b"no http\r\n\r\n")

        assert [reply.status for reply in replies] == [201, 400]

    def test_a_websocket_behind_a_request_is_refused(self, target: Service, target_api: Api) -> None:
        """The request's answer would be written into the conversation."""
        replies = replies_to(target, asking(target_api) + handshake(target_api.session()))

        assert [reply.status for reply in replies] == [201, 400]


class TestPipelining:
    def test_some_requests_are_answered_in_order(self, target: Service, target_api: Api) -> None:
        behind = b"".join(
            LIVEZ + b"X-Request-Id: %d\r\n%b\r\n" % (n, b"Connection: close\r\n" * (n == 20))
            for n in range(21)
        )

        replies = replies_to(target, asking(target_api) + behind)

        assert [reply.headers["x-request-id"] for reply in replies] == ["hostile", *map(str, range(21))]

    def test_a_flood_is_answered_in_part(self, target: Service) -> None:
        """As many as may wait; the rest was not begun, and the client knows which."""
        before_kb = resident_kb(target.pid)
        with ExitStack() as stack:
            for _ in range(20):
                wire = stack.enter_context(Wire(target.port))
                wire.send((LIVEZ + b"\r\n") * 5_000)
                replies = wire.replies()
                assert {reply.status for reply in replies} == {200}
                assert 1 < len(replies) <= MAX_PIPELINED + 1
        grown_kb = resident_kb(target.pid) - before_kb

        assert grown_kb < 16 * 1024


lines = st.sampled_from(
    [
        b"GET /livez HTTP/1.1\r\n",
        b"POST /api/messaging/sessions HTTP/1.1\r\n",
        b"HEAD /livez HTTP/1.0\r\n",
        b"Host: localhost\r\n",
        b"Content-Type: application/json\r\n",
        b"Content-Length: 2\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: Upgrade\r\n",
        b"Connection: close\r\n",
        b"Upgrade: websocket\r\n",
        b"Upgrade: h2c\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"{}",
        b"2\r\n{}\r\n",
        b"0\r\n\r\n",
    ]
)


class TestFuzz:
    @settings(max_examples=150, deadline=None)
    @given(st.lists(lines | st.binary(max_size=12), min_size=1, max_size=14), st.integers(0, 6))
    def test_any_bytes(self, target: Service, pieces: list[bytes], cut: int) -> None:
        """Whatever is sent, whole replies come back, none of them our fault, and then an end."""
        with Wire(target.port) as wire:
            wire.send(b"".join(pieces[:cut]))
            wire.send(b"".join(pieces[cut:]))
            wire.end()
            told = wire.rest()

        assert b" 500 " not in told
        assert told == b"" or told.startswith(b"HTTP/1.1 ")

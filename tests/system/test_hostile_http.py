"""What comes before a request: bounded, refused in the one envelope, and no way to hold a connection."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from sessions_api.cli.connections import MAX_HEAD_BYTES, Connection
from tests.support.commands import RunningService
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("hostile")) as service:
        yield service


def answer_to(port: int, sent: bytes) -> tuple[int, dict[str, Any]]:
    """Status and body of what comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with suppress(OSError):  # refused before all of it was sent
            connection.sendall(sent)
        parts = []
        with suppress(ConnectionResetError):  # closed on what we still had to say
            while part := connection.recv(65536):
                parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: " in head
    return int(head.split()[1]), json.loads(body)


class TestNoHttp:
    @pytest.mark.parametrize(
        "sent",
        [
            b"hello there\r\n\r\n",
            b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n",
            LIVEZ + b"no colon\r\n\r\n",
            LIVEZ + b"Content-Length: -5\r\n\r\n",
            LIVEZ + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ],
    )
    def test_is_refused_in_the_envelope(self, service: RunningService, sent: bytes) -> None:
        status, body = answer_to(service.port, sent)

        assert status == body["status"] == 400
        assert body["error"]["code"] == "VALIDATION_ERROR"


class TestHead:
    @pytest.mark.parametrize(
        "sent",
        [
            LIVEZ + b"X-A: " + b"a" * 20_000_000,
            LIVEZ + b"X-A: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
            LIVEZ + b"".join(b"X-%d: a\r\n" % number for number in range(20_000)),
        ],
        ids=["endless", "large", "many"],
    )
    def test_is_bounded(self, service: RunningService, sent: bytes) -> None:
        status, body = answer_to(service.port, sent)

        assert status == body["status"] == 431
        assert body["error"]["code"] == "HEADERS_TOO_LARGE"
        assert body["error"]["details"] == {"limitBytes": MAX_HEAD_BYTES}

    def test_of_ordinary_size_is_answered(self, service: RunningService) -> None:
        sent = LIVEZ + b"X-A: " + b"a" * (MAX_HEAD_BYTES - 1_000) + b"\r\nConnection: close\r\n\r\n"

        status, body = answer_to(service.port, sent)

        assert (status, body) == (200, {"status": "alive"})

    def test_a_large_body_behind_it_is_no_head(self, service: RunningService) -> None:
        body = b'{"agentId": "%b"}' % (b"a" * 200_000)
        head = b"POST /api/messaging/sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)

        assert answer_to(service.port, head + body)[0] == 400


class Hasty(Connection):
    arrival_s = 0.2


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the length of the body, a while after it came."""
    assert scope["type"] == "http"
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    await asyncio.sleep(3 * Hasty.arrival_s)  # longer than a request may take to arrive
    reply = json.dumps(size).encode()
    headers = [(b"x-request-id", b"x"), (b"content-length", b"%d" % len(reply))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


class TestSlow:
    @pytest.fixture
    async def port(self) -> AsyncIterator[int]:
        """A server that waits a fifth of a second."""
        config = uvicorn.Config(
            echo_length, http=Hasty, lifespan="off", log_config=None, loop="none", timeout_keep_alive=60
        )
        server = uvicorn.Server(config)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            serving = asyncio.create_task(server._serve([sock]))
            await until(lambda: server.started)
            yield sock.getsockname()[1]
            server.should_exit = True
            await serving

    @pytest.mark.parametrize(
        "sent",
        [b"GET /", LIVEZ + b"X-A:", LIVEZ + b"Content-Length: 10\r\n\r\nhalf"],
        ids=["line", "headers", "body"],
    )
    async def test_is_refused(self, port: int, sent: bytes) -> None:
        """Half a request holds its connection as long as one takes to arrive, no longer."""
        status, body = await asyncio.to_thread(answer_to, port, sent)

        assert status == body["status"] == 408
        assert body["error"]["code"] == "REQUEST_TIMEOUT"
        assert body["error"]["retryable"]

    async def test_silence_is_hung_up_on(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        assert await reader.read() == b""

        writer.close()
        await writer.wait_closed()

    async def test_the_answer_may_take_its_time(self, port: int) -> None:
        """What has arrived is not hurried, also with half of the next request behind it."""
        first = LIVEZ + b"Content-Length: 4\r\n\r\nbody"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first + LIVEZ)

        whole = await reader.readuntil(b"\r\n\r\n4")
        rest = await reader.read()

        assert whole.startswith(b"HTTP/1.1 200")
        assert rest.startswith(b"HTTP/1.1 408")
        writer.close()
        await writer.wait_closed()

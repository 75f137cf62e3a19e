"""Clients that take their time, and a server whose deadlines are short: nobody holds it up for nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from sessions_api.cli.connections import MAX_UNWANTED_BYTES, Connection
from sessions_api.cli.serving import TAKES_NOTHING_MS, bind
from tests.support.target import LAST, LIVEZ
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)
SLOW = 60
PACE_S = 0.05
ANSWER = 8 * 1024 * 1024
UPLOAD = b"POST /upload HTTP/1.1\r\nHost: localhost\r\n"


class Impatient(Connection):
    """Waits half a second, not half a minute."""

    arrival_s = 0.5
    taking_s = 0.5


class Patient(Connection):
    """Leaves it to the kernel to drop who takes nothing."""

    taking_s = 60.0


class App:
    """Reads a body and answers; ``/large`` at length, ``/cut`` not whole, ``/stream`` never."""

    def __init__(self) -> None:
        self.streams = 0
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/stream":
            self.streams += 1
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()
            return
        if scope["path"] == "/cut":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return
        if scope["path"] == "/refuse":
            await self._answer(send, 413, b"{}")
            return
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if not message.get("more_body"):
                break
        await self._answer(send, 200, b" " * ANSWER if scope["path"] == "/large" else b"{}")

    async def _answer(self, send: Send, status: int, body: bytes) -> None:
        headers = [(b"x-request-id", b"x"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Running:
    """A server in the test's own loop."""

    def __init__(self, server: uvicorn.Server, app: App, port: int) -> None:
        self._server = server
        self.app = app
        self.port = port

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)


@asynccontextmanager
async def running(
    kind: type[Connection] = Impatient, *, takes_nothing_ms: int = TAKES_NOTHING_MS
) -> AsyncIterator[Running]:
    app = App()
    config = uvicorn.Config(
        app, http=kind, lifespan="off", log_config=None, loop="none", timeout_keep_alive=1, access_log=False
    )
    server = uvicorn.Server(config)
    with bind("127.0.0.1", 0) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, takes_nothing_ms)
        serving = asyncio.create_task(server._serve([sock]))
        await until(lambda: server.started)
        yield Running(server, app, sock.getsockname()[1])
        server.should_exit = True
        await serving


@asynccontextmanager
async def connected(
    port: int, *, buffer: int = 0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection; *buffer*: it takes no more than that before it is read."""
    sock = socket.socket()
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=buffer or 65_536)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def trickled(port: int, begin: bytes, drop: bytes) -> str:
    """The code that a client is told who sends *begin*, and then *drop* again and again.

    Empty, if the system took the reply back: a drop that comes after the end resets the connection.
    """
    async with connected(port) as (reader, writer):
        writer.write(begin)
        told = asyncio.ensure_future(reader.read())
        while not told.done():
            writer.write(drop)
            await asyncio.wait([told], timeout=PACE_S)
        if isinstance(told.exception(), ConnectionError):
            return ""
        body = told.result().partition(b"\r\n\r\n")[2]
        return str(json.loads(body)["error"]["code"]) if body else ""


async def served(port: int) -> None:
    """A good client, on a connection of its own."""
    async with connected(port) as (reader, writer):
        writer.write(LAST)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")


class TestSlowloris:
    async def test_in_head_and_body_is_cut_while_others_are_served(self) -> None:
        """A byte now and then extends no deadline."""
        async with running() as server:
            attacks = [trickled(server.port, LIVEZ + b"X-A: ", b"a") for _ in range(SLOW)]
            attacks += [
                trickled(server.port, UPLOAD + b"Content-Length: 10000\r\n\r\n", b"a") for _ in range(SLOW)
            ]
            attacks += [
                trickled(server.port, UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n")
            ] * 1
            attack = asyncio.gather(*attacks)
            while not attack.done():
                await served(server.port)

            assert set(attack.result()) - {""} == {"REQUEST_TIMEOUT"}
            await until(lambda: server.connections == 0)

    async def test_a_slow_client_that_leaves_is_forgotten(self) -> None:
        async with running(Patient) as server:
            async with connected(server.port) as (_, writer):
                writer.write(UPLOAD + b"Content-Length: 10\r\n\r\nhalf")
                await until(lambda: server.connections == 1)

            await until(lambda: server.connections == 0)


class TestSilence:
    @pytest.mark.parametrize(
        "said",
        [
            b"\r\n",
            b"\r\n\r\n\r\n",
            LIVEZ + b"\r\n",
            LIVEZ + b"\r\n\r\n",
            UPLOAD.replace(b"upload", b"refuse") + b"Content-Length: 4\r\n\r\n",
            UPLOAD.replace(b"upload", b"refuse") + b"Content-Length: 4\r\n\r\nbody",
            LIVEZ + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        ],
        ids="blank blanks request blankafter refused refusedwhole upgrade".split(),
    )
    async def test_is_hung_up_on(self, said: bytes) -> None:
        """Whatever went before, and also where what came in between was nothing, or the rest of a body."""
        async with running() as server, connected(server.port) as (reader, writer):
            for byte in range(0, len(said), 60):
                writer.write(said[byte : byte + 60])
                await asyncio.sleep(0)
            await reader.read()

            await until(lambda: server.connections == 0)

    async def test_the_rest_of_a_body_after_its_refusal_is(self) -> None:
        async with running() as server, connected(server.port) as (reader, writer):
            writer.write(UPLOAD.replace(b"upload", b"refuse") + b"Content-Length: 200000\r\n\r\n")
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 413")
            writer.write(b"a" * 200_000)

            assert await reader.read() == b""

    async def test_a_body_that_nobody_wants_is_read_to_a_bound(self) -> None:
        async with running(Patient) as server, connected(server.port) as (reader, writer):
            writer.write(UPLOAD.replace(b"upload", b"refuse") + b"Content-Length: 1000000000\r\n\r\n")
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 413")
            with suppress(OSError):
                for _ in range(200):
                    writer.write(b"a" * (MAX_UNWANTED_BYTES // 10))
                    await writer.drain()

            await until(lambda: server.connections == 0)


class TestTakingNothing:
    async def test_a_client_that_never_takes_its_answer_is_dropped(self) -> None:
        async with running() as server, connected(server.port, buffer=4096) as (_, writer):
            writer.write(LAST.replace(b"/livez", b"/large"))

            await until(lambda: server.connections == 0)

    async def test_one_that_takes_it_slowly_is_not(self) -> None:
        """What counts is that nothing is taken, not how long it takes."""
        async with running() as server, connected(server.port, buffer=65_536) as (reader, writer):
            writer.write(LAST.replace(b"/livez", b"/large"))
            began_s = asyncio.get_running_loop().time()
            size = 0
            while part := await reader.read(262_144):
                size += len(part)
                if asyncio.get_running_loop().time() < began_s + 2 * Impatient.taking_s:
                    await asyncio.sleep(PACE_S)

            assert size > ANSWER

    async def test_the_kernel_drops_what_is_closed_and_never_taken(self) -> None:
        """Our side has closed it, and nobody else would ever look at it again."""
        async with (
            running(Patient, takes_nothing_ms=500) as server,
            connected(server.port, buffer=4096) as wire,
        ):
            wire[1].write(LAST.replace(b"/livez", b"/large"))

            await until(lambda: server.connections == 1)
            await until(lambda: server.connections == 0, within_s=20)

    def test_connections_inherit_the_kernels_deadline(self) -> None:
        with bind("127.0.0.1", 0) as sock:
            sock.listen()
            with socket.create_connection(sock.getsockname()) as _, sock.accept()[0] as accepted:
                option = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

        assert option == TAKES_NOTHING_MS


class TestLeaving:
    async def test_a_stream_that_the_app_cuts_is_no_error(self, caplog: pytest.LogCaptureFixture) -> None:
        """It does so to readers that take nothing; uvicorn would log an error for each."""
        async with running() as server, connected(server.port) as (reader, writer):
            writer.write(LAST.replace(b"/livez", b"/cut"))

            assert (await reader.read()).startswith(b"HTTP/1.1 200")
        assert not [record for record in caplog.records if record.levelno > logging.INFO]

    async def test_is_told_to_a_stream_with_a_request_behind_it(self) -> None:
        """Or the stream would stay for ever with a client that is gone."""
        async with running(Patient) as server:
            async with connected(server.port) as (_, writer):
                writer.write(LIVEZ.replace(b"/livez", b"/stream") + b"\r\n" + LIVEZ + b"\r\n")
                await until(lambda: server.app.streams == 1)

            async with asyncio.timeout(10):
                await server.app.left.wait()

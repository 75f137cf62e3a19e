"""How a reply leaves: whole, in order, and head and body as one write."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from asyncio import BaseTransport, StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterable
from typing import Any, ClassVar

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from sessions_api.api.replies import Header, Reply
from sessions_api.cli.connections import Connection
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)
PIECES = (b"one ", b"two ", b"three")


class Recorder:
    """A transport that keeps a list of what was written at once."""

    def __init__(self, transport: Any, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def writelines(self, lines: Iterable[bytes]) -> None:
        lines = tuple(lines)
        self._writes.append(b"".join(lines))
        self._transport.writelines(lines)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Recorded(Connection):
    writes: ClassVar[list[bytes]] = []
    newest: ClassVar[Recorded]

    def connection_made(self, transport: BaseTransport) -> None:
        Recorded.newest = self
        super().connection_made(Recorder(transport, self.writes))  # type: ignore[arg-type]  # all that is called


class App:
    """Answers by the path."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.sent: list[str] = []
        """The messages in which our own replies went uvicorn's way."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        kind = scope["path"].strip("/").split("/")[0]
        if kind == "upload":
            await receive()
        if kind == "nothing":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
            return
        if kind == "stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for piece in PIECES:
                await self._told()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
            return
        body = json.dumps(scope["path"]).encode()
        if kind in {"ours", "forged"}:
            if scope["path"].endswith("/upload"):
                await receive()
            headers: tuple[Header, ...] = (
                (b"etag", b'"1"'),
                (b"link", b"</a>\r\nset-cookie: b=c" if kind == "forged" else b"</a>"),
            )
            if scope["path"].endswith("/last"):
                headers += ((b"connection", b"close"),)
            await Reply(200, body, headers).send(scope, self._noting(send), ((b"x-request-id", b"id"),))
            return
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"%d" % len(body))],
            }
        )
        if kind == "broken":
            raise RuntimeError("broken")
        await send({"type": "http.response.body", "body": body})
        if kind == "last":
            Recorded.newest.shutdown()

    def _noting(self, send: Send) -> Send:
        async def noted(message: Message) -> None:
            self.sent.append(message["type"])
            await send(message)

        return noted

    async def _told(self) -> None:
        await self.go_on.wait()
        self.go_on.clear()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def port(app: App) -> AsyncIterator[int]:
    config = uvicorn.Config(app, http=Recorded, lifespan="off", log_config=None, loop="none")
    server = uvicorn.Server(config)
    Recorded.writes.clear()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(server._serve([sock]))
        await until(lambda: server.started)
        yield sock.getsockname()[1]
        server.should_exit = True
        await serving


@pytest.fixture
async def client(port: int) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()
    await writer.wait_closed()


Client = tuple[StreamReader, StreamWriter]


def ask(client: Client, *paths: str, method: str = "GET", more: str = "") -> None:
    """All of them in one write."""
    requests = (f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n" for path in paths)
    client[1].write("".join(requests).encode())


async def head(client: Client) -> bytes:
    return await client[0].readuntil(b"\r\n\r\n")


def lines(head: bytes) -> list[bytes]:
    """Without the second in which it left."""
    return [line for line in head.split(b"\r\n") if not line.startswith(b"date: ")]


async def body(client: Client) -> str:
    """Of the reply to a request whose path says which it was."""
    length = (await head(client)).split(b"content-length: ")[1].split(b"\r\n")[0]
    return json.loads(await client[0].readexactly(int(length)))  # type: ignore[no-any-return]


class TestReply:
    async def test_is_one_write(self, client: Client) -> None:
        for number in range(3):
            ask(client, f"/{number}")

            assert await body(client) == f"/{number}"

        assert len(Recorded.writes) == 3

    async def test_of_pipelined_requests_come_in_their_order(self, client: Client) -> None:
        paths = [f"/{number}" for number in range(5)]
        ask(client, *paths)

        assert [await body(client) for _ in paths] == paths
        assert len(Recorded.writes) == 5

    @pytest.mark.parametrize("method, path", [("HEAD", "/any"), ("GET", "/nothing")])
    async def test_without_a_body_leaves_the_connection_as_it_was(
        self, client: Client, method: str, path: str
    ) -> None:
        for _ in range(2):
            ask(client, path, method=method)
            assert (await head(client)).startswith(b"HTTP/1.1 20")
            ask(client, "/then")
            assert await body(client) == "/then"

        assert len(Recorded.writes) == 4

    async def test_is_whole_before_the_connection_closes(self, client: Client) -> None:
        ask(client, "/any", more="Connection: close\r\n")

        assert await body(client) == "/any"
        assert await client[0].read() == b""

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_is_whole_before_a_shutdown_closes_the_connection(
        self, client: Client, method: str
    ) -> None:
        ask(client, "/last", method=method)

        reply = await client[0].read()

        assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
        assert reply.endswith(b'"/last"' if method == "GET" else b"\r\n\r\n")

    async def test_that_breaks_off_shows_it(self, client: Client) -> None:
        ask(client, "/broken")

        assert b"content-length: 9" in await head(client)
        assert await client[0].read() == b""

    async def test_follows_a_100_continue(self, client: Client) -> None:
        ask(client, "/upload", method="POST", more="Content-Length: 2\r\nExpect: 100-continue\r\n")
        assert await head(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client[1].write(b"{}")

        assert await body(client) == "/upload"


class TestOurs:
    """Replies of the app, which have a shorter way out than uvicorn's (``cli/outward.py``)."""

    async def test_read_the_same_on_either_way(self, client: Client, app: App) -> None:
        ask(client, "/ours")
        short = lines(await head(client))
        assert await client[0].readexactly(7) == b'"/ours"'
        assert app.sent == []
        ask(client, "/ours", more="Connection: close\r\n")
        long = lines(await head(client))

        assert await client[0].read() == b'"/ours"'
        assert sorted([*short, b"connection: close"]) == sorted(long)
        assert app.sent == ["http.response.start", "http.response.body"]

    async def test_keep_their_order_among_others(self, client: Client) -> None:
        paths = ["/ours/1", "/any/2", "/ours/3", "/ours/4", "/any/5"]
        ask(client, *paths)

        assert [await body(client) for _ in paths] == paths
        assert len(Recorded.writes) == 5

    async def test_to_head_have_no_body(self, client: Client) -> None:
        ask(client, "/ours", "/then", method="HEAD")

        assert b"\r\ncontent-length: 7\r\n" in await head(client)
        assert b"\r\ncontent-length: 7\r\n" in await head(client)

    async def test_come_before_the_body_that_they_did_not_wait_for(self, client: Client) -> None:
        ask(client, "/ours", method="POST", more="Content-Length: 2\r\n")
        assert await body(client) == "/ours"
        client[1].write(b"{}")
        ask(client, "/ours/then")

        assert await body(client) == "/ours/then"

    async def test_come_after_the_100_continue_that_was_asked_for(self, client: Client) -> None:
        client[1].write(
            b"POST /ours/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
            b"Expect: 100-continue\r\n\r\n{}"
        )

        assert await head(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert await body(client) == "/ours/upload"

    async def test_that_say_close_are_the_last(self, client: Client) -> None:
        ask(client, "/ours/last", "/then")

        assert await body(client) == "/ours/last"
        assert await client[0].read() == b""

    async def test_wait_for_a_client_that_takes_nothing(self, client: Client) -> None:
        Recorded.newest.pause_writing()
        ask(client, "/ours")
        await until(lambda: Recorded.newest.cycle is not None)
        await asyncio.sleep(0.05)
        assert not Recorded.writes

        Recorded.newest.resume_writing()

        assert await body(client) == "/ours"

    async def test_with_a_line_in_a_header_do_not_leave(self, client: Client) -> None:
        ask(client, "/forged")

        assert b"set-cookie" not in await client[0].read()


class TestStream:
    async def test_begins_before_there_is_anything_to_say(self, client: Client, app: App) -> None:
        ask(client, "/stream")

        assert b"transfer-encoding: chunked" in await head(client)

        for piece in PIECES:
            app.go_on.set()
            assert await client[0].readexactly(len(piece) + 5) == b"%x\r\n%b\r\n" % (len(piece), piece)
        assert await client[0].readexactly(5) == b"0\r\n\r\n"

    async def test_leaves_the_connection_as_it_was(self, client: Client, app: App) -> None:
        ask(client, "/stream", "/then")
        for _ in PIECES:
            await until(lambda: not app.go_on.is_set())
            app.go_on.set()
        await head(client)
        await client[0].readuntil(b"0\r\n\r\n")

        assert await body(client) == "/then"

    async def test_whose_client_leaves_is_no_fault(self, port: int, app: App) -> None:
        client = await asyncio.open_connection("127.0.0.1", port)
        ask(client, "/stream")
        await head(client)
        joining, left = Recorded.newest._joining, Recorded.newest.cycle
        client[1].transport.abort()

        for _ in PIECES:
            app.go_on.set()
            await until(lambda: not app.go_on.is_set())
        again = await asyncio.open_connection("127.0.0.1", port)
        ask(again, "/then")
        assert await body(again) == "/then"
        assert all(kept is not left for kept in gc.get_referents(joining))
        again[1].close()
        await again[1].wait_closed()

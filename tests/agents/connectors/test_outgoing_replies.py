"""Guarded HTTP, what comes back: how much is taken, what a failure means, when its connection is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from sessions_api.agents.connectors.failure import AttemptFailed
from sessions_api.agents.connectors.guarded import MAX_STREAM_BYTES
from sessions_api.agents.connectors.outgoing import Outgoing, failure_of, pause_s
from tests.agents.connectors.conftest import Site, ask, failing
from tests.support.asked import AGENT
from tests.support.waiting import until


class TestReplies:
    async def test_are_bounded(self, site: Site, outgoing: Outgoing) -> None:
        """Endless bytes end at the bound, and the connection with them."""
        part = b"x" * 1_000_000
        hung_up = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield part
                    await asyncio.sleep(0)
            finally:
                hung_up.set()

        site.answer = lambda _request: StreamingResponse(endless())
        taken = 0

        async def take() -> None:
            nonlocal taken
            async with outgoing.post(site.url(), b"", agent_id=AGENT, headers={}) as reply:
                async for part_taken in reply.aiter_bytes():
                    taken += len(part_taken)

        with pytest.raises(AttemptFailed) as failed:
            await take()

        assert failed.value.code == "ANSWER_TOO_LARGE"
        assert taken <= MAX_STREAM_BYTES
        async with asyncio.timeout(10):
            await hung_up.wait()

    async def test_are_not_unpacked(self, site: Site, outgoing: Outgoing) -> None:
        """None is asked for compressed, so that none can be a thousand times its size."""
        site.answer = lambda _request: Response(b"\x1f\x8b...", headers={"content-encoding": "gzip"})

        failed = await failing(outgoing, site.url())

        assert failed.code == "AGENT_ERROR"
        assert site.seen[0][1]["accept-encoding"] == "identity"

    async def test_that_never_come_are_given_up(self, outgoing: Outgoing) -> None:
        """The longest silence is the caller's to say."""

        async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await _reader.read()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(AttemptFailed) as failed:
                async with outgoing.post(
                    f"http://127.0.0.1:{port}/", b"", agent_id=AGENT, headers={}, silent_s=0.05
                ):
                    pass

        assert (failed.value.code, failed.value.retry) == ("AGENT_TIMEOUT", True)

    async def test_that_break_off_may_come_whole_another_time(self, outgoing: Outgoing) -> None:
        async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(broken, "127.0.0.1", 0) as server:
            failed = await failing(outgoing, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

        assert (failed.code, failed.retry) == ("AGENT_UNREACHABLE", True)

    async def test_leave_no_cookie(self, site: Site, outgoing: Outgoing) -> None:
        """Two agents at one host are strangers to each other."""
        site.answer = lambda _request: Response("fine", headers={"set-cookie": "who=me; Path=/"})

        await ask(outgoing, site.url())
        await ask(outgoing, site.url())

        assert all("cookie" not in headers for _, headers, _ in site.seen)


class TestFailures:
    @pytest.mark.parametrize("status", [408, 409, 425, 500, 501, 502, 503, 504, 529])
    async def test_of_a_server_are_tried_again(self, site: Site, outgoing: Outgoing, status: int) -> None:
        site.answer = lambda _request: Response(status_code=status, headers={"retry-after": "7"})

        async with outgoing.post(site.url(), b"", agent_id=AGENT, headers={}) as reply:
            failed = failure_of(reply)

        assert (failed.code, failed.retry, failed.pause_s) == ("AGENT_ERROR", True, 7.0)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 422, 451])
    async def test_of_the_request_are_final(self, site: Site, outgoing: Outgoing, status: int) -> None:
        site.answer = lambda _request: Response(status_code=status)

        async with outgoing.post(site.url(), b"", agent_id=AGENT, headers={}) as reply:
            failed = failure_of(reply)

        assert (failed.code, failed.retry) == ("AGENT_REFUSED", False)

    @pytest.mark.parametrize(
        "headers, low_s, high_s",
        [
            ({"retry-after": "3"}, 3, 3),
            ({"retry-after": "0.5"}, 0.5, 0.5),
            ({"retry-after-ms": "250", "retry-after": "9"}, 0.25, 0.25),
            ({"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}, 1e9, 1e10),
            ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0, 0),
            ({"retry-after": "soon"}, 0, 0),
            ({"retry-after": "-1"}, 0, 0),
            ({"retry-after": "٣"}, 0, 0),
            ({}, 0, 0),
        ],
    )
    async def test_say_when_to_come_back(
        self, site: Site, outgoing: Outgoing, headers: dict[str, str], low_s: float, high_s: float
    ) -> None:
        """In seconds, in milliseconds or as a date; what is none of these says nothing."""
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]

        def answer(_request: Request) -> Response:
            response = Response(status_code=429)
            response.raw_headers += raw
            return response

        site.answer = answer

        async with outgoing.post(site.url(), b"", agent_id=AGENT, headers={}) as reply:
            assert low_s <= pause_s(reply) <= high_s
            assert failure_of(reply).code == "AGENT_RATE_LIMITED"


class TestConnections:
    async def test_are_kept(self, site: Site, outgoing: Outgoing) -> None:
        """The next request finds the connection open: same client port."""
        ports: set[int] = set()

        def answer(request: Request) -> Response:
            assert request.client is not None
            ports.add(request.client.port)
            return Response("fine")

        site.answer = answer
        for _ in range(3):
            await ask(outgoing, site.url())

        assert len(ports) == 1

    async def test_are_closed_when_the_reader_leaves(self, site: Site, outgoing: Outgoing) -> None:
        """Cancelled in mid-reply, it does not go on reading."""
        begun, hung_up = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            try:
                yield b"begun"
                begun.set()
                await asyncio.Event().wait()
            finally:
                hung_up.set()

        site.answer = lambda _request: StreamingResponse(slow())
        asking = asyncio.create_task(ask(outgoing, site.url()))
        await until(begun.is_set)

        asking.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(hung_up.is_set)

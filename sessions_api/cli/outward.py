"""What a connection writes: the replies of the app, and refusals of what never became a request."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Transport
from http import HTTPStatus
from typing import ClassVar, Final

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from sessions_api.api.middleware import UNMATCHED
from sessions_api.api.replies import CLOSED, SAFE
from sessions_api.api.requests import request_id_of
from sessions_api.errors import SessionsError
from sessions_api.telemetry import metrics
from sessions_api.wire.problems import problem_of

_SAFE: Final = tuple(f"{name.decode()}: {value.decode()}" for name, value in (*SAFE, CLOSED))


class Joining:
    """What a cycle writes its reply to: the head waits for what comes with it, until the tick is over.

    Head and body would be a system call each, and a segment each. What follows
    is written as it comes.
    """

    __slots__ = ("_cycle", "_has_begun", "_head", "_loop", "_transport")
    _defaults: ClassVar[tuple[list[tuple[bytes, bytes]], bytes]] = ([], b"")
    """uvicorn's own headers, which are others in each second, and what they look like."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._cycle: RequestResponseCycle | None = None
        self._head = b""
        self._has_begun = False

    def begin(self, cycle: RequestResponseCycle | None) -> None:
        """What is written from now on answers *cycle*; None: it answers nobody, and nothing is held."""
        self._cycle = cycle

    def write_whole(self, scope: Scope, status: int, head: bytes, body: bytes) -> bool:
        """Write the reply to *scope* in one piece; False, and nothing is done, unless all is as it mostly is.

        For uvicorn a reply is two messages, and each header of it a search for what may not be in one: a
        tenth of what a request costs. *head*: header lines that need no such search, neither Connection nor
        Content-Length. *scope*: the connection's own; whoever copied it wants to see what is sent.
        """
        cycle = self._cycle
        if (
            cycle is None
            or self._head  # 100 Continue, which goes first
            or cycle.scope is not scope
            or cycle.response_started
            or cycle.disconnected
            or cycle.flow.write_paused
            or not cycle.keep_alive
        ):
            return False
        headers, defaults = self._defaults
        if cycle.default_headers is not headers:
            headers = cycle.default_headers
            defaults = b"".join(b"%b: %b\r\n" % header for header in headers)
            Joining._defaults = headers, defaults
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        cycle.expected_content_length = 0
        self._transport.write(
            b"%b%b%bcontent-length: %d\r\n\r\n%b" % (STATUS_LINE[status], defaults, head, len(body), body)
        )
        cycle.message_event.set()
        cycle.on_response()
        return True

    def write(self, data: bytes) -> None:
        if self._has_begun:
            self._transport.write(data)
        elif self._head:
            head, self._head = self._head, b""
            self._has_begun = True
            self._transport.writelines((head, data))
        else:
            self._head = data
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._has_begun = True
            if not self._transport.is_closing():
                self._transport.write(head)

    def next_reply(self) -> None:
        self.flush()  # there was no body
        self._cycle = None
        self._has_begun = False

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


def refusal(error: SessionsError) -> bytes:
    """A whole reply in our envelope, the last one of its connection; it is counted here."""
    request_id = request_id_of(None)
    problem = problem_of(error, request_id=request_id.decode())
    metrics.REQUESTS.of(UNMATCHED, "other", str(problem.status)).inc()
    lines = [
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
        f"x-request-id: {request_id.decode()}",
        "cache-control: no-store",
        "content-type: application/json",
        f"content-length: {len(problem.body)}",
        "connection: close",
        *_SAFE,
        *(f"{name.lower()}: {value}" for name, value in problem.headers),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + problem.body

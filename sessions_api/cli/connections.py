"""A client's HTTP connection: uvicorn's, with bounds on what may arrive before there is a request.

The app bounds what it reads (``api/requests.py``), but it is only asked once
the headers are complete. Until then a client could fill the memory with one
header, or hold a connection for ever with half a request; and what is no HTTP
would be refused in uvicorn's words, not in our envelope.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, BaseTransport, TimerHandle, Transport
from http import HTTPStatus
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sessions_api.api.middleware import UNMATCHED
from sessions_api.api.requests import request_id_of
from sessions_api.errors import HeadTooLarge, MalformedRequest, RequestTooSlow, SessionsError
from sessions_api.telemetry import metrics
from sessions_api.wire.problems import problem_of

MAX_HEAD_BYTES: Final = 64 * 1024

# What of the newest request is still to come.
NOTHING: Final = 0
HEAD: Final = 1
BODY: Final = 2


class Joining:
    """What a cycle writes its reply to: the head waits for what comes with it, until the tick is over.

    Head and body would be a system call each, and a segment each. What follows
    is written as it comes.
    """

    __slots__ = ("_has_begun", "_head", "_loop", "_transport")

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._has_begun = False

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
        self._has_begun = False

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Connection(HttpToolsProtocol):
    """Refuses a head of more than 64 KiB, and a request that takes longer than *arrival_s* to arrive."""

    arrival_s: ClassVar[float] = 30.0
    _awaited = NOTHING
    _head_bytes = 0
    _is_large_read = False
    _refusal: SessionsError | None = None
    _deadline: TimerHandle | None = None

    # ------------------------------------------------------------ the transport's side

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # a stream's, always
        self._joining = Joining(self.transport, self.loop)
        self._expect_all()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._is_large_read = len(data) > MAX_HEAD_BYTES
        is_all_head = self._awaited != BODY
        super().data_received(data)
        if self._awaited == NOTHING:
            if self._deadline is not None:
                self._expect_nothing()
        elif not self.transport.is_closing():
            if self._awaited == HEAD and is_all_head:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse(HeadTooLarge(MAX_HEAD_BYTES))
                    return
            if self._deadline is None:
                self._expect_all()

    def handle_websocket_upgrade(self) -> None:
        self._expect_nothing()  # from here on it is the WebSocket's connection
        super().handle_websocket_upgrade()

    # ------------------------------------------------------------ the parser's side

    def on_message_begin(self) -> None:
        self._awaited = HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._awaited = BODY
        self._head_bytes = 0
        if self._is_large_read:  # a whole head in one read: nobody has counted it yet
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._refusal = HeadTooLarge(MAX_HEAD_BYTES)
                raise self._refusal  # the parser stops, and send_400_response is called
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:  # as it is when a WebSocket is asked for
            self.cycle.transport = self._joining  # type: ignore[assignment]  # it has all that a cycle calls

    def on_response_complete(self) -> None:
        self._joining.next_reply()
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._awaited = NOTHING
        super().on_message_complete()

    # ------------------------------------------------------------ time

    def _expect_all(self) -> None:
        self._deadline = self.loop.call_later(self.arrival_s, self._on_deadline)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self.pipeline or (self._is_answering and (self._awaited == HEAD or self.cycle.response_started)):
            self._expect_all()  # an earlier request is still being answered: that goes first
        elif self._awaited == HEAD or (self._awaited == BODY and self._is_answering):
            self._refuse(RequestTooSlow(self.arrival_s))
        else:  # nothing was ever asked, or it has its answer
            self.transport.close()

    @property
    def _is_answering(self) -> bool:
        """Whether the newest request that got past its head is without its whole answer."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first, whatever uvicorn's types say
        return cycle is not None and not cycle.response_complete

    # ------------------------------------------------------------ refusing

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's words
        """What uvicorn calls when the parser gave up."""
        self._refuse(self._refusal or MalformedRequest())

    def _refuse(self, error: SessionsError) -> None:
        """Answer in our envelope, unless another answer is on its way, and close."""
        self._expect_nothing()
        self._joining.flush()
        if not (self._is_answering and self.cycle.response_started):
            request_id = request_id_of(None)
            problem = problem_of(error, request_id=request_id.decode())
            metrics.REQUESTS.of(UNMATCHED, "other", str(problem.status)).inc()
            self.transport.write(
                b"HTTP/1.1 %d %b\r\n"
                b"x-request-id: %b\r\n"
                b"cache-control: no-store\r\n"
                b"content-type: application/json\r\n"
                b"content-length: %d\r\n"
                b"connection: close\r\n"
                b"\r\n"
                % (
                    problem.status,
                    HTTPStatus(problem.status).phrase.encode(),
                    request_id,
                    len(problem.body),
                )
                + problem.body
            )
        self.transport.close()

"""A client's HTTP connection: uvicorn's, with bounds on what may arrive before there is a request.

The app bounds what it reads (``api/requests.py``), but it is only asked once
the headers are complete. Until then a client could fill the memory with one
header, or hold a connection for ever with half a request; and what is no HTTP
would be refused in uvicorn's words, not in our envelope.

What a connection may hold, each with the attack it ends: a head of 64 KiB, as
HTTP/2 counts it (one endless header, or very many); 64 KiB in which nothing of
a body comes (trailers and chunk extensions without end); 32 requests behind the
one that is answered (a read of 256 KiB holds thousands, and each is an object
of ours); 2 MiB of a body that was refused; 30 s for a request to arrive; and
of a reply that waits to be taken, 64 KiB must be in each minute. Connections
themselves are bounded too: the last file descriptors are for Redis and agents.
A few beyond the bound may ask whether the process lives, and for its metrics: one
that is full is not ended by its probes, with everybody in it.
"""

from __future__ import annotations

import logging
import resource
from asyncio import BaseTransport, TimerHandle
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sessions_api.api.replies import WHOLE_REPLY
from sessions_api.api.routes import PROBES
from sessions_api.cli.outward import Joining, refusal
from sessions_api.errors import (
    HeadTooLarge,
    MalformedRequest,
    RequestTooSlow,
    SessionsError,
    TooManyConnections,
)

MAX_HEAD_BYTES: Final = 64 * 1024
HEADER_BYTES: Final = 32
"""What each header counts beside its text (RFC 9113, 6.5.2): the objects it becomes are larger than that."""
MAX_PIPELINED: Final = 32
MAX_UNWANTED_BYTES: Final = 2 * 1024 * 1024
LEAST_TAKEN_BYTES: Final = 64 * 1024
RESERVED_DESCRIPTORS: Final = 1_000
SPARE: Final = 16
"""Connections beyond the bound, for :data:`PROBES`."""
SPARE_S: Final = 1.0
"""For one of these to say what it wants."""

# What of the newest request is still to come.
NOTHING: Final = 0
HEAD: Final = 1
BODY: Final = 2

# uvicorn warns of each request that is no HTTP; metrics count them, and a line for each would fill the disk.
LOGGER: Final = logging.getLogger("uvicorn.error.connections")
LOGGER.setLevel(logging.ERROR)
# What it says of a stream that the app has cut because its reader takes nothing: no error of anybody's.
LOGGER.addFilter(lambda record: record.msg != "ASGI callable returned without completing response.")


def most_connections(most: int | None) -> int:
    """How many connections this process may have: *most*, or fewer if its file descriptors allow no more."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = descriptors - min(RESERVED_DESCRIPTORS, descriptors // 2)
    return allowed if most is None else min(most, allowed)


class Connection(HttpToolsProtocol):
    """Refuses what is too large, too slow or no HTTP, in order, and closes; see the module."""

    arrival_s: ClassVar[float] = 30.0
    taking_s: ClassVar[float] = 60.0
    _awaited = NOTHING
    _idle_bytes = 0
    """What came since the last head, or piece of a body, was whole."""
    _head_bytes = 0
    _unwanted_bytes = 0
    _untaken_bytes = 0
    _has_host = False
    _too_many: TooManyConnections | None = None
    """What a connection beyond the bound is told, unless it is a probe's."""
    _is_over = False
    """What comes from now on is not read: the connection ends after the answers that are due."""
    _refusal: SessionsError | None = None
    _running: RequestResponseCycle | None = None
    """The request that is being answered, or was last; ``cycle`` is the newest that got past its head."""
    _deadline: TimerHandle | None = None
    _stalled: TimerHandle | None = None

    # ------------------------------------------------------------ the transport's side

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # a stream's, always
        self.logger = LOGGER
        self._joining = Joining(self.transport, self.loop)
        self._extensions: Any = {WHOLE_REPLY: self._joining.write_whole}
        # Not as uvicorn does it, which would refuse requests on connections that it has let in.
        most, self.limit_concurrency = most_connections(self.limit_concurrency), None
        beyond = len(self.connections) - most
        if beyond > 0:
            self._too_many = TooManyConnections(most)
        if beyond > SPARE:
            self._refuse(TooManyConnections(most))
        else:
            self._expect_all()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self.resume_writing()
        self._joining.begin(None)
        running = self._running
        super().connection_lost(exc)
        if running is not None and not running.response_complete:  # uvicorn tells only the newest request
            running.disconnected = True
            running.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._idle_bytes += len(data)
        if self._awaited == BODY and not self._is_answering:
            self._unwanted_bytes += len(data)
        super().data_received(data)
        self._expect_rest()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def handle_websocket_upgrade(self) -> None:
        if self._is_answering:  # the answer would go into the conversation
            self._refuse(MalformedRequest())
            return
        self._is_over = True  # from here on it is the WebSocket's connection
        self._expect_nothing()
        self.resume_writing()
        super().handle_websocket_upgrade()

    # ------------------------------------------------------------ the parser's side

    def on_message_begin(self) -> None:
        self._awaited = HEAD
        self._head_bytes = 0
        self._has_host = False
        if self._deadline is not None and self.cycle is not None:
            self._expect_nothing()  # it was for the silence between two requests
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._awaited == BODY:
            return  # a trailer: one that passed for a header would get by the proxy that checks those
        name = name.lower()
        if name == b"host":
            if self._has_host:
                raise MalformedRequest  # RFC 9112, 3.2: whose request it is must not be in doubt
            self._has_host = True
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self._head_bytes += len(name) + len(value) + HEADER_BYTES
        if self._head_bytes > MAX_HEAD_BYTES:
            self._stop_for(HeadTooLarge(MAX_HEAD_BYTES))
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head_bytes + len(self.url) > MAX_HEAD_BYTES:
            self._stop_for(HeadTooLarge(MAX_HEAD_BYTES))
        if self._too_many is not None and self.url.partition(b"?")[0].decode("latin-1") not in PROBES:
            self._stop_for(self._too_many)
        if len(self.pipeline) >= MAX_PIPELINED:
            self._is_over = True  # these are answered; the others have to be asked again (RFC 9112, 9.3.2)
            raise MalformedRequest
        if self.parser.should_upgrade() and not self._should_upgrade() and self._has_body():
            raise MalformedRequest  # the parser would take its body for the next request
        before = self.cycle
        super().on_headers_complete()
        self._awaited = BODY
        self._idle_bytes = 0
        self._unwanted_bytes = 0
        if self.cycle is not before:  # as it is when a WebSocket is asked for
            self.cycle.transport = self._joining  # type: ignore[assignment]  # it has all that a cycle calls

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.scope["extensions"] = self._extensions
        self._joining.begin(cycle)
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._awaited = NOTHING
        self._idle_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._joining.next_reply()
        is_last = self._is_over and not self.pipeline
        super().on_response_complete()
        if is_last and not self.transport.is_closing():
            self._end(self._refusal)

    def _has_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
            for name, value in self.headers
        )

    # ------------------------------------------------------------ time

    def _expect_rest(self) -> None:
        """After each read: no client waits, or lets us wait, without a timer running."""
        if self._is_over or self.transport.is_closing():
            return
        if self._awaited == NOTHING and self._is_answering:
            self._expect_nothing()
        elif self._idle_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(MAX_HEAD_BYTES))
        elif self._unwanted_bytes > MAX_UNWANTED_BYTES:
            self.transport.close()
        elif self._deadline is None:
            self._expect_all()

    def _expect_all(self) -> None:
        arrival_s = self.arrival_s if self._too_many is None else SPARE_S
        self._deadline = self.loop.call_later(arrival_s, self._on_deadline)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._is_answering and (self._is_behind or self.cycle.response_started):
            self._expect_all()  # an earlier request is still being answered: that goes first
        elif self._too_many is not None and self._running is None:  # it has said nothing, or not all
            self._refuse(self._too_many)
        elif self._awaited == HEAD or (self._awaited == BODY and self._is_answering):
            self._refuse(RequestTooSlow(self.arrival_s))
        else:  # nothing was ever asked, or it has its answer
            self.transport.close()

    def _expect_taking(self) -> None:
        self._untaken_bytes = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(self.taking_s, self._on_stalled)

    def _on_stalled(self) -> None:
        if self._untaken_bytes - self.transport.get_write_buffer_size() < LEAST_TAKEN_BYTES:
            self.transport.abort()
        else:
            self._expect_taking()

    @property
    def _is_answering(self) -> bool:
        """Whether a request is without its whole answer."""
        return self._running is not None and not self._running.response_complete

    @property
    def _is_behind(self) -> bool:
        """Whether what arrives is behind the request that is being answered, and no part of it."""
        return self._awaited != BODY or self._running is not self.cycle

    # ------------------------------------------------------------ refusing

    def _stop_for(self, error: SessionsError) -> None:
        """Stop the parser, from within: it will call :meth:`send_400_response`."""
        self._refusal = error
        raise error

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's words
        """What uvicorn calls when the parser gave up."""
        if not self._is_over:
            self._refuse(self._refusal or MalformedRequest())

    def _refuse(self, error: SessionsError) -> None:
        """Answer in our envelope, after what was asked before it, and close; read no more."""
        self._expect_nothing()
        self._is_over = True
        if self._is_answering and self._is_behind:
            self._refusal = error
            if self._awaited == BODY:
                self.pipeline.popleft()  # itself: its body will never be whole
            self.flow.pause_reading()
            return
        self._joining.flush()
        self._end(None if self._is_answering and self.cycle.response_started else error)

    def _end(self, error: SessionsError | None) -> None:
        if error is not None:
            self.transport.write(refusal(error))
        self.transport.close()

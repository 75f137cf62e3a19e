"""One HTTP request: its headers, query and body, each within bounds.

Leaner than Starlette's request object, since every request pays for it: headers
are looked up in one dict, nothing is parsed that no endpoint asks for.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
from starlette.types import Message, Receive, Scope

from sessions_api.api.auth import NOBODY
from sessions_api.api.state import State
from sessions_api.domain.access import Caller
from sessions_api.domain.ids import SessionId, is_uuid
from sessions_api.domain.traces import NO_TRACE, Trace, read_trace, trace_fields
from sessions_api.errors import (
    BodyTooLarge,
    FieldError,
    InvalidInput,
    MalformedBody,
    SessionNotFound,
    UnsupportedMediaType,
)
from sessions_api.wire.shapes import TOO_DEEP, check_shape

MAX_BODY_BYTES: Final = 256 * 1024
MAX_QUERY_BYTES: Final = 8 * 1024
MAX_QUERY_FIELDS: Final = 50
MERGE_PATCH: Final = "application/merge-patch+json"
TRACE_HEADERS: Final = (b"traceparent", b"tracestate")
_JSON_TYPE: Final = re.compile(r"application/(json|[a-z0-9.-]+\+json)")
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/._~-]{1,500}").fullmatch
_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:+/=@-]{1,128}")
_decode = msgspec.json.Decoder().decode
T = TypeVar("T")

_made_ids: Iterator[int] = itertools.count(1)
_process: Final = secrets.token_hex(6)


def request_id_of(sent: bytes | None) -> bytes:
    """The caller's own id of the request if it is sane, else a fresh one."""
    if sent is not None and _SANE_ID.fullmatch(sent):
        return sent
    return f"{_process}-{next(_made_ids):x}".encode()


def trace_of(headers: Iterable[tuple[bytes, bytes]]) -> Trace:
    """What ``traceparent`` and ``tracestate`` tell; the latter may be spread over several (RFC 9110, 5.3)."""
    found: dict[bytes, list[bytes]] = {name: [] for name in TRACE_HEADERS}
    for name, value in headers:
        if name in found:
            found[name].append(value)
    parent, state = (b",".join(values).decode("latin-1") for values in found.values())
    return read_trace(parent, state)


class ClientGone(Exception):
    """The client closed the connection before its request was complete, or its answer was there."""


async def unless_gone(
    receive: Receive, work: Coroutine[Any, Any, T], *, unwanted: Callable[[T], None] | None = None
) -> T:
    """The result of *work*, which a client that leaves meanwhile cancels; its body has been read.

    *unwanted* is called with a result that came in the instant in which the client left.

    Raises:
        ClientGone: it left first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        result = working.result()
        if unwanted is not None and leaving.done():
            unwanted(result)
            raise ClientGone
        return result
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Request:
    """One request being served."""

    __slots__ = (
        "_body",
        "caller",
        "common",
        "headers",
        "id",
        "params",
        "receive",
        "scope",
        "state",
        "turn_id",
    )

    def __init__(self, scope: Scope, receive: Receive, state: State) -> None:
        self.scope = scope
        self.receive = receive
        self.state = state
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        """Lower-case names; of a repeated header the last."""
        self.id = request_id_of(self.headers.get(b"x-request-id"))
        self.common: tuple[tuple[bytes, bytes], ...] = ((b"x-request-id", self.id),)
        """Headers that every reply to this request carries."""
        self.params: dict[str, str] = {}
        self.caller: Caller = NOBODY
        self.turn_id: str | None = None
        """The turn that the caller waits for: errors name it."""
        self._body: bytes | None = None

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def address(self) -> str:
        """Where it comes from, as limits count it."""
        return self.state.addresses.client(self.scope)

    @property
    def trace(self) -> Trace:
        """Where it stands in a trace: as its caller says, or as ``api/traced.py`` does in its place."""
        return trace_of(self.scope["headers"]) if b"traceparent" in self.headers else NO_TRACE

    @property
    def ids(self) -> dict[str, str]:
        """What every log line about it says."""
        return {"request_id": self.id.decode(), **trace_fields(self.trace)}

    @property
    def instance(self) -> str:
        """The path, as a problem's ``instance``."""
        path = str(self.scope["path"])
        return path if _PLAIN_PATH(path) else quote(path[:500], safe="/:@!$&'()*+,;=-._~", errors="replace")

    @property
    def wants_problem(self) -> bool:
        return b"application/problem+json" in self.headers.get(b"accept", b"")

    @property
    def wants_event_stream(self) -> bool:
        """A stream, and not JSON as well: who takes both gets the simpler one."""
        accept = self.headers.get(b"accept", b"")
        return b"text/event-stream" in accept and b"application/json" not in accept

    @property
    def prefers_minimal(self) -> bool:
        return b"return=minimal" in self.headers.get(b"prefer", b"").replace(b" ", b"")

    @property
    def session_id(self) -> SessionId:
        """The session that the path names.

        Raises:
            SessionNotFound: it names none: it is no UUID.
        """
        text = self.params["sessionId"]
        if not is_uuid(text):
            raise SessionNotFound(text)
        return SessionId(text.lower())

    @property
    def content_type(self) -> str:
        """The media type, lower case, without parameters; empty if there is none."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")

    def query(self) -> dict[str, str]:
        """The query's fields; of a repeated one the last.

        Raises:
            InvalidInput: it is longer, or has more fields, than any request's here.
        """
        raw: bytes = self.scope["query_string"]
        if not raw:
            return {}
        if len(raw) > MAX_QUERY_BYTES:
            raise InvalidInput(
                "Invalid query", [FieldError("query", "is too long", None, f"up to {MAX_QUERY_BYTES} bytes")]
            )
        try:
            return dict(
                parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
            )
        except ValueError as error:
            raise InvalidInput(
                "Invalid query",
                [FieldError("query", "has too many fields", None, f"up to {MAX_QUERY_FIELDS}")],
            ) from error

    def link(self, *, rel: str, **changed: str) -> bytes:
        """A Link header's value (RFC 8288): this request with other positions, which need no quoting."""
        kept = {key: value for key, value in self.query().items() if key not in {"before", "after", "cursor"}}
        query = urlencode(kept) + "&" if kept else ""
        query += "&".join([f"{name}={position}" for name, position in changed.items()])
        return f'<{self.instance}?{query}>; rel="{rel}"'.encode()

    async def body(self, *, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: more than *max_bytes*, announced or sent.
            ClientGone: the client left in the middle.
        """
        if self._body is not None:
            return self._body
        announced = self.headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced[:20]) > max_bytes:
            raise BodyTooLarge(max_bytes)
        parts: list[bytes] = []
        size = 0
        while True:
            message: Message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > max_bytes:
                raise BodyTooLarge(max_bytes)
            if not message.get("more_body"):
                self._body = part if not parts else b"".join([*parts, part])
                return self._body
            parts.append(part)

    async def json(self, *, max_bytes: int = MAX_BODY_BYTES) -> Any:
        """The body as plain data; None where there is no body.

        Raises:
            BodyTooLarge, ClientGone: as :meth:`body`.
            UnsupportedMediaType: a body that does not say it is JSON.
            MalformedBody: it says so and is not, is no UTF-8, or is nested too deep.
        """
        body = await self.body(max_bytes=max_bytes)
        if not body:
            return None
        self._check_media_type()
        return read_json(body)

    def _check_media_type(self) -> None:
        if (
            self.headers.get(b"content-type") == b"application/json"
            and b"content-encoding" not in self.headers
        ):
            return
        sent = self.headers.get(b"content-type", b"").decode("latin-1")
        charset = re.search(r'charset="?([^";\s]*)', sent.lower())
        encoding = self.headers.get(b"content-encoding", b"identity").lower()
        if (
            _JSON_TYPE.fullmatch(self.content_type) is None
            or (charset is not None and charset[1] not in {"utf-8", "utf8"})
            or encoding != b"identity"
        ):
            raise UnsupportedMediaType(sent, ("application/json",))


def read_json(body: bytes) -> Any:
    """Plain data of JSON in UTF-8.

    Strict: no NaN, no infinities, no lone surrogates, no trailing text. Of a
    repeated key the last value counts.

    Raises:
        MalformedBody: anything else, and what has more structure than ``wire/shapes.py`` allows.
    """
    check_shape(body)
    try:
        return _decode(body)
    except UnicodeDecodeError as error:
        raise MalformedBody("not valid UTF-8") from error
    except RecursionError as error:
        raise MalformedBody(TOO_DEEP) from error
    except msgspec.DecodeError as error:
        reason = str(error).partition(" - at ")[0]  # the path would quote the body
        if reason == "Input data was truncated":  # the one that msgspec words otherwise
            reason = "JSON is malformed: it is truncated"
        raise MalformedBody(reason) from error

"""A span around each request; it stands in front of everything, and only where this service traces.

The span takes the caller's place in the request's ``traceparent``, so that all
below goes on from here without knowing.

Of a stream, SSE or WebSocket, the span covers the opening: it ends when the
reply begins. Streams stay open for hours, a span is exported when it ends, and
traces that take hours to arrive are cut off by every backend; how long streams
live is in the metrics. What probes and Prometheus ask every few seconds has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sessions_api.api.requests import TRACE_HEADERS, trace_of
from sessions_api.api.routes import PROBES, WEBSOCKET, Lookup
from sessions_api.domain.ids import is_uuid
from sessions_api.domain.traces import Trace, trace_headers
from sessions_api.telemetry.tracing import Arrived, HttpSpan, Tracing

REDACTED: Final = "REDACTED"
"""A path that is none of ours, or whose ids are none, may hold anything."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
_ATTRIBUTES: Final = {
    "sessionId": "gen_ai.conversation.id",
    "agentId": "gen_ai.agent.id",
    "turnId": "sessions_api.turn.id",
}


class Traced:
    """The ASGI application, its requests in spans."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing
        self._lookup = Lookup()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                found = self._lookup.find(scope["path"])
                route, params = (None, {}) if found is None else (found[0].path, found[1])
                if route in PROBES:
                    await self._app(scope, receive, send)
                else:
                    await self._request(route, params, scope, receive, send)
            case "websocket":
                found_params = self._lookup.find_websocket(scope["path"])
                route = None if found_params is None else WEBSOCKET
                await self._request(route, found_params or {}, scope, receive, send)
            case _:
                await self._app(scope, receive, send)

    async def _request(
        self, route: str | None, params: Mapping[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        method = scope.get("method", "GET")
        is_known = route is not None and all(map(is_uuid, params.values()))
        arrived = Arrived(
            method=method if method in _METHODS else "_OTHER",
            path=scope["path"] if is_known else REDACTED,
            scheme=scope.get("scheme", "http"),
            route=route,
            ids={_ATTRIBUTES[name]: value.lower() for name, value in params.items() if is_uuid(value)},
        )
        span = self._tracing.request(arrived, trace_of(scope["headers"]))
        opening = _Opening(span, send)
        try:
            await self._app(dict(scope, headers=_headers(scope["headers"], span.trace)), receive, opening)
            if not opening.has_begun:
                span.failed("client_gone")
        except BaseException as error:  # a cancelled request has a span as well
            span.failed(type(error).__name__)
            raise
        finally:
            span.end()


class _Opening:
    """The way out, which sees how the reply begins."""

    __slots__ = ("_send", "_span", "has_begun")

    def __init__(self, span: HttpSpan, send: Send) -> None:
        self._span = span
        self._send = send
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if not self.has_begun:
            self.has_begun = True
            match message["type"]:
                case "http.response.start":
                    self._span.answered(message["status"])
                    if _is_stream(message):
                        self._span.end()
                case "websocket.accept":
                    self._span.answered(101)
                    self._span.end()
                case _:  # a socket that is closed before it opened
                    pass
        await self._send(message)


def _is_stream(message: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in message["headers"]
    )


def _headers(headers: Iterable[tuple[bytes, bytes]], trace: Trace) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name not in TRACE_HEADERS]
    return [*kept, *((name.encode(), value.encode()) for name, value in trace_headers(trace).items())]

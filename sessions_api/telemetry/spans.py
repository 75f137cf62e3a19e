"""Spans as OpenTelemetry has them; loaded only where it was asked for (tracing.py).

Names and attributes are those of its semantic conventions: stable for HTTP, of
the GenAI conventions (status: development) for turns, ``sessions_api.*`` for what
neither has. None holds what was said, who the user is, a query, or more of an
agent's URL than its origin: behind that may stand a secret.

No span is ever *current*: tasks outlive the request in which they began, and
would go on under its name. Each is handed on as a value, see ``tracing.py``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Final
from urllib.parse import urlsplit

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.traces import Trace, traceparent_of, tracestate_of
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.errors import SettingsError
from sessions_api.telemetry.tracing import Arrived, HttpSpan, Tracing, TurnSpan

FLUSH_S: Final = 3.0
"""At the end, for what was not exported yet; a collector that is away must not hold a deployment up."""
SCHEMA: Final = "https://opentelemetry.io/schemas/1.41.0"
_ERROR: Final = Status(StatusCode.ERROR)
_MAKERS: Final[Mapping[str, Callable[[], SpanExporter]]] = {
    "otlp": OTLPSpanExporter,
    "console": ConsoleSpanExporter,
}

log = structlog.get_logger(__name__)


class Spans(Tracing):
    """Records spans, and exports them from :meth:`start` until :meth:`stop`.

    Exporting is a thread's work, which takes from a queue of 2,048 spans
    (``OTEL_BSP_MAX_QUEUE_SIZE``): a collector that is slow or away costs spans,
    never a request. The SDK reads sampler, limits and exporter from the
    environment by itself.
    """

    is_on = True

    def __init__(
        self,
        exporters: tuple[str, ...],
        *,
        instance: str,
        makers: Mapping[str, Callable[[], SpanExporter]] = _MAKERS,
    ) -> None:
        self._makers = [makers[name] for name in exporters]
        service = {
            "service.name": "sessions-api",
            "service.version": version("sessions-api"),
            "service.instance.id": instance,
        }
        # Last the environment: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are the operator's word.
        resource = Resource.create().merge(Resource(service)).merge(OTELResourceDetector().detect())
        # No exit hook: it would wait half a minute for a collector that is away.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer("sessions_api", version("sessions-api"), schema_url=SCHEMA)

    def start(self) -> None:
        """Begin to export.

        Raises:
            SettingsError: the SDK does not take one of its variables.
        """
        try:
            for make in self._makers:
                self._provider.add_span_processor(BatchSpanProcessor(make()))
        except (ValueError, OSError) as error:
            raise SettingsError([f"OpenTelemetry does not take its settings (OTEL_…): {error}"]) from error

    async def stop(self) -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop did not wait for us
                loop.call_soon_threadsafe(done.set)

        # A thread of its own: one of the loop's would be joined at the end, however long it takes.
        threading.Thread(target=shut_down, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await done.wait()
        except TimeoutError:
            log.warning("spans_dropped", reason=f"the collector took none for {FLUSH_S:g} s")

    def request(self, arrived: Arrived, trace: Trace) -> HttpSpan:
        attributes = {
            "http.request.method": arrived.method,
            "url.path": arrived.path,
            "url.scheme": arrived.scheme,
            **arrived.ids,
        }
        name = "HTTP" if arrived.method == "_OTHER" else arrived.method
        if arrived.route is not None:
            attributes["http.route"] = arrived.route
            name = f"{name} {arrived.route}"
        within = set_span_in_context(_remote(trace))
        return _RecordedHttp(
            self._tracer.start_span(name, within, SpanKind.SERVER, attributes), least_error=500
        )

    def turn(self, claimed: ClaimedTurn, definition: AgentDefinition) -> TurnSpan:
        turn = claimed.turn
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.id": definition.agent_id,
            "gen_ai.agent.name": definition.name,
            "gen_ai.conversation.id": claimed.session_id,
            "sessions_api.agent.kind": definition.kind,
            "sessions_api.turn.id": turn.turn_id,
            "sessions_api.turn.attempt": turn.attempt,
            "sessions_api.turn.queued_ms": max(0, turn.started_ms - turn.queued_ms),
        }
        if definition.kind == "openai":
            attributes["gen_ai.provider.name"] = "openai"  # the protocol's: whose model it is, nobody says
            attributes["gen_ai.request.model"] = str(definition.config.get("model", ""))
        span = self._tracer.start_span(
            f"invoke_agent {definition.name}",
            set_span_in_context(_remote(claimed.trace)),
            SpanKind.CONSUMER,  # of a queue, whose other end was another process or another hour
            attributes,
            [Link(_context(trace)) for trace in turn.traces],
        )
        span.add_event("claimed")
        return _RecordedTurn(span)

    def call(self, method: str, url: str, trace: Trace, *, resends: int = 0) -> HttpSpan:
        parts = urlsplit(url)
        host = parts.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        port = f":{parts.port}" if parts.port else ""
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "server.address": host,
            "server.port": parts.port or {"https": 443}.get(parts.scheme, 80),
            "url.full": f"{parts.scheme}://{shown}{port}/REDACTED",
        }
        if resends:
            attributes["http.request.resend_count"] = resends
        span = self._tracer.start_span(
            method, set_span_in_context(_remote(trace)), SpanKind.CLIENT, attributes
        )
        return _RecordedHttp(span, least_error=400)


class _RecordedHttp(HttpSpan):
    """*least_error*: a server's 4xx is its client's mistake, a client's is its own."""

    __slots__ = ("_has_failed", "_is_over", "_least_error", "_span")

    def __init__(self, span: Span, *, least_error: int) -> None:
        super().__init__(_trace_of(span))
        self._span = span
        self._least_error = least_error
        self._has_failed = False
        self._is_over = False

    def answered(self, status: int) -> None:
        self._span.set_attribute("http.response.status_code", status)
        if status >= self._least_error:
            self.failed(str(status))

    def failed(self, kind: str) -> None:
        if not self._has_failed and not self._is_over:  # a stream goes on after its span
            self._has_failed = True
            _fail(self._span, kind)

    def end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._span.end()


class _RecordedTurn(TurnSpan):
    __slots__ = ("_has_failed", "_span", "trace")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._has_failed = False
        self.trace = _trace_of(span)

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def used(self, tokens: Mapping[str, int]) -> None:
        for kind, count in tokens.items():
            self._span.set_attribute(f"gen_ai.usage.{kind}_tokens", count)

    def failed(self, kind: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._span.add_event("failed")
            _fail(self._span, kind)

    def end(self) -> None:
        self._span.end()


def _fail(span: Span, kind: str) -> None:
    """Without a description: an error's message may quote what was said."""
    span.set_attribute("error.type", kind)
    span.set_status(_ERROR)


def _context(trace: Trace) -> SpanContext:
    parent, state = traceparent_of(trace), tracestate_of(trace)
    return SpanContext(
        trace_id=int(parent[3:35], 16),
        span_id=int(parent[36:52], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(parent[53:], 16)),
        trace_state=TraceState.from_header([state]) if state else None,
    )


def _remote(trace: Trace) -> Span:
    return NonRecordingSpan(_context(trace)) if trace else INVALID_SPAN


def _trace_of(span: Span) -> Trace:
    context = span.get_span_context()
    parent = f"{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}"
    state = context.trace_state.to_header()
    return Trace(f"00-{parent}-{context.trace_flags:02x}{f' {state}' if state else ''}")

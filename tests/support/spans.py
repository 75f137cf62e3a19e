"""Spans kept in memory: what a part recorded, as a test reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sessions_api.domain.traces import Trace
from sessions_api.telemetry.spans import Spans

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = Trace(f"00-{TRACE_ID}-b7ad6b7169203331-01 vendor=there")
UNSAMPLED = Trace(f"00-{TRACE_ID}-b7ad6b7169203331-00")


class Recorded:
    """One span, in words."""

    def __init__(self, span: ReadableSpan) -> None:
        assert span.context is not None
        self.name = span.name
        self.kind: SpanKind = span.kind
        self.trace_id = f"{span.context.trace_id:032x}"
        self.span_id = f"{span.context.span_id:016x}"
        self.parent_id = f"{span.parent.span_id:016x}" if span.parent else ""
        self.attributes: dict[str, Any] = dict(span.attributes or {})
        self.events = [event.name for event in span.events]
        self.links = [f"{link.context.trace_id:032x}" for link in span.links]
        self.has_failed = span.status.status_code is StatusCode.ERROR
        self.description = span.status.description
        self.whole = span.to_json()


class Tracer(Spans):
    """Records into memory; :attr:`spans` has those that ended."""

    def __init__(self) -> None:
        self.kept = InMemorySpanExporter()
        super().__init__(("kept",), instance="tested", makers={"kept": lambda: self.kept})

    @property
    def spans(self) -> list[Recorded]:
        self._provider.force_flush()
        return [Recorded(span) for span in self.kept.get_finished_spans()]

    def only(self, kind: SpanKind) -> Recorded:
        [span] = [span for span in self.spans if span.kind is kind]
        return span


@asynccontextmanager
async def tracing() -> AsyncIterator[Tracer]:
    tracer = Tracer()
    tracer.start()
    try:
        yield tracer
    finally:
        await tracer.stop()

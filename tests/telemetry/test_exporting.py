"""Exporting is a thread's work with a bounded queue: what cannot leave is dropped, and waited for briefly."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from sessions_api.domain.traces import NO_TRACE
from sessions_api.errors import SettingsError
from sessions_api.telemetry.logs import configure as logs_as_usual
from sessions_api.telemetry.spans import Spans
from sessions_api.telemetry.tracing import Arrived

QUEUE, BATCH = 2048, 512
"""The SDK's own numbers, by the specification."""


class Stuck(SpanExporter):
    """As a collector that takes the connection and says nothing more."""

    def __init__(self) -> None:
        self.lets = threading.Event()
        self.exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.lets.wait()
        self.exported += len(spans)
        return SpanExportResult.SUCCESS


def record(spans: Spans, count: int) -> None:
    for number in range(count):
        span = spans.request(Arrived("GET", f"/{number}", "http", None, {}), NO_TRACE)
        span.answered(200)
        span.end()


class TestAStuckExporter:
    async def test_keeps_no_more_than_its_queue(self) -> None:
        """However many requests there are: what is dropped is the oldest that nobody took."""
        stuck = Stuck()
        spans = Spans(("stuck",), instance="tested", makers={"stuck": lambda: stuck})
        spans.start()
        try:
            record(spans, 5 * QUEUE)
            gc.collect()
            kept = sum(isinstance(each, ReadableSpan) for each in gc.get_objects())
        finally:
            stuck.lets.set()
            await spans.stop()

        assert QUEUE <= kept <= QUEUE + BATCH + 10
        assert stuck.exported <= QUEUE + BATCH

    async def test_is_not_waited_for(self) -> None:
        logs_as_usual("info", "console")  # whatever a test before this one left
        stuck = Stuck()
        spans = Spans(("stuck",), instance="tested", makers={"stuck": lambda: stuck})
        spans.start()
        record(spans, 1)

        with capture_logs() as logs:
            async with asyncio.timeout(30):
                await spans.stop()

        stuck.lets.set()
        assert [line["event"] for line in logs] == ["spans_dropped"]


class TestTheSdk:
    async def test_that_does_not_take_its_settings_ends_the_start_in_words(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")  # below the size of a batch
        spans = Spans(("console",), instance="tested")

        with pytest.raises(SettingsError, match="OTEL_"):
            spans.start()

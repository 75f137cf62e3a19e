"""An agent goes on with the trace of the message that it answers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once

from sessions_api.sdk import Agent, Turn, TurnFailed
from tests.support.app import SESSIONS, App
from tests.support.service import Service
from tests.support.spans import CALLER, TRACE_ID, Recorded

PARENT = {"traceparent": CALLER[:55], "tracestate": "vendor=there"}


@contextmanager
def recording() -> Iterator[InMemorySpanExporter]:
    """A program that has OpenTelemetry set up: the provider is the process's own, for the time of a test."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    try:
        yield kept
    finally:
        trace._TRACER_PROVIDER = None
        trace._TRACER_PROVIDER_SET_ONCE = Once()


async def ask(app: App, agent_id: str, **headers: str) -> str:
    """A message with these headers; its session."""
    session_id = await app.create(agent_id)
    reply = await app._http.post(
        f"{SESSIONS}/{session_id}/messages",
        json={"content": "hello", "transport": "http", "timeoutMs": 40_000},
        headers=headers,
    )
    assert reply.status_code in {201, 502}, reply.text
    return session_id


class TestATurn:
    async def test_says_where_its_message_stands(self, service: Service, app: App, agent_id: str) -> None:
        turns: list[Turn] = []

        async def answer(turn: Turn) -> str:
            turns.append(turn)
            return "so"

        async with Agent(service.url, agent_id, handler=answer, name="Traced"):
            await ask(app, agent_id, **PARENT)
            await ask(app, agent_id)

        assert (turns[0].traceparent, turns[0].tracestate) == (PARENT["traceparent"], "vendor=there")
        assert (turns[1].traceparent, turns[1].tracestate) == (None, None)


class TestASpan:
    async def test_is_current_while_the_handler_works(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        """What the handler calls and is instrumented stands below it, and so below the app's request."""

        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            yield "so "
            await asyncio.sleep(0)
            with trace.get_tracer("theirs").start_as_current_span("their own"):
                yield "it is"

        with recording() as kept:
            async with Agent(service.url, agent_id, handler=answer, name="Traced"):
                session_id = await ask(app, agent_id, **PARENT)
            below, span = (Recorded(each) for each in kept.get_finished_spans())

        assert (span.name, span.kind) == ("invoke_agent", trace.SpanKind.CONSUMER)
        assert (span.trace_id, span.parent_id) == (TRACE_ID, PARENT["traceparent"][36:52])
        assert span.attributes["gen_ai.conversation.id"] == session_id
        assert span.attributes["gen_ai.agent.id"] == agent_id
        assert (below.name, below.trace_id, below.parent_id) == ("their own", TRACE_ID, span.span_id)
        assert not span.has_failed

    async def test_of_a_failure_has_its_code_and_not_its_words(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        async def answer(turn: Turn) -> str:
            if turn.attempt == 1:
                raise ValueError(f"{turn.text} quoted")
            raise TurnFailed("NO_FUNDS", f"{turn.text} quoted", retry=False)

        with recording() as kept:
            async with Agent(service.url, agent_id, handler=answer, name="Traced"):
                await ask(app, agent_id, **PARENT)
            spans = [Recorded(each) for each in kept.get_finished_spans()]

        assert [span.attributes["error.type"] for span in spans] == ["ValueError", "NO_FUNDS"]
        assert all(span.has_failed for span in spans)
        assert "quoted" not in "".join(span.whole for span in spans)

    async def test_of_a_message_without_a_trace_is_a_root(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        async def answer(_turn: Turn) -> str:
            return "so"

        with recording() as kept:
            async with Agent(service.url, agent_id, handler=answer, name="Traced"):
                await ask(app, agent_id)
            [span] = [Recorded(each) for each in kept.get_finished_spans()]

        assert span.parent_id == ""


@pytest.mark.parametrize("name", ["opentelemetry", "msgspec"])
def test_the_sdk_loads_nothing_for_it(name: str) -> None:
    """A program without OpenTelemetry pays nothing, installed or not."""
    code = f"import sys, sessions_api.sdk; sys.exit({name!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

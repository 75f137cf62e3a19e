"""One trace from an app's request to its agent, through a real service; and a collector that is away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from starlette.responses import JSONResponse
from websockets.sync.client import connect

from tests.support.client import Api, eventually, received_until
from tests.support.collector import Collector, Exported
from tests.support.commands import USER, RunningService
from tests.support.ports import free_port
from tests.support.webhook_server import SECRET, Receiver
from tests.support.workers import Worker

HOOK = "5b0c2b5e-6d3c-4f0e-8a39-1d2f6a7c9b02"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01", "tracestate": "vendor=there"}
SAID = "what the user said"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
"""Milliseconds between two exports; five seconds by default."""
NEVER = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
MESSAGES = "POST /api/messaging/sessions/{sessionId}/messages"


@contextmanager
def traced(folder: Path, collector: Collector, **env: str) -> Iterator[RunningService]:
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "LOG_LEVEL": "debug", "LOG_FORMAT": "json"}
    with RunningService(folder, env=asked | SOON | env) as service:
        yield service


def post(
    service: RunningService, session_id: str, content: str = SAID, *, transport: str = "http"
) -> httpx2.Response:
    reply = httpx2.post(
        f"{service.sessions}/{session_id}/messages",
        json={"content": content, "transport": transport},
        headers=CALLER,
        timeout=30,
        trust_env=False,
    )
    assert reply.status_code == 201, reply.text
    return reply


def ask_hook(service: RunningService, receiver: Receiver) -> str:
    """A message to an agent that is a webhook, answered; its session."""
    config = {"url": receiver.url, "secret": SECRET}
    body = {"name": "Hook", "kind": "webhook", "config": config}
    httpx2.put(f"{service.url}/api/agents/{HOOK}", json=body, trust_env=False).raise_for_status()
    session_id = service.create(agentId=HOOK)
    post(service, session_id)
    return session_id


def within(collector: Collector) -> dict[str, Exported]:
    """The spans of the caller's trace, by name."""
    return {span.name: span for span in collector.spans if span.trace_id == TRACE_ID}


class TestATrace:
    async def test_leads_from_the_apps_request_to_the_webhook(self, tmp_path: Path) -> None:
        """Each span below the one before it, the agent below the last; and nothing in them that was said."""

        def run() -> tuple[str, str]:
            with traced(tmp_path, collector) as service:
                session_id = ask_hook(service, receiver)
                eventually(lambda: len(within(collector)) == 3)
                return session_id, service.err()

        with Collector() as collector:
            async with Receiver(lambda _received: JSONResponse({"content": "an answer"})) as receiver:
                session_id, log = await asyncio.to_thread(run)
                [received] = receiver.received
            spans = within(collector)

        request, turn, call = spans[MESSAGES], spans["invoke_agent Hook"], spans["POST"]
        assert [span.kind for span in (request, turn, call)] == ["server", "consumer", "client"]
        assert [request.parent_id, turn.parent_id, call.parent_id] == [
            CALLER["traceparent"][36:52],
            request.span_id,
            turn.span_id,
        ]
        assert turn.links == [(TRACE_ID, request.span_id)]
        assert turn.events == ["claimed", "completed"]
        assert request.attributes["gen_ai.conversation.id"] == session_id
        assert turn.attributes["gen_ai.conversation.id"] == session_id
        assert turn.attributes["gen_ai.agent.id"] == HOOK
        assert {span.state for span in spans.values()} == {"vendor=there"}
        assert request.service["service.name"] == "sessions-api"
        assert received.headers["traceparent"] == f"00-{TRACE_ID}-{call.span_id}-01"
        assert received.headers["tracestate"] == "vendor=there"
        told = b"".join(collector.bodies)
        assert not [each for each in (SAID, "an answer", USER, SECRET, "/turns") if each.encode() in told]
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        [line] = [line for line in lines if line.get("trace_id") == TRACE_ID and line.get("route")]
        assert (line["event"], line["span_id"]) == ("request_answered", request.span_id)

    async def test_passes_through_a_service_that_does_not_trace(self, tmp_path: Path) -> None:
        def run() -> None:
            with RunningService(tmp_path) as service:
                ask_hook(service, receiver)

        async with Receiver(lambda _received: JSONResponse({"content": "an answer"})) as receiver:
            await asyncio.to_thread(run)
            [received] = receiver.received

        assert {name: received.headers[name] for name in CALLER} == CALLER

    def test_comes_with_a_workers_claim(self, tmp_path: Path) -> None:
        """Over HTTP in the headers, over a WebSocket in the frame: a browser's has no headers."""
        with RunningService(tmp_path) as service:
            api = Api(service.url)
            try:
                worker = Worker(api)
                session_id = service.create(agentId=worker.agent_id)
                post(service, session_id, transport="websocket")
                over_http = worker.claim()
                over_http.complete(content="so")
                with connect(f"ws{service.sessions[4:]}/{session_id}/ws") as socket:
                    socket.send(json.dumps({"type": "message", "content": SAID, **CALLER}))
                    received_until(socket, "ack")
                over_ws = worker.claim()
                over_ws.complete(content="so")
                api.say(session_id, SAID)
                without = worker.claim()
            finally:
                api.close()

        for turn in (over_http, over_ws):
            assert {name: turn.claimed[name] for name in CALLER} == CALLER
        assert not CALLER.keys() & without.claimed.keys()


class TestWhatIsExported:
    def test_is_handed_over_before_the_end(self, tmp_path: Path) -> None:
        """What was recorded since the last export leaves with the drain."""
        with Collector() as collector, traced(tmp_path, collector, **NEVER) as service:
            session_id = service.create()
            service.say(session_id, SAID)
            assert collector.spans == []

            assert service.stop() == 0

            names = {span.name for span in collector.spans}
        assert {"POST /api/messaging/sessions", MESSAGES, "invoke_agent Echo"} <= names

    def test_bears_the_name_that_the_operator_gives(self, tmp_path: Path) -> None:
        named = {
            "OTEL_SERVICE_NAME": "chat",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        with Collector() as collector, traced(tmp_path, collector, **named) as service:
            service.create()
            eventually(lambda: collector.spans)
            told = collector.spans[0].service

        assert told["service.name"] == "chat"
        assert told["deployment.environment.name"] == "test"
        assert told["service.instance.id"]


class TestACollectorThatIsAway:
    @pytest.mark.parametrize("how", ["refuses", "hangs"])
    def test_costs_spans_and_no_request(self, tmp_path: Path, how: str) -> None:
        """Every request is answered, and the end waits a few seconds for it and no longer."""
        with Collector() as collector:
            collector.hang()
            away = {"OTEL_BSP_MAX_QUEUE_SIZE": "16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8"}
            if how == "refuses":
                away["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
            with traced(tmp_path, collector, **away) as service:
                session_id = service.create()
                answers = [service.say(session_id, str(number)) for number in range(30)]

                began_s = time.monotonic()
                status = service.stop()
                took_s = time.monotonic() - began_s

            log = service.err()
        assert answers == [f"echo: {number}" for number in range(30)]
        assert status == 0
        assert took_s < 15
        assert "spans_dropped" in log
        assert "request_crashed" not in log

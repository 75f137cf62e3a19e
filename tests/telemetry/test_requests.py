"""A span for each request: its name and attributes, its end, and its place in what the service passes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry.trace import SpanKind
from starlette.types import Message, Receive, Scope, Send

from sessions_api.api.requests import trace_of
from sessions_api.api.traced import Traced
from sessions_api.domain.traces import Trace, read_trace, trace_headers, traceparent_of
from tests.support.spans import CALLER, TRACE_ID, UNSAMPLED, Recorded, Tracer, tracing

SESSION = "22222222-2222-4222-8222-222222222222"
BASE = "/api/messaging/sessions"
SECRETS = ("11111111-1111-4111-8111-111111111111", "hunter2", "sk-key", "10.9.8.7", "what was said")

App = Callable[[Scope, Receive, Send], Awaitable[None]]


def replying(status: int, content_type: str = "application/json") -> App:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    return app


def scope_of(method: str, path: str, trace: Trace | None = None, **more: Any) -> Scope:
    headers = [(name.encode(), value.encode()) for name, value in trace_headers(trace or Trace("")).items()]
    return {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": "http",
        "query_string": b"userId=11111111-1111-4111-8111-111111111111&token=hunter2",
        "headers": [(b"host", b"a"), (b"x-api-key", b"sk-key"), *headers],
        "client": ("10.9.8.7", 1),
        **more,
    }


async def nothing() -> Message:
    return {"type": "http.request", "body": b"what was said"}


async def ignored(_message: Message) -> None:
    """As a client that reads."""


async def traced(app: App, method: str, path: str, trace: Trace | None = None, **more: Any) -> list[Recorded]:
    async with tracing() as tracer:
        await Traced(app, tracer)(scope_of(method, path, trace, **more), nothing, ignored)
        return tracer.spans


class TestNames:
    @pytest.mark.parametrize(
        "method, path, name",
        [
            ("GET", f"{BASE}/{SESSION}", f"GET {BASE}/{{sessionId}}"),
            ("POST", f"{BASE}/{SESSION}/messages/", f"POST {BASE}/{{sessionId}}/messages"),
            ("POST", f"/api/agents/{SESSION}/turns/claim", "POST /api/agents/{agentId}/turns/claim"),
            ("GET", f"/nowhere/{SESSION}", "GET"),
            ("BREW", f"{BASE}/{SESSION}", f"HTTP {BASE}/{{sessionId}}"),
            ("x" * 200, "/nowhere", "HTTP"),
        ],
    )
    async def test_are_templates(self, method: str, path: str, name: str) -> None:
        """However many sessions there are, there are so many names as there are routes and methods."""
        [span] = await traced(replying(200), method, path)

        assert span.name == name
        assert span.kind is SpanKind.SERVER

    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
    async def test_probes_have_none(self, path: str) -> None:
        assert await traced(replying(200), "GET", path) == []


class TestAttributes:
    async def test_are_those_of_the_conventions(self) -> None:
        [span] = await traced(replying(201), "POST", f"{BASE}/{SESSION.upper()}/messages", CALLER)

        assert span.attributes == {
            "http.request.method": "POST",
            "http.route": f"{BASE}/{{sessionId}}/messages",
            "http.response.status_code": 201,
            "url.path": f"{BASE}/{SESSION.upper()}/messages",
            "url.scheme": "http",
            "gen_ai.conversation.id": SESSION,
        }

    @pytest.mark.parametrize(
        "path",
        [
            f"{BASE}/{SESSION}",
            f"{BASE}/hunter2",
            f"{BASE}/sk-key/messages",
            "/what was said",
            "/hunter2/sk-key",
        ],
    )
    async def test_tell_nothing_that_is_not_theirs_to_tell(self, path: str) -> None:
        """No query, no header, no address, and of a path only what the service itself made."""
        [span] = await traced(replying(404), "GET", path)

        assert not [secret for secret in SECRETS if secret in span.whole]


class TestEnds:
    @pytest.mark.parametrize("status", [200, 304, 404, 429])
    async def test_a_callers_mistake_is_no_failure_of_the_service(self, status: int) -> None:
        [span] = await traced(replying(status), "GET", BASE)

        assert not span.has_failed
        assert "error.type" not in span.attributes

    @pytest.mark.parametrize("status", [500, 503])
    async def test_its_own_is(self, status: int) -> None:
        [span] = await traced(replying(status), "GET", BASE)

        assert span.has_failed
        assert span.description is None
        assert span.attributes["error.type"] == str(status)

    async def test_a_client_that_left_is_told_apart(self) -> None:
        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            """Answers nobody."""

        [span] = await traced(app, "GET", BASE)

        assert span.attributes["error.type"] == "client_gone"
        assert "http.response.status_code" not in span.attributes

    async def test_what_is_raised_is_named_and_goes_on(self) -> None:
        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            raise ValueError("what was said")

        async with tracing() as tracer:
            with pytest.raises(ValueError, match="what was said"):
                await Traced(app, tracer)(scope_of("GET", BASE), nothing, ignored)
            [span] = tracer.spans

        assert span.attributes["error.type"] == "ValueError"
        assert "what was said" not in span.whole


class TestStreams:
    async def test_of_events_ends_when_it_begins(self) -> None:
        """It may stay open for hours, and fail then; its span is there at once."""
        go_on = asyncio.Event()

        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await go_on.wait()
            raise ConnectionError

        await self.opened(app, scope_of("GET", f"{BASE}/{SESSION}/events"), go_on, 200)

    async def test_of_a_websocket_ends_when_it_is_accepted(self) -> None:
        go_on = asyncio.Event()

        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "websocket.accept"})
            await go_on.wait()
            raise ConnectionError

        scope = scope_of("GET", f"{BASE}/{SESSION}/ws", type="websocket")
        del scope["method"]
        span = await self.opened(app, scope, go_on, 101)
        assert span.name == f"GET {BASE}/{{sessionId}}/ws"
        assert span.attributes["gen_ai.conversation.id"] == SESSION

    async def opened(self, app: App, scope: Scope, go_on: asyncio.Event, status: int) -> Recorded:
        async with tracing() as tracer:
            serving = asyncio.create_task(self.serve(app, tracer, scope))
            for _ in range(5):
                await asyncio.sleep(0)
            [span] = tracer.spans
            assert not serving.done()
            go_on.set()
            with pytest.raises(ConnectionError):
                await serving
            assert len(tracer.spans) == 1
        assert span.attributes["http.response.status_code"] == status
        assert not span.has_failed
        return span

    async def serve(self, app: App, tracer: Tracer, scope: Scope) -> None:
        await Traced(app, tracer)(scope, nothing, ignored)


class TestPlace:
    async def passed_on(self, scope: Scope) -> tuple[Trace, list[Recorded]]:
        """What the service finds in the request's headers, and the spans."""
        found: list[Trace] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            found.append(trace_of(scope["headers"]))
            assert (b"x-api-key", b"sk-key") in scope["headers"]
            await replying(200)(scope, receive, send)

        async with tracing() as tracer:
            await Traced(app, tracer)(scope, nothing, ignored)
            return found[0], tracer.spans

    async def test_is_below_the_caller_and_above_all_else(self) -> None:
        trace, [span] = await self.passed_on(scope_of("GET", BASE, CALLER))

        assert span.trace_id == TRACE_ID
        assert span.parent_id == CALLER[36:52]
        assert trace == f"00-{TRACE_ID}-{span.span_id}-01 vendor=there"

    async def test_is_at_the_root_where_no_caller_traces(self) -> None:
        trace, [span] = await self.passed_on(scope_of("GET", BASE))

        assert span.parent_id == ""
        assert traceparent_of(trace) in {f"00-{span.trace_id}-{span.span_id}-0{flags}" for flags in "13"}

    async def test_what_is_not_sampled_is_not_recorded_and_told_so(self) -> None:
        """The caller decided: everybody below leaves it out as well."""
        trace, spans = await self.passed_on(scope_of("GET", BASE, UNSAMPLED))

        assert spans == []
        assert trace[:36] == UNSAMPLED[:36]
        assert trace.endswith("-00")

    async def test_garbage_begins_a_trace_of_its_own(self) -> None:
        scope = scope_of("GET", BASE)
        scope["headers"] += [(b"traceparent", b"\xff\x00"), (b"tracestate", b"v=1"), (b"tracestate", b"\xff")]

        trace, [span] = await self.passed_on(scope)

        assert span.parent_id == ""
        assert read_trace(trace) == trace

    async def test_two_callers_at_once_are_none(self) -> None:
        scope = scope_of("GET", BASE, CALLER)
        scope["headers"].append((b"traceparent", traceparent_of(UNSAMPLED).encode()))

        _, [span] = await self.passed_on(scope)

        assert span.parent_id == ""

    async def test_requests_at_the_same_time_are_not_confused(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(0)
            await replying(200)(scope, receive, send)

        callers = [Trace(f"00-{number:032x}-{number:016x}-01") for number in range(1, 50)]
        async with tracing() as tracer:
            served = Traced(app, tracer)
            await asyncio.gather(*(served(scope_of("GET", BASE, each), nothing, ignored) for each in callers))
            spans = tracer.spans

        assert sorted((span.trace_id, span.parent_id) for span in spans) == sorted(
            (caller[3:35], caller[36:52]) for caller in callers
        )

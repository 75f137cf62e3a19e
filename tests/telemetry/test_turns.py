"""A span for each attempt at a turn, and one for each request to its agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
from opentelemetry.trace import SpanKind
from starlette.responses import JSONResponse, RedirectResponse, Response
from structlog.testing import capture_logs

from sessions_api.agents.connectors import Connector
from sessions_api.agents.connectors.failure import AttemptFailed
from sessions_api.agents.connectors.openai import OpenAIChat
from sessions_api.agents.connectors.outgoing import Outgoing
from sessions_api.agents.connectors.webhook import Webhook
from sessions_api.agents.dispatcher import Dispatcher
from sessions_api.agents.finder import Finder
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import new_message_id, new_turn_id
from sessions_api.domain.messages import NewMessage
from sessions_api.domain.traces import Trace, trace_headers
from sessions_api.domain.turns import Answer, ClaimedTurn
from sessions_api.store import Store
from sessions_api.store.log import Appended
from sessions_api.telemetry.tracing import OFF, Tracing
from tests.support import asked
from tests.support.openai_server import MODEL, ChatServer
from tests.support.ports import free_port
from tests.support.replicas import stores
from tests.support.servers import TestServer
from tests.support.spans import CALLER, TRACE_ID, UNSAMPLED, Recorded, Tracer, tracing
from tests.support.stores import AGENT, age, opened, user_body
from tests.support.turns import BACKOFF_MS
from tests.support.waiting import until
from tests.support.webhook_server import SECRET, Received, Receiver

pytestmark = pytest.mark.servers("valkey")
LOOPBACK = (ip_network("127.0.0.0/8"),)
SAID = "what was said"


class Says:
    """Ends each attempt with the next of *endings*; the last one repeats."""

    def __init__(self, *endings: str | Answer | Exception) -> None:
        self._endings = list(endings)
        self.began = asyncio.Event()
        self.asked: list[ClaimedTurn] = []

    async def answer(
        self, turn: ClaimedTurn, definition: AgentDefinition
    ) -> AsyncGenerator[str | Answer, None]:
        self.asked.append(turn)
        ending = self._endings[0] if len(self._endings) == 1 else self._endings.pop(0)
        if isinstance(ending, Exception):
            raise ending
        yield "so "
        self.began.set()
        if ending == "hangs":
            await asyncio.Event().wait()
        yield ending


@asynccontextmanager
async def dispatching(
    url: str, connector: Connector, tracer: Tracing
) -> AsyncIterator[tuple[Store, Dispatcher]]:
    async with stores(url, 1) as (store,):
        await store.agents.put(AgentDefinition(AGENT, "Tested", "webhook", max_attempts=2))
        finder = Finder(store)
        dispatcher = Dispatcher(
            store, finder, worker="here", connectors={"webhook": connector}, tracing=tracer
        )
        await finder.start()
        await dispatcher.start()
        try:
            yield store, dispatcher
        finally:
            await dispatcher.stop()
            await finder.stop()


async def say(store: Store, trace: Trace = CALLER) -> Appended:
    session = await opened(store)
    message_id = new_message_id()
    return await store.log.append(
        session.session_id,
        grant=EVERYTHING,
        message=NewMessage(message_id, user_body(message_id, SAID), trace),
        turn_id=new_turn_id(),
    )


class TestAnAttempt:
    async def test_goes_on_with_the_requests_trace(self, server: TestServer) -> None:
        connector = Says(Answer(usage=b'{"inputTokens":12,"outputTokens":3}'))
        async with tracing() as tracer, dispatching(server.url, connector, tracer) as (store, _):
            said = await say(store)
            await until(lambda: tracer.spans)
            [span] = tracer.spans

        assert (span.name, span.kind) == ("invoke_agent Tested", SpanKind.CONSUMER)
        assert (span.trace_id, span.parent_id, span.links) == (TRACE_ID, CALLER[36:52], [TRACE_ID])
        assert span.events == ["claimed", "first_delta", "completed"]
        assert not span.has_failed
        assert span.attributes.pop("sessions_api.turn.queued_ms") >= 0
        assert span.attributes == {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.id": AGENT,
            "gen_ai.agent.name": "Tested",
            "gen_ai.conversation.id": said.session.session_id,
            "gen_ai.usage.input_tokens": 12,
            "gen_ai.usage.output_tokens": 3,
            "sessions_api.agent.kind": "webhook",
            "sessions_api.turn.id": said.turn_id,
            "sessions_api.turn.attempt": 1,
        }
        assert connector.asked[0].trace == f"00-{TRACE_ID}-{span.span_id}-01 vendor=there"

    async def test_that_fails_says_why_and_the_next_one_is_beside_it(self, server: TestServer) -> None:
        connector = Says(AttemptFailed("AGENT_UNREACHABLE", SAID), "it is")
        async with tracing() as tracer, dispatching(server.url, connector, tracer) as (store, _):
            session_id = (await say(store)).session.session_id
            await until(lambda: tracer.spans)
            await age(store, session_id, BACKOFF_MS)
            await store.alarms.ring(session_id)
            await until(lambda: len(tracer.spans) == 2)
            first, second = tracer.spans

        assert first.has_failed
        assert first.description is None
        assert first.attributes["error.type"] == "AGENT_UNREACHABLE"
        assert first.events == ["claimed", "failed"]
        assert (second.has_failed, second.attributes["sessions_api.turn.attempt"]) == (False, 2)
        assert first.parent_id == second.parent_id == CALLER[36:52]
        assert SAID not in first.whole + second.whole

    async def test_that_crashes_keeps_what_it_said_to_itself(self, server: TestServer) -> None:
        async with (
            tracing() as tracer,
            dispatching(server.url, Says(ValueError(SAID), "it is"), tracer) as (store, _),
        ):
            await say(store)
            await until(lambda: tracer.spans)

            assert tracer.spans[0].attributes["error.type"] == "AGENT_ERROR"
            assert SAID not in tracer.spans[0].whole

    async def test_that_is_cancelled_has_not_failed(self, server: TestServer) -> None:
        connector = Says("hangs")
        async with tracing() as tracer, dispatching(server.url, connector, tracer) as (store, _):
            said = await say(store)
            await connector.began.wait()
            await store.turns.cancel(said.session.session_id, said.turn_id, grant=EVERYTHING)
            await until(lambda: tracer.spans)
            [span] = tracer.spans

        assert span.events[-1] == "cancelled"
        assert not span.has_failed

    async def test_that_is_handed_back_at_the_end_is_told_before_it(self, server: TestServer) -> None:
        connector = Says("hangs")
        async with tracing() as tracer:
            async with dispatching(server.url, connector, tracer) as (store, dispatcher):
                await say(store)
                await connector.began.wait()
                await dispatcher.drain(0)
            [span] = tracer.spans

        assert span.events[-1] == "released"
        assert not span.has_failed

    async def test_of_what_nobody_samples_is_not_recorded_and_told_on(self, server: TestServer) -> None:
        connector = Says("it is")
        async with tracing() as tracer, dispatching(server.url, connector, tracer) as (store, _):
            await say(store, UNSAMPLED)
            await until(lambda: connector.asked)
            await connector.began.wait()

        assert tracer.spans == []
        assert connector.asked[0].trace[:36] == UNSAMPLED[:36]
        assert connector.asked[0].trace.endswith("-00")

    async def test_without_tracing_passes_on_what_came(self, server: TestServer) -> None:
        """The caller's own traceparent, untouched, and log lines find it."""
        connector = Says(AttemptFailed("AGENT_REFUSED", "no", retry=False))
        with capture_logs() as logs:
            async with dispatching(server.url, connector, OFF) as (store, _):
                await say(store)
                await until(lambda: [line for line in logs if line["event"] == "turn_attempt_failed"])

        assert connector.asked[0].trace == CALLER
        [line] = [line for line in logs if line["event"] == "turn_attempt_failed"]
        assert (line["trace_id"], line["span_id"]) == (TRACE_ID, CALLER[36:52])


def spans_of_calls(tracer: Tracer) -> list[Recorded]:
    return [span for span in tracer.spans if span.kind is SpanKind.CLIENT]


class TestACall:
    @pytest.mark.parametrize("trace", [CALLER, Trace(CALLER[:55]), Trace("")])
    async def test_carries_the_trace_as_it_is_without_tracing(self, trace: Trace) -> None:
        outgoing = Outgoing(LOOPBACK)
        turn = asked.turn().within(trace) if trace else asked.turn()
        async with Receiver(lambda _received: Response(status_code=204)) as receiver, ChatServer() as chat:
            definition = asked.definition("webhook", {"url": receiver.url, "secret": SECRET})
            await asked.heard(Webhook(outgoing), turn, definition)
            model = asked.definition("openai", {"baseUrl": chat.base_url, "model": MODEL})
            await asked.heard(OpenAIChat(outgoing), turn, model)
            await outgoing.aclose()
            [received] = receiver.received

            for headers in (received.headers, chat.headers[0]):
                told = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
                assert told == trace_headers(trace)
            assert "traceparent" not in received.event["data"]

    async def test_has_a_span_and_names_no_more_of_a_url_than_its_origin(self) -> None:
        """Behind that may stand a secret: of a chat's webhook, the path is its key."""
        async with (
            tracing() as tracer,
            Receiver(lambda _received: JSONResponse({"content": "hi"})) as receiver,
        ):
            outgoing = Outgoing(LOOPBACK, tracing=tracer)
            url = f"http://127.0.0.1:{receiver.port}/services/hunter2?token=hunter2"
            definition = asked.definition("webhook", {"url": url, "secret": SECRET})
            await asked.heard(Webhook(outgoing), asked.turn().within(CALLER), definition)
            await outgoing.aclose()
            [span] = spans_of_calls(tracer)
            [received] = receiver.received

        assert span.attributes == {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "server.address": "127.0.0.1",
            "server.port": receiver.port,
            "url.full": f"http://127.0.0.1:{receiver.port}/REDACTED",
        }
        assert (span.name, span.parent_id) == ("POST", CALLER[36:52])
        assert received.headers["traceparent"] == f"00-{TRACE_ID}-{span.span_id}-01"
        assert received.headers["tracestate"] == "vendor=there"
        assert "hunter2" not in span.whole
        assert SECRET not in span.whole

    @pytest.mark.parametrize("status", [404, 429, 500])
    async def test_that_is_refused_has_failed_with_its_status(self, status: int) -> None:
        async with tracing() as tracer, Receiver(lambda _received: Response("no", status)) as receiver:
            outgoing = Outgoing(LOOPBACK, tracing=tracer)
            definition = asked.definition("webhook", {"url": receiver.url, "secret": SECRET})
            with pytest.raises(AttemptFailed):
                await asked.heard(Webhook(outgoing), asked.turn().within(CALLER), definition)
            await outgoing.aclose()
            [span] = spans_of_calls(tracer)

        assert span.has_failed
        assert span.attributes["error.type"] == str(status)

    async def test_that_meets_nobody_has_failed_with_the_errors_class(self) -> None:
        async with tracing() as tracer:
            outgoing = Outgoing(LOOPBACK, tracing=tracer)
            url = f"http://127.0.0.1:{free_port()}/"
            definition = asked.definition("webhook", {"url": url, "secret": SECRET})
            with pytest.raises(AttemptFailed):
                await asked.heard(Webhook(outgoing), asked.turn(), definition)
            await outgoing.aclose()
            [span] = spans_of_calls(tracer)

        assert span.attributes["error.type"] == "ConnectError"
        assert "http.response.status_code" not in span.attributes

    async def test_that_is_sent_on_has_a_span_for_each_place(self) -> None:
        def answer(received: Received) -> Response:
            if received.path == "/turns":
                return RedirectResponse("/moved", 307)
            return JSONResponse({"content": "hi"})

        async with tracing() as tracer, Receiver(answer) as receiver:
            outgoing = Outgoing(LOOPBACK, tracing=tracer)
            definition = asked.definition("webhook", {"url": receiver.url, "secret": SECRET})
            await asked.heard(Webhook(outgoing), asked.turn().within(CALLER), definition)
            await outgoing.aclose()
            first, second = spans_of_calls(tracer)
            told = [received.headers["traceparent"][36:52] for received in receiver.received]

        assert [span.attributes["http.response.status_code"] for span in (first, second)] == [307, 200]
        assert "http.request.resend_count" not in first.attributes
        assert second.attributes["http.request.resend_count"] == 1
        assert told == [first.span_id, second.span_id]

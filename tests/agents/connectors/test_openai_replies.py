"""The ``openai`` connector and servers that do not quite speak the protocol, or fail; nobody sees its key."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response
from structlog.testing import capture_logs

from sessions_api.agents.connectors.completions import MAX_METADATA_BYTES, Completion
from sessions_api.agents.connectors.failure import AttemptFailed
from sessions_api.agents.connectors.openai import OpenAIChat
from sessions_api.agents.connectors.outgoing import Outgoing
from sessions_api.domain.turns import Answer, ClaimedTurn
from tests.agents.connectors.conftest import KEY, defined
from tests.support import asked
from tests.support.openai_server import MODEL, ChatServer, chunk, error, raw, sse, usage, whole

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
HI = sse(chunk(BODY, {"content": "Hé😀"}))
STOP = sse(chunk(BODY, {}, "stop"))
DONE = b"data: [DONE]\n\n"


async def failing(chat: OpenAIChat, upstream: ChatServer, turn: ClaimedTurn | None = None) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as failed:
        await asked.heard(chat, turn or asked.turn(), defined(upstream))
    return failed.value


class TestStreams:
    """Servers differ in what they send; the answer does not."""

    @pytest.mark.parametrize(
        "parts",
        [
            [HI, STOP, DONE],
            [HI, STOP],  # no [DONE]
            [HI, DONE],  # no finish reason
            [b": ping\n\n", HI, b": ping\n\n", STOP, DONE],
            [HI.replace(b"\n", b"\r\n"), STOP.replace(b"\n", b"\r\n"), b"data: [DONE]\r\n\r\n"],
            [HI.replace(b"\n", b"\r"), STOP.replace(b"\n", b"\r"), b"data: [DONE]\r\r"],
            [bytes([byte]) for byte in HI + STOP + DONE],  # UTF-8 split between its bytes
            [HI.replace(b"data: ", b"data:"), STOP, DONE],
            [b"event: message\nid: 1\nretry: 5\n" + HI, STOP, DONE],
            [HI + STOP + b"data: [DONE]"],  # no end of line
            [b'data: {"choices":[],"usage":null,"x_more":1}\n\n', HI, STOP, DONE],
            [b'data: {"choices":null}\n\n', HI, STOP, DONE],
            [sse({**chunk(BODY, {}), "choices": [{"index": 1, "delta": {"content": "no"}}]}), HI, STOP, DONE],
            [sse(chunk(BODY, {"content": [{"type": "text", "text": "Hé😀"}]})), STOP, DONE],
            [json.dumps(chunk(BODY, {"content": "Hé😀"})).encode().join([b"data: ", b"\n\n"]), STOP, DONE],
            [sse(chunk(BODY, {"content": "Hé😀"}, "stop")), DONE, HI],  # nothing counts after the end
            [sse(chunk(BODY, {"refusal": "Hé😀"})), STOP, DONE],
        ],
    )
    @pytest.mark.parametrize("media_type", ["text/event-stream", "text/plain; charset=latin-1", None])
    async def test_mean_the_same(
        self, chat: OpenAIChat, upstream: ChatServer, parts: list[bytes], media_type: str | None
    ) -> None:
        upstream.faults.append(raw(*parts, media_type=media_type))

        pieces, end = await asked.heard(chat, asked.turn(), defined(upstream))

        assert "".join(pieces) == "Hé😀"
        assert end == Answer()

    @pytest.mark.parametrize("body", [b"", HI, b"data: {\n\n", b"data: 1\n\n", b"data: \xff\n\n", b"<html>"])
    async def test_that_do_not_end_are_no_answer(
        self, chat: OpenAIChat, upstream: ChatServer, body: bytes
    ) -> None:
        """A server that dies in mid-answer closes the connection too."""
        upstream.faults.append(raw(body))

        failed = await failing(chat, upstream)

        assert (failed.code, failed.retry) == ("AGENT_ERROR", True)

    async def test_may_be_no_streams(self, chat: OpenAIChat, upstream: ChatServer) -> None:
        """A server that does not stream answers whole."""
        upstream.faults.append(lambda body: JSONResponse(whole(body, "All at once", reasoning_content="Hm")))

        pieces, end = await asked.heard(chat, asked.turn(asked.user("a b")), defined(upstream))

        assert pieces == ["All at once"]
        assert end is not None
        assert json.loads(end.metadata) == {"thought": "Hm"}
        assert end.usage is not None
        assert json.loads(end.usage) == usage(upstream.bodies[0], 3)


class TestMetadata:
    @pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
    async def test_holds_the_thought(self, chat: OpenAIChat, upstream: ChatServer, name: str) -> None:
        upstream.faults.append(
            raw(sse(chunk(BODY, {name: "I "})), sse(chunk(BODY, {name: "see"})), HI, STOP, DONE)
        )

        _, end = await asked.heard(chat, asked.turn(), defined(upstream))

        assert end == Answer(metadata=b'{"thought":"I see"}')

    async def test_holds_the_tools_it_would_use(self, chat: OpenAIChat, upstream: ChatServer) -> None:
        """Fragments are joined by their index. Nothing is executed."""
        first = {"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": ""}}
        second = {"index": 1, "id": "b", "type": "function", "function": {"name": "wait", "arguments": "{}"}}
        calls = [[first], [second], [{"index": 0, "function": {"arguments": '{"at":'}}]]
        calls.append([{"index": 0, "function": {"arguments": '"x"}'}}])
        parts = [sse(chunk(BODY, {"tool_calls": each})) for each in calls]
        upstream.faults.append(raw(HI, *parts, sse(chunk(BODY, {}, "tool_calls")), DONE))

        _, end = await asked.heard(chat, asked.turn(), defined(upstream))

        assert end is not None
        assert json.loads(end.metadata) == {
            "actions": [
                {"id": "a", "name": "look", "arguments": '{"at":"x"}'},
                {"id": "b", "name": "wait", "arguments": "{}"},
            ],
            "finishReason": "tool_calls",
        }

    async def test_says_that_a_filter_cut_the_answer(self, chat: OpenAIChat, upstream: ChatServer) -> None:
        upstream.faults.append(raw(HI, sse(chunk(BODY, {}, "content_filter")), DONE))

        _, end = await asked.heard(chat, asked.turn(), defined(upstream))

        assert end == Answer(metadata=b'{"finishReason":"content_filter"}')

    @given(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        st.integers(1, 40),
        st.integers(0, 8_000),
    )
    def test_is_cut_to_what_a_message_may_hold(self, text: str, calls: int, times: int) -> None:
        """A long thought keeps its beginning, whatever its characters weigh."""
        completion = Completion()
        completion.take(sse(chunk(BODY, {"reasoning": text * times}))[6:])
        call = {"id": "x", "function": {"name": "f", "arguments": "y" * 400}}
        completion.take(sse(chunk(BODY, {"tool_calls": [call | {"index": n} for n in range(calls)]}))[6:])

        metadata = completion.answer().metadata

        assert len(metadata) <= MAX_METADATA_BYTES
        thought = json.loads(metadata).get("thought", "").removesuffix("…")
        assert (text * times).startswith(thought)


class TestDialects:
    async def test_without_stream_options_are_learnt_once(
        self, chat: OpenAIChat, upstream: ChatServer
    ) -> None:
        """A server that refuses the field gets the turn again without it, and never gets the field again."""

        def strict(body: dict[str, Any]) -> Response:
            if "stream_options" in body:
                return error(400, "Unrecognized request argument supplied: stream_options")
            return raw(HI, STOP, DONE)(body)

        upstream.usual = strict

        for _ in range(2):
            assert (await asked.heard(chat, asked.turn(), defined(upstream)))[0] == ["Hé😀"]

        assert ["stream_options" in body for body in upstream.bodies] == [True, False, False]

    async def test_with_the_new_name_of_max_tokens(self, chat: OpenAIChat, upstream: ChatServer) -> None:
        """As OpenAI's reasoning models want it."""

        def strict(body: dict[str, Any]) -> Response:
            if "max_tokens" in body:
                message = "Unsupported parameter: 'max_tokens' is not supported with this model. "
                return error(400, message + "Use 'max_completion_tokens' instead.", "unsupported_parameter")
            return raw(HI, STOP, DONE)(body)

        upstream.usual = strict

        assert (await asked.heard(chat, asked.turn(), defined(upstream, maxTokens=9)))[0] == ["Hé😀"]

        assert upstream.bodies[-1]["max_completion_tokens"] == 9

    async def test_that_refuse_everything_are_not_asked_for_ever(
        self, chat: OpenAIChat, upstream: ChatServer
    ) -> None:
        upstream.usual = lambda _body: error(400, "stream_options max_completion_tokens unsupported")

        assert (await failing(chat, upstream)).retry is False
        assert len(upstream.bodies) == 2


TOO_LONG = (
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
)


class TestFailures:
    @pytest.mark.parametrize(
        "reply, code, retry",
        [
            (error(401, f"Incorrect API key provided: {KEY}", "invalid_api_key"), "AGENT_REFUSED", False),
            (error(403, "No access", "forbidden"), "AGENT_REFUSED", False),
            (error(404, "No such model", "model_not_found"), "AGENT_REFUSED", False),
            (error(400, "Bad temperature"), "AGENT_REFUSED", False),
            (error(400, TOO_LONG, "context_length_exceeded"), "AGENT_REFUSED", False),
            (error(429, "Slow down", "rate_limit_exceeded"), "AGENT_RATE_LIMITED", True),
            (error(429, "You exceeded your quota", "insufficient_quota"), "AGENT_RATE_LIMITED", False),
            (error(500, "Oops"), "AGENT_ERROR", True),
            (error(503, "Loading model"), "AGENT_ERROR", True),
            (Response(b"<html>" * 100_000, 502), "AGENT_ERROR", True),
            (Response(b"[1]", 418), "AGENT_REFUSED", False),
        ],
    )
    async def test_are_honest(
        self, chat: OpenAIChat, upstream: ChatServer, reply: Response, code: str, retry: bool
    ) -> None:
        upstream.faults.append(lambda _body: reply)

        failed = await failing(chat, upstream)

        assert (failed.code, failed.retry) == (code, retry)

    @pytest.mark.parametrize(
        "data, code, retry",
        [
            ({"error": {"message": "Slow down", "type": "rate_limit_error"}}, "AGENT_RATE_LIMITED", True),
            ({"error": {"message": "Slow down", "code": 429}}, "AGENT_RATE_LIMITED", True),
            ({"error": {"message": TOO_LONG}}, "AGENT_REFUSED", False),
            ({"error": {"message": "Overloaded", "code": "server_error"}}, "AGENT_ERROR", True),
            ({"error": "boom"}, "AGENT_ERROR", True),
            ({"object": "error", "message": "boom", "code": 400}, "AGENT_ERROR", True),
        ],
    )
    async def test_in_mid_stream_are_too(
        self, chat: OpenAIChat, upstream: ChatServer, data: dict[str, Any], code: str, retry: bool
    ) -> None:
        upstream.faults.append(raw(HI, sse(data)))

        failed = await failing(chat, upstream)

        assert (failed.code, failed.retry) == (code, retry)

    @pytest.mark.parametrize(
        "reply, shown",
        [
            (error(429, "Slow down", "rate_limit_exceeded"), "rate_limit_exceeded"),
            (
                JSONResponse({"error": {"code": 400, "type": "exceed_context_size_error"}}, 400),
                "exceed_context_size_error",
            ),
            (error(400, "Bad", "sk-something-1"), "invalid_request_error"),
            (Response(b"<html>", 502), ""),
        ],
    )
    async def test_are_logged_by_their_code(
        self, chat: OpenAIChat, upstream: ChatServer, reply: Response, shown: str
    ) -> None:
        """The upstream's own, where it can be nothing else; never its message."""
        upstream.faults.append(lambda _body: reply)

        with capture_logs() as logs:
            await failing(chat, upstream)

        assert [(each["event"], each["error_code"]) for each in logs] == [("agent_service_failed", shown)]

    async def test_say_when_to_come_back(self, chat: OpenAIChat, upstream: ChatServer) -> None:
        upstream.faults.append(lambda _body: error(429, "Slow down", retry_after="20"))

        assert (await failing(chat, upstream)).pause_s == 20.0

    async def test_of_a_definition_are_final(self, chat: OpenAIChat) -> None:
        """It is checked when it is put; what is in the store may be older than the check."""
        configs: list[dict[str, object]] = [
            {},
            {"baseUrl": "http://127.0.0.1:1"},
            {"baseUrl": 1, "model": MODEL},
        ]
        for config in configs:
            with pytest.raises(AttemptFailed) as failed:
                await asked.heard(chat, asked.turn(), asked.definition("openai", config))
            assert (failed.value.code, failed.value.retry) == ("AGENT_REFUSED", False)


class TestKey:
    """It goes to the server and nowhere else."""

    @pytest.mark.parametrize(
        "key, reply",
        [
            (KEY, None),
            (KEY, raw(HI)),
            (KEY, raw(b"data: " + KEY.encode() + b"\n\n")),
            (KEY, lambda _body: error(401, f"Incorrect API key provided: {KEY}", KEY)),
            (KEY, lambda _body: error(500, KEY, KEY)),
            (KEY, raw(HI, sse({"error": {"message": KEY, "code": KEY}}))),
            (KEY, lambda _body: Response(KEY, 307, headers={"location": "/elsewhere"})),
            (KEY, lambda _body: Response(KEY, 200, headers={"content-encoding": "gzip"})),
            ("sk-other-77", None),
            ("sk-bad\r\nx: 1", None),
            ("sk-bäd", None),
        ],
    )
    async def test_is_in_no_log_and_no_failure(
        self, outgoing: Outgoing, caplog: pytest.LogCaptureFixture, key: str, reply: Any
    ) -> None:
        """With every logger at its most talkative, ours and those of the libraries."""
        async with ChatServer(key=KEY) as upstream:
            upstream.faults += [reply] if reply else []
            chat = OpenAIChat(outgoing)
            seen: list[str] = []
            with caplog.at_level(logging.DEBUG), capture_logs() as logs:
                try:
                    await asked.heard(chat, asked.turn(), defined(upstream, apiKey=key))
                except AttemptFailed as failed:
                    error: BaseException | None = failed
                    while error is not None:  # an error that hides behind another one shows in a traceback
                        seen.append(repr(error))
                        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
            seen += [repr(logs), caplog.text, *(repr(record.__dict__) for record in caplog.records)]

        assert caplog.records or key.startswith("sk-b"), "the libraries' own logs were heard"
        for secret in (key, key.partition("\r")[0], KEY):
            assert secret not in "".join(seen)

    @pytest.mark.parametrize("format_", ["json", "console"])
    def test_is_in_no_traceback(self, format_: str) -> None:
        """A bug of ours is logged with its frames, and without their local variables."""
        script = f"""
import structlog
from sessions_api.telemetry import logs
logs.configure("debug", {format_!r})
def ask(key):
    raise RuntimeError("a bug")
try:
    ask("sk-" + "local")
except RuntimeError:
    structlog.get_logger().exception("turn_left_to_its_lease")
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

        assert "a bug" in done.stderr
        assert "sk-local" not in done.stderr

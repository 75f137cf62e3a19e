"""``POST /{id}/messages``: shapes, transports, limits, order of checks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.contract.conftest import SLOW_ECHO
from tests.contract.test_creating import ms
from tests.support.client import ECHO, INSTANT, UUID, Api, eventually, problem, some_id

GRIN = "\N{GRINNING FACE}"  # two UTF-16 units


class TestShapes:
    """One body that clients of every published shape read."""

    @pytest.mark.parametrize("transport", ["http", "websocket"])
    def test_of_1_6(self, api: Api, transport: str) -> None:
        body = api.say(api.session(), "hello", transport=transport, metadata={"x": 1})

        assert UUID.fullmatch(body["id"])
        assert body["content"] == "hello"
        assert UUID.fullmatch(body["authorId"])
        assert INSTANT.fullmatch(body["createdAt"])
        assert body["metadata"]["x"] == 1
        status = body["sessionStatus"]
        assert INSTANT.fullmatch(status["expiresAt"])
        assert (status["renewalCount"], status["wasRenewed"], status["isNearExpiration"]) == (1, True, False)

    @pytest.mark.parametrize("transport", ["http", "websocket"])
    def test_of_1_7_0(self, api: Api, transport: str) -> None:
        body = api.say(api.session(), "hello", transport=transport)

        assert body["success"] is True
        for name in ("id", "content", "authorId", "createdAt", "metadata"):
            assert body["userMessage"][name] == body[name]
        assert ("agentResponse" in body) == (transport == "http")

    @pytest.mark.parametrize("transport", ["http", "websocket"])
    def test_of_1_7_2(self, api: Api, transport: str) -> None:
        created = api.create()
        attachments = [{"url": "https://example.org/a.png", "contentType": "image/png", "own": 1}]

        body = api.say(created["sessionId"], "hello", transport=transport, attachments=attachments)

        message = body["userMessage"]
        assert message["channel_id"] == created["channelId"]
        assert message["author_id"] == created["userId"]
        assert message["created_at"] == ms(message["createdAt"])
        assert message["source_type"] == "user"
        assert message["raw_message"] == {"content": "hello", "attachments": attachments}
        assert UUID.fullmatch(message["message_server_id"])

    @pytest.mark.parametrize("transport", ["http", "websocket"])
    def test_of_the_npm_client(self, api: Api, transport: str) -> None:
        body = api.say(api.session(), "hello", transport=transport)

        assert body["data"]["success"] is True
        for name in {"userMessage", "agentResponse", "sessionStatus"} & body.keys():
            assert body["data"][name] == body[name]

    def test_minimal(self, api: Api) -> None:
        session_id = api.session()

        waited = api.post(session_id, transport="http", headers={"Prefer": "return=minimal"}).json()
        accepted = api.post(session_id, headers={"Prefer": "respond-async, return=minimal"}).json()

        assert set(waited) == {"userMessage", "agentResponse", "sessionStatus", "turnId", "cursor"}
        assert set(accepted) == {"userMessage", "sessionStatus", "turnId", "cursor"}
        assert waited["agentResponse"]["text"] == "echo: hello"

    def test_metadata_of_session_and_message_join_and_ours_win(self, api: Api) -> None:
        created = api.create(metadata={"a": 1, "b": 1})

        body = api.say(created["sessionId"], metadata={"b": 2, "sessionId": "spoofed", "timeoutConfig": 0})

        assert body["userMessage"]["metadata"] == {
            "a": 1,
            "b": 2,
            "sessionId": created["sessionId"],
            "agentId": ECHO,
            "userId": created["userId"],
            "timeoutConfig": created["timeoutConfig"],
        }


class TestTransports:
    @pytest.mark.parametrize("field, value", [("transport", "http"), ("mode", "sync")])
    def test_http_waits_for_the_answer(self, api: Api, field: str, value: str) -> None:
        session_id = api.session()

        body = api.say(session_id, f"two words {GRIN}", **{field: value})

        answer = body["agentResponse"]
        assert answer["text"] == answer["content"] == f"echo: two words {GRIN}"
        assert answer["inReplyTo"] == body["id"]
        assert answer["responseId"] == answer["message"]["id"]
        assert answer["actions"] == []
        assert answer["providers"] == []
        assert "thought" in answer
        message = answer["message"]
        assert (message["isAgent"], message["role"], message["status"]) == (True, "agent", "complete")
        assert message["turnId"] == body["turnId"]
        assert message["authorId"] == ECHO
        assert message["cursor"] > body["cursor"]
        assert [m["id"] for m in api.history(session_id)["messages"]] == [message["id"], body["id"]]

    @pytest.mark.parametrize("fields", [{}, {"transport": "websocket"}, {"mode": "websocket"}])
    def test_websocket_answers_at_once(self, api: Api, fields: dict[str, str]) -> None:
        session_id = api.session(agentId=SLOW_ECHO)

        body = api.say(session_id, "hello there", **fields)

        assert "agentResponse" not in body
        assert UUID.fullmatch(body["turnId"])
        assert api.history(session_id)["messages"][-1]["id"] == body["id"]
        eventually(lambda: len(api.history(session_id)["messages"]) == 2)

    @pytest.mark.parametrize(
        "fields",
        [
            {"transport": "sse"},
            {"transport": None, "mode": "stream"},
            {"transport": None, "headers": {"Accept": "text/event-stream"}},
        ],
    )
    def test_sse_streams_the_answer(self, api: Api, fields: dict[str, Any]) -> None:
        session_id = api.session()

        with api.stream_post(session_id, "one two three four", **fields) as stream:
            assert stream.response.status_code == 200
            assert stream.response.headers["content-type"].startswith("text/event-stream")
            events = stream.rest()

        assert events[0].name == "user_message"
        assert events[0].data["content"] == "one two three four"
        assert events[0].data["channel_id"] == session_id
        assert [event.name for event in events[1:-1]] == ["chunk"] * (len(events) - 2)
        chunks = [event.data for event in events[1:-1]]
        assert len({chunk["messageId"] for chunk in chunks}) == 1
        assert [chunk["index"] for chunk in chunks] == list(range(len(chunks)))
        offset = 0
        for chunk in chunks:
            assert chunk["offset"] == offset
            offset += len(chunk["chunk"].encode("utf-16-le")) // 2
        done = events[-1]
        assert done.name == "done"
        assert done.data["text"] == "".join(chunk["chunk"] for chunk in chunks) == "echo: one two three four"
        assert done.data["responseId"] == chunks[0]["messageId"]
        assert done.data["inReplyTo"] == events[0].data["id"]

    def test_agree_with_the_history(self, api: Api) -> None:
        session_id = api.session()

        accepted = api.say(session_id, "first")
        waited = api.ask(session_id, "second")
        with api.stream_post(session_id, "third") as stream:
            streamed = stream.rest()

        messages = api.history(session_id)["messages"][::-1]
        by_id = {message["id"]: message for message in messages}
        assert by_id[accepted["id"]]["content"] == "first"
        assert by_id[waited["agentResponse"]["responseId"]] == waited["agentResponse"]["message"]
        assert by_id[streamed[-1].data["responseId"]] == streamed[-1].data["message"]
        assert [m["content"] for m in messages if m["isAgent"]] == [
            "echo: first",
            "echo: second",
            "echo: third",
        ]
        for before, after in pairwise(messages):
            assert before["cursor"] < after["cursor"]

    def test_transport_goes_before_mode(self, api: Api) -> None:
        assert "agentResponse" not in api.say(api.session(), transport="websocket", mode="sync")

    def test_timeout_answers_504_and_the_turn_goes_on(self, api: Api) -> None:
        session_id = api.session(agentId=SLOW_ECHO)

        error = problem(
            api.post(session_id, "one two three", transport="http", timeoutMs=50), 504, "AGENT_TIMEOUT"
        )

        turn = api.call("GET", f"/{session_id}/turns/{error['details']['turnId']}").json()
        assert turn["state"] in {"queued", "running"}
        eventually(lambda: api.history(session_id)["messages"][0]["content"] == "echo: one two three")

    def test_timeout_is_an_error_event_of_a_stream(self, still: Api) -> None:
        with still.stream_post(still.session(), timeoutMs=50) as stream:
            events = stream.rest()

        assert [event.name for event in events] == ["user_message", "error"]
        assert events[1].data["code"] == "AGENT_TIMEOUT"
        assert events[1].data.keys() >= {"error", "code", "retryable", "requestId", "turnId"}
        assert events[1].data["requestId"] == stream.response.headers["x-request-id"]


class TestRefusesToSend:
    @pytest.mark.parametrize(
        "body", [None, [], 7, "x", {}, {"content": None}, {"content": 7}, {"content": ["x"]}]
    )
    def test_without_content(self, api: Api, body: Any) -> None:
        error = problem(api.call("POST", f"/{api.session()}/messages", json=body), 400, "VALIDATION_ERROR")

        assert error["message"] == "Invalid content: Invalid message request format"
        assert error["details"]["reason"] == "Invalid message request format"

    def test_without_any_body(self, api: Api) -> None:
        problem(api.call("POST", f"/{api.session()}/messages"), 400, "VALIDATION_ERROR")

    def test_empty_content(self, api: Api) -> None:
        error = problem(api.post(api.session(), ""), 400, "VALIDATION_ERROR")

        assert error["message"] == "Invalid content: Content cannot be empty"

    def test_but_not_blanks(self, api: Api) -> None:
        assert api.say(api.session(), "  \n")["content"] == "  \n"

    @pytest.mark.parametrize(
        "content", ["x" * 4000, "é" * 4000, GRIN * 2000, "x\0y", "\u2028", "\ufeff\ufffe"]
    )
    def test_nor_the_longest_content(self, api: Api, content: str) -> None:
        session_id = api.session()

        assert api.say(session_id, content)["content"] == content
        assert api.history(session_id)["messages"][-1]["content"] == content

    @pytest.mark.parametrize("content", ["x" * 4001, GRIN * 2000 + "x", "x" * 100_000])
    def test_content_of_more_than_4000_units(self, api: Api, content: str) -> None:
        error = problem(api.post(api.session(), content), 400, "VALIDATION_ERROR")

        assert error["message"] == "Invalid content: Content exceeds maximum length of 4000 characters"
        assert content[:100] not in str(error)

    @pytest.mark.parametrize(
        "transport", ["smtp", "toString", "constructor", "__proto__", "HTTP", " http", ""]
    )
    def test_an_unknown_transport(self, api: Api, transport: str) -> None:
        error = problem(api.post(api.session(), transport=transport), 400, "VALIDATION_ERROR")

        assert error["message"] == (
            f'Invalid content: Invalid transport "{transport}". '
            "Must be one of: http, sse, websocket, sync, stream"
        )

    @pytest.mark.parametrize(
        "value, kind", [(7, "number"), (True, "boolean"), ([], "object"), ({}, "object")]
    )
    def test_a_transport_of_another_type(self, api: Api, value: Any, kind: str) -> None:
        error = problem(api.post(api.session(), transport=value), 400, "VALIDATION_ERROR")

        assert (
            error["message"]
            == f'Invalid content: Invalid transport type "{kind}". Transport must be a string.'
        )

    @pytest.mark.parametrize("metadata", ["x", 7, [1], True])
    def test_metadata_that_is_no_object(self, api: Api, metadata: Any) -> None:
        problem(api.post(api.session(), metadata=metadata), 400, "VALIDATION_ERROR")

    def test_metadata_over_its_size_and_no_byte_less(self, api: Api) -> None:
        session_id = api.session()
        fits = {"k": "x" * (10_240 - len('{"k":""}'))}

        assert api.say(session_id, metadata=fits)["metadata"]["k"] == fits["k"]
        error = problem(api.post(session_id, metadata={"k": fits["k"] + "x"}), 400, "VALIDATION_ERROR")
        assert error["message"] == "Invalid metadata: Metadata exceeds maximum size of 10240 bytes"

    def test_a_seventeenth_attachment(self, api: Api) -> None:
        session_id = api.session()
        attachment = {"url": "https://example.org/x", "contentType": "text/plain", "name": "x", "size": 3}

        assert api.post(session_id, attachments=[attachment] * 16).status_code == 201
        problem(api.post(session_id, attachments=[attachment] * 17), 400, "VALIDATION_ERROR")
        assert api.history(session_id)["messages"][-1]["attachments"] == [attachment] * 16

    @pytest.mark.parametrize(
        "attachments", ["x", {}, [7], [None], [[]], [{}], [{"contentType": "text/plain"}], [{"url": 7}]]
    )
    def test_attachments_that_are_none(self, api: Api, attachments: Any) -> None:
        error = problem(api.post(api.session(), attachments=attachments), 400, "VALIDATION_ERROR")

        assert "attachments" in str(error)

    @pytest.mark.parametrize("timeout_ms", [-1, "x", True, [], 1e30, 300_001])
    def test_a_timeout_out_of_range(self, api: Api, timeout_ms: Any) -> None:
        error = problem(
            api.post(api.session(), transport="http", timeoutMs=timeout_ms), 400, "VALIDATION_ERROR"
        )

        assert "timeoutMs" in str(error)

    def test_a_body_over_256_kib_and_no_byte_less(self, api: Api) -> None:
        session_id = api.session()
        frame = b'{"content":"x","pad":"%s"}'
        pad = b"p" * (256 * 1024 - len(frame) + 2)

        def post(padding: bytes) -> Any:
            return api.call(
                "POST",
                f"/{session_id}/messages",
                content=frame % padding,
                headers={"Content-Type": "application/json"},
            )

        assert post(pad).status_code == 201
        error = problem(post(pad + b"p"), 413, "PAYLOAD_TOO_LARGE")
        assert "262144" in str(error["details"])

    def test_several_bad_fields_naming_each(self, api: Api) -> None:
        error = problem(
            api.post(api.session(), "x", metadata=7, attachments=7, onBusy=7), 400, "VALIDATION_ERROR"
        )

        assert {entry["field"] for entry in error["details"]["errors"]} == {
            "metadata",
            "attachments",
            "onBusy",
        }

    @pytest.mark.parametrize("role", ["assistant", "User", "", 7])
    def test_a_role_that_there_is_not(self, api: Api, role: object) -> None:
        """Never stored as if the user had said it."""
        session_id = api.session()

        error = problem(api.post(session_id, "x", role=role), 400, "VALIDATION_ERROR")

        assert error["details"]["errors"][0]["field"] == "role"
        assert error["details"]["errors"][0]["allowed"] == "user, agent, system"
        assert api.history(session_id)["messages"] == []

    def test_in_the_order_of_the_reference(self, api: Api, quick: Api) -> None:
        nowhere = some_id()
        over = quick.session(timeoutConfig={"timeoutMinutes": 0.005})
        eventually(lambda: quick.call("GET", f"/{over}").status_code == 410)
        big = {"k": "x" * 20_000}

        transport_first = problem(api.post(nowhere, 7, transport="smtp"), 400, "VALIDATION_ERROR")  # type: ignore[arg-type]
        assert "transport" in transport_first["message"]
        problem(api.post(nowhere, 7), 400, "VALIDATION_ERROR")  # type: ignore[arg-type]
        problem(api.post(nowhere, "x" * 4001, metadata=big), 404, "SESSION_NOT_FOUND")
        problem(quick.post(over, "x" * 4001, metadata=big), 410, "SESSION_EXPIRED")
        length_first = problem(api.post(api.session(), "x" * 4001, metadata=big), 400, "VALIDATION_ERROR")
        assert length_first["message"].startswith("Invalid content: Content exceeds")

    def test_and_renews_nothing(self, api: Api) -> None:
        created = api.create()

        api.post(created["sessionId"], "")
        api.post(created["sessionId"], "x", metadata=7)

        session = api.get(created["sessionId"])
        assert session["expiresAt"] == created["expiresAt"]
        assert session["lastActivity"] == created["lastActivity"]
        assert session["cursor"] == 0

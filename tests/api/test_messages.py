"""Messages over HTTP: three transports, idempotency, history."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sessions_api.domain.ids import SessionId
from tests.api.conftest import USER, Api
from tests.api.test_sessions import error_of
from tests.support.stores import age
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers("valkey", "fakeredis")
MINUTE_MS = 60_000
TRANSPORTS = "http, sse, websocket, sync, stream"


def events(text: str) -> list[tuple[str, Any]]:
    """The events of a whole SSE body."""
    frames = [frame.split("\n") for frame in text.strip().split("\n\n") if not frame.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


class TestTransports:
    async def test_websocket_answers_at_once_and_the_answer_is_in_the_history(self, api: Api) -> None:
        info = await api.create(metadata={"plan": "pro", "shared": 1})

        reply = await api.http.post(
            api.url(info, "/messages"), json={"content": "hi", "metadata": {"shared": 2, "sessionId": "x"}}
        )

        body = reply.json()
        assert (reply.status_code, body["success"], body["content"]) == (201, True, "hi")
        assert "agentResponse" not in body
        assert body["data"]["userMessage"] == body["userMessage"]
        user = body["userMessage"]
        assert user["id"] == body["id"]
        assert (user["authorId"], user["author_id"], user["channel_id"]) == (USER, USER, info["sessionId"])
        assert user["created_at"] == body["cursor"]
        assert user["source_type"] == "user"
        assert user["raw_message"] == {"content": "hi"}
        assert user["metadata"] == {
            "plan": "pro",
            "shared": 2,
            "sessionId": info["sessionId"],
            "agentId": info["agentId"],
            "userId": USER,
            "timeoutConfig": info["timeoutConfig"],
        }
        assert body["sessionStatus"]["isNearExpiration"] is False

        async def answered() -> bool:
            page = (await api.http.get(api.url(info, "/messages"))).json()["messages"]
            return [message["content"] for message in page] == ["echo: hi", "hi"]

        await eventually(answered)

    async def test_http_waits_for_the_answer(self, api: Api) -> None:
        info = await api.create()

        body = (
            await api.http.post(api.url(info, "/messages"), json={"content": "hi", "mode": "sync"})
        ).json()

        answer = body["agentResponse"]
        assert (answer["text"], answer["content"], answer["inReplyTo"]) == (
            "echo: hi",
            "echo: hi",
            body["id"],
        )
        assert answer["message"]["isAgent"] is True
        assert answer["message"]["turnId"] == body["turnId"]
        turn = (await api.http.get(api.url(info, f"/turns/{body['turnId']}"))).json()
        assert (turn["state"], turn["answer"]) == ("completed", answer["message"]["cursor"])

    async def test_who_takes_both_gets_json(self, api: Api) -> None:
        """``Accept`` with JSON and event-stream asks for no stream; ``transport`` does."""
        info = await api.create()

        reply = await api.http.post(
            api.url(info, "/messages"),
            json={"content": "one two"},
            headers={"accept": "application/json, text/event-stream"},
        )

        assert reply.status_code == 201
        assert reply.headers["content-type"] == "application/json"

    async def test_sse_streams_the_answer(self, api: Api) -> None:
        info = await api.create()

        reply = await api.http.post(
            api.url(info, "/messages"),
            json={"content": "one two"},
            headers={"accept": "text/event-stream"},
        )

        seen = events(reply.text)
        assert reply.headers["content-type"] == "text/event-stream"
        assert reply.headers["x-request-id"]
        assert seen[0][0] == "user_message"
        assert "".join(data["chunk"] for name, data in seen if name == "chunk") == "echo: one two"
        assert (seen[-1][0], seen[-1][1]["text"]) == ("done", "echo: one two")

    async def test_minimal_leaves_the_copies_out(self, api: Api) -> None:
        info = await api.create()

        reply = await api.http.post(
            api.url(info, "/messages"),
            json={"content": "hi", "transport": "http"},
            headers={"prefer": "respond-async, return=minimal"},
        )

        assert set(reply.json()) == {"userMessage", "agentResponse", "sessionStatus", "turnId", "cursor"}

    @pytest.mark.parametrize("transport", ["http", "sse"])
    async def test_who_waits_too_short_is_told_and_the_turn_goes_on(
        self, server: Any, transport: str
    ) -> None:
        async with Api(server.url, SESSIONS_DISPATCHER="off") as api:
            info = await api.create()

            reply = await api.http.post(
                api.url(info, "/messages"), json={"content": "hi", "transport": transport, "timeoutMs": 20}
            )

            if transport == "http":
                turn_id = error_of(reply, 504, "AGENT_TIMEOUT")["details"]["turnId"]
            else:
                name, data = events(reply.text)[-1]
                assert (name, data["code"], data["retryable"]) == ("error", "AGENT_TIMEOUT", True)
                turn_id = data["turnId"]
            turn = (await api.http.get(api.url(info, f"/turns/{turn_id}"))).json()
            assert turn["state"] == "queued"

    async def test_a_cancelled_turn_ends_the_waiting_with_what_was_said(self, server: Any) -> None:
        async with Api(server.url, SESSIONS_DISPATCHER="off") as api:
            info = await api.create()
            waiting = asyncio.create_task(
                api.http.post(api.url(info, "/messages"), json={"content": "hi", "transport": "http"})
            )

            async def has_turn() -> Any:
                return (await api.http.get(api.url(info))).json().get("activeTurn")

            await eventually(has_turn)
            turn_id = (await has_turn())["turnId"]
            cancelled = await api.http.post(api.url(info, f"/turns/{turn_id}/cancel"))
            again = await api.http.post(api.url(info, f"/turns/{turn_id}/cancel"))

            body = (await waiting).json()
            assert cancelled.json()["state"] == again.json()["state"] == "cancelled"
            assert body["agentResponse"]["status"] == "cancelled"
            assert body["agentResponse"]["text"] == ""

    async def test_an_unknown_turn_is_404(self, api: Api) -> None:
        info = await api.create()

        for turn_id in ("queued", "no-uuid", "00000000-0000-4000-8000-00000000abcd"):
            error = error_of(await api.http.get(api.url(info, f"/turns/{turn_id}")), 404, "TURN_NOT_FOUND")
            assert error["message"] == f"Turn with ID '{turn_id}' not found"


class TestRefusals:
    @pytest.mark.parametrize(
        "body, message",
        [
            (None, "Invalid content: Invalid message request format"),
            ([], "Invalid content: Invalid message request format"),
            ({"content": 3}, "Invalid content: Invalid message request format"),
            ({"content": ""}, "Invalid content: Content cannot be empty"),
            ({"content": "x" * 4001}, "Invalid content: Content exceeds maximum length of 4000 characters"),
            ({"content": "😀" * 2001}, "Invalid content: Content exceeds maximum length of 4000 characters"),
            (
                {"transport": "toString"},
                f'Invalid content: Invalid transport "toString". Must be one of: {TRANSPORTS}',
            ),
            (
                {"transport": 5},
                'Invalid content: Invalid transport type "number". Transport must be a string.',
            ),
            ({"content": "x", "metadata": []}, "Invalid metadata: Metadata must be an object"),
        ],
    )
    async def test_in_the_words_of_the_reference(self, api: Api, body: Any, message: str) -> None:
        info = await api.create()

        error = error_of(await api.http.post(api.url(info, "/messages"), json=body), 400, "VALIDATION_ERROR")

        assert error["message"] == message
        assert error["details"]["reason"] == message.partition(": ")[2]
        assert (await api.http.get(api.url(info))).json()["renewalCount"] == 0, "it renews nothing"

    async def test_name_every_bad_field_at_once(self, api: Api) -> None:
        """Also when one of them is refused before the session is looked for."""
        bad = {"transport": 5, "content": 3, "metadata": 1, "attachments": 1, "onBusy": 1, "timeoutMs": "x"}
        info = await api.create()

        reply = await api.http.post(api.url(info, "/messages"), json=bad)

        named = [fault["field"] for fault in error_of(reply, 400, "VALIDATION_ERROR")["details"]["errors"]]
        assert named == list(bad)

    async def test_4000_utf16_units_fit(self, api: Api) -> None:
        info = await api.create()

        reply = await api.http.post(api.url(info, "/messages"), json={"content": "😀" * 2000})

        assert reply.status_code == 201

    @pytest.mark.parametrize(
        "attachments",
        [
            3,
            [3],
            [{}],
            [{"url": 1}],
            [{"url": "a", "size": -1}],
            [{"url": " java\tscript:alert(1)"}],
            [{"url": "a"}] * 17,
        ],
    )
    async def test_attachments_are_checked(self, api: Api, attachments: Any) -> None:
        info = await api.create()

        reply = await api.http.post(
            api.url(info, "/messages"), json={"content": "x", "attachments": attachments}
        )

        assert error_of(reply, 400, "VALIDATION_ERROR")["details"]["errors"]

    async def test_attachments_come_back_whole(self, api: Api) -> None:
        info = await api.create()
        attachments = [{"url": "https://example.org/a.png", "contentType": "image/png", "mine": [1]}]

        await api.http.post(api.url(info, "/messages"), json={"content": "x", "attachments": attachments})

        page = (await api.http.get(api.url(info, "/messages"))).json()["messages"]
        assert page[-1]["attachments"] == attachments

    async def test_the_transport_is_checked_before_the_session_and_the_content_after(self, api: Api) -> None:
        nowhere = {"sessionId": "00000000-0000-4000-8000-00000000abcd"}

        bad_transport = await api.http.post(api.url(nowhere, "/messages"), json={"transport": "x"})
        no_content = await api.http.post(api.url(nowhere, "/messages"), json={})
        empty = await api.http.post(api.url(nowhere, "/messages"), json={"content": ""})

        error_of(bad_transport, 400, "VALIDATION_ERROR")
        error_of(no_content, 400, "VALIDATION_ERROR")
        error_of(empty, 404, "SESSION_NOT_FOUND")

    async def test_a_busy_session_refuses_if_told_to(self, server: Any) -> None:
        async with Api(server.url, SESSIONS_DISPATCHER="off") as api:
            info = await api.create(onBusy="reject")
            first = (await api.http.post(api.url(info, "/messages"), json={"content": "1"})).json()

            reply = await api.http.post(api.url(info, "/messages"), json={"content": "2"})

            error = error_of(reply, 409, "SESSION_BUSY")
            assert error["details"]["activeTurn"] == {"turnId": first["turnId"], "state": "queued"}
            assert error["retryable"] is True
            assert int(reply.headers["retry-after"]) > 0

    async def test_a_full_backlog_is_429(self, server: Any) -> None:
        async with Api(server.url, SESSIONS_DISPATCHER="off") as api:
            info = await api.create()
            for number in range(100):
                await api.http.post(api.url(info, "/messages"), json={"content": str(number)})

            reply = await api.http.post(api.url(info, "/messages"), json={"content": "more"})

            assert error_of(reply, 429, "RATE_LIMIT_EXCEEDED")["details"]["policy"] == "backlog"
            assert reply.headers["ratelimit"].startswith('"backlog";r=0;t=')


class TestIdempotency:
    @pytest.mark.parametrize("transport", ["websocket", "http", "sse"])
    async def test_a_repeat_joins_the_first(self, api: Api, transport: str) -> None:
        info = await api.create()
        url, headers = api.url(info, "/messages"), {"idempotency-key": "k"}
        first = await api.http.post(url, json={"content": "hi", "transport": "http"}, headers=headers)

        again = await api.http.post(url, json={"content": "hi", "transport": transport}, headers=headers)
        other = await api.http.post(url, json={"content": "ho", "transport": transport}, headers=headers)

        assert again.headers["idempotency-replayed"] == "true"
        if transport == "sse":
            assert events(again.text)[0][1]["id"] == first.json()["id"]
            assert events(again.text)[-1][1]["text"] == "echo: hi"
        else:
            assert again.json()["id"] == first.json()["id"]
        if transport == "http":
            assert again.json()["agentResponse"] == first.json()["agentResponse"]
        error_of(other, 422, "IDEMPOTENCY_MISMATCH")
        assert len((await api.http.get(url)).json()["messages"]) == 2

    async def test_a_repeat_after_expiry_still_gets_its_success(self, api: Api) -> None:
        info = await api.create()
        url, headers = api.url(info, "/messages"), {"idempotency-key": "k"}
        first = await api.http.post(url, json={"content": "hi", "transport": "http"}, headers=headers)
        await age(api.state.store, SessionId(info["sessionId"]), 31 * MINUTE_MS)

        again = await api.http.post(url, json={"content": "hi"}, headers=headers)

        assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])


class TestHistory:
    async def test_pages_both_ways_and_says_whether_there_is_more(self, api: Api) -> None:
        info = await api.create()
        url = api.url(info, "/messages")
        for number in range(3):
            await api.http.post(url, json={"content": str(number), "transport": "http"})
        everything = (await api.http.get(url)).json()["messages"]

        older, query = [], {"limit": "4"}
        while True:
            page = (await api.http.get(url, params=query)).json()
            older += page["messages"]
            if not page["hasMore"]:
                break
            query["before"] = str(page["cursors"]["before"])
        newer = (
            await api.http.get(url, params={"after": str(everything[-1]["cursor"]), "limit": "2"})
        ).json()

        assert older == everything
        assert newer["messages"] == everything[3:5], "the oldest of the newer ones, newest first"
        assert newer["hasMore"] is True
        instant = (await api.http.get(url, params={"before": everything[2]["createdAt"]})).json()
        assert instant["messages"] == everything[3:]

    @pytest.mark.parametrize("limit, size", [("0", 1), ("-4", 1), ("2.9", 2), ("", 4), ("1e9", 4)])
    async def test_clamps_the_limit(self, api: Api, limit: str, size: int) -> None:
        info = await api.create()
        url = api.url(info, "/messages")
        for _ in range(2):
            await api.http.post(url, json={"content": "x", "transport": "http"})

        assert len((await api.http.get(f"{url}?limit={limit}")).json()["messages"]) == size

    @pytest.mark.parametrize(
        "query, message",
        [
            ("before=junk", "Invalid pagination parameter 'before': Must be a valid timestamp"),
            ("after=12junk", "Invalid pagination parameter 'after': Must be a valid timestamp"),
            ("after=8640000000000001", "Invalid pagination parameter 'after': Invalid date from timestamp"),
            ("limit=3abc", "Invalid pagination parameter 'limit': Must be a number"),
        ],
    )
    async def test_junk_is_400(self, api: Api, query: str, message: str) -> None:
        info = await api.create()

        error = error_of(await api.http.get(api.url(info, f"/messages?{query}")), 400, "VALIDATION_ERROR")

        assert error["message"] == message
        assert set(error["details"]) == {"parameter", "value", "reason", "errors"}

    async def test_links_lead_on(self, api: Api) -> None:
        info = await api.create()
        url = api.url(info, "/messages")
        for _ in range(2):
            await api.http.post(url, json={"content": "x", "transport": "http"})

        first = await api.http.get(f"{url}?limit=2")
        second = await api.http.get(first.links["next"]["url"])

        assert len(second.json()["messages"]) == 2
        assert first.json()["messages"][0]["cursor"] > second.json()["messages"][0]["cursor"]

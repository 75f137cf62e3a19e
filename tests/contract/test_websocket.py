"""``GET /{id}/ws``: the same conversation in frames; garbage closes it with a code, never with a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.contract.test_events import ended
from tests.support.client import BASE, Api, closed, received, received_until


def say(socket: ClientConnection, **frame: Any) -> None:
    socket.send(json.dumps(frame))


class TestConversation:
    def test_speaks_its_subprotocol(self, api: Api) -> None:
        with api.websocket(api.session()) as socket:
            assert socket.subprotocol == "sessions.v1"

    def test_begins_with_a_snapshot_then_follows(self, api: Api) -> None:
        session_id = api.session()
        with api.websocket(session_id) as socket:
            assert received(socket)["type"] == "session.snapshot"
            api.say(session_id, "over http")
            events = received_until(socket, "turn.completed")

        assert [event["data"]["content"] for event in events if event["type"] == "message.created"] == [
            "over http",
            "echo: over http",
        ]

    def test_sends_messages(self, api: Api) -> None:
        session_id = api.session()
        with api.websocket(session_id) as socket:
            say(socket, type="message", ref="m1", content="over ws", metadata={"x": 1}, idempotencyKey="k")
            say(socket, type="message", ref="m2", content="over ws", metadata={"x": 1}, idempotencyKey="k")
            acks = [received_until(socket, "ack")[-1] for _ in range(2)]

        assert [ack["ref"] for ack in acks] == ["m1", "m2"]
        assert [ack["status"] for ack in acks] == [201, 201]
        assert acks[0]["data"]["id"] == acks[1]["data"]["id"]
        assert acks[0]["data"]["userMessage"]["content"] == "over ws"
        assert len([m for m in api.history(session_id)["messages"] if not m["isAgent"]]) == 1

    def test_renews_heartbeats_cancels_and_pings(self, still: Api) -> None:
        session_id = still.session()
        turn_id = still.say(session_id)["turnId"]
        with still.websocket(session_id) as socket:
            for ref, frame in enumerate(
                (
                    {"type": "renew"},
                    {"type": "heartbeat"},
                    {"type": "cancel", "turnId": turn_id},
                    {"type": "ping"},
                )
            ):
                say(socket, ref=ref, **frame)
                ack = received_until(socket, "ack")[-1]
                assert (ack["ref"], ack["status"]) == (ref, 200)
                if frame["type"] in {"renew", "heartbeat"}:
                    assert ack["data"]["sessionId"] == session_id

    def test_resumes_from_a_cursor(self, api: Api) -> None:
        session_id = api.session()
        first = api.ask(session_id, "first")
        with api.websocket(session_id) as socket:
            received(socket)
            say(socket, type="resume", ref=1, after=first["cursor"])
            received_until(socket, "ack")
            event = received_until(socket, "message.created")[-1]

        assert event["cursor"] == first["agentResponse"]["message"]["cursor"]

    def test_takes_a_start_position(self, api: Api) -> None:
        session_id = api.session()
        api.ask(session_id, "first")
        with api.websocket(session_id, "?after=0") as socket:
            contents = [received_until(socket, "message.created")[-1]["data"]["content"] for _ in range(2)]

        assert contents == ["first", "echo: first"]

    def test_agrees_with_the_stream(self, api: Api) -> None:
        session_id = api.session()
        with api.websocket(session_id) as socket, api.events(session_id) as stream:
            received_until(socket, "agent.availability")
            stream.until("agent.availability")
            api.ask(session_id, "hello")
            assert received_until(socket, "turn.completed") == [
                e.data for e in stream.until("turn.completed")
            ]

    @pytest.mark.parametrize(
        "frame, code",
        [
            ({"type": "message"}, "VALIDATION_ERROR"),
            ({"type": "message", "content": "x" * 4001}, "VALIDATION_ERROR"),
            ({"type": "message", "content": "x", "metadata": 7}, "VALIDATION_ERROR"),
            ({"type": "message", "content": "x", "idempotencyKey": 7}, "VALIDATION_ERROR"),
            ({"type": "cancel", "turnId": "00000000-0000-4000-8000-00000000dead"}, "TURN_NOT_FOUND"),
            ({"type": "cancel", "turnId": "junk"}, "TURN_NOT_FOUND"),
            ({"type": "cancel"}, "VALIDATION_ERROR"),
            ({"type": "cancel", "turnId": []}, "VALIDATION_ERROR"),
            ({"type": "resume"}, "VALIDATION_ERROR"),
            ({"type": "resume", "after": "x"}, "VALIDATION_ERROR"),
            ({"type": "resume", "after": -1}, "VALIDATION_ERROR"),
            ({"type": "resume", "after": 10**30}, "VALIDATION_ERROR"),
        ],
    )
    def test_answers_a_frame_that_fails_and_goes_on(self, api: Api, frame: dict[str, Any], code: str) -> None:
        with api.websocket(api.session()) as socket:
            say(socket, ref="r", **frame)
            error = received_until(socket, "error")[-1]
            say(socket, type="ping", ref="p")
            ack = received_until(socket, "ack")[-1]

        assert error["ref"] == "r"
        assert error["error"]["code"] == code
        if code == "TURN_NOT_FOUND":
            assert error["error"]["details"] == {"turnId": frame["turnId"]}
        assert error["error"]["requestId"]
        assert ack["ref"] == "p"


class TestClose:
    @pytest.mark.parametrize(
        "frame",
        [
            "",
            "{",
            "null",
            "[]",
            "7",
            "{}",
            '{"type": "unknown"}',
            '{"type": []}',
            '{"type": {}}',
            '{"type": 7}',
            '{"type": "ping", "ref": {}}',
            '{"type": "ping", "ref": "' + "x" * 65 + '"}',
            "[" * 10_000,
            '"\\ud800"',
            '{"type": NaN}',
            b"\x00\xff\xfe",
            b"",
        ],
    )
    def test_after_a_bad_frame(self, api: Api, frame: str | bytes) -> None:
        with api.websocket(api.session()) as socket:
            socket.send(frame)
            code, frames = closed(socket)

        assert code == 4400
        assert frames[-1]["type"] == "error"
        assert frames[-1]["error"]["code"] == "VALIDATION_ERROR"

    def test_after_a_frame_over_256_kib(self, api: Api) -> None:
        with api.websocket(api.session()) as socket:
            say(socket, type="message", content="x" * 300_000)
            code, _ = closed(socket)

        assert code in {4400, 1009}

    def test_after_too_many_frames(self, api: Api) -> None:
        with api.websocket(api.session(), close_timeout=1) as socket:
            try:
                for _ in range(500):
                    say(socket, type="ping")
            except ConnectionClosed:
                pass
            code, _ = closed(socket)

        assert code in {4429, 1006}

    @pytest.mark.parametrize("session_id", ["00000000-0000-4000-8000-00000000dead", "junk"])
    def test_of_an_unknown_session(self, api: Api, session_id: str) -> None:
        with api.websocket(session_id) as socket:
            code, frames = closed(socket)

        assert code == 4404
        assert frames[-1]["error"]["code"] == "SESSION_NOT_FOUND"

    def test_of_a_deleted_session(self, api: Api) -> None:
        session_id = api.session()
        with api.websocket(session_id) as socket:
            received(socket)
            api.call("DELETE", f"/{session_id}")
            code, frames = closed(socket)

        assert code == 4404
        assert frames[-1]["type"] in {"session.ended", "closing"}

    def test_of_an_ended_session_replays_first(self, quick: Api) -> None:
        session_id, messages = ended(quick)
        with quick.websocket(session_id, "?after=0") as socket:
            code, frames = closed(socket)

        assert code == 4410
        assert [frame["data"] for frame in frames if frame["type"] == "message.created"] == messages
        assert "session.expired" in [frame["type"] for frame in frames]
        assert "session.snapshot" not in [frame["type"] for frame in frames]

    def test_for_a_foreign_origin(self, api: Api) -> None:
        try:
            with api.websocket(api.session(), origin="https://evil.example") as socket:
                code, frames = closed(socket)
        except InvalidStatus as refused:
            status = refused.response.status_code
            assert status == 403
        else:
            assert code == 1008
            assert frames[-1]["error"]["code"] == "FORBIDDEN"

    def test_of_a_path_that_is_none(self, api: Api) -> None:
        url = f"{api.url.replace('http', 'ws', 1)}{BASE}/nowhere/at/all"
        try:
            with connect(url) as socket:
                code, _ = closed(socket)
                assert 4400 <= code < 4500 or code == 1008
        except InvalidStatus as refused:
            assert refused.response.status_code in {403, 404}  # noqa: PT017  either way of refusing will do

    def test_a_plain_get_is_no_websocket(self, api: Api) -> None:
        response = api.call("GET", f"/{api.session()}/ws")

        assert 400 <= response.status_code < 500
        assert response.json()["error"]["code"]

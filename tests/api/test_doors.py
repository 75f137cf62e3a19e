"""The doors to the live side, on the service as it runs: right session, right caller, same rules as HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from websockets.sync.client import ClientConnection, connect

from sessions_api.domain.agents import ECHO_ID
from tests.api.conftest import BASE, USER
from tests.support.service import Service

UNKNOWN = "00000000-0000-4000-8000-00000000abcd"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests here."""
    with Service(tmp_path_factory.mktemp("service")) as service:
        yield service


def create(service: Service) -> str:
    reply = httpx2.post(service.url + BASE, json={"agentId": ECHO_ID, "userId": USER})
    return str(reply.json()["sessionId"])


def door(service: Service, session_id: str, **options: Any) -> ClientConnection:
    url = f"ws://127.0.0.1:{service.port}{BASE}/{session_id}/ws"
    return connect(url, subprotocols=["sessions.v1"], proxy=None, **options)  # type: ignore[list-item]


def frames(ws: ClientConnection, until: str) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["type"] != until:
        seen.append(json.loads(ws.recv(timeout=10)))
    return seen


class TestWebSocket:
    def test_a_message_is_answered_as_http_would_and_the_agents_answer_follows(
        self, service: Service
    ) -> None:
        with door(service, create(service)) as ws:
            assert ws.subprotocol == "sessions.v1"
            frames(ws, "session.snapshot")

            ws.send(json.dumps({"type": "message", "ref": 1, "content": "hi", "idempotencyKey": "k"}))
            seen = frames(ws, "turn.completed")

            ack = next(frame for frame in seen if frame["type"] == "ack")
            contents = [frame["data"]["content"] for frame in seen if frame["type"] == "message.created"]
            assert (ack["ref"], ack["status"], ack["data"]["content"]) == (1, 201, "hi")
            assert contents == ["hi", "echo: hi"]
            authors = [frame["data"]["authorId"] for frame in seen if frame["type"] == "message.created"]
            assert authors == [USER, ECHO_ID]

    @pytest.mark.parametrize(
        "frame, status",
        [
            ({"type": "heartbeat"}, 200),
            ({"type": "renew", "idempotencyKey": "r"}, 200),
            ({"type": "message", "content": ""}, 400),
            ({"type": "message", "content": "x", "idempotencyKey": ""}, 400),
            ({"type": "cancel", "turnId": UNKNOWN}, 404),
        ],
        ids=json.dumps,
    )
    def test_every_frame_gets_its_answer(self, service: Service, frame: dict[str, Any], status: int) -> None:
        with door(service, create(service)) as ws:
            ws.send(json.dumps(frame | {"ref": "a"}))

            answer = frames(ws, "ack" if status < 400 else "error")[-1]
            assert (answer["ref"], answer["status"]) == ("a", status)

    @pytest.mark.parametrize(
        "session_id, origin, code, close",
        [
            (UNKNOWN, None, "SESSION_NOT_FOUND", 4404),
            ("no-uuid", None, "SESSION_NOT_FOUND", 4404),
            (UNKNOWN, "http://evil.example", "FORBIDDEN", 1008),
        ],
    )
    def test_a_refusal_says_why_then_closes(
        self, service: Service, session_id: str, origin: Any, code: str, close: int
    ) -> None:
        with door(service, session_id, origin=origin) as ws:
            assert frames(ws, "error")[-1]["error"]["code"] == code
            with pytest.raises(Exception, match=str(close)):
                ws.recv(timeout=10)


class TestEvents:
    def test_replays_then_follows(self, service: Service) -> None:
        url = f"{service.url}{BASE}/{create(service)}"
        httpx2.post(url + "/messages", json={"content": "hi", "transport": "http"})

        with httpx2.stream("GET", url + "/events?after=0", timeout=10) as reply:
            assert reply.headers["content-type"] == "text/event-stream"
            assert reply.headers["x-request-id"]
            names: list[str] = []
            for line in reply.iter_lines():
                if line.startswith("event: "):
                    names.append(line.removeprefix("event: "))
                if names[-1:] == ["message.created"] and names.count("message.created") == 2:
                    break

        assert names[0] == "session.snapshot"

    def test_an_end_that_was_reached_is_204_and_junk_is_400(self, service: Service) -> None:
        url = f"{service.url}{BASE}/{create(service)}/events"

        assert httpx2.get(url, headers={"last-event-id": "17.end"}).status_code == 204
        assert httpx2.get(url, params={"after": "soon"}).status_code == 400
        assert httpx2.get(f"{service.url}{BASE}/{UNKNOWN}/events").status_code == 404

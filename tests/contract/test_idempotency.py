"""``Idempotency-Key``: a repeat is the same message, session or renewal, in any transport, never twice."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.conftest import SLOW_ECHO
from tests.support.client import ECHO, Api, eventually, meanwhile, problem, some_id


class TestIdempotency:
    def test_repeat_of_a_message_is_one_message(self, api: Api) -> None:
        session_id, key = api.session(), {"Idempotency-Key": "the-key"}

        first = api.post(session_id, "hello", headers=key)
        second = api.post(session_id, "hello", headers=key)

        assert (first.status_code, second.status_code) == (201, 201)
        assert "idempotency-replayed" not in first.headers
        assert second.headers["idempotency-replayed"] == "true"
        for name in ("id", "turnId", "cursor", "createdAt"):
            assert second.json()[name] == first.json()[name]
        eventually(lambda: len(api.history(session_id)["messages"]) == 2)

    def test_repeats_in_any_transport_join_the_turn(self, api: Api) -> None:
        session_id, key = api.session(agentId=SLOW_ECHO), {"Idempotency-Key": "k"}
        first = api.post(session_id, "a b", headers=key).json()

        waited = api.post(session_id, "a b", transport="http", headers=key)
        with api.stream_post(session_id, "a b", headers=key) as stream:
            streamed = stream.rest()

        assert waited.status_code == 201
        assert waited.json()["id"] == first["id"]
        assert waited.json()["agentResponse"]["text"] == "echo: a b"
        assert waited.headers["idempotency-replayed"] == "true"
        assert streamed[0].name == "user_message"
        assert streamed[0].data["id"] == first["id"]
        assert streamed[-1].name == "done"
        assert streamed[-1].data["text"] == "echo: a b"
        assert len(api.history(session_id)["messages"]) == 2

    def test_streamed_repeat_in_mid_answer_gets_the_whole_text(self, api: Api) -> None:
        session_id, key = api.session(agentId=SLOW_ECHO), {"Idempotency-Key": "k"}
        words = "a b c d e f"
        api.post(session_id, words, headers=key)
        eventually(lambda: "running" in str(api.get(session_id).get("activeTurn")))

        with api.stream_post(session_id, words, headers=key) as stream:
            events = stream.rest()

        chunks = [event.data["chunk"] for event in events if event.name == "chunk"]
        assert "".join(chunks) == f"echo: {words}"
        assert events[-1].name == "done"

    @pytest.mark.parametrize(
        "other",
        [
            {"content": "other"},
            {"metadata": {"a": 1}},
            {"attachments": [{"url": "https://example.org/x"}]},
            {"onBusy": "merge"},
        ],
    )
    def test_same_key_with_another_body_is_refused(self, api: Api, other: dict[str, Any]) -> None:
        session_id, key = api.session(), {"Idempotency-Key": "k"}
        api.post(session_id, "hello", headers=key)

        response = api.call("POST", f"/{session_id}/messages", json={"content": "hello"} | other, headers=key)

        problem(response, 422, "IDEMPOTENCY_MISMATCH")

    def test_keys_are_of_their_session(self, api: Api) -> None:
        key = {"Idempotency-Key": "shared"}

        assert api.post(api.session(), "one", headers=key).status_code == 201
        assert api.post(api.session(), "two", headers=key).status_code == 201

    def test_a_refusal_is_not_remembered(self, api: Api) -> None:
        session_id, key = api.session(), {"Idempotency-Key": "k"}

        problem(api.post(session_id, "", headers=key), 400, "VALIDATION_ERROR")

        accepted = api.post(session_id, "hello", headers=key)
        assert accepted.status_code == 201
        assert "idempotency-replayed" not in accepted.headers

    def test_repeat_of_a_creation_is_one_session(self, api: Api) -> None:
        body, key = {"agentId": ECHO, "userId": some_id(), "metadata": {"n": 1}}, {"Idempotency-Key": "k"}

        first = api.call("POST", "", json=body, headers=key)
        second = api.call("POST", "", json=body, headers=key)
        other = api.call("POST", "", json=body | {"metadata": {"n": 2}}, headers=key)
        stranger = api.call("POST", "", json=body | {"userId": some_id()}, headers=key)

        assert (first.status_code, second.status_code, stranger.status_code) == (201, 201, 201)
        assert second.headers["idempotency-replayed"] == "true"
        assert second.json()["sessionId"] == first.json()["sessionId"] != stranger.json()["sessionId"]
        problem(other, 422, "IDEMPOTENCY_MISMATCH")

    def test_repeat_of_a_creation_whose_session_is_deleted_is_not_found(self, api: Api) -> None:
        body, key = {"agentId": ECHO, "userId": some_id()}, {"Idempotency-Key": "k"}
        session_id = api.call("POST", "", json=body, headers=key).json()["sessionId"]
        api.call("DELETE", f"/{session_id}")

        problem(api.call("POST", "", json=body, headers=key), 404, "SESSION_NOT_FOUND")

    def test_repeat_of_a_renewal_renews_once(self, api: Api) -> None:
        session_id, key = api.session(), {"Idempotency-Key": "k"}

        api.call("POST", f"/{session_id}/renew", headers=key)
        repeat = api.call("POST", f"/{session_id}/renew", headers=key)

        assert repeat.headers["idempotency-replayed"] == "true"
        assert repeat.json()["renewalCount"] == 1

    def test_repeat_after_the_end_gets_the_first_success(self, quick: Api) -> None:
        session_id, key = quick.session(timeoutConfig={"timeoutMinutes": 0.01}), {"Idempotency-Key": "k"}
        first = quick.post(session_id, "hello", transport="http", headers=key)
        assert first.status_code == 201
        eventually(lambda: quick.call("GET", f"/{session_id}").status_code == 410)

        repeat = quick.post(session_id, "hello", transport="http", headers=key)

        assert repeat.status_code == 201, repeat.text
        assert repeat.json()["id"] == first.json()["id"]
        problem(quick.post(session_id, "hello"), 410, "SESSION_EXPIRED")

    @pytest.mark.parametrize("key", ["", "x" * 256, "x" * 5000, "\u00e9", '"', '"quoted"', "a,b"])
    def test_odd_keys_are_taken_or_refused_but_never_a_crash(self, api: Api, key: str) -> None:
        response = api.post(api.session(), headers={"Idempotency-Key": key.encode()})

        assert response.status_code in {201, 400}

    def test_racing_repeats_are_one_message(self, api: Api) -> None:
        session_id, key = api.session(), {"Idempotency-Key": "race"}

        with meanwhile(api.url, *[lambda api: api.post(session_id, headers=key)] * 16) as posting:
            replies = [poster.result(15) for poster in posting]

        assert {reply.status_code for reply in replies} == {201}
        assert len({reply.json()["id"] for reply in replies}) == 1
        assert sum("idempotency-replayed" not in reply.headers for reply in replies) == 1

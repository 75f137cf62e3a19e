"""What who waits for an answer gets: every outcome, whole or streamed, from the start or joined later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.client import Api, eventually, meanwhile, some_id
from tests.support.service import Service
from tests.support.workers import Turn, Worker

TRANSPORTS = pytest.mark.parametrize("transport", ["http", "sse"])
JOINING = pytest.mark.parametrize("joins", [False, True], ids=["from the start", "joining"])
SAID = "so far \N{GRINNING FACE} "


class Told(NamedTuple):
    """What a waiting poster has at the end, in either transport."""

    code: int | str
    """The status of the reply, or the code of the error event; 201 for ``done``."""
    text: str | None
    """None: there is no answer to show."""
    answer: dict[str, Any]
    turn_id: str


class Poster:
    """Posts in one transport and waits; *has_begun* once a piece of the answer, or the message, came."""

    def __init__(self, transport: str, session_id: str, **options: Any) -> None:
        self._transport = transport
        self._session_id = session_id
        self._options = options
        self.has_begun = threading.Event()

    def __call__(self, api: Api) -> Told:
        return self._wait(api) if self._transport == "http" else self._stream(api)

    def _wait(self, api: Api) -> Told:
        self.has_begun.set()
        reply = api.post(self._session_id, "go", transport="http", **self._options)
        body = reply.json()
        if reply.status_code != 201:
            error = body["error"]
            return Told(error["code"], None, error, error["details"]["turnId"])
        answer = body["agentResponse"]
        assert body["data"]["agentResponse"] == answer
        return Told(201, answer["text"] if answer else None, answer or {}, body["turnId"])

    def _stream(self, api: Api) -> Told:
        text, names = "", []
        with api.stream_post(self._session_id, "go", **self._options) as stream:
            assert stream.response.status_code == 200
            for event in stream:
                names.append(event.name)
                if event.name == "chunk":
                    assert event.data["offset"] == len(text.encode("utf-16-le")) // 2
                    text += event.data["chunk"]
                    self.has_begun.set()
                elif event.name == "restart":
                    text = ""
        assert names[0] == "user_message"
        assert set(names[1:-1]) <= {"chunk", "restart"}
        last = event.data
        if names[-1] == "error":
            return Told(last["code"], None, last, last["turnId"])
        assert names[-1] == "done"
        assert text == last["text"] == last["content"]
        turn_id = last["message"]["turnId"] if "message" in last else ""
        return Told(201, text or None, last, turn_id)


@contextmanager
def waiting(
    api: Api, worker: Worker, transport: str, *, joins: bool, **options: Any
) -> Iterator[tuple[str, Turn, Future[Told]]]:
    """A session whose running turn has said something, and a poster that waits for the rest of it."""
    session_id = api.session(agentId=worker.agent_id)
    headers = {"Idempotency-Key": "k"}
    if not joins:
        poster = Poster(transport, session_id, headers=headers, **options)
        with meanwhile(api.url, poster) as posting:
            turn = worker.claim().say(SAID)
            yield session_id, turn, posting[0]
        return
    api.post(session_id, "go", headers=headers)
    turn = worker.claim().say(SAID)
    poster = Poster(transport, session_id, headers=headers, **options)
    with meanwhile(api.url, poster) as posting:
        assert poster.has_begun.wait(10)
        yield session_id, turn, posting[0]


@TRANSPORTS
@JOINING
class TestOutcome:
    def test_completed(self, api: Api, transport: str, joins: bool) -> None:
        with waiting(api, Worker(api), transport, joins=joins) as (session_id, turn, posting):
            turn.say("and the rest").complete()
            told = posting.result(15)

        assert (told.code, told.text) == (201, SAID + "and the rest")
        assert told.answer["status"] == "complete"
        assert told.turn_id == turn.id
        assert told.answer["message"] == api.history(session_id)["messages"][0]

    @pytest.mark.parametrize("content", [SAID + "and more", "something else"])
    def test_completed_with_other_text_than_was_streamed(
        self, api: Api, transport: str, joins: bool, content: str
    ) -> None:
        with waiting(api, Worker(api), transport, joins=joins) as (session_id, turn, posting):
            turn.complete(content=content)
            told = posting.result(15)

        assert (told.code, told.text) == (201, content)
        assert api.history(session_id)["messages"][0]["content"] == content

    def test_completed_with_nothing(self, api: Api, transport: str, joins: bool) -> None:
        with waiting(api, Worker(api), transport, joins=joins) as (session_id, turn, posting):
            turn.complete(content="")
            told = posting.result(15)

        assert (told.code, told.text) == (201, None)
        assert [message["content"] for message in api.history(session_id)["messages"]] == ["go"]

    def test_cancelled(self, api: Api, transport: str, joins: bool) -> None:
        with waiting(api, Worker(api), transport, joins=joins) as (session_id, turn, posting):
            api.call("POST", f"/{session_id}/turns/{turn.id}/cancel")
            told = posting.result(15)

        assert (told.code, told.text, told.answer["status"]) == (201, SAID, "cancelled")
        assert told.answer["message"] == api.history(session_id)["messages"][0]

    def test_interrupted(self, api: Api, transport: str, joins: bool) -> None:
        with waiting(api, Worker(api), transport, joins=joins) as (session_id, _turn, posting):
            api.post(session_id, "no, this", onBusy="interrupt")
            told = posting.result(15)

        assert (told.code, told.text, told.answer["status"]) == (201, SAID, "cancelled")

    def test_failed(self, api: Api, transport: str, joins: bool) -> None:
        with waiting(api, Worker(api), transport, joins=joins) as (_, turn, posting):
            turn.fail()
            told = posting.result(15)

        assert (told.code, told.turn_id) == ("AGENT_FAILED", turn.id)
        assert told.answer["retryable"] is False

    def test_answered_by_the_second_attempt(self, api: Api, transport: str, joins: bool) -> None:
        worker = Worker(api)
        with waiting(api, worker, transport, joins=joins) as (_, turn, posting):
            turn.fail(retry=True)
            worker.claim().say("better").complete()
            told = posting.result(15)

        assert (told.code, told.text, told.turn_id) == (201, "better", turn.id)

    def test_timed_out(self, api: Api, transport: str, joins: bool) -> None:
        with waiting(api, Worker(api), transport, joins=joins, timeoutMs=300) as (_, turn, posting):
            told = posting.result(15)
            turn.complete()

        assert (told.code, told.turn_id) == ("AGENT_TIMEOUT", turn.id)


SEEN_TO_WAIT = pytest.mark.parametrize("transport, joins", [("http", False), ("sse", False), ("sse", True)])
"""Nobody can see of a repeat over http when it has joined."""


@SEEN_TO_WAIT
def test_who_waits_when_the_session_is_deleted(api: Api, transport: str, joins: bool) -> None:
    with waiting(api, Worker(api), transport, joins=joins) as (session_id, turn, posting):
        api.call("DELETE", f"/{session_id}")
        told = posting.result(15)

    assert (told.code, told.turn_id) == ("SESSION_NOT_FOUND", turn.id)


@SEEN_TO_WAIT
def test_who_waits_when_the_replica_drains(tmp_path: Path, transport: str, joins: bool) -> None:
    """The turn goes on; another replica, asked with the same key, waits for it again."""
    with Service(tmp_path, env={"SESSIONS_DRAIN_SECONDS": "2"}) as service:
        api = Api(service.url)
        with waiting(api, Worker(api), transport, joins=joins) as (_, turn, posting):
            service.ask_to_stop()
            told = posting.result(15)
        api.close()

    assert (told.code, told.turn_id) == ("DRAINING", turn.id)
    assert told.answer["retryable"] is True


@TRANSPORTS
@JOINING
def test_who_waited_for_a_turn_that_an_interrupt_took_gets_the_answer_to_both(
    api: Api, transport: str, joins: bool
) -> None:
    worker = Worker(api)
    session_id, headers = api.session(agentId=worker.agent_id), {"Idempotency-Key": "k"}
    api.post(session_id, "one")
    running = worker.claim()
    if joins:
        api.post(session_id, "go", headers=headers)
    with meanwhile(api.url, Poster(transport, session_id, headers=headers)) as posting:
        eventually(lambda: len(api.history(session_id)["messages"]) == 2)
        taken = api.post(session_id, "and this", onBusy="interrupt").json()["turnId"]
        turn = worker.claim()
        turn.say("to both").complete()
        told = posting[0].result(15)

    assert running.write("extend") == {"cancelled": True}
    assert (told.code, told.text) == (201, "to both")
    assert told.answer["message"]["turnId"] == turn.id == taken
    assert [message["content"] for message in turn.claimed["messages"]] == ["go", "and this"]


@TRANSPORTS
@JOINING
def test_who_waits_when_the_session_expires_is_told_that(quick: Api, transport: str, joins: bool) -> None:
    """Nobody takes the turn, so nothing holds the session."""
    worker = Worker(quick)
    created = quick.create(agentId=worker.agent_id, timeoutConfig={"timeoutMinutes": 0.02})
    session_id, headers = created["sessionId"], {"Idempotency-Key": "k"}
    if joins:
        quick.post(session_id, "go", headers=headers)
    told = Poster(transport, session_id, headers=headers)(quick)

    assert told.code == "SESSION_EXPIRED"
    assert told.turn_id


CARRIED: dict[str, Any] = {
    "metadata": {"thought": "They greet me.", "actions": ["REPLY", {"name": "WAVE"}], "own": {"a": [1]}},
    "attachments": [{"url": "https://example.org/a.png", "contentType": "image/png", "own": 1}],
    "usage": {"inputTokens": 12, "outputTokens": 3},
}


class TestWhatAnAnswerCarries:
    """Thought, actions, attachments and usage reach whoever waits, follows or reads."""

    @TRANSPORTS
    def test_everywhere_the_same(self, api: Api, transport: str) -> None:
        worker = Worker(api)
        session_id = api.session(agentId=worker.agent_id)
        with api.events(session_id) as events:
            events.next()
            with meanwhile(api.url, Poster(transport, session_id)) as posting:
                worker.claim().say("Hello").complete(**CARRIED)
                told = posting[0].result(15)
            followed = events.until("turn.completed")

        [message, _] = api.history(session_id)["messages"]
        assert told.answer["thought"] == "They greet me."
        assert told.answer["actions"] == ["REPLY", {"name": "WAVE"}]
        assert message["metadata"] == CARRIED["metadata"] | {"usage": CARRIED["usage"]}
        assert message["attachments"] == CARRIED["attachments"]
        assert told.answer["message"] == message
        assert [event.data["data"] for event in followed if event.name == "message.created"][-1] == message


class TestSpeakingFirst:
    @pytest.mark.parametrize("role", ["agent", "system"])
    def test_is_a_message_without_a_turn_to_followers(self, api: Api, role: str) -> None:
        created = api.create()
        session_id = created["sessionId"]
        with api.events(session_id) as events:
            events.until("agent.availability")
            posted = api.say(session_id, "by the way", role=role, metadata={"thought": "They should know"})
            event = events.next()

        assert event.name == "message.created"
        message = event.data["data"]
        assert (message["role"], message["isAgent"]) == (role, role == "agent")
        assert message["content"] == "by the way"
        assert "turnId" not in message
        assert "status" not in message
        assert [message] == api.history(session_id)["messages"]
        assert posted["message"] == message
        assert api.get(session_id)["expiresAt"] == created["expiresAt"]

    def test_in_mid_answer_does_not_end_the_running_text(self, api: Api) -> None:
        worker = Worker(api)
        session_id = api.session(agentId=worker.agent_id)
        with api.events(session_id) as events:
            with meanwhile(api.url, Poster("sse", session_id)) as posting:
                turn = worker.claim().say("one ")
                api.say(session_id, "a notice", role="system")
                turn.say("two").complete()
                told = posting[0].result(15)
            followed = events.until("turn.completed")

        assert told.text == "one two"
        deltas = [event.data["data"] for event in followed if event.name == "turn.delta"]
        assert [(delta["offset"], delta["text"]) for delta in deltas] == [(0, "one "), (4, "two")]


class TestAvailability:
    def test_comes_after_the_first_snapshot_and_with_every_change(self, api: Api) -> None:
        worker = Worker(api)
        session_id = api.session(agentId=worker.agent_id.upper())
        with api.events(session_id) as events:
            snapshot, first = events.next(), events.next()
            worker.leave()
            gone = events.until("agent.availability")[-1]
            with meanwhile(api.url, _claim_of(worker)):
                back = events.until("agent.availability")[-1]

        assert snapshot.name == "session.snapshot"
        assert first.name == "agent.availability"
        assert first.id is None
        assert first.data["data"]["state"] in {"available", "busy"}
        assert [event.data["data"]["state"] for event in (gone, back)] == ["offline", "available"]
        assert {event.data["data"]["agentId"] for event in (first, gone, back)} == {worker.agent_id.upper()}
        assert first.data["data"]["since"] <= gone.data["data"]["since"] <= back.data["data"]["since"]


def _claim_of(worker: Worker) -> Callable[[Api], object]:
    return lambda api: api.http.post(
        f"/api/agents/{worker.agent_id}/turns/claim", params={"wait": 2}, json={"worker": some_id()}
    )

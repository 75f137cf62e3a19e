"""Workers, replicas and clients that die, hang or come late: each message is answered once all the same.

Leases are as in production; where a test has to see one lapse soon, the agent's
``turnTimeoutMs`` is short, which no lease outlives.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.client import Api, eventually, meanwhile, problem, some_id
from tests.support.commands import clean_environment
from tests.support.conversations import (
    PATIENCE_MS,
    answer_to,
    asks,
    dialogue,
    draft,
    following,
    messages_of,
    streamed,
    told,
    turn_is,
    turn_of,
)
from tests.support.servers import TestServer
from tests.support.service import Service
from tests.support.worker_process import Crew

pytestmark = pytest.mark.timeout(120)

EXAMPLE = Path(__file__).parents[2] / "examples" / "worker.py"
EXAMPLE_AGENT = "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11"
# A lease lapses within a second, and however often a slow machine lets that happen, no turn fails.
SOON = {"turnTimeoutMs": 1_000, "maxAttempts": 20}
TWICE = {"turnTimeoutMs": 2_000, "maxAttempts": 2}


@pytest.fixture(scope="module")
def replicas(shared: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    services = [Service(tmp_path_factory.mktemp(name), redis_url=shared.url) for name in ("one", "two")]
    for service in services:
        service.start()
    yield services
    for service in services:
        assert service.stop() == 0, service.log[-3000:]
        service.assert_no_bug_logged()


@pytest.fixture
def pair(replicas: list[Service]) -> Iterator[list[Service]]:
    """Two replicas; one that a test ended is started again."""
    yield replicas
    for service in replicas:
        if not service.is_running:
            service.start()


@pytest.fixture
def one(pair: list[Service]) -> Iterator[Api]:
    api = Api(pair[0].url)
    yield api
    api.close()


@pytest.fixture
def two(pair: list[Service]) -> Iterator[Api]:
    api = Api(pair[1].url)
    yield api
    api.close()


@pytest.fixture
def crew(pair: list[Service], tmp_path: Path) -> Iterator[Crew]:
    """Its workers speak to the second replica first."""
    with Crew(tmp_path, [pair[1].url, pair[0].url]) as crew:
        yield crew


class TestDeathOfAWorker:
    def test_in_mid_answer_hands_the_turn_to_another(self, one: Api, two: Api, crew: Crew) -> None:
        """Who reads the stream is told to start over; everybody has one answer in the end."""
        agent_id = crew.define(**SOON)
        doomed = crew.hire(agent_id)
        session_id = one.session(agentId=agent_id)

        with (
            following(two, session_id) as follower,
            one.stream_post(session_id, "hold the line", timeoutMs=PATIENCE_MS) as stream,
        ):
            before = stream.until("chunk")
            doomed.kill()
            heir = crew.hire(agent_id).open_gate()
            after = stream.rest()
            seen = follower.until("turn.completed")

        expected = answer_to(session_id, "hold the line")
        assert before[-1].data["chunk"] == expected[:20]
        assert (after[0].name, after[0].data["attempt"]) == ("restart", 2)
        assert streamed(after) == expected
        assert (after[-1].name, after[-1].data["text"]) == ("done", expected)
        started = [event.data["data"] for event in seen if event.name == "turn.started"]
        attempts = [turn["attempt"] for turn in started]
        assert attempts == list(range(1, len(attempts) + 1))
        assert len({turn["messageId"] for turn in started}) == len(attempts) >= 2
        assert after[-1].data["message"]["metadata"] == {"worker": heir.name, "attempt": attempts[-1]}
        assert messages_of(seen) == told(one, session_id) == dialogue(session_id, "hold the line")

    @pytest.mark.parametrize("definition, attempts", [({"maxAttempts": 1}, 1), (TWICE, 2)])
    def test_that_hangs_fails_the_turn_when_attempts_run_out(
        self,
        pair: list[Service],
        one: Api,
        two: Api,
        crew: Crew,
        definition: dict[str, Any],
        attempts: int,
    ) -> None:
        """Who waits and who follows is told, and the session goes on. The first case is a lease of 10 s."""
        agent_id = crew.define(**definition)
        hung = crew.hire(agent_id, places=2)
        session_id = one.session(agentId=agent_id)

        with (
            following(two, session_id) as follower,
            meanwhile(pair[0].url, asks(session_id, "mute one")) as [poster],
        ):
            failed = follower.until("turn.failed")[-1].data["data"]
        turn_id = hung.does("claimed")["turnId"]

        error = problem(poster.result(), 502, "AGENT_FAILED")
        assert error["details"]["turnId"] == turn_id
        assert error["details"]["attempts"] == attempts
        assert (failed["turnId"], failed["code"], failed["attempts"]) == (turn_id, "AGENT_TIMEOUT", attempts)
        assert turn_of(one, session_id, turn_id)["state"] == "failed"
        hung.open_gate()
        assert one.ask(session_id, "and now?")["agentResponse"]["text"] == answer_to(session_id, "and now?")
        late = eventually(lambda: len(done := hung.did("complete", turn_id)) == attempts and done)
        assert {(record["status"], record["code"]) for record in late} == {(409, "TURN_LOST")}
        assert told(one, session_id) == [("user", "mute one"), *dialogue(session_id, "and now?")]

    def test_of_which_a_message_is_the_cause_ends_with_that_message(self, one: Api, crew: Crew) -> None:
        """A poison message kills whoever reads it; its turn fails for good, the next is answered."""
        agent_id = crew.define(**TWICE)
        worker = crew.hire(agent_id)
        session_id = one.session(agentId=agent_id)
        poison = one.say(session_id, "die of this")
        harmless = one.say(session_id, "harmless")

        while turn_of(one, session_id, harmless["turnId"])["state"] != "completed":  # a supervisor
            if not worker.is_running:
                worker.start()

        assert [record["attempt"] for record in worker.did("claimed", poison["turnId"])] == [1, 2]
        assert turn_of(one, session_id, poison["turnId"])["state"] == "failed"
        assert told(one, session_id) == [
            ("user", "die of this"),
            ("user", "harmless"),
            ("agent", answer_to(session_id, "harmless")),
        ]


class TestLateCompletion:
    @pytest.mark.parametrize("is_answered", [True, False], ids=["answered", "running"])
    def test_after_a_re_claim_is_refused_and_leaves_no_trace(
        self, one: Api, crew: Crew, is_answered: bool
    ) -> None:
        agent_id = crew.define(**SOON)
        late = crew.hire(agent_id)
        session_id = one.session(agentId=agent_id)
        turn_id = one.say(session_id, "hold it")["turnId"]
        late.does("delta", turn_id)
        late.freeze()
        crew.define(agent_id)  # from now on attempts have time
        other = crew.hire(agent_id)
        if is_answered:
            other.open_gate()
        other.does("delta", turn_id)
        if is_answered:
            turn_is(one, session_id, turn_id, "completed")
        before = one.history(session_id), turn_of(one, session_id, turn_id), draft(one, session_id)

        late.open_gate()
        late.thaw()
        refused = late.does("complete", turn_id)

        assert (refused["status"], refused["code"]) == (409, "TURN_LOST")
        assert (one.history(session_id), turn_of(one, session_id, turn_id), draft(one, session_id)) == before
        other.open_gate()
        assert turn_is(one, session_id, turn_id, "completed")["attempt"] >= 2
        assert told(one, session_id) == dialogue(session_id, "hold it")

    def test_before_one_is_accepted(self, pair: list[Service], one: Api, crew: Crew) -> None:
        """The lease has lapsed and nobody else has taken the turn: the work was not in vain."""
        agent_id = crew.define(**SOON)
        late = crew.hire(agent_id)
        session_id = one.session(agentId=agent_id)
        with meanwhile(pair[0].url, asks(session_id, "hold it")) as [poster]:
            turn_id = late.does("delta")["turnId"]
            late.freeze()
            turn_is(one, session_id, turn_id, "queued")
            late.open_gate()
            late.thaw()
            accepted = late.does("complete", turn_id)

        assert (accepted["status"], accepted["cancelled"]) == (200, False)
        assert poster.result().status_code == 201
        assert poster.result().json()["agentResponse"]["text"] == answer_to(session_id, "hold it")
        assert turn_of(one, session_id, turn_id)["attempt"] == 1
        assert len(late.did("claimed", turn_id)) == 1
        assert told(one, session_id) == dialogue(session_id, "hold it")


class TestDeathOfAReplica:
    def test_between_append_and_answer(self, pair: list[Service], one: Api, two: Api, crew: Crew) -> None:
        """Whoever waited asks again under its key, elsewhere, and has the one answer; so has who followed."""
        agent_id = crew.define()
        worker = crew.hire(agent_id)
        session_id = one.session(agentId=agent_id)
        keyed = asks(session_id, "hold it", headers={"Idempotency-Key": some_id()})
        with following(one, session_id) as stream, meanwhile(pair[0].url, keyed) as [poster]:
            turn_id = worker.does("delta")["turnId"]
            before = stream.until("message.created")
            pair[0].kill()
            assert isinstance(poster.exception(), httpx2.TransportError)
            with pytest.raises(httpx2.TransportError):
                stream.rest()
        seen = [event for event in before if event.id is not None]
        with (
            following(two, session_id, str(seen[-1].id)) as stream,
            meanwhile(pair[1].url, keyed) as [poster],
        ):
            worker.open_gate()
            seen += stream.until("turn.completed")

        assert poster.result().status_code == 201
        assert poster.result().headers["idempotency-replayed"] == "true"
        assert poster.result().json()["agentResponse"]["text"] == answer_to(session_id, "hold it")
        assert messages_of(seen) == told(two, session_id) == dialogue(session_id, "hold it")
        assert [record["attempt"] for record in worker.did("claimed", turn_id)] == [1]

    def test_that_a_worker_speaks_to_ends_no_turn(self, pair: list[Service], one: Api, crew: Crew) -> None:
        """It writes on through another one, where it left off."""
        agent_id = crew.define()
        worker = crew.hire(agent_id)
        session_id = one.session(agentId=agent_id)
        with meanwhile(pair[0].url, asks(session_id, "hold it")) as [poster]:
            turn_id = worker.does("delta")["turnId"]
            pair[1].kill()
            worker.open_gate()

        assert poster.result().json()["agentResponse"]["text"] == answer_to(session_id, "hold it")
        assert turn_of(one, session_id, turn_id)["attempt"] == 1
        assert told(one, session_id) == dialogue(session_id, "hold it")

    def test_that_the_sdk_speaks_to_costs_time_alone(self, pair: list[Service], one: Api) -> None:
        """It has one address: it waits until somebody is there again, and writes on where it left off."""
        words = " ".join(f"word{number}" for number in range(20))
        env = clean_environment({"SESSIONS_URL": pair[1].url})
        worker = subprocess.Popen([sys.executable, str(EXAMPLE)], env=env, stderr=subprocess.DEVNULL)
        try:
            path = f"/api/agents/{EXAMPLE_AGENT}/availability"
            eventually(lambda: one.http.get(path).json().get("workers"))
            session_id = one.session(agentId=EXAMPLE_AGENT)
            with one.stream_post(session_id, words, timeoutMs=PATIENCE_MS) as stream:
                events = stream.until("chunk")
                pair[1].kill()
                pair[1].start()
                events += stream.rest()
        finally:
            worker.terminate()
            assert worker.wait(40) == 0

        assert events[-1].name == "done"
        assert streamed(events) == events[-1].data["text"] == f"{words.upper()} "
        assert told(one, session_id) == [("user", words), ("agent", f"{words.upper()} ")]


class TestNothingStopsATurn:
    def test_of_all_who_leave(self, pair: list[Service], one: Api, two: Api, crew: Crew) -> None:
        """Neither the request, nor the tab, nor a replica that is told to stop."""
        agent_id = crew.define()
        worker = crew.hire(agent_id)
        session_id = one.session(agentId=agent_id)
        with one.stream_post(session_id, "hold it") as stream, one.events(session_id) as tab:
            stream.until("chunk")
            tab.next()
        body = {"content": "the second", "transport": "http"}
        with pytest.raises(httpx2.ReadTimeout):
            one.call("POST", f"/{session_id}/messages", json=body, timeout=0.5)
        eventually(lambda: len(told(two, session_id)) == 2)
        one.http.close()
        assert pair[0].stop() == 0
        turn_id = worker.does("delta")["turnId"]
        assert turn_of(two, session_id, turn_id)["state"] == "running"

        worker.open_gate()

        eventually(lambda: two.get(session_id)["stage"] != "waiting", within_s=60)
        assert sorted(told(two, session_id)) == sorted(dialogue(session_id, "hold it", "the second"))
        assert [record["attempt"] for record in worker.did("claimed")] == [1, 1]


class TestRetryingClient:
    def test_has_one_message_and_one_answer(self, pair: list[Service], one: Api, crew: Crew) -> None:
        """It gives up once, asks twice more at different replicas, and once again when all is over."""
        agent_id = crew.define()
        worker = crew.hire(agent_id)
        session_id = one.session(agentId=agent_id)
        headers = {"Idempotency-Key": some_id()}
        keyed = asks(session_id, "hold it", headers=headers)
        body = {"content": "hold it", "transport": "http", "timeoutMs": PATIENCE_MS}
        with pytest.raises(httpx2.ReadTimeout):
            one.call("POST", f"/{session_id}/messages", json=body, headers=headers, timeout=1)
        worker.does("delta")

        with meanwhile(pair[0].url, keyed) as [second], meanwhile(pair[1].url, keyed) as [third]:
            eventually(lambda: all(poster.running() for poster in (second, third)))
            worker.open_gate()
        fourth = keyed(one)

        replies = [second.result(), third.result(), fourth]
        assert {reply.status_code for reply in replies} == {201}
        assert {reply.headers["idempotency-replayed"] for reply in replies} == {"true"}
        assert len({reply.json()["id"] for reply in replies}) == 1
        [answer] = {json.dumps(reply.json()["agentResponse"]) for reply in replies}
        assert json.loads(answer)["text"] == answer_to(session_id, "hold it")
        assert told(one, session_id) == dialogue(session_id, "hold it")
        assert len(worker.did("claimed")) == 1


class TestTooLargeAnAnswer:
    @pytest.mark.parametrize("content, write", [("flood me", "delta"), ("huge thing", "complete")])
    def test_is_refused_and_fails_its_turn(
        self,
        pair: list[Service],
        one: Api,
        two: Api,
        crew: Crew,
        content: str,
        write: str,
    ) -> None:
        agent_id = crew.define()
        worker = crew.hire(agent_id)
        session_id = one.session(agentId=agent_id)

        with (
            following(two, session_id) as follower,
            meanwhile(pair[0].url, asks(session_id, content)) as [poster],
        ):
            failed = follower.until("turn.failed")[-1].data["data"]

        turn_id = worker.does("claimed")["turnId"]
        # Followers may hear of it before the worker has read its reply.
        eventually(lambda: any(each["status"] == 413 for each in worker.did(write, turn_id)))
        assert worker.did(write, turn_id)[-1]["status"] == 413
        assert problem(poster.result(), 502, "AGENT_FAILED")["details"]["turnId"] == turn_id
        assert (failed["turnId"], failed["code"], failed["attempts"]) == (turn_id, "ANSWER_TOO_LARGE", 1)
        assert turn_of(one, session_id, turn_id)["error"]["code"] == "ANSWER_TOO_LARGE"
        assert one.ask(session_id, "shorter")["agentResponse"]["text"] == answer_to(session_id, "shorter")
        assert told(one, session_id) == [("user", content), *dialogue(session_id, "shorter")]
        assert len(worker.did("claimed", turn_id)) == 1

"""Agents as their developers meet them: two replicas, a TOML file, workers that come and go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.client import ECHO, Api, eventually, meanwhile, problem, received, some_id
from tests.support.servers import TestServer
from tests.support.service import Service

WITHIN_S = 1.0
"""A definition and a state are known to every replica by then."""
FILED_ECHO = "f11ed000-0000-4000-8000-000000000001"
FILED_WEBHOOK = "f11ed000-0000-4000-8000-000000000002"
FILED_MODEL = "f11ed000-0000-4000-8000-000000000003"
KEY = "sk-from-the-environment"
FILE = f"""
[[agents]]
id = "{FILED_ECHO}"
name = "From a file"
kind = "echo"
onBusy = "merge"
history = 3
[agents.session]
SESSION_TIMEOUT_MINUTES = 45

[[agents]]
id = "{FILED_WEBHOOK}"
name = "Hook"
kind = "webhook"
concurrency = 2
config = {{ url = "https://agent.example.com/turn", secret = "whsec_{"QUJD" * 8}" }}

[[agents]]
id = "{FILED_MODEL}"
name = "Model"
kind = "openai"
[agents.config]
baseUrl = "https://llm.example.com/v1"
model = "small"
apiKeyEnv = "TEST_LLM_KEY"
"""
WORKER = {"name": "Support", "kind": "worker"}


@pytest.fixture(scope="module")
def replicas(
    tmp_path_factory: pytest.TempPathFactory, contract_redis: TestServer
) -> Iterator[tuple[Api, Api]]:
    """Two replicas on one Redis; both know the file."""
    folder = tmp_path_factory.mktemp("replicas")
    (folder / "agents.toml").write_text(FILE)
    env = {
        "SESSIONS_KEY_PREFIX": "agents:",
        "SESSIONS_AGENTS_FILE": str(folder / "agents.toml"),
        "TEST_LLM_KEY": KEY,
    }
    services = [Service(folder, redis_url=contract_redis.url, env=env, name=name) for name in ("one", "two")]
    with services[0], services[1]:
        apis = [Api(service.url) for service in services]
        yield apis[0], apis[1]
        for api in apis:
            api.close()
    for service in services:
        service.assert_no_bug_logged()
        assert KEY not in service.log


@pytest.fixture
def one(replicas: tuple[Api, Api]) -> Api:
    return replicas[0]


@pytest.fixture
def two(replicas: tuple[Api, Api]) -> Api:
    return replicas[1]


def agents(api: Api, method: str, agent_id: str = "", tail: str = "", **options: Any) -> httpx2.Response:
    return api.http.request(method, f"/api/agents{'/' if agent_id else ''}{agent_id}{tail}", **options)


def define(api: Api, body: dict[str, Any] | None = None, agent_id: str | None = None) -> str:
    """The id of a new agent."""
    agent_id = agent_id or some_id()
    response = agents(api, "PUT", agent_id, json=WORKER if body is None else body)
    assert response.status_code in {200, 201}, response.text
    return agent_id


def state(api: Api, agent_id: str) -> str:
    return str(agents(api, "GET", agent_id, "/availability").json()["state"])


def claim(
    api: Api, agent_id: str, *, wait: float = 0, capacity: int = 1, worker: str = "w1"
) -> httpx2.Response:
    body = {"worker": worker, "capacity": capacity}
    return agents(api, "POST", agent_id, "/turns/claim", params={"wait": wait}, json=body)


def attended(api: Api, agent_id: str) -> None:
    """Have a worker there: the one that has just asked for a turn still counts for some seconds."""
    assert claim(api, agent_id).status_code == 204
    eventually(lambda: state(api, agent_id) != "offline")


class TestDefinitions:
    def test_are_seen_by_every_replica_within_a_second(self, one: Api, two: Api) -> None:
        agent_id = define(one, {"name": "Fresh", "kind": "echo", "session": {"timeoutMinutes": 45}})
        began_s = time.monotonic()

        eventually(lambda: agents(two, "GET", agent_id).status_code == 200, within_s=WITHIN_S)
        define(one, {"name": "Changed", "kind": "echo", "session": {"timeoutMinutes": 7}}, agent_id)
        eventually(
            lambda: agents(two, "GET", agent_id).json()["name"] == "Changed",
            within_s=2 * WITHIN_S - (time.monotonic() - began_s),
        )

        assert two.create(agentId=agent_id)["timeoutConfig"]["timeoutMinutes"] == 7

    def test_are_forgotten_by_every_replica_within_a_second(self, one: Api, two: Api) -> None:
        agent_id = define(one)
        eventually(lambda: agents(two, "GET", agent_id).status_code == 200, within_s=WITHIN_S)

        assert agents(one, "DELETE", agent_id).status_code == 200

        eventually(lambda: agents(two, "GET", agent_id).status_code == 404, within_s=WITHIN_S)
        problem(agents(two, "GET", agent_id), 404, "AGENT_NOT_FOUND")

    def test_first_put_is_201_and_a_later_one_200(self, one: Api, two: Api) -> None:
        agent_id = some_id()

        statuses = [agents(api, "PUT", agent_id, json=WORKER).status_code for api in (one, two, one)]

        assert statuses == [201, 200, 200]

    def test_every_bad_field_is_named(self, one: Api) -> None:
        response = agents(
            one,
            "PUT",
            some_id(),
            json={"name": 3, "kind": "webhook", "config": {"url": "x", "secret": "y"}, "history": 5000},
        )

        error = problem(response, 400, "VALIDATION_ERROR")
        assert {bad["field"] for bad in error["details"]["errors"]} == {
            "name",
            "config.url",
            "config.secret",
            "history",
        }
        assert all(bad["allowed"] for bad in error["details"]["errors"])

    def test_from_a_file_are_there_and_hide_their_secrets(self, one: Api) -> None:
        listed = {agent["agentId"]: agent for agent in agents(one, "GET").json()["agents"]}

        filed = listed[FILED_ECHO]
        assert (filed["name"], filed["onBusy"], filed["history"]) == ("From a file", "merge", 3)
        assert filed["session"] == {"timeoutMinutes": 45}
        assert listed[FILED_WEBHOOK]["config"] == {
            "url": "https://agent.example.com/turn",
            "secret": "********",
        }
        assert listed[FILED_WEBHOOK]["concurrency"] == 2
        assert listed[FILED_MODEL]["config"] == {
            "baseUrl": "https://llm.example.com/v1",
            "model": "small",
            "apiKey": "********",
        }
        assert KEY not in agents(one, "GET").text

    def test_a_made_secret_is_shown_once(self, one: Api, two: Api) -> None:
        body = {"name": "Hook", "kind": "webhook", "config": {"url": "https://agent.example.com"}}
        agent_id = some_id()

        made = agents(one, "PUT", agent_id, json=body).json()["config"]["secret"]

        assert made.startswith("whsec_")
        for response in (agents(one, "GET", agent_id), agents(two, "GET", agent_id), agents(one, "GET")):
            assert made not in response.text
        kept = agents(one, "PUT", agent_id, json=agents(one, "GET", agent_id).json())
        assert kept.status_code == 200
        assert kept.json()["config"]["secret"] == "********"


class TestDeleting:
    def test_is_refused_while_sessions_live_unless_forced(self, one: Api, two: Api) -> None:
        agent_id = define(one)
        attended(one, agent_id)
        session_id = two.session(agentId=agent_id)
        turn_id = two.say(session_id)["turnId"]

        error = problem(agents(one, "DELETE", agent_id), 409, "AGENT_IN_USE")
        forced = agents(one, "DELETE", agent_id, params={"force": "true"})

        assert error["details"] == {"agentId": agent_id, "sessions": 1}
        assert (forced.status_code, forced.json()["failedTurns"]) == (200, 1)
        turn = two.call("GET", f"/{session_id}/turns/{turn_id}").json()
        assert (turn["state"], turn["error"]["code"]) == ("failed", "AGENT_NOT_FOUND")
        problem(one.call("POST", "", json={"agentId": agent_id, "userId": some_id()}), 404, "AGENT_NOT_FOUND")

    def test_tells_a_waiting_poster(self, one: Api) -> None:
        agent_id = define(one)
        attended(one, agent_id)
        session_id = one.session(agentId=agent_id)
        with meanwhile(one.url, lambda api: api.post(session_id, transport="http")) as [poster]:
            eventually(lambda: one.get(session_id).get("activeTurn"))

            agents(one, "DELETE", agent_id, params={"force": "true"})

            error = problem(poster.result(15), 502, "AGENT_FAILED")
        assert error["message"] == "The agent was deleted"
        assert error["details"]["agentCode"] == "AGENT_NOT_FOUND"

    def test_an_unknown_one_is_404(self, one: Api) -> None:
        problem(agents(one, "DELETE", some_id()), 404, "AGENT_NOT_FOUND")


class TestAvailability:
    def test_goes_from_offline_to_available_to_busy_and_back(self, one: Api, two: Api) -> None:
        agent_id = define(one)
        eventually(lambda: agents(two, "GET", agent_id).status_code == 200)
        assert state(one, agent_id) == "offline"

        with meanwhile(one.url, lambda api: claim(api, agent_id, wait=15)) as [waiting]:
            eventually(lambda: state(two, agent_id) == "available")
            session_id = two.session(agentId=agent_id)
            two.say(session_id)
            turn = waiting.result(15)
        assert turn.status_code == 200
        assert turn.json()["session"]["sessionId"] == session_id

        eventually(lambda: state(two, agent_id) == "busy")
        found = agents(two, "GET", agent_id, "/availability").json()
        assert (found["workers"], found["capacity"], found["running"], found["waiting"]) == (1, 1, 1, 0)

        assert claim(one, agent_id, capacity=0).status_code == 204
        eventually(lambda: state(two, agent_id) == "offline")

    def test_followers_hear_of_it(self, one: Api, two: Api) -> None:
        agent_id = define(one)
        attended(one, agent_id)
        session_id = one.session(agentId=agent_id)
        with two.events(session_id) as stream:
            first = stream.until("agent.availability")[-1].data["data"]

            claim(one, agent_id, capacity=0)

            heard = [first["state"]]
            while heard[-1] != "offline":
                heard.append(stream.until("agent.availability")[-1].data["data"]["state"])
        assert first["agentId"] == agent_id
        assert heard[0] in {"available", "busy"}

    def test_echo_is_there_once_the_service_is_ready(self, one: Api, two: Api) -> None:
        assert state(one, ECHO) == "available"
        assert agents(one, "GET", ECHO, "/availability").json()["workers"] == 2


class TestAnAgentThatIsOffline:
    def test_gets_no_new_sessions(self, one: Api, two: Api) -> None:
        agent_id = define(one)
        body = {"agentId": agent_id, "userId": some_id()}

        for api in (one, two):
            response = api.call("POST", "", json=body)
            error = problem(response, 503, "AGENT_UNAVAILABLE")
            assert error["retryable"] is True
            assert int(response.headers["retry-after"]) >= 1
        problem(one.call("POST", "", json=body | {"agentId": some_id()}), 404, "AGENT_NOT_FOUND")

    @pytest.mark.parametrize("transport", ["http", "sse"])
    def test_has_nobody_wait_for_it(self, one: Api, transport: str) -> None:
        agent_id = define(one)
        attended(one, agent_id)
        session_id = one.session(agentId=agent_id)
        claim(one, agent_id, capacity=0)
        eventually(lambda: state(one, agent_id) == "offline")

        response = eventually(
            lambda: (r := one.post(session_id, transport=transport, timeoutMs=1)).status_code == 503 and r
        )

        problem(response, 503, "AGENT_UNAVAILABLE")
        count = len(one.history(session_id)["messages"])
        problem(one.post(session_id, transport=transport), 503, "AGENT_UNAVAILABLE")
        assert len(one.history(session_id)["messages"]) == count
        one.say(session_id, "for when it is back")

    def test_does_not_lose_what_was_answered_before(self, one: Api) -> None:
        """A poster that repeats itself gets the answer, whoever is there by then."""
        agent_id = define(one)
        attended(one, agent_id)
        session_id = one.session(agentId=agent_id)
        key = {"Idempotency-Key": some_id()}
        with meanwhile(one.url, lambda api: api.post(session_id, "hi", headers=key, transport="http")) as [
            poster
        ]:
            turn = claim(one, agent_id, wait=15).json()
            one.call(
                "POST",
                f"/{session_id}/turns/{turn['turnId']}/complete",
                json={"fence": turn["fence"], "content": "here you are"},
            )
            first = poster.result(15)
        claim(one, agent_id, capacity=0)
        eventually(lambda: state(one, agent_id) == "offline")
        eventually(lambda: one.post(session_id, transport="http", timeoutMs=1).status_code == 503)

        again = one.post(session_id, "hi", headers=key, transport="http")

        assert first.status_code == again.status_code == 201
        assert again.json()["agentResponse"]["text"] == "here you are"
        assert again.headers["idempotency-replayed"] == "true"


class TestSpeakingUnasked:
    def test_reaches_history_and_followers_and_moves_no_clock(self, one: Api, two: Api) -> None:
        created = one.create()
        session_id = created["sessionId"]
        with two.events(session_id) as stream:
            stream.until("session.snapshot")

            said = [one.say(session_id, f"I am the {role}", role=role) for role in ("agent", "system")]

            heard = [stream.until("message.created")[-1].data["data"] for _ in said]
        assert [(m["role"], m["isAgent"], m["content"]) for m in heard] == [
            ("agent", True, "I am the agent"),
            ("system", False, "I am the system"),
        ]
        assert heard[0]["authorId"] == ECHO
        assert [body["message"] for body in said] == heard
        assert one.history(session_id)["messages"] == heard[::-1]
        assert one.get(session_id)["expiresAt"] == created["expiresAt"]
        assert "activeTurn" not in one.get(session_id)

    def test_over_a_websocket_as_well(self, one: Api) -> None:
        session_id = one.session()
        with one.websocket(session_id) as socket:
            socket.send('{"type":"message","ref":"1","content":"Welcome!","role":"agent"}')

            frame = eventually(lambda: (f := received(socket))["type"] in {"ack", "error"} and f)

        assert (frame["type"], frame["status"]) == ("ack", 201)
        assert frame["data"]["message"]["role"] == "agent"

    def test_is_seen_by_the_agent_as_history(self, one: Api) -> None:
        agent_id = define(one)
        attended(one, agent_id)
        session_id = one.session(agentId=agent_id)
        one.say(session_id, "Welcome!", role="agent")
        one.say(session_id, "hello")

        turn = claim(one, agent_id, wait=15).json()

        assert [m["content"] for m in turn["history"]] == ["Welcome!"]
        assert [m["content"] for m in turn["messages"]] == ["hello"]

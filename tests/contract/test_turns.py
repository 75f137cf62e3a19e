"""Turns: what a message does to an open one, how one is read and cancelled, what its poster hears."""

from __future__ import annotations

import pytest

from tests.contract.conftest import REJECTING_ECHO, SLOW_ECHO
from tests.support.client import ECHO, Api, eventually, meanwhile, problem, some_id


class TestBusy:
    def test_rejects_where_the_message_the_session_or_the_agent_says_so(self, still: Api) -> None:
        for session_id, fields in (
            (still.session(), {"onBusy": "reject"}),
            (still.session(onBusy="reject"), {}),
            (still.session(agentId=REJECTING_ECHO), {}),
        ):
            turn_id = still.say(session_id)["turnId"]
            error = problem(still.post(session_id, **fields), 409, "SESSION_BUSY")
            assert turn_id in str(error["details"]["activeTurn"])
            assert still.post(session_id, onBusy="queue").status_code == 201

    def test_queues_each_message_a_turn_of_its_own(self, still: Api) -> None:
        session_id = still.session()

        assert still.say(session_id)["turnId"] != still.say(session_id)["turnId"]

    def test_merges_into_the_queued_turn(self, still: Api) -> None:
        session_id = still.session(onBusy="merge")

        assert still.say(session_id)["turnId"] == still.say(session_id)["turnId"]

    def test_merged_messages_get_one_answer(self, api: Api) -> None:
        session_id = api.session(agentId=SLOW_ECHO, onBusy="merge")
        api.say(session_id, "one two three four five six")
        eventually(lambda: "running" in str(api.get(session_id).get("activeTurn")))

        first, second = api.say(session_id, "first"), api.say(session_id, "second")

        assert first["turnId"] == second["turnId"]
        eventually(lambda: api.history(session_id)["messages"][0]["content"] == "echo: first\nsecond")

    def test_interrupts_the_running_turn(self, api: Api) -> None:
        session_id = api.session(agentId=SLOW_ECHO)
        with meanwhile(api.url, lambda api: api.ask(session_id, "a b c d e f g h i j k l")) as [poster]:
            eventually(lambda: "running" in str(api.get(session_id).get("activeTurn")))

            interrupting = api.say(session_id, "stop", onBusy="interrupt", transport="http")

            assert interrupting["agentResponse"]["text"] == "echo: stop"
            assert poster.result(15)["agentResponse"]["status"] == "cancelled"
        statuses = [m.get("status") for m in api.history(session_id)["messages"] if m["isAgent"]]
        assert statuses in (["complete", "cancelled"], ["complete"])

    def test_backlog_of_more_than_a_hundred_is_refused(self, still: Api) -> None:
        session_id = still.session()
        for number in range(100):
            assert still.post(session_id, str(number)).status_code == 201, number

        response = still.post(session_id, "one too many")

        error = problem(response, 429, "RATE_LIMIT_EXCEEDED")
        assert "backlog" in str(error["details"])
        assert int(response.headers["retry-after"]) >= 1
        assert len(still.history(session_id, limit=100)["messages"]) == 100

    def test_a_thousand_open_sessions_of_one_user_are_enough(self, still: Api) -> None:
        user = some_id()
        for _ in range(1000):
            still.create(userId=user)

        error = problem(
            still.call("POST", "", json={"agentId": ECHO, "userId": user}), 429, "RATE_LIMIT_EXCEEDED"
        )

        assert "open-sessions" in str(error["details"])


class TestTurns:
    def test_tells_state_times_attempts_and_the_answer(self, api: Api) -> None:
        session_id = api.session()
        posted = api.ask(session_id)

        turn = api.call("GET", f"/{session_id}/turns/{posted['turnId']}").json()

        assert turn["turnId"] == posted["turnId"]
        assert turn["state"] == "completed"
        assert posted["agentResponse"]["message"]["cursor"] in turn.values()
        assert 1 in [value for key, value in turn.items() if "ttempt" in key]

    @pytest.mark.parametrize("turn_id", ["00000000-0000-4000-8000-00000000dead", "junk"])
    def test_unknown(self, api: Api, turn_id: str) -> None:
        session_id = api.session()

        problem(api.call("GET", f"/{session_id}/turns/{turn_id}"), 404, "TURN_NOT_FOUND")
        problem(api.call("POST", f"/{session_id}/turns/{turn_id}/cancel"), 404, "TURN_NOT_FOUND")

    def test_cancel_of_a_queued_turn_releases_its_poster(self, still: Api) -> None:
        session_id = still.session()
        with meanwhile(still.url, lambda api: api.ask(session_id)) as [poster]:
            turn_id = eventually(lambda: still.get(session_id).get("activeTurn"))["turnId"]

            cancelled = still.call("POST", f"/{session_id}/turns/{turn_id}/cancel")
            again = still.call("POST", f"/{session_id}/turns/{turn_id}/cancel")

            assert (cancelled.status_code, again.status_code) == (200, 200)
            assert cancelled.json()["state"] == again.json()["state"] == "cancelled"
            assert poster.result(10)["agentResponse"]["status"] == "cancelled"
            assert poster.result(10)["agentResponse"]["text"] == ""
        assert still.get(session_id)["stage"] == "active"

    def test_cancel_of_a_running_turn_keeps_its_text(self, api: Api) -> None:
        session_id = api.session(agentId=SLOW_ECHO)
        with api.stream_post(session_id, "a b c d e f g h i j") as stream:
            first = stream.until("chunk")[-1].data
            api.call("POST", f"/{session_id}/turns/{first['turnId']}/cancel")
            events = stream.rest()

        done = events[-1]
        assert done.name == "done"
        assert done.data["status"] == "cancelled"
        assert done.data["text"].startswith(first["chunk"])
        newest = api.history(session_id)["messages"][0]
        assert (newest["status"], newest["content"]) == ("cancelled", done.data["text"])

    def test_deleting_the_session_tells_the_poster(self, still: Api) -> None:
        session_id = still.session()
        with meanwhile(still.url, lambda api: api.post(session_id, transport="http")) as [poster]:
            eventually(lambda: still.get(session_id).get("activeTurn"))

            still.call("DELETE", f"/{session_id}")

            assert "turnId" in problem(poster.result(10), 404, "SESSION_NOT_FOUND")["details"]

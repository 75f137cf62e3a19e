"""Expiry is exact, whether or not anybody sweeps; what remains answers for the retention, then is gone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.contract.conftest import SLOW_ECHO
from tests.contract.test_creating import ms
from tests.support.client import INSTANT, Api, eventually, problem

BRIEF = {"timeoutMinutes": 0.01}
WRITES: list[tuple[str, str, Any]] = [
    ("POST", "/messages", {"content": "x"}),
    ("POST", "/renew", None),
    ("POST", "/heartbeat", None),
    ("PATCH", "/timeout", {"timeoutMinutes": 20}),
    ("GET", "", None),
    ("GET", "/messages", None),
]


def past(api: Api, created: dict[str, Any]) -> float:
    """Wait until the deadline of a session nobody asks about has passed by Redis's clock; the ms since."""
    deadline_ms = ms(created["expiresAt"])

    def clock() -> float:
        other = api.create()  # any reply tells Redis's time
        return ms(other["createdAt"])

    while (now_ms := clock()) <= deadline_ms:
        time.sleep(max(0.0, (deadline_ms - now_ms) / 1000 - 0.002))
    return now_ms - deadline_ms


class TestWithoutAKeeper:
    @pytest.mark.parametrize("method, path, body", WRITES)
    def test_the_first_request_after_the_deadline_is_410(
        self, still: Api, method: str, path: str, body: Any
    ) -> None:
        created = still.create(timeoutConfig=BRIEF)
        session_id = created["sessionId"]
        past(still, created)

        error = problem(still.call(method, f"/{session_id}{path}", json=body), 410, "SESSION_EXPIRED")

        assert error["message"] == f"Session '{session_id}' expired at {created['expiresAt']}"
        assert error["details"]["sessionId"] == session_id
        assert error["details"]["expiresAt"] == created["expiresAt"]
        assert error["details"]["reason"] == "timeout"
        assert INSTANT.fullmatch(error["details"]["retainedUntil"])
        assert ms(error["details"]["retainedUntil"]) - ms(created["expiresAt"]) == 60 * 60_000

    def test_the_last_request_before_it_is_not(self, still: Api) -> None:
        created = still.create(timeoutConfig={"timeoutMinutes": 0.02})
        deadline_ms = ms(created["expiresAt"])
        answers: list[tuple[int, int]] = []
        while len([status for status, _ in answers if status == 410]) < 3:
            response = still.call("GET", f"/{created['sessionId']}")
            left = response.json().get("timeRemaining", -1)
            answers.append((response.status_code, left))

        statuses = [status for status, _ in answers]
        assert statuses == sorted(statuses)
        assert all(left > 0 for status, left in answers if status == 200)
        assert deadline_ms == ms(created["createdAt"]) + 1200

    def test_410_stays_410(self, still: Api) -> None:
        created = still.create(timeoutConfig=BRIEF)
        past(still, created)

        for _ in range(3):
            for method, path, body in WRITES:
                problem(
                    still.call(method, f"/{created['sessionId']}{path}", json=body), 410, "SESSION_EXPIRED"
                )

    def test_the_history_stays_readable_on_demand(self, still: Api) -> None:
        created = still.create(timeoutConfig=BRIEF)
        posted = still.say(created["sessionId"], "last words")
        eventually(lambda: still.call("GET", f"/{created['sessionId']}").status_code == 410)

        page = still.history(created["sessionId"], ended="true")

        assert [message["id"] for message in page["messages"]] == [posted["id"]]
        problem(
            still.call("GET", f"/{created['sessionId']}/messages", params={"ended": "false"}),
            410,
            "SESSION_EXPIRED",
        )

    def test_turns_stay_readable_and_are_failed_or_cancelled(self, still: Api) -> None:
        session_id = still.session(timeoutConfig=BRIEF)
        turn_id = still.say(session_id)["turnId"]
        eventually(lambda: still.call("GET", f"/{session_id}").status_code == 410)

        def state() -> str:
            response = still.call("GET", f"/{session_id}/turns/{turn_id}")
            assert response.status_code == 200
            return str(response.json()["state"])

        eventually(lambda: state() in {"failed", "cancelled"})

    def test_a_waiting_poster_learns_of_it(self, still: Api) -> None:
        session_id = still.session(timeoutConfig=BRIEF)

        error = problem(still.post(session_id, transport="http"), 410, "SESSION_EXPIRED")

        assert error["details"]["turnId"]

    def test_delete_erases_what_remains(self, still: Api) -> None:
        created = still.create(timeoutConfig=BRIEF)
        past(still, created)

        assert still.call("DELETE", f"/{created['sessionId']}").status_code == 200
        problem(still.call("GET", f"/{created['sessionId']}"), 404, "SESSION_NOT_FOUND")

    def test_the_maximum_duration_is_a_reason_of_its_own(self, still: Api) -> None:
        created = still.create(timeoutConfig={"timeoutMinutes": 0.01, "maxDurationMinutes": 0.01})
        past(still, created)

        error = problem(still.call("GET", f"/{created['sessionId']}"), 410, "SESSION_EXPIRED")

        assert error["details"]["reason"] in {"timeout", "max_duration"}

    def test_renewals_end_at_the_maximum_duration(self, still: Api) -> None:
        created = still.create(timeoutConfig={"timeoutMinutes": 0.02, "maxDurationMinutes": 0.03})
        session_id = created["sessionId"]
        eventually(lambda: still.get(session_id)["timeRemaining"] < 500)

        renewed = still.call("POST", f"/{session_id}/renew").json()
        assert renewed["expiresAt"] == renewed["maxExpiresAt"]
        problem(still.call("POST", f"/{session_id}/renew"), 422, "SESSION_RENEWAL_FAILED")
        eventually(lambda: still.call("GET", f"/{session_id}").status_code == 410)
        error = problem(still.call("GET", f"/{session_id}"), 410, "SESSION_EXPIRED")
        assert error["details"]["reason"] == "max_duration"
        assert error["details"]["expiresAt"] == created["maxExpiresAt"]

    def test_is_not_listed_and_not_counted(self, still: Api) -> None:
        created = still.create(timeoutConfig=BRIEF)
        past(still, created)
        still.call("GET", f"/{created['sessionId']}")

        listed = still.call("GET", "", params={"userId": created["userId"]}).json()

        assert listed["sessions"] == []

    def test_health_goes_on(self, still: Api) -> None:
        assert still.call("GET", "/health").status_code == 200

    def test_auto_renew_keeps_alive_what_is_used(self, still: Api) -> None:
        created = still.create(timeoutConfig={"timeoutMinutes": 0.01})
        past_first_deadline = ms(created["expiresAt"]) + 300
        while (
            ms((beat := still.call("POST", f"/{created['sessionId']}/heartbeat").json())["lastActivity"])
            < past_first_deadline
        ):
            assert beat["renewed"] is True
            time.sleep(0.02)

        assert still.get(created["sessionId"])["renewalCount"] > 1


class TestWithAKeeper:
    def test_retention_then_nothing(self, quick: Api) -> None:
        session_id = quick.session(timeoutConfig=BRIEF)
        quick.ask(session_id)
        eventually(lambda: quick.call("GET", f"/{session_id}").status_code == 410)
        error = problem(quick.call("GET", f"/{session_id}"), 410, "SESSION_EXPIRED")
        assert ms(error["details"]["retainedUntil"]) - ms(error["details"]["expiresAt"]) == 3000

        eventually(lambda: quick.call("GET", f"/{session_id}").status_code == 404, within_s=8)

        for method, path, body in WRITES:
            problem(quick.call(method, f"/{session_id}{path}", json=body), 404, "SESSION_NOT_FOUND")
        problem(
            quick.call("GET", f"/{session_id}/messages", params={"ended": "true"}), 404, "SESSION_NOT_FOUND"
        )
        problem(quick.call("DELETE", f"/{session_id}"), 404, "SESSION_NOT_FOUND")
        problem(quick.call("GET", f"/{session_id}/events"), 404, "SESSION_NOT_FOUND")

    def test_a_running_turn_holds_the_clock(self, quick: Api) -> None:
        session_id = quick.session(
            agentId=SLOW_ECHO, timeoutConfig={"timeoutMinutes": 0.01, "autoRenew": True}
        )

        answer = quick.ask(session_id, "a b c d e f")  # 1.5 s, and the timeout is 0.6 s

        assert answer["agentResponse"]["text"] == "echo: a b c d e f"
        assert quick.call("GET", f"/{session_id}").status_code == 200

    def test_without_auto_renew_the_held_session_ends_with_its_turn(self, quick: Api) -> None:
        session_id = quick.session(
            agentId=SLOW_ECHO, timeoutConfig={"timeoutMinutes": 0.01, "autoRenew": False}
        )

        answer = quick.ask(session_id, "a b c d e f")

        assert answer["agentResponse"]["text"] == "echo: a b c d e f"
        problem(quick.call("GET", f"/{session_id}"), 410, "SESSION_EXPIRED")

    def test_ends_unattended(self, quick: Api) -> None:
        created = quick.create(timeoutConfig=BRIEF)
        with quick.events(created["sessionId"]) as stream:
            events = stream.rest()

        expired = next(event for event in events if event.name == "session.expired")
        assert expired.data["data"]["expiredAt"] == created["expiresAt"]
        assert 0 <= ms(expired.data["time"]) - ms(created["expiresAt"]) < 5000

"""One session: read, renew, heartbeat, delete; health and the list."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.contract.test_creating import OURS, SHARED, ms
from tests.support.client import INSTANT, Api, eventually, problem, some_id

NOWHERE = "00000000-0000-4000-8000-00000000dead"
EVERYWHERE = [
    ("GET", ""), ("DELETE", ""), ("POST", "/renew"), ("POST", "/heartbeat"), ("PATCH", "/timeout"),
    ("POST", "/messages"), ("GET", "/messages"), ("GET", "/events"), ("GET", f"/turns/{NOWHERE}"),
    ("POST", f"/turns/{NOWHERE}/cancel"),
]  # fmt: skip
BODIES: dict[str, Any] = {"/timeout": {"timeoutMinutes": 20}, "/messages": {"content": "hello"}}


def now_of(session: dict[str, Any]) -> float:
    """The service's clock when it said *session*."""
    return ms(session["expiresAt"]) - float(session["timeRemaining"])


def aged(api: Api, created: dict[str, Any]) -> dict[str, Any]:
    """*created*, at least a millisecond old: what happens within one moves no instant."""
    eventually(lambda: now_of(api.get(created["sessionId"])) > ms(created["createdAt"]))
    return created


def body_of(method: str, path: str) -> Any:
    return None if method == "GET" else BODIES.get(path)


class TestUnknownSession:
    @pytest.mark.parametrize("method, path", EVERYWHERE)
    @pytest.mark.parametrize("session_id", [NOWHERE, "no-uuid", "null", "%20"])
    def test_is_not_found_everywhere(self, api: Api, method: str, path: str, session_id: str) -> None:
        error = problem(
            api.call(method, f"/{session_id}{path}", json=body_of(method, path)), 404, "SESSION_NOT_FOUND"
        )

        assert error["message"] == f"Session with ID '{session_id.replace('%20', ' ')}' not found"
        assert error["retryable"] is False


class TestRead:
    def test_tells_all_and_renews_nothing(self, api: Api) -> None:
        created = api.create(metadata={"deep": {"er": [1, 2.5, None, "x"]}})

        first, second = api.get(created["sessionId"]), api.get(created["sessionId"])

        assert set(first) >= SHARED | OURS
        for name in SHARED | OURS - {"timeRemaining"}:
            if name != "timeRemaining":
                assert first[name] == second[name] == created[name], name
        assert second["timeRemaining"] <= first["timeRemaining"] <= created["timeRemaining"]

    def test_has_an_etag_and_is_never_304(self, api: Api) -> None:
        session_id = api.session()
        etag = api.call("GET", f"/{session_id}").headers["etag"]

        again = api.call("GET", f"/{session_id}", headers={"If-None-Match": etag})

        assert again.status_code == 200
        assert again.headers["etag"] == etag

    def test_etag_is_moved_by_patch_alone(self, api: Api) -> None:
        session_id = api.session()
        etag = api.call("GET", f"/{session_id}").headers["etag"]

        api.ask(session_id)
        api.call("POST", f"/{session_id}/renew")
        api.call("POST", f"/{session_id}/heartbeat")
        assert api.call("GET", f"/{session_id}").headers["etag"] == etag
        patched = api.call("PATCH", f"/{session_id}/timeout", json={"timeoutMinutes": 20})
        assert patched.headers["etag"] != etag
        assert api.call("GET", f"/{session_id}").headers["etag"] == patched.headers["etag"]

    def test_head_is_a_get_without_its_body(self, api: Api) -> None:
        session_id = api.session()

        head, get = api.call("HEAD", f"/{session_id}"), api.call("GET", f"/{session_id}")

        assert head.status_code == 200
        assert head.content == b""
        assert head.headers["etag"] == get.headers["etag"]

    def test_becomes_active_with_its_first_message(self, api: Api) -> None:
        session_id = api.session()

        posted = api.ask(session_id)

        session = api.get(session_id)
        assert session["stage"] == "active"
        assert session["cursor"] == posted["agentResponse"]["message"]["cursor"] > posted["cursor"]

    def test_waits_while_a_turn_is_open(self, still: Api) -> None:
        session_id = still.session()

        turn_id = still.say(session_id)["turnId"]

        session = still.get(session_id)
        assert session["stage"] == "waiting"
        assert turn_id in str(session["activeTurn"])


class TestRenew:
    def test_restarts_the_clock(self, api: Api) -> None:
        before = aged(api, api.create())

        after = api.call("POST", f"/{before['sessionId']}/renew").json()

        assert set(after) >= SHARED | OURS
        assert after["renewalCount"] == 1
        assert ms(after["expiresAt"]) > ms(before["expiresAt"])
        assert ms(after["expiresAt"]) == ms(after["lastRenewedAt"]) + 30 * 60_000

    @pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff\xfe", b'{"timeoutMinutes": 1}'])
    @pytest.mark.parametrize("what", ["renew", "heartbeat"])
    def test_ignores_its_body(self, api: Api, what: str, content: bytes) -> None:
        response = api.call("POST", f"/{api.session()}/{what}", content=content)

        assert response.status_code == 200, response.text

    def test_works_without_auto_renew_and_leaves_it_off(self, api: Api) -> None:
        session_id = api.session(timeoutConfig={"autoRenew": False})

        renewed = api.call("POST", f"/{session_id}/renew").json()

        assert renewed["renewalCount"] == 1
        assert renewed["timeoutConfig"]["autoRenew"] is False

    def test_fails_at_the_maximum_duration(self, api: Api) -> None:
        created = api.create(timeoutConfig={"timeoutMinutes": 10, "maxDurationMinutes": 10})

        error = problem(api.call("POST", f"/{created['sessionId']}/renew"), 422, "SESSION_RENEWAL_FAILED")

        assert error["message"] == f"Cannot renew session '{created['sessionId']}': Maximum duration reached"
        assert error["details"].keys() >= {"maxDuration", "createdAt", "timeSinceCreation", "expiresAt"}
        assert error["details"]["expiresAt"] == created["expiresAt"]
        assert api.get(created["sessionId"])["renewalCount"] == 0


class TestHeartbeat:
    def test_renews_with_auto_renew(self, api: Api) -> None:
        created = aged(api, api.create())

        beat = api.call("POST", f"/{created['sessionId']}/heartbeat").json()

        assert beat["renewed"] is True
        assert beat["renewalCount"] == 1
        assert ms(beat["lastActivity"]) >= ms(created["lastActivity"])
        assert ms(beat["expiresAt"]) > ms(created["expiresAt"])

    def test_is_activity_alone_without(self, api: Api) -> None:
        created = aged(api, api.create(timeoutConfig={"autoRenew": False}))

        beat = api.call("POST", f"/{created['sessionId']}/heartbeat").json()

        assert beat["renewed"] is False
        assert beat["renewalCount"] == 0
        assert beat["expiresAt"] == created["expiresAt"]
        assert ms(beat["lastActivity"]) > ms(created["lastActivity"])

    def test_is_no_error_at_the_maximum_duration(self, api: Api) -> None:
        created = api.create(timeoutConfig={"timeoutMinutes": 10, "maxDurationMinutes": 10})

        beat = api.call("POST", f"/{created['sessionId']}/heartbeat")

        assert beat.status_code == 200
        assert beat.json()["renewed"] is False
        assert beat.json()["expiresAt"] == created["expiresAt"]


class TestDelete:
    def test_erases_at_once(self, api: Api) -> None:
        session_id = api.session()
        api.ask(session_id)

        response = api.call("DELETE", f"/{session_id}")

        assert response.status_code == 200
        assert response.json() == {
            "success": True,
            "message": f"Session {session_id} deleted successfully",
            "data": {"success": True},
        }
        for method, path in EVERYWHERE:
            problem(
                api.call(method, f"/{session_id}{path}", json=body_of(method, path)), 404, "SESSION_NOT_FOUND"
            )

    def test_answers_the_id_as_it_was_sent(self, api: Api) -> None:
        session_id = api.session().upper()

        assert session_id in api.call("DELETE", f"/{session_id}").json()["message"]

    def test_works_while_a_turn_is_open(self, still: Api) -> None:
        session_id = still.session()
        still.say(session_id)

        assert still.call("DELETE", f"/{session_id}").status_code == 200
        problem(still.call("GET", f"/{session_id}"), 404, "SESSION_NOT_FOUND")


class TestHealth:
    def test_is_healthy(self, api: Api) -> None:
        api.create()

        response = api.call("GET", "/health")

        assert response.status_code == 200
        health = response.json()
        assert health["status"] == "healthy"
        assert health["activeSessions"] >= 1
        assert health["expiringSoon"] >= 0
        assert INSTANT.fullmatch(health["timestamp"])
        assert health["uptime"] > 0


class TestList:
    def test_lists_a_users_sessions_newest_first(self, api: Api) -> None:
        user = some_id()
        made = [api.session(userId=user) for _ in range(5)]
        api.create()

        page = api.call("GET", "", params={"userId": user.upper()}).json()

        assert [entry["sessionId"] for entry in page["sessions"]] == made[::-1]
        assert set(page["sessions"][0]) >= SHARED
        assert "nextCursor" not in page
        assert page["stats"]["totalSessions"] == page["stats"]["activeSessions"]
        assert page["stats"]["expiredSessions"] == 0
        # Counts may be a second old.
        eventually(lambda: api.call("GET", "").json()["stats"]["totalSessions"] >= 6)

    def test_pages_without_skipping_or_repeating(self, api: Api) -> None:
        user = some_id()
        made = [api.session(userId=user) for _ in range(7)]

        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = api.call("GET", "", params={"userId": user, "limit": 3} | cursor).json()
            seen += [entry["sessionId"] for entry in page["sessions"]]
            assert len(page["sessions"]) <= 3
            if "nextCursor" not in page:
                break
            cursor = {"cursor": page["nextCursor"]}

        assert seen == made[::-1]

    def test_an_unfiltered_walk_meets_every_session_once(self, api: Api) -> None:
        made = {api.session() for _ in range(10)}

        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = api.call("GET", "", params={"limit": 4} | cursor).json()
            seen += [entry["sessionId"] for entry in page["sessions"]]
            if "nextCursor" not in page:
                break
            cursor = {"cursor": page["nextCursor"]}

        assert len(seen) == len(set(seen))
        assert made <= set(seen)

    def test_by_agent(self, api: Api) -> None:
        session_id = api.session()

        page = api.call("GET", "", params={"agentId": "00000000-0000-4000-8000-000000000001"}).json()
        none = api.call("GET", "", params={"agentId": some_id()}).json()

        assert page["sessions"][0]["sessionId"] == session_id
        assert none["sessions"] == []

    def test_by_user_and_agent(self, api: Api) -> None:
        created = api.create()

        found = api.call(
            "GET", "", params={"agentId": created["agentId"], "userId": created["userId"]}
        ).json()
        none = api.call("GET", "", params={"agentId": some_id(), "userId": created["userId"]}).json()

        assert [entry["sessionId"] for entry in found["sessions"]] == [created["sessionId"]]
        assert none["sessions"] == []

    def test_by_stage_and_time_of_creation(self, api: Api) -> None:
        user = some_id()
        first = api.create(userId=user)
        time.sleep(0.005)  # instants have milliseconds, and two creations fit into one
        second = api.create(userId=user)
        api.ask(second["sessionId"])

        def ids(**params: Any) -> list[str]:
            response = api.call("GET", "", params={"userId": user} | params)
            assert response.status_code == 200, response.text
            return [entry["sessionId"] for entry in response.json()["sessions"]]

        assert ids(stage="created") == [first["sessionId"]]
        assert ids(stage="active") == [second["sessionId"]]
        assert ids(createdAfter=first["createdAt"], createdBefore="2999-01-01T00:00:00Z")[:1] == [
            second["sessionId"]
        ]
        assert ids(createdBefore="2000-01-01T00:00:00.000Z") == []

    def test_shows_the_total_of_a_user(self, api: Api) -> None:
        user = some_id()
        for _ in range(3):
            api.create(userId=user)

        page = api.call("GET", "", params={"userId": user, "limit": 1}).json()

        assert page["total"] == 3
        assert len(page["sessions"]) == 1

    @pytest.mark.parametrize(
        "params",
        [
            {"limit": "x"}, {"cursor": "junk"}, {"cursor": "!" * 500}, {"userId": "x"}, {"agentId": "x"},
            {"stage": "dead"}, {"createdAfter": "yesterday"}, {"createdBefore": "NaN"},
        ],
    )  # fmt: skip
    def test_refuses_junk(self, api: Api, params: dict[str, str]) -> None:
        error = problem(api.call("GET", "", params=params), 400, "VALIDATION_ERROR")

        assert next(iter(params)) in str(error)

    @pytest.mark.parametrize("limit", ["0", "-4", "1", "2.9"])
    def test_clamps_the_limit_to_one_at_least(self, api: Api, limit: str) -> None:
        user = some_id()
        for _ in range(3):
            api.create(userId=user)

        page = api.call("GET", "", params={"userId": user, "limit": limit}).json()

        assert len(page["sessions"]) == (2 if limit == "2.9" else 1)

    def test_clamps_the_limit_to_a_thousand(self, api: Api) -> None:
        assert api.call("GET", "", params={"limit": "5000"}).status_code == 200

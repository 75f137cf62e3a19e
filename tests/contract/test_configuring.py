"""``PATCH /{id}/timeout``: fields keep their values, ``null`` resets, ``If-Match`` guards."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.contract.conftest import SETTLED_ECHO
from tests.contract.test_creating import ms
from tests.support.client import Api, eventually, problem

MERGE = {"Content-Type": "application/merge-patch+json"}


def patch(api: Api, session_id: str, body: Any, **options: Any) -> httpx2.Response:
    return api.call("PATCH", f"/{session_id}/timeout", json=body, **options)


class TestConfigure:
    def test_keeps_what_is_not_named(self, api: Api) -> None:
        session_id = api.session(timeoutConfig={"timeoutMinutes": 10, "autoRenew": False})

        patched = patch(api, session_id, {"warningThresholdMinutes": 2})

        assert patched.status_code == 200
        assert patched.json()["timeoutConfig"] == {
            "timeoutMinutes": 10, "autoRenew": False, "maxDurationMinutes": 720, "warningThresholdMinutes": 2,
        }  # fmt: skip

    def test_counts_the_new_deadline_from_the_last_renewal(self, api: Api) -> None:
        created = api.create()

        patched = patch(api, created["sessionId"], {"timeoutMinutes": 60}).json()

        assert ms(patched["expiresAt"]) == ms(created["createdAt"]) + 60 * 60_000
        assert patched["timeoutSources"]["timeoutMinutes"] == "session"

    @pytest.mark.parametrize("value, kept", [("12", 12), ("12.5", 12.5), (12.5, 12.5)])
    def test_takes_numeric_strings(self, api: Api, value: Any, kept: float) -> None:
        assert (
            patch(api, api.session(), {"timeoutMinutes": value}).json()["timeoutConfig"]["timeoutMinutes"]
            == kept
        )

    @pytest.mark.parametrize(
        "value", [None, "abc", "", "NaN", "-Infinity", [], {}, True, 4.9, 1441, "0x10", "1_0"]
    )
    def test_refuses_other_timeouts(self, api: Api, value: Any) -> None:
        session_id = api.session()

        error = problem(patch(api, session_id, {"timeoutMinutes": value}), 400, "VALIDATION_ERROR")

        assert error["message"].startswith("Invalid timeout configuration: ")
        assert api.get(session_id)["timeoutConfig"]["timeoutMinutes"] == 30

    @pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "+5", "05", "5."])
    def test_refuses_numbers_that_json_does_not_know(self, api: Api, literal: str) -> None:
        content = f'{{"timeoutMinutes": {literal}}}'

        response = api.call(
            "PATCH",
            f"/{api.session()}/timeout",
            content=content,
            headers={"Content-Type": "application/json"},
        )

        problem(response, 400, "VALIDATION_ERROR")

    def test_says_the_range(self, api: Api) -> None:
        error = problem(patch(api, api.session(), {"timeoutMinutes": 2}), 400, "VALIDATION_ERROR")

        assert error["message"] == "Invalid timeout configuration: Timeout must be between 5 and 1440 minutes"

    @pytest.mark.parametrize("body", [7, "x", True, None])
    def test_refuses_what_is_no_object(self, api: Api, body: Any) -> None:
        error = problem(patch(api, api.session(), body), 400, "VALIDATION_ERROR")

        assert error["message"].startswith(
            "Invalid timeout configuration: Invalid timeout configuration format"
        )

    def test_null_is_refused_in_plain_json_and_resets_in_a_merge_patch(self, api: Api) -> None:
        session_id = api.session(
            agentId=SETTLED_ECHO, timeoutConfig={"timeoutMinutes": 10, "warningThresholdMinutes": 1}
        )

        problem(patch(api, session_id, {"timeoutMinutes": None}), 400, "VALIDATION_ERROR")
        patched = patch(api, session_id, {"timeoutMinutes": None}, headers=MERGE)

        assert patched.status_code == 200, patched.text
        assert patched.json()["timeoutConfig"]["timeoutMinutes"] == 45
        assert patched.json()["timeoutConfig"]["warningThresholdMinutes"] == 1
        assert patched.json()["timeoutSources"]["timeoutMinutes"] == "agent"

    def test_checks_fields_against_those_kept(self, api: Api) -> None:
        session_id = api.session(timeoutConfig={"timeoutMinutes": 20, "warningThresholdMinutes": 15})

        problem(patch(api, session_id, {"timeoutMinutes": 10}), 400, "VALIDATION_ERROR")
        problem(patch(api, session_id, {"maxDurationMinutes": 19}), 400, "VALIDATION_ERROR")
        assert patch(api, session_id, {"timeoutMinutes": 10, "warningThresholdMinutes": 5}).status_code == 200

    def test_of_nothing_changes_nothing(self, api: Api) -> None:
        created = api.create()

        patched = patch(api, created["sessionId"], {"unknown": 1})

        assert patched.status_code == 200
        assert patched.json()["timeoutConfig"] == created["timeoutConfig"]
        assert patched.json()["expiresAt"] == created["expiresAt"]

    def test_refuses_a_deadline_in_the_past(self, still: Api) -> None:
        created = still.create()
        config = {"timeoutMinutes": 0.005, "warningThresholdMinutes": 0.001}

        eventually(lambda: still.get(created["sessionId"])["timeRemaining"] < 30 * 60_000 - 300)
        problem(patch(still, created["sessionId"], config), 400, "VALIDATION_ERROR")

        assert still.get(created["sessionId"])["expiresAt"] == created["expiresAt"]


class TestIfMatch:
    def test_lets_pass_who_knows_the_newest(self, api: Api) -> None:
        session_id = api.session()
        etag = api.call("GET", f"/{session_id}").headers["etag"]

        first = patch(api, session_id, {"timeoutMinutes": 20}, headers={"If-Match": etag})
        stale = patch(api, session_id, {"timeoutMinutes": 25}, headers={"If-Match": etag})
        second = patch(api, session_id, {"timeoutMinutes": 25}, headers={"If-Match": first.headers["etag"]})

        assert (first.status_code, second.status_code) == (200, 200)
        problem(stale, 412, "PRECONDITION_FAILED")

    def test_star_matches_any(self, api: Api) -> None:
        assert patch(api, api.session(), {"timeoutMinutes": 20}, headers={"If-Match": "*"}).status_code == 200

    @pytest.mark.parametrize("etag", ['"999"', '"nonsense"', "unquoted", 'W/"1"', '""'])
    def test_refuses_another(self, api: Api, etag: str) -> None:
        response = patch(api, api.session(), {"timeoutMinutes": 20}, headers={"If-Match": etag})

        assert response.status_code in {400, 412}
        problem(response, response.status_code, response.json()["error"]["code"])

    def test_one_of_a_list_is_enough(self, api: Api) -> None:
        session_id = api.session()
        etag = api.call("GET", f"/{session_id}").headers["etag"]

        assert (
            patch(api, session_id, {"autoRenew": False}, headers={"If-Match": f'"999", {etag}'}).status_code
            == 200
        )

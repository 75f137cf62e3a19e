"""``POST /sessions``: what is accepted, what comes back, what is refused and how."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.contract.conftest import SETTLED_ECHO
from tests.support.client import BASE, ECHO, INSTANT, UUID, Api, problem, some_id

SHARED = {
    "sessionId",
    "channelId",
    "agentId",
    "userId",
    "createdAt",
    "lastActivity",
    "metadata",
    "expiresAt",
    "timeoutConfig",
    "renewalCount",
    "timeRemaining",
    "isNearExpiration",
}
OURS = {"stage", "lastRenewedAt", "maxExpiresAt", "timeoutSources", "heartbeatAfterMs", "onBusy", "cursor"}


def ms(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp() * 1000


def refused(api: Api, body: Any, status: int = 400, code: str = "VALIDATION_ERROR") -> dict[str, Any]:
    return problem(api.call("POST", "", json=body), status, code)


def create_with(api: Api, **fields: Any) -> dict[str, Any]:
    return refused(api, {"agentId": ECHO, "userId": some_id()} | fields)


class TestCreate:
    def test_answers_the_whole_session(self, api: Api) -> None:
        user = some_id()

        response = api.call("POST", "", json={"agentId": ECHO, "userId": user, "metadata": {"plan": "é"}})

        assert response.status_code == 201
        session = response.json()
        assert set(session) >= SHARED | OURS
        assert response.headers["location"] == f"{BASE}/{session['sessionId']}"
        assert response.headers["etag"]
        assert UUID.fullmatch(session["sessionId"])
        assert session["channelId"] == session["sessionId"]
        assert (session["agentId"], session["userId"], session["metadata"]) == (ECHO, user, {"plan": "é"})
        assert session["stage"] == "created"
        assert session["renewalCount"] == 0
        assert session["isNearExpiration"] is False
        assert session["onBusy"] == "queue"
        assert session["cursor"] == 0
        assert "activeTurn" not in session
        assert "heldUntil" not in session

    def test_tells_times_as_instants_with_milliseconds(self, api: Api) -> None:
        session = api.create()

        for name in ("createdAt", "lastActivity", "expiresAt", "lastRenewedAt", "maxExpiresAt"):
            assert INSTANT.fullmatch(session[name]), name
        assert ms(session["expiresAt"]) - ms(session["createdAt"]) == 30 * 60_000
        assert ms(session["maxExpiresAt"]) - ms(session["createdAt"]) == 720 * 60_000
        assert 0 < session["timeRemaining"] <= 30 * 60_000

    def test_takes_what_nobody_chose_from_the_environment(self, api: Api) -> None:
        session = api.create()

        assert session["timeoutConfig"] == {
            "timeoutMinutes": 30,
            "autoRenew": True,
            "maxDurationMinutes": 720,
            "warningThresholdMinutes": 5,
        }
        assert set(session["timeoutSources"].values()) == {"default"}

    def test_resolves_each_field_from_session_agent_and_environment(self, api: Api) -> None:
        session = api.create(agentId=SETTLED_ECHO, timeoutConfig={"warningThresholdMinutes": 3})

        assert session["timeoutConfig"] == {
            "timeoutMinutes": 45,
            "autoRenew": False,
            "maxDurationMinutes": 720,
            "warningThresholdMinutes": 3,
        }
        assert session["timeoutSources"] == {
            "timeoutMinutes": "agent",
            "autoRenew": "agent",
            "maxDurationMinutes": "default",
            "warningThresholdMinutes": "session",
        }

    def test_echoes_ids_as_they_were_sent(self, api: Api) -> None:
        user = some_id().upper()

        session = api.create(userId=user, agentId=ECHO.upper())

        assert (session["userId"], session["agentId"]) == (user, ECHO.upper())
        assert api.get(session["sessionId"].upper())["userId"] == user

    @pytest.mark.parametrize(
        "user", ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]
    )
    def test_takes_any_version_of_uuid(self, api: Api, user: str) -> None:
        assert api.create(userId=user)["userId"] == user

    @pytest.mark.parametrize("metadata", [None, {}])
    def test_has_empty_metadata_where_none_was_given(self, api: Api, metadata: Any) -> None:
        assert api.create(metadata=metadata)["metadata"] == {}

    def test_ignores_unknown_fields(self, api: Api) -> None:
        session = api.create(
            sessionId="mine", timeoutConfig={"timeoutMinutes": 9, "unknown": []}, extra={"a": 1}
        )

        assert session["sessionId"] != "mine"
        assert session["timeoutConfig"]["timeoutMinutes"] == 9


class TestRefusesToCreate:
    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"agentId": ECHO},
            {"userId": ECHO},
            {"agentId": 1, "userId": ECHO},
            {"agentId": ECHO, "userId": None},
            [],
        ],
    )
    def test_without_both_ids(self, api: Api, body: Any) -> None:
        error = refused(api, body)

        assert error["message"] == "Missing required fields: agentId, userId"
        assert error["details"]["missingFields"] == ["agentId", "userId"]

    @pytest.mark.parametrize("field", ["agentId", "userId"])
    @pytest.mark.parametrize(
        "value", ["", "x", ECHO + "0", ECHO.replace("-", ""), "{" + ECHO + "}", "é" * 36, " " + ECHO]
    )
    def test_ids_that_are_no_uuids(self, api: Api, field: str, value: str) -> None:
        error = refused(api, {"agentId": ECHO, "userId": some_id()} | {field: value})

        if value:
            assert error["message"] == f"Invalid UUID format for field '{field}'"
            assert error["details"]["expectedFormat"] == "UUID v4"

    def test_two_bad_ids_naming_both(self, api: Api) -> None:
        error = refused(api, {"agentId": "x", "userId": "y"})

        assert error["message"] == "Invalid UUID format for field 'agentId'"
        assert [entry["field"] for entry in error["details"]["errors"]] == ["agentId", "userId"]

    def test_an_unknown_agent(self, api: Api) -> None:
        agent = some_id()

        error = refused(api, {"agentId": agent, "userId": some_id()}, 404, "AGENT_NOT_FOUND")

        assert error["message"] == f"Agent with ID '{agent}' not found"

    @pytest.mark.parametrize("metadata", ["text", 7, True, [1], [[]]])
    def test_metadata_that_is_no_object(self, api: Api, metadata: Any) -> None:
        assert create_with(api, metadata=metadata)["message"].startswith("Invalid metadata: ")

    def test_metadata_over_its_size_and_no_byte_less(self, api: Api) -> None:
        fits = {"k": "x" * (10_240 - len('{"k":""}'))}

        assert api.create(metadata=fits)["metadata"] == fits
        error = create_with(api, metadata={"k": fits["k"] + "x"})
        assert error["message"] == "Invalid metadata: Metadata exceeds maximum size of 10240 bytes"
        assert "providedMetadata" not in error["details"]

    def test_counts_metadata_in_bytes(self, api: Api) -> None:
        create_with(api, metadata={"k": "é" * 5_120})
        api.create(metadata={"k": "é" * 5_100})

    def test_metadata_deeper_than_sixteen(self, api: Api) -> None:
        def nested(depth: int) -> dict[str, Any]:
            return {"k": nested(depth - 1)} if depth > 1 else {}

        assert api.create(metadata=nested(16))["metadata"] == nested(16)
        create_with(api, metadata=nested(17))

    @pytest.mark.parametrize("on_busy", ["", "drop", 1, [], {}])
    def test_an_unknown_way_of_being_busy(self, api: Api, on_busy: Any) -> None:
        assert "onBusy" in str(create_with(api, onBusy=on_busy))

    @pytest.mark.parametrize("on_busy", ["queue", "merge", "interrupt", "reject"])
    def test_but_no_known_one(self, api: Api, on_busy: str) -> None:
        assert api.create(onBusy=on_busy)["onBusy"] == on_busy

    def test_every_bad_field_at_once(self, api: Api) -> None:
        error = create_with(
            api,
            onBusy="x",
            metadata=7,
            timeoutConfig={"timeoutMinutes": 1, "autoRenew": "yes", "warningThresholdMinutes": -1},
        )

        fields = " ".join(entry["field"] for entry in error["details"]["errors"])
        for field in ("onBusy", "metadata", "timeoutMinutes", "autoRenew", "warningThresholdMinutes"):
            assert field in fields
        for entry in error["details"]["errors"]:
            assert entry["reason"]


class TestTimeoutConfig:
    @pytest.mark.parametrize(
        "config",
        [
            {"timeoutMinutes": 5},
            {"timeoutMinutes": 1440},
            {"timeoutMinutes": "7.5"},
            {"timeoutMinutes": 7.25},
            {"maxDurationMinutes": 2880},
            {"maxDurationMinutes": 30},
            {"maxDurationMinutes": "60"},
            {"warningThresholdMinutes": 0.01},
            {"warningThresholdMinutes": 29.99},
            {"autoRenew": False},
            {"timeoutMinutes": 10, "maxDurationMinutes": 10},
        ],
    )
    def test_in_range_is_kept(self, api: Api, config: dict[str, Any]) -> None:
        kept = api.create(timeoutConfig=config)

        for name, value in config.items():
            assert kept["timeoutConfig"][name] == (float(value) if isinstance(value, str) else value)
            assert kept["timeoutSources"][name] == "session"

    @pytest.mark.parametrize(
        "value", [4.99, 1440.01, 0, -5, "abc", "", "NaN", "Infinity", "1e400", None, True, [], {}]
    )
    def test_timeout_out_of_range(self, api: Api, value: Any) -> None:
        error = create_with(api, timeoutConfig={"timeoutMinutes": value})

        assert error["message"].startswith("Invalid timeout configuration: ")
        assert "timeoutMinutes" in str(error["details"]) or "providedConfig" in error["details"]

    @pytest.mark.parametrize(
        "config",
        [
            {"maxDurationMinutes": 4.99},
            {"maxDurationMinutes": 2880.01},
            {"maxDurationMinutes": 29},
            {"warningThresholdMinutes": 0},
            {"warningThresholdMinutes": -1},
            {"warningThresholdMinutes": 30},
            {"warningThresholdMinutes": "nan"},
            {"autoRenew": "true"},
            {"autoRenew": 1},
            {"autoRenew": None},
            {"timeoutMinutes": 20, "maxDurationMinutes": 10},
            {"timeoutMinutes": 20, "warningThresholdMinutes": 20},
        ],
    )
    def test_other_fields_out_of_range(self, api: Api, config: dict[str, Any]) -> None:
        assert create_with(api, timeoutConfig=config)["message"].startswith("Invalid timeout configuration: ")

    @pytest.mark.parametrize("config", [7, "x", True, [1]])
    def test_that_is_no_object(self, api: Api, config: Any) -> None:
        assert create_with(api, timeoutConfig=config)["message"].startswith("Invalid timeout configuration: ")

    def test_says_the_range(self, api: Api) -> None:
        error = create_with(api, timeoutConfig={"timeoutMinutes": 2})

        assert error["message"] == "Invalid timeout configuration: Timeout must be between 5 and 1440 minutes"

    def test_timeout_above_an_inherited_maximum_is_taken_and_the_maximum_wins(self, api: Api) -> None:
        session = api.create(timeoutConfig={"timeoutMinutes": 1440})

        assert session["timeoutConfig"]["timeoutMinutes"] == 1440
        assert session["expiresAt"] == session["maxExpiresAt"]

    def test_inherited_threshold_above_the_timeout_is_halved(self, api: Api) -> None:
        session = api.create(timeoutConfig={"timeoutMinutes": 5})

        assert session["timeoutConfig"]["warningThresholdMinutes"] == 2.5
        assert session["timeoutSources"]["warningThresholdMinutes"] == "default"

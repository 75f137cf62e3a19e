"""Sessions over HTTP: every endpoint's outcomes, as docs/api.md promises them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from sessions_api.domain.agents import ECHO_ID
from sessions_api.domain.ids import SessionId
from tests.api.conftest import BASE, USER, Api
from tests.support.stores import age

pytestmark = pytest.mark.servers("valkey", "fakeredis")
UNKNOWN = "00000000-0000-4000-8000-00000000abcd"
MINUTE_MS = 60_000


def error_of(reply: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The ``error`` object of a reply that must be this error, envelope and all."""
    body = reply.json()
    assert (reply.status_code, body["error"]["code"]) == (status, code), reply.text
    assert body["status"] == status
    assert body["detail"] == body["error"]["message"]
    assert body["error"]["requestId"] == reply.headers["x-request-id"]
    assert body["instance"] == reply.url.path
    return dict(body["error"])


class TestCreate:
    async def test_answers_with_the_whole_session(self, api: Api) -> None:
        reply = await api.http.post(
            BASE, json={"agentId": ECHO_ID.upper(), "userId": USER, "metadata": {"a": [1]}}
        )

        info = reply.json()
        assert reply.status_code == 201
        assert reply.headers["location"] == f"{BASE}/{info['sessionId']}"
        assert reply.headers["etag"] == '"1"'
        assert info["channelId"] == info["sessionId"]
        assert info["agentId"] == ECHO_ID.upper(), "ids are echoed as sent"
        assert info["metadata"] == {"a": [1]}
        assert info["timeoutConfig"] == {
            "timeoutMinutes": 30,
            "autoRenew": True,
            "maxDurationMinutes": 720,
            "warningThresholdMinutes": 5,
        }
        assert set(info["timeoutSources"].values()) == {"default"}
        assert (info["stage"], info["renewalCount"], info["cursor"]) == ("created", 0, 0)
        assert info["timeRemaining"] == 30 * MINUTE_MS

    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"3", b'{"agentId":1,"userId":null}'])
    async def test_names_the_missing_fields(self, api: Api, body: bytes) -> None:
        reply = await api.http.post(BASE, content=body, headers={"content-type": "application/json"})

        error = error_of(reply, 400, "VALIDATION_ERROR")
        assert error["message"] == "Missing required fields: agentId, userId"
        assert error["details"]["missingFields"] == ["agentId", "userId"]

    async def test_refuses_what_is_no_uuid_the_agent_first(self, api: Api) -> None:
        reply = await api.http.post(
            BASE, json={"agentId": "x", "userId": "y", "metadata": 3, "onBusy": "nap"}
        )

        error = error_of(reply, 400, "VALIDATION_ERROR")
        assert error["message"] == "Invalid UUID format for field 'agentId'"
        assert error["details"]["providedValue"] == "x"
        assert error["details"]["expectedFormat"] == "UUID v4"
        fields = [bad["field"] for bad in error["details"]["errors"]]
        assert fields == ["agentId", "userId", "metadata", "onBusy"], "every bad field at once"

    async def test_an_unknown_agent_is_404(self, api: Api) -> None:
        reply = await api.http.post(BASE, json={"agentId": UNKNOWN, "userId": USER})

        error = error_of(reply, 404, "AGENT_NOT_FOUND")
        assert error["message"] == f"Agent with ID '{UNKNOWN}' not found"

    @pytest.mark.parametrize(
        "config, message",
        [
            ({"timeoutMinutes": 4.99}, "Timeout must be between 5 and 1440 minutes"),
            ({"timeoutMinutes": 1440.01}, "Timeout must be between 5 and 1440 minutes"),
            ({"timeoutMinutes": 10**400}, "Timeout must be between 5 and 1440 minutes"),
            ({"timeoutMinutes": -(10**400)}, "Timeout must be between 5 and 1440 minutes"),
            ({"timeoutMinutes": None}, "Invalid timeout configuration format"),
            ({"timeoutMinutes": "abc"}, "Invalid timeout configuration format"),
            ({"timeoutMinutes": "nan"}, "Invalid timeout configuration format"),
            ({"autoRenew": "false"}, "Invalid timeout configuration format"),
            ({"maxDurationMinutes": 29}, "Maximum duration must not be below the timeout"),
            ({"maxDurationMinutes": 2881}, "Maximum duration must be between 5 and 2880 minutes"),
            ({"warningThresholdMinutes": 0}, "Warning threshold must be above 0 and below the timeout"),
            ({"warningThresholdMinutes": 30}, "Warning threshold must be below the timeout"),
            ("soon", "Invalid timeout configuration format"),
        ],
    )
    async def test_refuses_a_timeout_out_of_range(self, api: Api, config: Any, message: str) -> None:
        reply = await api.http.post(BASE, json={"agentId": ECHO_ID, "userId": USER, "timeoutConfig": config})

        error = error_of(reply, 400, "VALIDATION_ERROR")
        assert error["message"] == f"Invalid timeout configuration: {message}"
        assert error["details"]["reason"] == message

    async def test_accepts_numeric_strings_and_unknown_keys(self, api: Api) -> None:
        info = await api.create(timeoutConfig={"timeoutMinutes": " 7.5 ".strip(), "colour": "red"})

        assert info["timeoutConfig"]["timeoutMinutes"] == 7.5
        assert info["timeoutSources"]["timeoutMinutes"] == "session"

    async def test_a_timeout_above_an_inherited_maximum_is_accepted_and_the_maximum_wins(
        self, api: Api
    ) -> None:
        info = await api.create(timeoutConfig={"timeoutMinutes": 1440})

        assert info["timeoutConfig"]["timeoutMinutes"] == 1440
        assert info["timeRemaining"] == 720 * MINUTE_MS

    async def test_metadata_is_an_object_of_10240_bytes_and_16_levels(self, api: Api) -> None:
        fits = {"a": "x" * (10_240 - len('{"a":""}'))}
        assert (await api.create(metadata=fits))["metadata"] == fits
        deep: Any = 1
        for _ in range(16):
            deep = {"a": deep}
        assert (await api.create(metadata=deep))["metadata"] == deep

        for bad in ({"a": fits["a"] + "x"}, {"a": deep}, "text", [1]):
            reply = await api.http.post(BASE, json={"agentId": ECHO_ID, "userId": USER, "metadata": bad})
            error = error_of(reply, 400, "VALIDATION_ERROR")
            assert error["message"].startswith("Invalid metadata: ")
            assert len(reply.content) < 2_000, "the payload is not echoed"

    async def test_a_repeat_with_its_key_gets_the_first_session(self, api: Api) -> None:
        body = {"agentId": ECHO_ID, "userId": USER, "metadata": {"a": 1}}
        first = await api.http.post(BASE, json=body, headers={"idempotency-key": '"k 1"'})

        again = await api.http.post(BASE, json=body, headers={"idempotency-key": "k 1"})
        other = await api.http.post(BASE, json=body | {"metadata": {}}, headers={"idempotency-key": "k 1"})

        assert again.json()["sessionId"] == first.json()["sessionId"]
        assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
        assert "idempotency-replayed" not in first.headers
        error_of(other, 422, "IDEMPOTENCY_MISMATCH")

    @pytest.mark.parametrize("key", ["", '"', '"a" b', "x" * 256, "caf\u00e9"])
    async def test_refuses_a_bad_key(self, api: Api, key: str) -> None:
        reply = await api.http.post(
            BASE,
            json={"agentId": ECHO_ID, "userId": USER},
            headers={b"idempotency-key": key.encode("latin-1")},
        )

        error_of(reply, 400, "VALIDATION_ERROR")

    async def test_a_user_has_so_many_open_sessions(self, server: Any) -> None:
        async with Api(server.url, SESSION_MAX_OPEN_PER_USER="2") as api:
            await api.create()
            await api.create()

            reply = await api.http.post(BASE, json={"agentId": ECHO_ID, "userId": USER})

            assert error_of(reply, 429, "RATE_LIMIT_EXCEEDED")["details"]["policy"] == "open-sessions"
            assert int(reply.headers["retry-after"]) > 0
            assert reply.headers["ratelimit-policy"] == '"open-sessions";q=2'


class TestReadAndEnd:
    @pytest.mark.parametrize("session_id", [UNKNOWN, "no-uuid", UNKNOWN.upper(), "x" * 200])
    async def test_an_unknown_id_is_404_and_named_as_sent(self, api: Api, session_id: str) -> None:
        for method, tail in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/renew"),
            ("POST", "/heartbeat"),
            ("GET", "/messages"),
            ("GET", "/turns/" + UNKNOWN),
            ("POST", f"/turns/{UNKNOWN}/cancel"),
        ):
            reply = await api.http.request(method, f"{BASE}/{session_id}{tail}")
            error = error_of(reply, 404, "SESSION_NOT_FOUND")
            assert error["message"].startswith(f"Session with ID '{session_id[:64]}")

    async def test_reads_without_renewing_whatever_the_case(self, api: Api) -> None:
        created = await api.create()

        read = await api.http.get(f"{BASE}/{created['sessionId'].upper()}")

        assert read.json()["expiresAt"] == created["expiresAt"]
        assert read.json()["renewalCount"] == 0

    async def test_an_expired_session_is_410_until_its_retention_has_passed(self, api: Api) -> None:
        info = await api.create()
        await age(api.state.store, SessionId(info["sessionId"]), 31 * MINUTE_MS)

        for method, tail, body in (
            ("GET", "", None),
            ("POST", "/renew", None),
            ("POST", "/heartbeat", None),
            ("PATCH", "/timeout", {"timeoutMinutes": 5}),
            ("POST", "/messages", {"content": "x"}),
            ("POST", "/messages", {"content": ""}),
            ("GET", "/messages", None),
        ):
            reply = await api.http.request(method, api.url(info, tail), json=body)
            error = error_of(reply, 410, "SESSION_EXPIRED")
            assert error["details"]["reason"] == "timeout"
            assert error["message"].startswith(f"Session '{info['sessionId']}' expired at ")
        ended = await api.http.get(api.url(info, "/messages?ended=true"))
        assert ended.json() == {"messages": [], "hasMore": False}
        assert (await api.http.delete(api.url(info))).status_code == 200
        assert (await api.http.get(api.url(info))).status_code == 404

    async def test_end_erases_at_once(self, api: Api) -> None:
        info = await api.create()

        reply = await api.http.delete(api.url(info))

        assert reply.json() == {
            "success": True,
            "message": f"Session {info['sessionId']} deleted successfully",
            "data": {"success": True},
        }
        error_of(await api.http.get(api.url(info)), 404, "SESSION_NOT_FOUND")


class TestRenewAndHeartbeat:
    async def test_renew_moves_the_deadline_once_for_each_key(self, api: Api) -> None:
        info = await api.create(timeoutConfig={"autoRenew": False})
        await age(api.state.store, SessionId(info["sessionId"]), MINUTE_MS)

        first = await api.http.post(api.url(info, "/renew"), headers={"idempotency-key": "a"})
        again = await api.http.post(api.url(info, "/renew"), headers={"idempotency-key": "a"})

        assert first.json()["renewalCount"] == 1
        assert again.json()["renewalCount"] == 1
        assert again.headers["idempotency-replayed"] == "true"

    async def test_renew_at_the_maximum_duration_is_422(self, api: Api) -> None:
        info = await api.create(timeoutConfig={"timeoutMinutes": 1440})

        reply = await api.http.post(api.url(info, "/renew"))

        error = error_of(reply, 422, "SESSION_RENEWAL_FAILED")
        assert error["message"] == f"Cannot renew session '{info['sessionId']}': Maximum duration reached"
        assert error["details"]["maxDuration"] == 720
        assert error["details"]["createdAt"] == info["createdAt"]

    async def test_heartbeat_says_whether_it_renewed(self, api: Api) -> None:
        own, none = await api.create(), await api.create(timeoutConfig={"autoRenew": False})
        for info in (own, none):
            await age(api.state.store, SessionId(info["sessionId"]), MINUTE_MS)

        renewed = await api.http.post(api.url(own, "/heartbeat"), json={"ignored": 1})
        kept = await api.http.post(
            api.url(none, "/heartbeat"), content=b"\xff", headers={"content-type": "x"}
        )

        assert (renewed.json()["renewed"], kept.json()["renewed"]) == (True, False)
        assert kept.json()["renewalCount"] == 0


class TestConfigure:
    async def test_keeps_what_is_not_named(self, api: Api) -> None:
        info = await api.create(timeoutConfig={"autoRenew": False, "timeoutMinutes": 10})

        reply = await api.http.patch(api.url(info, "/timeout"), json={"warningThresholdMinutes": 2})

        assert reply.json()["timeoutConfig"] == {
            "timeoutMinutes": 10,
            "autoRenew": False,
            "maxDurationMinutes": 720,
            "warningThresholdMinutes": 2,
        }
        assert reply.headers["etag"] == '"2"'

    async def test_null_returns_a_field_to_the_tier_below_in_a_merge_patch_only(self, api: Api) -> None:
        info = await api.create(timeoutConfig={"timeoutMinutes": 10})
        url = api.url(info, "/timeout")

        plain = await api.http.patch(url, json={"timeoutMinutes": None})
        merged = await api.http.patch(
            url,
            content=b'{"timeoutMinutes": null}',
            headers={"content-type": "application/merge-patch+json; charset=utf-8"},
        )

        error_of(plain, 400, "VALIDATION_ERROR")
        assert merged.json()["timeoutConfig"]["timeoutMinutes"] == 30
        assert merged.json()["timeoutSources"]["timeoutMinutes"] == "default"

    @pytest.mark.parametrize("body", [None, [], 3, "x", {"autoRenew": 1}, {"maxDurationMinutes": []}])
    async def test_refuses_another_shape(self, api: Api, body: Any) -> None:
        info = await api.create()

        reply = await api.http.patch(api.url(info, "/timeout"), json=body)

        error = error_of(reply, 400, "VALIDATION_ERROR")
        assert error["message"] == "Invalid timeout configuration: Invalid timeout configuration format"

    @pytest.mark.parametrize(
        "if_match, status",
        [
            ('"1"', 200),
            ("*", 200),
            ("1", 200),
            ('"7", "1"', 200),
            ('"2"', 412),
            ('W/"1"', 412),
            ('"other"', 412),
            ("", 400),
        ],
    )
    async def test_holds_the_change_against_its_version(self, api: Api, if_match: str, status: int) -> None:
        info = await api.create()

        reply = await api.http.patch(
            api.url(info, "/timeout"), json={"timeoutMinutes": 6}, headers={"if-match": if_match}
        )

        assert reply.status_code == status, reply.text


class TestList:
    async def test_pages_by_user_newest_first(self, api: Api) -> None:
        created = [(await api.create())["sessionId"] for _ in range(5)]
        await api.create(userId="22222222-2222-4222-8222-222222222222")
        query: dict[str, str] = {"userId": USER, "limit": "2"}

        seen: list[str] = []
        while True:
            page = (await api.http.get(BASE, params=query)).json()
            assert page["total"] == 5
            seen += [info["sessionId"] for info in page["sessions"]]
            if "nextCursor" not in page:
                break
            query["cursor"] = page["nextCursor"]

        assert sorted(seen) == sorted(created)

    async def test_filters_what_the_page_examined(self, api: Api) -> None:
        quiet, busy = await api.create(), await api.create()
        await api.http.post(api.url(busy, "/messages"), json={"content": "x", "transport": "http"})

        page = (await api.http.get(BASE, params={"stage": "active"})).json()
        none = (await api.http.get(BASE, params={"createdBefore": quiet["createdAt"]})).json()

        assert [info["sessionId"] for info in page["sessions"]] == [busy["sessionId"]]
        assert "total" not in page
        assert none["sessions"] == []
        assert page["stats"] == {"totalSessions": 2, "activeSessions": 2, "expiredSessions": 0}

    @pytest.mark.parametrize(
        "query", ["limit=x", "userId=x", "agentId=", "stage=old", "createdAfter=soon", "cursor=junk", "app=A"]
    )
    async def test_junk_is_400(self, api: Api, query: str) -> None:
        error_of(await api.http.get(f"{BASE}?{query}"), 400, "VALIDATION_ERROR")

    async def test_names_every_bad_parameter(self, api: Api) -> None:
        error = error_of(await api.http.get(f"{BASE}?limit=x&stage=y"), 400, "VALIDATION_ERROR")

        assert [bad["field"] for bad in error["details"]["errors"]] == ["limit", "stage"]


async def test_creations_at_once_are_all_distinct(api: Api) -> None:
    infos = await asyncio.gather(*(api.create() for _ in range(20)))

    assert len({info["sessionId"] for info in infos}) == 20

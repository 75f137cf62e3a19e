"""Agents over HTTP: definitions and their secrets, deletion, who is there, who speaks unasked."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from sessions_api.domain.agents import ECHO_ID
from sessions_api.domain.ids import AgentId, new_message_id, new_op_id
from tests.api.conftest import BASE, USER, Api
from tests.api.test_sessions import error_of
from tests.support.presence import attend
from tests.support.servers import TestServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers("valkey", "fakeredis")
AGENTS = "/api/agents"
AGENT = AgentId("7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11")
ONE = f"{AGENTS}/{AGENT}"
WORKER = {"name": "Support", "kind": "worker"}
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
MASK = "********"
OPENAI: dict[str, Any] = {
    "name": "Model",
    "kind": "openai",
    "config": {"baseUrl": "https://llm.example.com/v1", "model": "small", "apiKey": "sk-very-secret"},
}


async def put(api: Api, body: dict[str, Any], agent_id: str = AGENT) -> dict[str, Any]:
    reply = await api.http.put(f"{AGENTS}/{agent_id}", json=body)
    assert reply.status_code in {200, 201}, reply.text
    return dict(reply.json())


def fields(error: dict[str, Any]) -> set[str]:
    return {bad["field"] for bad in error["details"]["errors"]}


class TestReplicas:
    async def test_serve_an_agent_as_soon_as_they_read_of_it(self, server: TestServer) -> None:
        served = asyncio.Event()

        async def attend() -> None:
            if there.state.store.agents.get(AGENT) is not None:
                served.set()

        async with Api(server.url) as here, Api(server.url, SESSIONS_DISPATCHER="off") as there:
            there.state.attend = attend
            await put(here, {"name": "New", "kind": "echo"})
            await asyncio.wait_for(served.wait(), 10)


class TestPut:
    async def test_defines_an_agent_with_defaults_for_what_is_left_out(self, api: Api) -> None:
        reply = await api.http.put(ONE, json=WORKER)

        assert reply.status_code == 201
        assert reply.headers["location"] == ONE
        assert reply.json() == {
            "agentId": AGENT,
            "name": "Support",
            "kind": "worker",
            "config": {},
            "session": {},
            "history": 50,
            "turnTimeoutMs": 300_000,
            "maxAttempts": 3,
            "concurrency": 64,
            "availability": {"state": "offline"},
        }
        assert (await api.http.get(ONE)).json() == reply.json()

    async def test_takes_the_place_of_the_definition_before(self, api: Api) -> None:
        """Whole: what the second one leaves out is no longer set."""
        await put(api, WORKER | {"history": 7, "onBusy": "merge", "session": {"timeoutMinutes": 45}})

        reply = await api.http.put(ONE, json=WORKER | {"name": "Other"})

        assert reply.status_code == 200
        assert "location" not in reply.headers
        assert (reply.json()["name"], reply.json()["history"]) == ("Other", 50)
        assert reply.json()["session"] == {}
        assert "onBusy" not in reply.json()

    async def test_what_was_read_can_be_written(self, api: Api) -> None:
        shown = await put(api, OPENAI | {"session": {"SESSION_AUTO_RENEW": "false"}, "concurrency": 2})

        reply = await api.http.put(ONE, json=shown)

        assert reply.status_code == 200
        written = reply.json()
        written.pop("availability"), shown.pop("availability")  # which may have come about meanwhile
        assert written == shown
        assert shown["session"] == {"autoRenew": False}

    async def test_of_very_many_bad_fields_a_hundred_are_named(self, api: Api) -> None:
        """Or the refusal would be many times what was sent."""
        unknown = {f"{'x' * 300}{number}": 1 for number in range(500)}

        reply = await api.http.put(ONE, json=unknown | {"name": "A", "kind": "worker"})

        errors = reply.json()["error"]["details"]["errors"]
        assert reply.status_code == 400
        assert [len(errors), errors[-1]] == [101, {"field": "…", "reason": "and 400 more"}]
        assert all(len(each["field"]) <= 65 for each in errors)

    async def test_every_bad_field_is_named_at_once(self, api: Api) -> None:
        reply = await api.http.put(
            ONE,
            json={
                "agentId": ECHO_ID,
                "name": "",
                "kind": "openai",
                "config": {"baseUrl": "ftp://x", "apiKey": "sk hidden", "temperature": 3, "colour": 1},
                "session": {"timeoutMinutes": 1, "autoRenew": "perhaps", "idle": 3},
                "onBusy": "shout",
                "history": -1,
                "turnTimeoutMs": 1,
                "maxAttempts": True,
                "concurrency": "many",
                "colour": "red",
            },
        )

        error = error_of(reply, 400, "VALIDATION_ERROR")
        assert fields(error) == {
            "agentId",
            "name",
            "config.baseUrl",
            "config.model",
            "config.apiKey",
            "config.temperature",
            "config.colour",
            "session.timeoutMinutes",
            "session.autoRenew",
            "session.idle",
            "onBusy",
            "history",
            "turnTimeoutMs",
            "maxAttempts",
            "concurrency",
            "colour",
        }
        assert "sk hidden" not in reply.text, "a secret is not shown, not even a bad one"
        error_of(await api.http.get(ONE), 404, "AGENT_NOT_FOUND")

    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"3", b'{"name":"x"}', b'{"name":"x","kind":null}'])
    async def test_refuses_what_is_no_definition(self, api: Api, body: bytes) -> None:
        reply = await api.http.put(ONE, content=body, headers={"content-type": "application/json"})

        error_of(reply, 400, "VALIDATION_ERROR")

    async def test_an_id_that_is_no_uuid_is_refused(self, api: Api) -> None:
        error = error_of(await api.http.put(f"{AGENTS}/support", json=WORKER), 400, "VALIDATION_ERROR")

        assert fields(error) == {"agentId"}

    async def test_ids_are_one_in_any_case(self, api: Api) -> None:
        await put(api, WORKER, AGENT.upper())

        assert (await api.http.get(ONE)).json()["agentId"] == AGENT

    @pytest.mark.parametrize(
        "url",
        [
            "http://user:hunter2@example.com/",
            "https://example.com/#part",
            "https:///path",
            "https://exa mple.com/",
            "https://example.com:0/",
            "https://example.com:99999/",
            "//example.com/",
            "https://example.com/" + "x" * 2000,
            "https://exämple.com/",
            7,
        ],
    )
    async def test_refuses_a_url_that_is_not_plain(self, api: Api, url: object) -> None:
        reply = await api.http.put(ONE, json={"name": "x", "kind": "webhook", "config": {"url": url}})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"config.url"}
        assert "hunter2" not in reply.text

    async def test_says_which_base_url_is_plain(self, api: Api) -> None:
        config = OPENAI["config"] | {"baseUrl": "https://example.com/v1?key=1"}

        error = error_of(await api.http.put(ONE, json=OPENAI | {"config": config}), 400, "VALIDATION_ERROR")

        [bad] = error["details"]["errors"]
        allowed = "an absolute http:// or https:// URL without user, password, query or fragment"
        assert bad["allowed"] == allowed

    @pytest.mark.parametrize("name", ["two\nlines", "\x00", "\x1b[31mred", "a\x7f", "a\x85b", "a\u2028b"])
    async def test_a_name_holds_no_control_characters(self, api: Api, name: str) -> None:
        """It stands in terminals and in headings."""
        error = error_of(await api.http.put(ONE, json=WORKER | {"name": name}), 400, "VALIDATION_ERROR")

        assert fields(error) == {"name"}

    async def test_a_name_may_be_in_any_script(self, api: Api) -> None:
        assert (await put(api, WORKER | {"name": "Übersetzer 翻訳 🌍"}))["name"] == "Übersetzer 翻訳 🌍"

    @pytest.mark.parametrize(
        "session, field",
        [
            ({"timeoutMinutes": 10, "warningThresholdMinutes": 10}, "session.warningThresholdMinutes"),
            ({"timeoutMinutes": 10, "maxDurationMinutes": 9}, "session.maxDurationMinutes"),
        ],
    )
    async def test_timeouts_that_contradict_each_other_are_refused(
        self, api: Api, session: dict[str, int], field: str
    ) -> None:
        """As a session's own are."""
        reply = await api.http.put(ONE, json=WORKER | {"session": session})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {field}

    async def test_a_timeout_alone_contradicts_nothing(self, api: Api) -> None:
        await put(api, WORKER | {"session": {"warningThresholdMinutes": 60, "maxDurationMinutes": 120}})

    async def test_an_agent_of_this_replica_is_there_at_once(self, api: Api) -> None:
        """Nobody has to wait for the dispatcher's next round to create a session."""
        shown = await put(api, {"name": "Second", "kind": "echo"})
        assert shown["agentId"] == AGENT

        await api.create(agentId=AGENT)

    async def test_live_sessions_keep_what_they_were_created_with(self, api: Api) -> None:
        await put(api, {"name": "x", "kind": "echo", "session": {"timeoutMinutes": 45}})
        info = await api.create(agentId=AGENT)

        await put(api, {"name": "x", "kind": "echo", "session": {"timeoutMinutes": 7}})

        assert (await api.http.get(api.url(info))).json()["timeoutConfig"]["timeoutMinutes"] == 45
        assert (await api.create(agentId=AGENT))["timeoutConfig"]["timeoutMinutes"] == 7


class TestSecrets:
    async def test_a_webhook_gets_one_that_is_shown_once(self, api: Api) -> None:
        hook = {"name": "Hook", "kind": "webhook", "config": {"url": "https://example.com/agent"}}

        made = (await put(api, hook))["config"]["secret"]

        assert len(base64.b64decode(made.removeprefix("whsec_"))) == 32
        for shown in (
            (await api.http.get(ONE)).json(),
            next(a for a in (await api.http.get(AGENTS)).json()["agents"] if a["agentId"] == AGENT),
        ):
            assert shown["config"] == {"url": "https://example.com/agent", "secret": MASK}
        stored = api.state.store.agents.get(AGENT)
        assert stored is not None
        assert stored.config["secret"] == made

    async def test_what_was_sent_is_never_shown(self, api: Api) -> None:
        config = {"url": "https://example.com/agent", "secret": SECRET}

        replies = [
            await api.http.put(ONE, json={"name": "Hook", "kind": "webhook", "config": config}),
            await api.http.put(ONE, json=OPENAI),
            await api.http.get(ONE),
            await api.http.get(AGENTS),
        ]

        assert all(reply.status_code in {200, 201} for reply in replies)
        assert not any(SECRET in reply.text or "sk-very-secret" in reply.text for reply in replies)

    async def test_the_mask_keeps_what_is_stored(self, api: Api) -> None:
        await put(api, OPENAI)

        await put(api, OPENAI | {"name": "Renamed", "config": OPENAI["config"] | {"apiKey": MASK}})

        stored = api.state.store.agents.get(AGENT)
        assert stored is not None
        assert (stored.name, stored.config["apiKey"]) == ("Renamed", "sk-very-secret")

    async def test_the_mask_keeps_nothing_where_nothing_is_stored(self, api: Api) -> None:
        masked = OPENAI | {"config": OPENAI["config"] | {"apiKey": MASK}}

        reply = await api.http.put(ONE, json=masked)

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"config.apiKey"}

    async def test_a_key_does_not_follow_to_another_address(self, api: Api) -> None:
        """Else whoever may change the address could have the key sent there."""
        await put(api, OPENAI)
        elsewhere = {"baseUrl": "https://elsewhere.example.com/v1", "model": "small", "apiKey": MASK}

        reply = await api.http.put(ONE, json=OPENAI | {"config": elsewhere})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"config.apiKey"}

    async def test_the_environment_cannot_be_read_through_a_definition(self, api: Api) -> None:
        config = {"baseUrl": "https://elsewhere.example.com", "model": "x", "apiKeyEnv": "REDIS_URL"}

        reply = await api.http.put(ONE, json=OPENAI | {"config": config})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"config.apiKeyEnv"}

    @pytest.mark.parametrize("secret", ["whsec_", "whsec_AAAA", SECRET[6:], SECRET + "!", 7, ""])
    async def test_a_signing_secret_is_one(self, api: Api, secret: object) -> None:
        config = {"url": "https://example.com", "secret": secret}

        reply = await api.http.put(ONE, json={"name": "x", "kind": "webhook", "config": config})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"config.secret"}


class TestList:
    async def test_has_every_agent_by_id(self, api: Api) -> None:
        await put(api, WORKER)

        listed = (await api.http.get(AGENTS)).json()["agents"]

        assert [(a["agentId"], a["availability"]["state"]) for a in listed] == [
            (ECHO_ID, "available"),
            (AGENT, "offline"),
        ]

    @pytest.mark.parametrize("tail", [AGENT, "support", f"{AGENT}/availability"])
    async def test_an_unknown_agent_is_404(self, api: Api, tail: str) -> None:
        error_of(await api.http.get(f"{AGENTS}/{tail}"), 404, "AGENT_NOT_FOUND")


class TestDelete:
    async def test_force_is_true_or_false(self, api: Api) -> None:
        error = error_of(await api.http.delete(f"{AGENTS}/{ECHO_ID}?force=maybe"), 400, "VALIDATION_ERROR")

        assert error["message"] == "Invalid query parameter 'force': Must be true or false"

    async def test_forgets_an_agent_without_sessions(self, api: Api) -> None:
        await put(api, WORKER)

        reply = await api.http.delete(ONE)

        assert reply.json() == {
            "success": True,
            "message": f"Agent {AGENT} deleted successfully",
            "sessions": 0,
            "failedTurns": 0,
        }
        error_of(await api.http.get(ONE), 404, "AGENT_NOT_FOUND")
        error_of(await api.http.delete(ONE), 404, "AGENT_NOT_FOUND")

    async def test_is_refused_while_sessions_live(self, api: Api) -> None:
        info = await api.create()

        error = error_of(await api.http.delete(f"{AGENTS}/{ECHO_ID}"), 409, "AGENT_IN_USE")

        assert error["message"] == f"Agent '{ECHO_ID}' has 1 live session"
        assert error["retryable"] is True, "sessions end"
        assert error["details"] == {"agentId": ECHO_ID, "sessions": 1}
        assert (await api.http.get(f"{AGENTS}/{ECHO_ID}")).status_code == 200
        await api.http.delete(api.url(info))
        assert (await api.http.delete(f"{AGENTS}/{ECHO_ID}")).status_code == 200

    async def test_by_force_fails_the_open_turns(self, server: Any) -> None:
        """Queued and running ones; their posters are told, their sessions stay readable."""
        async with Api(server.url, SESSIONS_DISPATCHER="off") as api:
            queued, running = await api.create(), await api.create()
            turns = [
                (await api.http.post(api.url(info, "/messages"), json={"content": "hi"})).json()["turnId"]
                for info in (queued, running)
            ]
            await claim(api, running["sessionId"])

            reply = await api.http.delete(f"{AGENTS}/{ECHO_ID}", params={"force": "true"})

            assert reply.status_code == 200
            assert (reply.json()["sessions"], reply.json()["failedTurns"]) == (2, 2)
            for info, turn_id in zip((queued, running), turns, strict=True):
                turn = (await api.http.get(api.url(info, f"/turns/{turn_id}"))).json()
                assert (turn["state"], turn["error"]["code"]) == ("failed", "AGENT_NOT_FOUND")
                assert (await api.http.get(api.url(info, "/messages"))).status_code == 200
            gone = await api.http.post(BASE, json={"agentId": ECHO_ID, "userId": USER})
            error_of(gone, 404, "AGENT_NOT_FOUND")

    async def test_a_later_message_of_its_sessions_fails_as_well(self, server: Any) -> None:
        """Nobody will ever come for it: the keeper says so, instead of letting it wait."""
        async with Api(server.url) as api:
            info = await api.create()
            await api.http.delete(f"{AGENTS}/{ECHO_ID}", params={"force": "true"})

            posted = await api.http.post(api.url(info, "/messages"), json={"content": "hi"})

            assert posted.status_code == 201

            async def failed() -> bool:
                url = api.url(info, f"/turns/{posted.json()['turnId']}")
                turn = (await api.http.get(url)).json()
                return bool(turn["state"] == "failed" and turn["error"]["code"] == "AGENT_NOT_FOUND")

            await eventually(failed)

    async def test_force_is_a_truth(self, api: Api) -> None:
        reply = await api.http.delete(f"{AGENTS}/{ECHO_ID}", params={"force": "perhaps"})

        error_of(reply, 400, "VALIDATION_ERROR")


async def claim(api: Api, session_id: str) -> Any:
    claimed = await api.state.store.turns.claim(
        session_id,  # type: ignore[arg-type]  # a session's id
        agent_id=ECHO_ID,
        worker="test",
        fence_bits=new_op_id(),
        message_id=new_message_id(),
        turn_ms=300_000,
        max_attempts=3,
        history=0,
    )
    assert claimed.turn is not None
    return claimed.turn


class TestAvailability:
    async def test_counts_who_is_there_and_what_there_is_to_do(self, server: Any) -> None:
        async with Api(server.url, SESSIONS_DISPATCHER="off") as api:
            infos = [await api.create() for _ in range(3)]
            for info in infos:
                await api.http.post(api.url(info, "/messages"), json={"content": "hi"})
            await claim(api, infos[0]["sessionId"])

            found = (await api.http.get(f"{AGENTS}/{ECHO_ID}/availability")).json()

            assert found.pop("since")
            assert found == {
                "agentId": ECHO_ID,
                "state": "available",
                "workers": 1,
                "capacity": 1_000,
                "running": 1,
                "waiting": 2,
            }

    async def test_an_agent_that_nobody_serves_is_offline(self, api: Api) -> None:
        await put(api, WORKER)

        assert (await api.http.get(f"{ONE}/availability")).json() == {
            "agentId": AGENT,
            "state": "offline",
            "workers": 0,
            "capacity": 0,
            "running": 0,
            "waiting": 0,
        }


class TestUnavailable:
    async def test_no_session_is_created_with_an_agent_that_is_offline(self, api: Api) -> None:
        await put(api, WORKER)

        reply = await api.http.post(BASE, json={"agentId": AGENT, "userId": USER})

        error = error_of(reply, 503, "AGENT_UNAVAILABLE")
        assert error["retryable"] is True
        assert error["details"] == {"agentId": AGENT}
        assert int(reply.headers["retry-after"]) >= 1
        assert (await api.http.get(BASE)).json()["sessions"] == []

    async def test_a_bad_request_is_told_first(self, api: Api) -> None:
        await put(api, WORKER)

        reply = await api.http.post(BASE, json={"agentId": AGENT, "userId": USER, "onBusy": "shout"})

        error_of(reply, 400, "VALIDATION_ERROR")

    async def test_one_who_came_a_moment_ago_is_believed(self, api: Api) -> None:
        """Redis is asked before anybody is refused: this process's copy may be half a second old."""
        await put(api, WORKER)
        await attend(api.state.store, AGENT)

        await api.create(agentId=AGENT)

    @pytest.mark.parametrize("transport", ["http", "sse"])
    async def test_nobody_waits_for_an_agent_that_is_offline(self, api: Api, transport: str) -> None:
        """And nothing is written; a message for which nobody waits is accepted, and waits itself."""
        await put(api, WORKER)
        await attend(api.state.store, AGENT)
        info = await api.create(agentId=AGENT)
        await api.state.store.attendance.leave(AGENT, "nobody")
        await api.state.store.attendance.refresh()

        reply = await api.http.post(
            api.url(info, "/messages"), json={"content": "hi", "transport": transport}
        )

        error_of(reply, 503, "AGENT_UNAVAILABLE")
        assert int(reply.headers["retry-after"]) >= 1
        assert (await api.http.get(api.url(info, "/messages"))).json()["messages"] == []
        later = await api.http.post(api.url(info, "/messages"), json={"content": "hi"})
        assert later.status_code == 201

    async def test_a_repeat_finds_what_was_accepted_before(self, api: Api) -> None:
        """The key is looked up first: a poster that comes back gets its answer, whoever is there by then."""
        await put(api, WORKER)
        await attend(api.state.store, AGENT)
        info = await api.create(agentId=AGENT)
        url = api.url(info, "/messages")
        body, headers = {"content": "hi", "transport": "http", "timeoutMs": 1}, {"idempotency-key": "once"}
        error_of(await api.http.post(url, json=body, headers=headers), 504, "AGENT_TIMEOUT")
        await api.state.store.attendance.leave(AGENT, "nobody")
        await api.state.store.attendance.refresh()

        again = await api.http.post(url, json=body, headers=headers)
        other = await api.http.post(url, json=body, headers={"idempotency-key": "another"})

        error_of(again, 504, "AGENT_TIMEOUT")
        error_of(other, 503, "AGENT_UNAVAILABLE")

    async def test_an_unknown_or_ended_session_is_told_first(self, api: Api) -> None:
        await put(api, WORKER)
        unknown = {"sessionId": "00000000-0000-4000-8000-00000000abcd"}

        reply = await api.http.post(api.url(unknown, "/messages"), json={"content": "x", "transport": "http"})

        error_of(reply, 404, "SESSION_NOT_FOUND")

    async def test_costs_no_trip_while_every_agent_is_there(self, api: Api) -> None:
        debug = {"x-debug": "true"}
        await api.create()  # the server has the script from here on

        created = await api.http.post(BASE, json={"agentId": ECHO_ID, "userId": USER}, headers=debug)

        assert created.json()["debug"]["redisTrips"] == 1


class TestSpeakingUnasked:
    @pytest.mark.parametrize(
        "role, is_agent, author",
        [("agent", True, ECHO_ID), ("system", False, "00000000-0000-0000-0000-000000000000")],
    )
    async def test_is_in_the_history_and_answered_by_nobody(
        self, api: Api, role: str, is_agent: bool, author: str
    ) -> None:
        info = await api.create()

        reply = await api.http.post(
            api.url(info, "/messages"),
            json={"content": "Welcome!", "role": role, "metadata": {"thought": "be kind"}},
        )

        body = reply.json()
        assert reply.status_code == 201
        (message,) = (await api.http.get(api.url(info, "/messages"))).json()["messages"]
        assert message == body["message"] == body["data"]["message"]
        assert (message["role"], message["isAgent"], message["authorId"]) == (role, is_agent, author)
        assert message["metadata"] == {"thought": "be kind"}
        assert "turnId" not in message
        assert (body["success"], body["id"], body["content"]) == (True, message["id"], "Welcome!")
        assert (body["cursor"], body["createdAt"]) == (message["cursor"], message["createdAt"])
        after = (await api.http.get(api.url(info))).json()
        assert (after["renewalCount"], after["expiresAt"]) == (0, info["expiresAt"])
        assert "activeTurn" not in after

    async def test_minimal_leaves_the_copies_out(self, api: Api) -> None:
        info = await api.create()

        reply = await api.http.post(
            api.url(info, "/messages"),
            json={"content": "x", "role": "agent"},
            headers={"prefer": "return=minimal"},
        )

        assert set(reply.json()) == {"message", "sessionStatus", "cursor"}

    async def test_may_be_as_long_as_an_answer(self, api: Api) -> None:
        info = await api.create()
        url = api.url(info, "/messages")

        fits = await api.http.post(url, json={"content": "x" * 100_000, "role": "agent"})
        too_long = await api.http.post(url, json={"content": "x" * 100_001, "role": "agent"})

        assert fits.status_code == 201
        assert fields(error_of(too_long, 400, "VALIDATION_ERROR")) == {"content"}

    @pytest.mark.parametrize("transport", ["http", "sse", "sync", "stream"])
    async def test_there_is_no_answer_to_wait_for(self, api: Api, transport: str) -> None:
        info = await api.create()

        reply = await api.http.post(
            api.url(info, "/messages"), json={"content": "x", "role": "agent", "transport": transport}
        )

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"transport"}

    async def test_a_repeat_says_it_once(self, api: Api) -> None:
        info = await api.create()
        url, headers = api.url(info, "/messages"), {"idempotency-key": "hello"}
        body = {"content": "Welcome!", "role": "agent"}

        first = await api.http.post(url, json=body, headers=headers)
        second = await api.http.post(url, json=body, headers=headers)
        as_user = await api.http.post(url, json={"content": "Welcome!"}, headers=headers)

        assert second.json()["id"] == first.json()["id"]
        assert second.json()["message"] == first.json()["message"]
        assert second.headers["idempotency-replayed"] == "true"
        error_of(as_user, 422, "IDEMPOTENCY_MISMATCH")
        assert len((await api.http.get(url)).json()["messages"]) == 1

    async def test_an_unknown_role_is_refused(self, api: Api) -> None:
        info = await api.create()

        reply = await api.http.post(api.url(info, "/messages"), json={"content": "x", "role": "god"})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"role"}

"""Agents over HTTP, once defined: served, listed, deleted; who is there, who is not, who speaks unasked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sessions_api.domain.agents import ECHO_ID
from sessions_api.domain.ids import new_message_id, new_op_id
from sessions_api.errors import StorageUnavailable
from tests.api.conftest import AGENT, AGENTS, BASE, ONE, USER, WORKER, Api, fields, put
from tests.api.test_sessions import error_of
from tests.support.presence import attend
from tests.support.servers import TestServer
from tests.support.waiting import eventually, until

pytestmark = pytest.mark.servers("valkey", "fakeredis")


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

    async def test_is_read_anew_also_while_definitions_cannot_be(
        self, server: TestServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a cluster they may lie on two servers, of which one is away."""

        async def away() -> bool:
            raise StorageUnavailable("away")

        async with Api(server.url, SESSIONS_DISPATCHER="off") as api, Api(server.url) as other:
            await put(api, WORKER)
            store = api.state.store
            monkeypatch.setattr(store.agents, "refresh", away)
            await attend(other.state.store, AGENT)

            await until(lambda: store.attendance.state(AGENT).state == "available")

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

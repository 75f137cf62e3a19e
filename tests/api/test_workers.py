"""Workers claim turns: every outcome, also for a client that leaves, and over replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sessions_api.domain.agents import ECHO_ID
from tests.api.conftest import USER, Api
from tests.support.deskapi import AGENT, UNKNOWN, Desk, at_desk, error, fields
from tests.support.servers import TestServer
from tests.support.waiters import metric
from tests.support.waiting import until

# What scripts do on the other servers is the store's to test.
pytestmark = pytest.mark.servers("valkey", "fakeredis")


@pytest.fixture
async def desk(server: TestServer) -> AsyncIterator[Desk]:
    async with at_desk(server.url) as desk:
        yield desk


class TestClaim:
    async def test_gives_the_turn_with_all_that_is_needed_to_answer_it(self, desk: Desk) -> None:
        first = await desk.claimed("one")
        assert not await desk.wrote(first, "complete", content="1")
        turn = await desk.claimed("two", metadata={"x": 1})

        assert set(turn) == {
            "turnId", "fence", "attempt", "messageId", "deadline", "leaseUntil",
            "session", "messages", "history", "more",
        }  # fmt: skip
        assert turn["attempt"] == 1
        assert turn["session"] == {
            "sessionId": desk.session_id,
            "agentId": AGENT,
            "userId": USER,
            "metadata": {"plan": "gold"},
        }
        history = await desk.history()
        assert turn["messages"] == history[2:]
        assert turn["history"] == history[:2]
        assert turn["more"] is False
        assert turn["leaseUntil"] < turn["deadline"]

    async def test_waits_for_a_turn(self, desk: Desk) -> None:
        claiming = asyncio.create_task(desk.claim())
        await until(lambda: metric("sessions_waiting_workers") == 1)
        turn_id = await desk.say()

        assert (await claiming).json()["turnId"] == turn_id

    async def test_of_nothing_is_204(self, desk: Desk) -> None:
        reply = await desk.claim(0)

        assert reply.status_code == 204
        assert reply.content == b""

    async def test_of_a_running_turn_is_204(self, desk: Desk) -> None:
        await desk.claimed()
        await desk.say("next")

        assert (await desk.claim(0)).status_code == 204

    async def test_of_an_unknown_agent_is_404(self, desk: Desk) -> None:
        for unknown in (UNKNOWN, "nobody"):
            reply = await desk.claim(0, agent=unknown)
            assert (reply.status_code, error(reply)) == (404, "AGENT_NOT_FOUND")

    async def test_of_an_agent_without_workers_is_400(self, desk: Desk) -> None:
        assert fields(await desk.claim(0, agent=ECHO_ID)) == ["agentId"]

    async def test_of_one_worker_too_many_is_429(self, desk: Desk) -> None:
        """It is told which bound it met; a goodbye is heard all the same, and a place is free again."""
        desk.api.state.desk._max_claims = 2
        claiming = [asyncio.create_task(desk.claim(worker=f"w{number}")) for number in range(2)]
        await until(lambda: metric("sessions_waiting_workers") == 2)
        reply = await desk.claim()

        assert (reply.status_code, error(reply)) == (429, "RATE_LIMIT_EXCEEDED")
        assert reply.json()["error"]["details"] == {
            "policy": "claims",
            "limit": 2,
            "retryAfterSeconds": 5,
        }
        assert int(reply.headers["retry-after"]) > 0
        assert reply.headers["ratelimit-policy"] == '"claims";q=2'
        for number in range(2):
            assert (await desk.claim(worker=f"w{number}", capacity=0)).status_code == 204
        assert [(await each).status_code for each in claiming] == [204, 204]
        assert (await desk.claim(0)).status_code == 204

    async def test_with_no_capacity_says_goodbye(self, desk: Desk) -> None:
        assert (await desk.claim(0, worker="first", capacity=0)).status_code == 204
        assert (await desk.claim(0, capacity=0)).status_code == 204

        availability = (await desk.http.get(f"/api/agents/{AGENT}/availability")).json()
        assert (availability["state"], availability["workers"]) == ("offline", 0)

    async def test_names_every_bad_field_at_once(self, desk: Desk) -> None:
        reply = await desk.http.post(
            f"/api/agents/{AGENT}/turns/claim?wait=soon", json={"worker": "with space", "capacity": 1001}
        )
        assert fields(reply) == ["worker", "capacity", "wait"]

    @pytest.mark.parametrize("wait", ["61", "-1", "1e3", "nan", "", "٣"])
    async def test_refuses_a_wait_out_of_range(self, desk: Desk, wait: str) -> None:
        assert fields(await desk.claim(wait)) == ["wait"]

    @pytest.mark.parametrize("worker", ["", "x" * 101, "ö", 7, None, ["w"]])
    async def test_refuses_a_bad_name(self, desk: Desk, worker: object) -> None:
        assert fields(await desk.claim(0, worker=worker)) == ["worker"]

    @pytest.mark.parametrize("capacity", [-1, 1001, 1.5, True, "1", {}])
    async def test_refuses_a_bad_capacity(self, desk: Desk, capacity: object) -> None:
        assert fields(await desk.claim(0, capacity=capacity)) == ["capacity"]

    async def test_without_a_body_names_what_it_needs(self, desk: Desk) -> None:
        assert fields(await desk.http.post(f"/api/agents/{AGENT}/turns/claim?wait=0")) == ["worker"]


class TestAClientThatIsGone:
    @pytest.mark.parametrize("ticks", range(6))
    async def test_before_its_reply_is_written_leaves_the_turn_to_the_next(
        self, desk: Desk, ticks: int
    ) -> None:
        """It closes so many ticks of the loop after the claim; a reply that was begun was its own."""
        claims = metric("sessions_claims_total", outcome="claimed")
        messages = [{"type": "http.request", "body": b'{"worker":"leaves"}'}]
        sent: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            while metric("sessions_claims_total", outcome="claimed") == claims:  # noqa: ASYNC110  ticks count
                await asyncio.sleep(0)
            for _ in range(ticks):
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": f"/api/agents/{AGENT}/turns/claim",
            "query_string": b"wait=10",
            "headers": [(b"host", b"127.0.0.1:3000"), (b"content-type", b"application/json")],
            "server": ("127.0.0.1", 3000),
        }
        await desk.say()
        await desk.api.app.surface(scope, receive, send)  # type: ignore[attr-defined]

        if not sent:
            turn = (await desk.claim(worker="stays")).json()
            assert turn["attempt"] == 1
        else:
            assert sent[0]["status"] == 200


class TestAnotherReplica:
    async def test_writes_to_turns_that_it_never_saw(self, desk: Desk, server: TestServer) -> None:
        turn = await desk.claimed()
        async with Api(server.url) as other:
            there = Desk(other, desk.session)
            assert not await there.wrote(turn, "delta", text="from ", offset=0)
            assert not await there.wrote(turn, "extend", query="?wait=0.01")
            assert not await desk.wrote(turn, "delta", text="both", offset=5)
            assert not await there.wrote(turn, "complete", metadata={"thought": "hm"})

        message = (await desk.history())[-1]
        assert message["content"] == "from both"
        assert message["id"] == turn["messageId"]
        assert message["authorId"] == AGENT

    async def test_hears_of_a_cancel_at_the_first(self, desk: Desk, server: TestServer) -> None:
        turn = await desk.claimed()
        async with Api(server.url) as other:
            there = Desk(other, desk.session)
            extending = asyncio.create_task(there.wrote(turn, "extend", query="?wait=20"))
            counters = other.state.desk._counters
            await until(
                lambda: any(counter.stops and counter.trail.heard.is_set() for counter in counters.values())
            )
            await desk.cancel(turn)

            assert await asyncio.wait_for(extending, 10)

"""Workers answer: deltas, extensions and the completion, each of them repeated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.api.conftest import BASE
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


class TestDelta:
    async def test_adds_to_the_running_answer(self, desk: Desk) -> None:
        turn = await desk.claimed()

        assert not await desk.wrote(turn, "delta", text="Hi 🌍", offset=0)
        assert not await desk.wrote(turn, "delta", text="!", offset=5)
        await desk.wrote(turn, "complete")
        assert (await desk.history())[-1]["content"] == "Hi 🌍!"

    async def test_repeated_adds_nothing(self, desk: Desk) -> None:
        turn = await desk.claimed()
        for _ in range(3):
            assert not await desk.wrote(turn, "delta", text="once", offset=0)
        await desk.wrote(turn, "complete")

        assert (await desk.history())[-1]["content"] == "once"

    async def test_that_leaves_a_hole_is_409_and_names_the_place(self, desk: Desk) -> None:
        turn = await desk.claimed()
        await desk.wrote(turn, "delta", text="four", offset=0)
        reply = await desk.write(turn, "delta", text="more", offset=5)

        assert (reply.status_code, error(reply)) == (409, "DELTA_GAP")
        assert reply.json()["error"]["details"]["expected"] == 4

    async def test_beyond_what_an_answer_may_have_fails_the_turn(self, desk: Desk) -> None:
        turn = await desk.claimed()
        for _ in range(2):
            reply = await desk.write(turn, "delta", text="x" * 100_001, offset=0)
            assert (reply.status_code, error(reply)) == (413, "ANSWER_TOO_LARGE")

        assert (await desk.turn(turn))["error"]["code"] == "ANSWER_TOO_LARGE"

    async def test_may_be_as_large_as_an_answer_in_any_alphabet(self, desk: Desk) -> None:
        """300 KB of UTF-8, above the bound of other bodies."""
        turn = await desk.claimed()
        text = "한" * 100_000
        assert not await desk.wrote(turn, "delta", text=text, offset=0)
        await desk.wrote(turn, "complete")

        assert (await desk.history())[-1]["content"] == text

    async def test_beyond_a_mebibyte_is_413(self, desk: Desk) -> None:
        turn = await desk.claimed()
        reply = await desk.write(turn, "delta", text="x" * 1024 * 1024, offset=0)

        assert (reply.status_code, error(reply)) == (413, "PAYLOAD_TOO_LARGE")

    async def test_never_holds_half_a_surrogate_pair(self, desk: Desk) -> None:
        turn = await desk.claimed()
        url = f"{BASE}/{desk.session_id}/turns/{turn['turnId']}/delta"
        body = b'{"fence":' + json.dumps(turn["fence"]).encode() + b',"text":"\\ud83d","offset":0}'
        reply = await desk.http.post(url, content=body, headers={"content-type": "application/json"})

        assert (reply.status_code, error(reply)) == (400, "VALIDATION_ERROR")

    async def test_names_every_bad_field_at_once(self, desk: Desk) -> None:
        turn = await desk.claimed()
        reply = await desk.write(turn, "delta", fence=None, text=3, offset=-1)

        assert fields(reply) == ["fence", "text", "offset"]

    @pytest.mark.parametrize("offset", [None, -1, 2**31 + 1, 0.5, True, "0"])
    async def test_refuses_a_bad_offset(self, desk: Desk, offset: object) -> None:
        turn = await desk.claimed()
        assert fields(await desk.write(turn, "delta", text="x", offset=offset)) == ["offset"]

    async def test_counts_the_time_to_the_first(self, desk: Desk) -> None:
        label = AGENT.lower()
        before = metric("sessions_first_delta_seconds_count", agent=label)
        turn = await desk.claimed()
        await desk.wrote(turn, "delta", text="a", offset=0)
        await desk.wrote(turn, "delta", text="b", offset=1)

        assert metric("sessions_first_delta_seconds_count", agent=label) == before + 1


class TestExtend:
    async def test_holds_the_turn(self, desk: Desk) -> None:
        turn = await desk.claimed()

        assert not await desk.wrote(turn, "extend")
        await desk.age(29_000)
        assert (await desk.turn(turn))["state"] == "running"

    async def test_with_a_wait_comes_back_when_that_is_over(self, desk: Desk) -> None:
        turn = await desk.claimed()

        assert not await desk.wrote(turn, "extend", query="?wait=0.05")

    async def test_with_a_wait_hears_of_a_cancel(self, desk: Desk) -> None:
        turn = await desk.claimed()
        extending = asyncio.create_task(desk.wrote(turn, "extend", query="?wait=20"))
        counters = desk.api.state.desk._counters
        await until(lambda: any(counter.stops for counter in counters.values()))
        await desk.cancel(turn)

        assert await asyncio.wait_for(extending, 10)

    async def test_with_a_wait_hears_of_its_sessions_end(self, desk: Desk) -> None:
        turn = await desk.claimed()
        extending = asyncio.create_task(desk.write(turn, "extend", query="?wait=20"))
        counters = desk.api.state.desk._counters
        await until(lambda: any(counter.stops for counter in counters.values()))
        await desk.http.delete(f"{BASE}/{desk.session_id}")

        reply = await asyncio.wait_for(extending, 10)
        assert (reply.status_code, error(reply)) == (404, "SESSION_NOT_FOUND")

    async def test_with_a_wait_hears_of_its_deadline(self, desk: Desk) -> None:
        turn = await desk.claimed()
        extending = asyncio.create_task(desk.write(turn, "extend", query="?wait=20"))
        counters = desk.api.state.desk._counters
        await until(lambda: any(counter.stops for counter in counters.values()))
        await desk.age(300_000)
        await desk.api.state.store.alarms.ring(desk.session_id)

        reply = await asyncio.wait_for(extending, 10)
        assert (reply.status_code, error(reply)) == (409, "TURN_LOST")
        assert "deadline" in reply.json()["error"]["message"]
        assert reply.json()["error"]["details"]["state"] == "queued"

    async def test_of_an_unknown_turn_is_404_with_or_without_a_wait(self, desk: Desk) -> None:
        turn = {"turnId": UNKNOWN, "fence": "1.ab"}
        for query in ("", "?wait=20"):
            reply = await desk.write(turn, "extend", query=query)
            assert (reply.status_code, error(reply)) == (404, "TURN_NOT_FOUND")

    async def test_says_which_wait_is_allowed(self, desk: Desk) -> None:
        turn = await desk.claimed()
        reply = await desk.write(turn, "extend", query="?wait=21")
        assert reply.json()["error"]["message"] == "Invalid wait: must be 0..20 seconds"

    @pytest.mark.parametrize("wait", ["20.5", "-1", "x"])
    async def test_refuses_a_wait_beyond_the_lease(self, desk: Desk, wait: str) -> None:
        turn = await desk.claimed()
        assert fields(await desk.write(turn, "extend", query=f"?wait={wait}", fence="")) == ["fence", "wait"]


class TestComplete:
    @pytest.mark.parametrize(
        "given, field",
        [
            ({"metadata": {"thought": 3}}, "metadata.thought"),
            ({"metadata": {"actions": "LOOK"}}, "metadata.actions"),
            ({"usage": {"inputTokens": "12"}}, "usage.inputTokens"),
            ({"usage": {"outputTokens": -1}}, "usage.outputTokens"),
            ({"usage": {"totalTokens": True}}, "usage.totalTokens"),
            ({"usage": {"prompt_tokens": [1]}}, "usage.prompt_tokens"),
            ({"usage": {"completion_tokens": {}}}, "usage.completion_tokens"),
            ({"usage": {"total_tokens": "x"}}, "usage.total_tokens"),
        ],
    )
    async def test_refuses_what_nobody_could_read(
        self, desk: Desk, given: dict[str, Any], field: str
    ) -> None:
        """The members that every reader knows have the type that every reader expects."""
        turn = await desk.claimed()
        reply = await desk.write(turn, "complete", content="x", **given)

        assert reply.status_code == 400
        assert fields(reply) == [field]
        assert (await desk.turn(turn))["state"] == "running"

    async def test_names_all_that_nobody_could_read(self, desk: Desk) -> None:
        turn = await desk.claimed()
        bad: dict[str, Any] = {"metadata": {"thought": [], "actions": {}}, "usage": {"inputTokens": "1"}}
        assert fields(await desk.write(turn, "complete", **bad)) == [
            "metadata.thought", "metadata.actions", "usage.inputTokens"
        ]  # fmt: skip

    async def test_with_content_is_the_answer(self, desk: Desk) -> None:
        turn = await desk.claimed()
        answer: dict[str, Any] = {
            "content": "the answer",
            "metadata": {"thought": "hm", "actions": ["LOOK", "TELL"]},
            "attachments": [{"url": "https://example.com/a.png"}],
            "usage": {"inputTokens": 12, "outputTokens": 3},
        }
        assert not await desk.wrote(turn, "complete", **answer)

        message = (await desk.history())[-1]
        assert message["content"] == "the answer"
        assert message["id"] == turn["messageId"]
        assert message["authorId"] == AGENT
        assert message["turnId"] == turn["turnId"]
        assert message["status"] == "complete"
        assert message["isAgent"] is True
        assert message["role"] == "agent"
        assert message["metadata"] == answer["metadata"] | {"usage": answer["usage"]}
        assert message["attachments"] == answer["attachments"]

    async def test_without_content_is_what_was_streamed(self, desk: Desk) -> None:
        turn = await desk.claimed()
        await desk.wrote(turn, "delta", text='so "far" 🌍', offset=0)
        await desk.wrote(turn, "complete", metadata={"thought": "hm"}, usage={"prompt_tokens": 1})

        message = (await desk.history())[-1]
        assert message["content"] == 'so "far" 🌍'
        assert message["id"] == turn["messageId"]
        assert message["authorId"] == AGENT
        assert message["metadata"] == {"thought": "hm", "usage": {"prompt_tokens": 1}}

    @pytest.mark.parametrize("body", [{}, {"content": ""}, {"content": None}])
    async def test_of_nothing_said_stores_nothing(self, desk: Desk, body: dict[str, Any]) -> None:
        turn = await desk.claimed()
        assert not await desk.wrote(turn, "complete", **body)

        assert len(await desk.history()) == 1
        assert (await desk.turn(turn))["state"] == "completed"

    @pytest.mark.parametrize("content", [{}, {"content": ""}])
    @pytest.mark.parametrize(
        "more",
        [
            {"attachments": [{"url": "https://example.com/a.png"}]},
            {"metadata": {"actions": ["LOOK"]}},
            {"metadata": {"thought": "say nothing"}},
        ],
    )
    async def test_without_text_is_a_message_if_there_is_more_to_it(
        self, desk: Desk, content: dict[str, str], more: dict[str, Any]
    ) -> None:
        turn = await desk.claimed()
        await desk.wrote(turn, "complete", **content, **more)

        message = (await desk.history())[-1]
        assert (message["id"], message["content"]) == (turn["messageId"], "")
        assert message | more == message
        assert (await desk.turn(turn))["answer"] == message["cursor"]

    async def test_with_nothing_but_empty_members_is_no_message(self, desk: Desk) -> None:
        turn = await desk.claimed()
        await desk.wrote(turn, "complete", content="", metadata={}, attachments=[], usage={"outputTokens": 3})

        assert len(await desk.history()) == 1

    async def test_repeated_is_the_same_success_once(self, desk: Desk) -> None:
        label = AGENT.lower()
        before = metric("sessions_tokens_total", agent=label, kind="output")
        turn = await desk.claimed()
        for _ in range(3):
            assert not await desk.wrote(
                turn, "complete", content="once", usage={"outputTokens": 7}, metadata={"actions": ["A"]}
            )

        assert len(await desk.history()) == 2
        assert metric("sessions_tokens_total", agent=label, kind="output") == before + 7

    async def test_that_is_too_large_fails_the_turn(self, desk: Desk) -> None:
        turn = await desk.claimed()
        for _ in range(2):
            reply = await desk.write(turn, "complete", content="🌍" * 50_001)
            assert (reply.status_code, error(reply)) == (413, "ANSWER_TOO_LARGE")
            assert reply.json()["error"]["details"]["limitChars"] == 100_000

        info = await desk.turn(turn)
        assert (info["state"], info["error"]["code"]) == ("failed", "ANSWER_TOO_LARGE")

    async def test_counts_what_it_says_of_itself(self, desk: Desk) -> None:
        label = AGENT.lower()
        names = ("input", "output")
        before = [metric("sessions_tokens_total", agent=label, kind=kind) for kind in names]
        actions = metric("sessions_agent_actions_total", agent=label)
        turns = metric("sessions_turns_total", agent=label, outcome="completed")
        turn = await desk.claimed()
        usage = {"prompt_tokens": 5, "completion_tokens": 6, "inputTokens": None}
        await desk.wrote(turn, "complete", content="x", usage=usage, metadata={"actions": ["A", "B"]})

        assert [metric("sessions_tokens_total", agent=label, kind=kind) for kind in names] == [
            before[0] + 5,
            before[1] + 6,
        ]
        assert metric("sessions_agent_actions_total", agent=label) == actions + 2
        assert metric("sessions_turns_total", agent=label, outcome="completed") == turns + 1

    async def test_names_every_bad_field_at_once(self, desk: Desk) -> None:
        turn = await desk.claimed()
        reply = await desk.write(
            turn, "complete", fence=1, content=2, metadata=[], attachments={}, usage="many"
        )

        assert fields(reply) == ["fence", "content", "metadata", "attachments", "usage"]

    async def test_refuses_metadata_and_usage_out_of_bounds(self, desk: Desk) -> None:
        turn = await desk.claimed()
        big = {"x": "y" * 10_240}
        deep: dict[str, Any] = {}
        for _ in range(20):
            deep = {"d": deep}

        assert fields(await desk.write(turn, "complete", metadata=big, usage=big)) == ["metadata", "usage"]
        assert fields(await desk.write(turn, "complete", metadata=deep, usage=deep)) == ["metadata", "usage"]

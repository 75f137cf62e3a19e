"""One worker against a service that misbehaves on demand: what is written, and what is written again."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from sessions_api.sdk import Agent, Answer, Turn, TurnFailed
from sessions_api.sdk.attempt import Handler
from tests.support.desk import AGENT, Desk, Fault
from tests.support.waiting import until


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with Desk() as desk:
        yield desk


def worker(desk: Desk, handler: Handler, **more: Any) -> Agent:
    return Agent(desk.url, AGENT, handler=handler, **more)


async def words(turn: Turn) -> AsyncGenerator[str, None]:
    for word in turn.text.split(" "):
        yield word + " "


async def silent(_turn: Turn) -> str:
    await asyncio.Event().wait()
    return "never"


class TestStreaming:
    async def test_sends_the_first_piece_at_once_and_the_rest_together(self, desk: Desk) -> None:
        """What is yielded while a delta is on its way, or within 30 ms of it, leaves as one."""
        turn_id = await desk.put()

        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            yield "first 😀"
            await until(lambda: desk.drafts[turn_id])
            for number in range(50):
                yield f" {number}"

        async with worker(desk, answer):
            await desk.hears("complete")

        deltas = desk.bodies("delta")
        assert deltas[0]["text"] == "first 😀"
        assert [each["offset"] for each in deltas] == [0, 8]
        assert desk.text(turn_id) == "first 😀" + "".join(f" {number}" for number in range(50))

    async def test_completes_without_saying_again_what_was_streamed(self, desk: Desk) -> None:
        await desk.put("a b")

        async with worker(desk, words):
            body = await desk.hears("complete")

        assert body.keys() == {"fence"}

    async def test_of_a_quick_answer_needs_no_extend(self, desk: Desk, caplog: Any) -> None:
        """Three requests for a turn: claim, delta, completion; and nobody is warned of anything."""
        with caplog.at_level(logging.WARNING, "sessions_api.sdk"):
            async with worker(desk, words):
                for number in range(5):
                    await desk.put("quick")
                    await desk.hears("complete", number + 1)

        assert not desk.of("extend")
        assert not caplog.records

    async def test_of_nothing_completes_with_nothing(self, desk: Desk) -> None:
        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            if not turn_id:
                yield "never"

        turn_id = await desk.put()
        async with worker(desk, answer):
            await desk.hears("complete")

        assert not desk.of("delta")

    async def test_goes_back_to_what_the_service_has(self, desk: Desk) -> None:
        """A failover that lost a delta costs nothing: the hole is filled from the worker's own text."""
        turn_id = await desk.put()

        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            yield "one "
            await until(lambda: desk.drafts[turn_id])
            desk.drafts[turn_id] = desk.drafts[turn_id][:4]
            yield "two 😀"

        async with worker(desk, answer):
            await desk.hears("complete")

        assert desk.text(turn_id) == "one two 😀"


class TestReturning:
    async def test_text_is_the_answer(self, desk: Desk) -> None:
        async def answer(turn: Turn) -> str:
            return turn.text.upper() + "\ud83d"

        await desk.put("hello")
        async with worker(desk, answer):
            body = await desk.hears("complete")

        assert body["content"] == "HELLO\ufffd"
        assert not desk.of("delta")

    async def test_nothing_is_an_empty_answer(self, desk: Desk) -> None:
        async def answer(_turn: Turn) -> None:
            return None

        await desk.put()
        async with worker(desk, answer):
            assert (await desk.hears("complete"))["content"] == ""

    async def test_an_answer_carries_what_was_thought_done_and_spent(self, desk: Desk) -> None:
        async def answer(turn: Turn) -> Answer:
            turn.thought("hm")
            turn.thought("aha")
            turn.action("look")
            turn.action("tell")
            turn.attach(url="https://example.test/a.png", content_type="image/png", name="a")
            turn.usage(input_tokens=3, output_tokens=1)
            turn.usage(output_tokens=4, model="small")
            turn.metadata["mood"] = "fine"
            return Answer("done", metadata={"mood": "better"}, usage={"cost": 2})

        await desk.put()
        async with worker(desk, answer):
            body = await desk.hears("complete")

        assert body["metadata"] == {"thought": "hm\naha", "actions": ["look", "tell"], "mood": "better"}
        assert body["attachments"] == [
            {"url": "https://example.test/a.png", "contentType": "image/png", "name": "a"}
        ]
        assert body["usage"] == {"inputTokens": 3, "outputTokens": 5, "model": "small", "cost": 2}


class TestRepeating:
    @pytest.mark.parametrize("kind", ["claim", "delta", "complete"])
    @pytest.mark.parametrize(
        "fault",
        [Fault(503, "STORAGE_UNAVAILABLE"), Fault(429, "RATE_LIMIT_EXCEEDED"), Fault(502), Fault(0)],
        ids=["503", "429", "502", "lost reply"],
    )
    async def test_of_every_write_until_it_has_arrived(self, desk: Desk, kind: Any, fault: Fault) -> None:
        """The same bytes again, however the first try ended; the answer is whole and there once."""
        turn_id = await desk.put("one two three")
        if kind == "claim":
            fault = fault if fault.status else Fault(500)  # a turn in a lost reply is its lease's business
        desk.misbehave(kind, fault)

        async with worker(desk, words):
            await desk.hears("complete", 2 if kind == "complete" else 1)

        assert desk.text(turn_id) == "one two three "
        tries = desk.bodies(kind)
        assert tries[0] == tries[1]

    async def test_not_before_the_service_asks_for_it(self, desk: Desk) -> None:
        await desk.put()
        desk.misbehave("complete", Fault(503, "DRAINING", headers={"retry-after": "1"}))

        async with worker(desk, words):
            await desk.hears("complete", 2)

        first, second = desk.of("complete")
        assert second.at_s - first.at_s >= 1

    async def test_ends_with_the_attempt(self, desk: Desk) -> None:
        """Past its deadline a turn is somebody else's; the worker is free for the next."""
        first = await desk.put(deadline="2026-01-01T00:00:01.000Z")  # 9 s before its lease ends: 1 s is left
        desk.misbehave("delta", *[Fault(503)] * 100)

        async with worker(desk, words, concurrency=1):
            await desk.hears("claim", 2)
            later = await desk.put("later")
            desk.behave()
            await desk.hears("complete")

        assert desk.text(first) == ""
        assert desk.text(later) == "later "


class TestFailing:
    async def test_tells_nothing_of_the_conversation(self, desk: Desk, caplog: Any) -> None:
        async def answer(turn: Turn) -> str:
            raise KeyError(turn.text)

        await desk.put("my secret")
        with caplog.at_level(logging.INFO, "sessions_api.sdk"):
            async with worker(desk, answer):
                body = await desk.hears("fail")

        assert body["code"] == "AGENT_ERROR"
        assert body["message"] == "The agent failed: KeyError."
        assert body["retry"] is True
        assert all("secret" not in record.getMessage() for record in caplog.records)
        told = [record for record in caplog.records if getattr(record, "event", "") == "handler_failed"]
        assert [bool(record.exc_info) for record in told] == [True]

    async def test_as_the_handler_wants_it(self, desk: Desk) -> None:
        async def answer(_turn: Turn) -> str:
            raise TurnFailed("NO_FUNDS", "Out of funds.", retry=False, retry_after_s=1.5)

        await desk.put()
        async with worker(desk, answer):
            body = await desk.hears("fail")

        del body["fence"]
        assert body == {"code": "NO_FUNDS", "message": "Out of funds.", "retry": False, "retryAfterMs": 1500}

    async def test_after_half_an_answer_sends_no_more_of_it(self, desk: Desk) -> None:
        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            yield "half"
            await until(lambda: desk.of("delta"))
            yield "more"
            raise ValueError

        await desk.put()
        async with worker(desk, answer):
            await desk.hears("fail")
            kinds = [each.kind for each in desk.heard if each.kind not in {"claim", "extend"}]

        assert kinds[-1] == "fail"

    @pytest.mark.parametrize(
        "answer",
        [lambda _turn: "text", lambda _turn: numbers(), lambda _turn: number()],
        ids=["no coroutine", "yields numbers", "returns a number"],
    )
    async def test_of_a_handler_that_is_none(self, desk: Desk, answer: Any) -> None:
        await desk.put()
        async with worker(desk, answer):
            assert (await desk.hears("fail"))["message"] == "The agent failed: TypeError."

    async def test_of_an_answer_that_cannot_be_sent(self, desk: Desk) -> None:
        async def answer(turn: Turn) -> str:
            turn.metadata["score"] = math.nan
            return "fine"

        await desk.put()
        async with worker(desk, answer):
            assert (await desk.hears("fail"))["code"] == "AGENT_ERROR"

    async def test_for_good_when_the_answer_is_refused(self, desk: Desk) -> None:
        desk.misbehave("complete", Fault(400, "VALIDATION_ERROR"))
        await desk.put()

        async with worker(desk, words):
            body = await desk.hears("fail")

        assert body["message"] == "The agent's answer was refused."
        assert body["retry"] is False

    async def test_does_not_stop_the_worker(self, desk: Desk) -> None:
        async def answer(turn: Turn) -> str:
            if turn.text == "poison":
                raise ValueError
            return "fine"

        async with worker(desk, answer, concurrency=1):
            await desk.put("poison")
            await desk.hears("fail")
            await desk.put("good")
            await desk.hears("complete")


class TestStopping:
    async def test_by_a_cancel_reaches_a_silent_handler(self, desk: Desk) -> None:
        """The extend that waits is answered as soon as the turn is cancelled; nothing is written after it."""
        closed = asyncio.Event()

        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            try:
                await asyncio.Event().wait()
                yield "never"
            finally:
                closed.set()

        turn_id = await desk.put()
        async with worker(desk, answer):
            await desk.hears("extend")
            await desk.cancel(turn_id)
            await closed.wait()

        assert not desk.of("complete")
        assert not desk.of("fail")
        assert not desk.of("release")

    async def test_when_the_turn_is_another_workers(self, desk: Desk) -> None:
        stopped = asyncio.Event()

        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            try:
                while True:
                    yield "more "
                    await asyncio.sleep(0.01)
            finally:
                stopped.set()

        turn_id = await desk.put()
        async with worker(desk, answer):
            await desk.hears("delta")
            desk.lost.add(turn_id)
            await stopped.wait()

    @pytest.mark.parametrize("concurrency", [1, 8])
    async def test_lets_running_turns_finish(self, desk: Desk, concurrency: int) -> None:
        """Nothing more is claimed, though places become free."""
        go_on = asyncio.Event()

        async def answer(_turn: Turn) -> str:
            await go_on.wait()
            return "finished"

        await desk.put()
        agent = worker(desk, answer, concurrency=concurrency)
        async with agent:
            await desk.hears("extend")
            agent.stop()
            claims = len(desk.of("claim"))
            go_on.set()
            await desk.hears("complete")

        assert {each["capacity"] for each in desk.bodies("claim")[claims:]} == {0}

    async def test_hands_back_what_takes_too_long(self, desk: Desk) -> None:
        await desk.put()
        async with worker(desk, silent, grace_s=0.05):
            await desk.hears("extend")

        kinds = [each.kind for each in desk.heard]
        assert kinds.count("release") == 1
        assert kinds[-1] == "claim"
        assert desk.bodies("claim")[-1]["capacity"] == 0

    async def test_a_second_time_does_not_wait(self, desk: Desk) -> None:
        await desk.put()
        agent = worker(desk, silent, grace_s=3600)
        async with agent:
            await desk.hears("extend")
            agent.stop()
            agent.stop()

        assert desk.of("release")

    async def test_by_cancelling_serve_hands_back_as_well(self, desk: Desk) -> None:
        await desk.put()
        serving = asyncio.create_task(worker(desk, silent, grace_s=3600).serve())
        await desk.hears("extend")

        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

        assert desk.of("release")
        assert desk.bodies("claim")[-1]["capacity"] == 0


async def numbers() -> AsyncGenerator[int, None]:
    yield 1


async def number() -> int:
    return 1

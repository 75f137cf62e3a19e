"""The ``webhook`` connector against a receiver that verifies what it gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from sessions_api.agents.connectors.failure import AttemptFailed
from sessions_api.agents.connectors.outgoing import Outgoing
from sessions_api.agents.connectors.webhook import Webhook
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.turns import Answer, ClaimedTurn
from sessions_api.wire.claims import Claimed
from sessions_api.wire.instants import iso
from tests.support import asked
from tests.support.waiting import until
from tests.support.webhook_server import SECRET, Received, Receiver


def nothing(_received: Received) -> Response:
    return Response(status_code=204)


def defined(receiver: Receiver, **more: object) -> AgentDefinition:
    return asked.definition("webhook", {"url": receiver.url, "secret": SECRET} | more)


def stream(*events: tuple[str, dict[str, Any] | str], then: asyncio.Event | None = None) -> Response:
    """An event stream; with *then* it stays open until that is set."""

    async def frames() -> AsyncIterator[str]:
        for name, data in events:
            text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
            yield f": a comment\r\nevent: {name}\r\ndata: {text}\r\n\r\n"
        if then is not None:
            await then.wait()

    return StreamingResponse(frames(), media_type="text/event-stream; charset=utf-8")


async def answered(
    outgoing: Outgoing, reply: Response, turn: ClaimedTurn | None = None
) -> tuple[list[str], Answer | None]:
    async with Receiver(lambda _received: reply) as receiver:
        return await asked.heard(Webhook(outgoing), turn or asked.turn(), defined(receiver))


async def failing(outgoing: Outgoing, reply: Response) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as failed:
        await answered(outgoing, reply)
    return failed.value


class TestRequest:
    async def test_is_signed_and_carries_the_turn(self, outgoing: Outgoing) -> None:
        """The receiver has verified it; the turn is what a worker gets, without what it writes with."""
        turn = asked.turn(asked.user("Hello 😀"), history=[asked.user("Hi"), asked.agent("Yes?")], attempt=2)
        async with Receiver(nothing) as receiver:
            await asked.heard(Webhook(outgoing), turn, defined(receiver))

            [received] = receiver.received
        event, headers = received.event, received.headers
        assert headers["content-type"] == "application/json"
        assert headers["webhook-id"] == asked.TURN
        assert headers["webhook-timestamp"] == str(turn.now_ms // 1000)
        assert headers["webhook-attempt"] == "2"
        assert (event["type"], event["timestamp"]) == ("turn", iso(turn.now_ms))
        assert not {"fence", "leaseUntil"} & event["data"].keys()
        claimed = msgspec.convert(event["data"] | {"fence": "", "leaseUntil": ""}, Claimed)
        assert claimed.attempt == 2
        assert claimed.session.metadata == {"plan": "gold"}
        assert [message.content for message in claimed.messages] == ["Hello 😀"]
        assert [message.content for message in claimed.history] == ["Hi", "Yes?"]

    async def test_keeps_its_id_over_all_attempts(self, outgoing: Outgoing) -> None:
        """So that a receiver that has answered once can know it again."""
        async with Receiver(nothing) as receiver:
            for attempt in (1, 2, 3):
                await asked.heard(Webhook(outgoing), asked.turn(attempt=attempt), defined(receiver))

            ids = [(each.headers["webhook-id"], each.event["data"]["attempt"]) for each in receiver.received]
        assert ids == [(asked.TURN, 1), (asked.TURN, 2), (asked.TURN, 3)]

    async def test_stands_the_test_after_a_redirect(self, outgoing: Outgoing) -> None:
        """What it says is signed, so the new place can verify it as well."""
        async with Receiver(nothing) as second:
            moved = Response(status_code=308, headers={"location": second.url})
            assert await answered(outgoing, moved) == ([], Answer(content=""))

            assert len(second.received) == 1

    async def test_with_another_secret_is_refused_by_its_receiver(self, outgoing: Outgoing) -> None:
        async with Receiver(nothing) as receiver:
            other = defined(receiver, secret="whsec_" + "QUJD" * 8)
            with pytest.raises(AttemptFailed) as failed:
                await asked.heard(Webhook(outgoing), asked.turn(), other)

        assert (failed.value.code, failed.value.retry) == ("AGENT_REFUSED", False)

    @pytest.mark.parametrize("secret", ["", "whsec_", "whsec_ä", "whsec_A"])
    async def test_is_not_sent_unsigned(self, outgoing: Outgoing, secret: str) -> None:
        async with Receiver(nothing) as receiver:
            with pytest.raises(AttemptFailed) as failed:
                await asked.heard(Webhook(outgoing), asked.turn(), defined(receiver, secret=secret))

        assert (failed.value.code, failed.value.retry) == ("AGENT_REFUSED", False)


class TestAnswer:
    @pytest.mark.parametrize(
        "reply",
        [
            Response(status_code=204),
            Response(status_code=200),
            JSONResponse({}),
            JSONResponse({"content": ""}),
        ],
    )
    async def test_may_be_empty(self, outgoing: Outgoing, reply: Response) -> None:
        pieces, end = await answered(outgoing, reply)

        assert pieces == []
        assert end is not None
        assert not end.content

    async def test_may_be_json(self, outgoing: Outgoing) -> None:
        reply = {
            "content": "Hé 😀",
            "metadata": {"thought": "hm", "actions": [{"name": "look"}]},
            "attachments": [{"url": "https://example.org/a.png", "x": 1}],
            "usage": {"inputTokens": 3, "outputTokens": 5},
            "unknown": True,
        }

        pieces, end = await answered(outgoing, JSONResponse(reply))

        assert pieces == []
        assert end == Answer(
            "Hé 😀",
            b'{"thought":"hm","actions":[{"name":"look"}]}',
            b'[{"url":"https://example.org/a.png","x":1}]',
            b'{"inputTokens":3,"outputTokens":5}',
        )

    async def test_may_be_text(self, outgoing: Outgoing) -> None:
        """Passed on as it comes, a character split between two writes in one piece."""

        async def parts() -> AsyncIterator[bytes]:
            for byte in "Hé 😀".encode():
                yield bytes([byte])
                await asyncio.sleep(0)

        pieces, end = await answered(outgoing, StreamingResponse(parts(), media_type="text/plain"))

        assert "".join(pieces) == "Hé 😀"
        assert end is None

    async def test_may_be_streamed(self, outgoing: Outgoing) -> None:
        reply = stream(
            ("delta", {"text": "Hé "}),
            ("progress", {"what": "a word of a later version"}),
            ("delta", {"text": "😀"}),
            ("done", {"metadata": {"thought": "hm"}}),
            ("delta", {"text": "too late"}),
        )

        pieces, end = await answered(outgoing, reply)

        assert pieces == ["Hé ", "😀"]
        assert end == Answer(metadata=b'{"thought":"hm"}')

    async def test_is_there_word_by_word(self, outgoing: Outgoing) -> None:
        """A delta is passed on while the receiver still works on the next one; leaving hangs up."""
        hung_up = asyncio.Event()

        async def frames() -> AsyncIterator[str]:
            try:
                yield 'event: delta\ndata: {"text": "first"}\n\n'
                await asyncio.Event().wait()
            finally:
                hung_up.set()

        async with Receiver(
            lambda _: StreamingResponse(frames(), media_type="text/event-stream")
        ) as receiver:
            async with aclosing(Webhook(outgoing).answer(asked.turn(), defined(receiver))) as pieces:
                assert await anext(pieces) == "first"
            await until(hung_up.is_set)

    async def test_that_is_done_need_not_close(self, outgoing: Outgoing) -> None:
        """What a receiver leaves open after `done` is closed here."""
        still = asyncio.Event()
        async with Receiver(lambda _: stream(("done", {"content": "all"}), then=still)) as receiver:
            heard = await asked.heard(Webhook(outgoing), asked.turn(), defined(receiver))
            still.set()

        assert heard == ([], Answer("all"))


class TestFailures:
    @pytest.mark.parametrize(
        "reply, member",
        [
            ({"content": "x", "metadata": {"thought": 3}}, "metadata.thought"),
            ({"content": "x", "metadata": {"actions": "LOOK"}}, "metadata.actions"),
            ({"content": "x", "usage": {"inputTokens": "12"}}, "usage.inputTokens"),
            ({"content": "x", "usage": {"total_tokens": -1}}, "usage.total_tokens"),
        ],
    )
    @pytest.mark.parametrize("is_streamed", [False, True])
    async def test_name_what_nobody_could_read(
        self, outgoing: Outgoing, reply: dict[str, Any], member: str, *, is_streamed: bool
    ) -> None:
        failed = await failing(outgoing, stream(("done", reply)) if is_streamed else JSONResponse(reply))

        assert failed.code == "AGENT_ERROR"
        assert member in failed.message

    async def test_may_be_told_in_the_agents_words(self, outgoing: Outgoing) -> None:
        error = {"code": "NO_STOCK", "message": "Nothing left", "retry": False, "retryAfterMs": 1500}

        failed = await failing(outgoing, stream(("delta", {"text": "Well"}), ("error", error)))

        assert (failed.code, failed.message) == ("NO_STOCK", "Nothing left")
        assert (failed.retry, failed.pause_s) == (False, 1.5)

    @pytest.mark.parametrize(
        "reply",
        [
            stream(("delta", {"text": "and then"})),
            stream(),
            stream(("delta", {"txt": "x"})),
            stream(("delta", "{")),
            stream(("done", {"metadata": "x"})),
            stream(("error", {"code": "not a code"})),
            JSONResponse({"content": 1}),
            JSONResponse([]),
            JSONResponse({"content": "x", "attachments": [{}]}),
            JSONResponse({"content": "x", "attachments": [{"url": "x"}] * 17}),
            JSONResponse({"content": "x", "metadata": {"thought": "x" * 10_240}}),
            Response(b"{", media_type="application/json"),
            Response(b'{"content": "\xff"}', media_type="application/json"),
            Response(b"<html>", media_type="text/html"),
            Response(b"what"),
        ],
    )
    async def test_are_answers_in_another_form(self, outgoing: Outgoing, reply: Response) -> None:
        """Or a stream without its end: what was said so far is no answer."""
        failed = await failing(outgoing, reply)

        assert (failed.code, failed.retry) == ("AGENT_ERROR", True)

    @pytest.mark.parametrize(
        "status, code, retry",
        [
            (408, "AGENT_ERROR", True),
            (409, "AGENT_ERROR", True),
            (425, "AGENT_ERROR", True),
            (429, "AGENT_RATE_LIMITED", True),
            (500, "AGENT_ERROR", True),
            (503, "AGENT_ERROR", True),
            (400, "AGENT_REFUSED", False),
            (404, "AGENT_REFUSED", False),
            (410, "AGENT_REFUSED", False),
        ],
    )
    async def test_are_final_or_not_by_their_status(
        self, outgoing: Outgoing, status: int, code: str, retry: bool
    ) -> None:
        """``Retry-After`` is honoured; what the receiver wrote is not repeated."""
        reply = PlainTextResponse("the receiver's secret", status, headers={"retry-after": "2"})

        failed = await failing(outgoing, reply)

        assert (failed.code, failed.retry) == (code, retry)
        assert failed.pause_s == (2.0 if retry else 0.0)
        assert "secret" not in failed.message

    async def test_are_bodies_beyond_their_bound(self, outgoing: Outgoing) -> None:
        body = b'{"content": "' + b"x" * 5_000_000 + b'"}'

        failed = await failing(outgoing, Response(body, media_type="application/json"))

        assert (failed.code, failed.retry) == ("ANSWER_TOO_LARGE", False)

    async def test_are_private_addresses(self) -> None:
        """Unless the operator allows them, before a byte is sent."""
        outgoing = Outgoing()
        async with Receiver(nothing) as receiver:
            with pytest.raises(AttemptFailed) as failed:
                await asked.heard(Webhook(outgoing), asked.turn(), defined(receiver))
            await outgoing.aclose()

            assert receiver.received == []
        assert (failed.value.code, failed.value.retry) == ("AGENT_UNREACHABLE", False)

"""A poster that waits hears its own turn's outcome, whatever is lost on the way."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest

from sessions_api.domain.ids import LOCAL_APP, TurnId, new_turn_id
from sessions_api.errors import (
    AgentFailed,
    AgentTimedOut,
    Draining,
    SessionExpired,
    SessionNotFound,
)
from sessions_api.live.outcomes import Beat, Chunk, Outcome, Part, Restart
from sessions_api.live.waiting import Watch
from tests.support.scene import Scene

pytestmark = pytest.mark.servers("valkey")


def content(outcome: Outcome) -> str | None:
    return None if outcome.answer is None else json.loads(outcome.answer.body)["content"]


class TestOutcome:
    async def test_completed(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            await scene.answer(session.session_id, "hi")
            outcome = await watch.outcome(said.turn_id, timeout_ms=5_000)

        assert (outcome.kind, content(outcome), outcome.error) == ("completed", "hi", None)
        assert outcome.turn_id == said.turn_id

    async def test_completed_with_nothing(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            await (await scene.claim(session.session_id)).complete("")
            outcome = await watch.outcome(said.turn_id, timeout_ms=5_000)

        assert (outcome.kind, outcome.answer) == ("completed", None)

    async def test_cancelled_with_what_was_said(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            await (await scene.claim(session.session_id)).say("so f")
            await scene.store.turns.cancel(session.session_id, said.turn_id, grant=LOCAL_APP)
            outcome = await watch.outcome(said.turn_id, timeout_ms=5_000)

        assert (outcome.kind, content(outcome)) == ("cancelled", "so f")

    async def test_cancelled_before_anything_was_said(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            await scene.store.turns.cancel(session.session_id, said.turn_id, grant=LOCAL_APP)
            outcome = await watch.outcome(said.turn_id, timeout_ms=5_000)

        assert (outcome.kind, outcome.answer, outcome.error) == ("cancelled", None, None)

    async def test_interrupted_the_running_turn_is_cancelled_the_waiting_one_is_followed(
        self, scene: Scene
    ) -> None:
        session = await scene.session()
        sid = session.session_id
        async with (
            scene.hub.watch(sid) as first,
            scene.hub.watch(sid) as second,
            scene.hub.watch(sid) as third,
        ):
            one = await scene.say(sid, "one")
            await (await scene.claim(sid)).say("I was say")
            two = await scene.say(sid, "two")
            three = await scene.say(sid, "three", on_busy="interrupt")
            waits = [
                asyncio.create_task(watch.outcome(said.turn_id, timeout_ms=5_000))
                for watch, said in ((first, one), (second, two), (third, three))
            ]
            await scene.answer(sid, "both")
            outcomes = await asyncio.gather(*waits)

        assert [(outcome.kind, content(outcome)) for outcome in outcomes] == [
            ("cancelled", "I was say"), ("completed", "both"), ("completed", "both"),
        ]  # fmt: skip
        assert [outcome.turn_id for outcome in outcomes] == [one.turn_id, three.turn_id, three.turn_id]

    async def test_failed_for_good(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            await (await scene.claim(session.session_id)).fail()
            outcome = await watch.outcome(said.turn_id, timeout_ms=5_000)

        assert outcome.kind == "failed"
        assert isinstance(outcome.error, AgentFailed)
        assert (outcome.error.turn_id, outcome.error.attempts) == (said.turn_id, 1)
        assert (outcome.error.reason, outcome.error.agent_code) == ("It broke", "BOOM")

    async def test_timed_out_while_the_turn_goes_on(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            outcome = await watch.outcome(said.turn_id, timeout_ms=200)
        turn = await scene.store.turns.read(session.session_id, said.turn_id, grant=LOCAL_APP)

        assert outcome.kind == "timed_out"
        assert isinstance(outcome.error, AgentTimedOut)
        assert outcome.error.waited_ms == 200
        assert turn.is_open

    async def test_expired_if_expiry_itself_ended_the_turn(self, scene: Scene) -> None:
        """Nobody keeps the session here; the hub looks for its end."""
        session = await scene.session(timeout_ms=400)
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            outcome = await watch.outcome(said.turn_id, timeout_ms=10_000)

        assert outcome.kind == "expired"
        assert isinstance(outcome.error, SessionExpired)
        assert outcome.error.reason == "timeout"

    async def test_its_own_end_though_the_session_expired_since(self, scene: Scene) -> None:
        session = await scene.session(timeout_ms=300, auto_renew=False)
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            await scene.answer(session.session_id, "hi")
            await asyncio.sleep(0.4)
            await scene.store.alarms.ring(session.session_id)
            outcome = await watch.outcome(said.turn_id, timeout_ms=5_000, is_repeat=True)

        assert (outcome.kind, content(outcome)) == ("completed", "hi")

    async def test_deleted(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            await scene.store.sessions.end(session.session_id, grant=LOCAL_APP)
            outcome = await watch.outcome(said.turn_id, timeout_ms=5_000)

        assert outcome.kind == "deleted"
        assert isinstance(outcome.error, SessionNotFound)

    async def test_draining_after_the_turn_had_its_chance(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            draining = asyncio.create_task(scene.hub.drain(400))
            outcome = await watch.outcome(said.turn_id, timeout_ms=5_000)
        await draining

        assert outcome.kind == "draining"
        assert isinstance(outcome.error, Draining)
        with pytest.raises(Draining):
            async with scene.hub.watch(session.session_id):
                pass

    async def test_a_repeat_finds_an_answer_that_is_there_already(self, scene: Scene) -> None:
        session = await scene.session()
        said = await scene.say(session.session_id, "hello")
        await scene.answer(session.session_id, "hi")
        async with scene.hub.watch(session.session_id) as watch:
            outcome = await watch.outcome(said.turn_id, timeout_ms=0, is_repeat=True)

        assert (outcome.kind, content(outcome)) == ("completed", "hi")

    async def test_a_repeat_hears_of_a_delete_and_of_a_drain(self, scene: Scene) -> None:
        session = await scene.session()
        one = await scene.say(session.session_id, "one")
        async with scene.hub.watch(session.session_id) as watch:
            await scene.store.sessions.end(session.session_id, grant=LOCAL_APP)
            deleted = await watch.outcome(one.turn_id, timeout_ms=5_000, is_repeat=True)
        session = await scene.session()
        two = await scene.say(session.session_id, "two")
        async with scene.hub.watch(session.session_id) as watch:
            draining = asyncio.create_task(scene.hub.drain(400))
            drained = await watch.outcome(two.turn_id, timeout_ms=5_000, is_repeat=True)
        await draining

        assert (deleted.kind, drained.kind) == ("deleted", "draining")

    async def test_of_a_turn_that_nobody_remembers(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            outcome = await watch.outcome(new_turn_id(), timeout_ms=5_000, is_repeat=True)

        assert (outcome.kind, outcome.answer, outcome.error) == ("forgotten", None, None)

    @pytest.mark.parametrize("how", ["complete", "cancel", "fail"])
    async def test_every_publish_lost_costs_a_second(self, scene: Scene, how: str) -> None:
        session = await scene.session()
        scene.hub.subscriber._on_message = lambda _channel, _payload: None
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            answering = await scene.claim(session.session_id)
            waiting = asyncio.create_task(watch.outcome(said.turn_id, timeout_ms=10_000))
            await answering.say("hi")
            if how == "complete":
                await answering.complete()
            elif how == "cancel":
                await scene.store.turns.cancel(session.session_id, said.turn_id, grant=LOCAL_APP)
            else:
                await answering.fail()
            outcome = await waiting

        assert outcome.kind == {"complete": "completed", "cancel": "cancelled", "fail": "failed"}[how]
        assert content(outcome) == (None if how == "fail" else "hi")

    async def test_a_subscriber_without_a_connection_costs_no_more(self, scene: Scene) -> None:
        """The command connection works, pub/sub does not: the answer comes by reading."""
        await scene.hub.subscriber.stop()
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            await scene.answer(session.session_id, "hi")
            outcome = await watch.outcome(said.turn_id, timeout_ms=10_000)

        assert (outcome.kind, content(outcome)) == ("completed", "hi")


class TestStream:
    async def test_says_the_text_as_it_comes(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            reading = asyncio.create_task(_read(watch, said.turn_id))
            answering = await scene.claim(session.session_id)
            for piece in ("Hel", "lo 🙂", "!"):
                await answering.say(piece)
            await answering.complete()
            parts = await reading

        chunks = [part for part in parts if isinstance(part, Chunk)]
        assert [(chunk.index, chunk.offset, chunk.text) for chunk in chunks] == [
            (0, 0, "Hel"), (1, 3, "lo 🙂"), (2, 8, "!"),
        ]  # fmt: skip
        assert {chunk.message_id for chunk in chunks} == {answering.message_id}
        assert isinstance(parts[-1], Outcome)
        assert parts[-1].kind == "completed"

    async def test_an_answer_that_was_never_streamed_is_one_chunk(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            await (await scene.claim(session.session_id)).complete("all at once")
            parts = await _read(watch, said.turn_id)

        assert _text(parts) == "all at once"
        assert len(parts) == 2

    async def test_a_new_attempt_restarts_the_text(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            first = await scene.claim(session.session_id)
            await first.say("half an ans")
            await scene.store.turns.release(session.session_id, said.turn_id, fence=first.fence)
            second = await scene.claim(session.session_id)
            await second.say("whole")
            await second.complete()
            parts = await _read(watch, said.turn_id)

        kinds = [type(part) for part in parts]
        assert kinds == [Chunk, Restart, Chunk, Outcome]
        assert _text(parts) == "whole"
        assert isinstance(parts[1], Restart)
        assert parts[1].message_id == second.message_id

    async def test_a_repeat_begins_with_the_text_so_far(self, scene: Scene) -> None:
        session = await scene.session()
        said = await scene.say(session.session_id, "hello")
        answering = await scene.claim(session.session_id)
        await answering.say("so far ")
        async with scene.hub.watch(session.session_id) as watch:
            reading = asyncio.create_task(_read(watch, said.turn_id, is_repeat=True))
            await answering.say("and the rest")
            await answering.complete()
            parts = await reading

        assert _text(parts) == "so far and the rest"

    async def test_with_every_publish_lost_says_it_all_the_same(self, scene: Scene) -> None:
        session = await scene.session()
        scene.hub.subscriber._on_message = lambda _channel, _payload: None
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            reading = asyncio.create_task(_read(watch, said.turn_id))
            answering = await scene.claim(session.session_id)
            await answering.say("one 🙂 ")
            await answering.say("two")
            await answering.complete()
            parts = await reading

        assert _text(parts) == "one 🙂 two"

    async def test_one_lost_delta_is_read(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            answering = await scene.claim(session.session_id)
            async with aclosing(watch.stream(said.turn_id, timeout_ms=10_000)) as parts:
                await answering.say("one 🙂 ")
                assert isinstance(await anext(parts), Chunk)
                on_message = scene.hub.subscriber._on_message

                def without_two(channel: bytes, payload: bytes) -> None:
                    if b"two " not in payload or b"message.created" in payload:
                        on_message(channel, payload)

                scene.hub.subscriber._on_message = without_two
                await answering.say("two ")
                await answering.say("three")
                await answering.complete()
                rest = [part async for part in parts]

        assert _text(rest) == "two three"

    async def test_beats_in_silence(self, scene: Scene) -> None:
        session = await scene.session()
        async with scene.hub.watch(session.session_id) as watch:
            said = await scene.say(session.session_id, "hello")
            async with aclosing(watch.stream(said.turn_id, timeout_ms=5_000, beat_s=0.01)) as parts:
                assert isinstance(await anext(parts), Beat)


async def _read(watch: Watch, turn_id: TurnId, *, is_repeat: bool = False) -> list[Part]:
    async with aclosing(watch.stream(turn_id, timeout_ms=10_000, is_repeat=is_repeat)) as parts:
        return [part async for part in parts]


def _text(parts: list[Part]) -> str:
    """What a client has at the end; fails on a hole between two chunks."""
    text, units = "", None
    for part in parts:
        if isinstance(part, Restart):
            text, units = "", None
        elif isinstance(part, Chunk):
            assert units in {None, part.offset}
            text += part.text
            units = part.offset + len(part.text.encode("utf-16-le")) // 2
    return text

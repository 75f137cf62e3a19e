"""How a follower's stream ends: too slow, over, drained, or on another replica."""

from __future__ import annotations

import asyncio

import pytest

from sessions_api.domain.ids import LOCAL_APP, SessionId
from sessions_api.errors import Draining
from sessions_api.live.closing import OVER, RESTART, TOO_SLOW
from tests.support.scene import Scene, contents, data, types
from tests.support.servers import RealServer
from tests.support.waiting import until

pytestmark = pytest.mark.servers("valkey")


class TestSlowFollower:
    async def test_is_closed_and_comes_back_with_its_cursor(self, scene: Scene) -> None:
        session = await scene.session()
        follower = await scene.follow(session.session_id)
        await follower.next()
        first = await scene.say(session.session_id, "first")
        seen = await follower.until("message.created")

        await scene.say_many(session.session_id, 300)
        events = await follower.until(lambda event: event.closing is not None)
        again = await scene.follow(session.session_id, after=seen[-1].cursor)
        rest = await again.until(lambda event: contents([event]) == ["last"])

        assert events[-1].closing == TOO_SLOW
        assert len(events) < 10
        assert data(events[-1]) == {"code": 4408, "retry": True}
        assert first.cursor == seen[-1].cursor
        assert len(contents(rest)) == 300
        again.close()

    async def test_is_closed_when_it_holds_a_mebibyte(self, scene: Scene) -> None:
        session = await scene.session()
        follower = await scene.follow(session.session_id)

        for _ in range(30):
            await scene.say(session.session_id, "x" * 50_000, on_busy="merge")
        events = await follower.until(lambda event: event.closing is not None)

        assert events[-1].closing == TOO_SLOW
        assert follower.subscription._queue.bytes < 2**20


class TestSlowFollowerOfAStream:
    async def test_gets_the_text_at_once_instead_of_word_by_word(self, scene: Scene) -> None:
        """An agent that says a word at a time sends nobody away who only paused."""
        session = await scene.session()
        await scene.say(session.session_id, "go")
        answering = await scene.claim(session.session_id)
        follower = await scene.follow(session.session_id)
        await follower.next()
        await answering.say("begin")
        await follower.until("turn.delta")

        for number in range(600):
            await answering.say(f" {number}")
        await scene.say(session.session_id, "meanwhile")
        snapshot = (await follower.until("session.snapshot"))[-1]
        await answering.say(" end")
        last = (await follower.until("turn.delta"))[-1]
        await answering.complete()
        events = await follower.until("turn.completed")

        assert data(snapshot)["turn"]["text"] + data(last)["text"] == answering.text
        assert contents(follower.events) == ["meanwhile", answering.text]
        assert not [event for event in events if event.closing]
        follower.close()

    async def test_though_the_answer_ends_meanwhile(self, scene: Scene) -> None:
        session = await scene.session()
        await scene.say(session.session_id, "go")
        answering = await scene.claim(session.session_id)
        follower = await scene.follow(session.session_id)
        await follower.next()

        for number in range(600):
            await answering.say(f" {number}")
        await answering.complete()
        events = await follower.until(lambda event: contents([event]) != [])
        rest = await follower.until("session.snapshot")

        assert contents(events) == [answering.text]
        assert data(rest[-1])["turn"] is None
        follower.close()


class TestEndedSession:
    async def test_is_replayed_then_said_to_be_over(self, scene: Scene) -> None:
        session = await scene.session(timeout_ms=600)
        first = await scene.say(session.session_id, "one")
        await scene.say(session.session_id, "two")
        follower = await scene.follow(session.session_id)
        await follower.until("closing")

        again = await scene.follow(session.session_id, after=first.cursor)
        events = await again.until("closing")

        assert types(events) == [
            "message.created", "turn.failed", "turn.failed", "session.expired", "closing",
        ]  # fmt: skip
        assert data(events[-2])["reason"] == "timeout"
        assert events[-1].closing == OVER
        assert events[-1].id == f"{events[-3].cursor}.end"

    async def test_who_comes_while_it_is_being_settled_gets_its_last_entries_too(self, scene: Scene) -> None:
        """Nobody comes back after the end: what the end writes must not be missed by who read before it."""
        session = await scene.session(timeout_ms=600)
        await scene.say(session.session_id, "one")
        await until_over(scene, session.session_id)

        followers = await asyncio.gather(*(scene.follow(session.session_id, after=0) for _ in range(3)))

        for follower in followers:
            events = await follower.until("closing")
            assert types(events) == ["message.created", "turn.failed", "session.expired", "closing"]

    async def test_followers_are_told_at_the_instant(self, scene: Scene) -> None:
        session = await scene.session(timeout_ms=500, auto_renew=False)
        follower = await scene.follow(session.session_id)

        await asyncio.sleep(0.6)
        rung = await scene.store.alarms.ring(session.session_id)
        events = await follower.until("closing")

        assert rung.outcome in {"expired", "idle"}
        assert types(events)[-2:] == ["session.expired", "closing"]
        assert data(events[-1]) == {"code": 4410, "retry": False}
        assert events[-1].id == "0.end"

    async def test_a_position_found_over_while_a_first_page_is_read_changes_nothing(
        self, scene: Scene, server: RealServer
    ) -> None:
        """The hub says so to everybody; who has no position yet gets none of it."""
        session = await scene.session()
        await scene.say(session.session_id, "one")
        await scene.store.log.check_opens(session.session_id, LOCAL_APP)  # asked once only

        server.pause()
        following = asyncio.create_task(scene.follow(session.session_id))
        await until(lambda: scene.hub.followers == 1)
        for listener in scene.hub._tails.listeners():
            listener.fall_behind()
        server.resume()
        follower = await following

        assert types([await follower.next()]) == ["session.snapshot"]
        await scene.say(session.session_id, "two")
        assert contents(await follower.until("message.created")) == ["two"]
        follower.close()

    async def test_a_deleted_one_ends_its_streams(self, scene: Scene) -> None:
        session = await scene.session()
        said = await scene.say(session.session_id, "one")
        follower = await scene.follow(session.session_id)

        await scene.store.sessions.end(session.session_id, grant=LOCAL_APP)
        events = await follower.until("closing")

        assert types(events)[1:] == ["turn.cancelled", "session.ended", "closing"]
        assert data(events[1]) == {"turnId": said.turn_id, "by": "delete"}
        assert data(events[-1]) == {"code": 4404, "retry": False}


class TestDrain:
    async def test_sends_everybody_elsewhere(self, scene: Scene) -> None:
        session = await scene.session()
        followers = [await scene.follow(session.session_id) for _ in range(5)]

        draining = asyncio.create_task(scene.hub.drain(2_000))
        for follower in followers:
            events = await follower.until("closing")
            assert types(events) == ["session.snapshot", "reconnect", "closing"]
            assert 0 < data(events[1])["afterMs"] <= 2_000
            assert events[-1].closing == RESTART
            follower.close()
        await draining

        with pytest.raises(Draining):
            await scene.follow(session.session_id)

    async def test_stop_leaves_no_follower_waiting(self, scene: Scene) -> None:
        session = await scene.session()
        follower = await scene.follow(session.session_id)
        await follower.next()
        waiting = asyncio.create_task(follower.next())

        await scene.hub.stop()

        assert (await waiting).closing is not None


class TestTwoReplicas:
    async def test_what_one_does_the_other_tells(self, server: RealServer) -> None:
        async with Scene(server.url) as one, Scene(server.url) as other:
            session = await one.session()
            follower = await other.follow(session.session_id)

            for number in range(20):
                await (one if number % 2 else other).say(session.session_id, str(number), on_busy="merge")
            await one.answer(session.session_id, "done")
            events = await follower.until("turn.completed")

            assert contents(events) == [*map(str, range(20)), "done"]
            follower.close()


async def until_over(scene: Scene, session_id: SessionId) -> None:
    """Return when the session's end has passed; nobody has settled it."""
    async with asyncio.timeout(10):
        while True:
            [position] = (await scene.store.log.positions([session_id])).values()
            if position is None or position.is_over:
                return
            await asyncio.sleep(0.02)

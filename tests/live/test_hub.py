"""A follower gets every later event once and in order, or is told that it does not."""

from __future__ import annotations

import asyncio
import json

import pytest

from sessions_api.domain.ids import LOCAL_APP, AppName, SessionId, new_op_id, new_session_id
from sessions_api.errors import Draining, SessionNotFound, TooManyFollowers
from sessions_api.live.closing import GONE, OVER, RESTART, TOO_SLOW
from tests.support.proxy import Proxy
from tests.support.scene import USER, Scene, contents, data, types
from tests.support.servers import RealServer
from tests.support.waiting import until

pytestmark = pytest.mark.servers("valkey")

SOON = (0.2, 0.4)


class TestFollow:
    async def test_without_a_position_begins_with_a_snapshot_that_carries_one(self, scene: Scene) -> None:
        session = await scene.session()
        said = await scene.say(session.session_id, "one")

        follower = await scene.follow(session.session_id)
        snapshot = await follower.next()
        await scene.say(session.session_id, "two")
        rest = await follower.until("message.created")

        assert snapshot.type == "session.snapshot"
        assert snapshot.id == str(said.cursor)
        assert data(snapshot)["cursor"] == said.cursor
        assert contents(rest) == ["two"]
        follower.close()

    async def test_with_a_position_replays_what_came_after_it(self, scene: Scene) -> None:
        session = await scene.session()
        first = await scene.say(session.session_id, "one")
        await scene.say(session.session_id, "two")
        await scene.say(session.session_id, "three")

        follower = await scene.follow(session.session_id, after=first.cursor)
        events = await follower.until(lambda event: contents([event]) == ["three"])

        assert types(events) == ["session.snapshot", "message.created", "message.created"]
        assert events[0].id == ""
        assert contents(events) == ["two", "three"]
        follower.close()

    async def test_from_zero_replays_all_in_pages_and_joins_the_tail(self, scene: Scene) -> None:
        """Pages of at most 200 entries; what is said while they are read comes after them, once."""
        session = await scene.session()
        for number in range(450):
            await scene.say(session.session_id, f"{number}", on_busy="merge")
            if number % 50 == 49:
                await scene.answer(session.session_id, f"answer {number}")

        follower = await scene.follow(session.session_id, after=0)
        saying = asyncio.create_task(_say_many(scene, session.session_id, 60))
        events = await follower.until(lambda event: contents([event]) == ["last"])
        await saying

        cursors = [event.cursor for event in events if event.cursor]
        assert cursors == sorted(set(cursors))
        assert contents(events) == [m["content"] for m in await _history(scene, session.session_id)]
        assert "gap" not in types(events)
        follower.close()

    async def test_a_turn_is_told_from_queue_to_answer(self, scene: Scene) -> None:
        session = await scene.session()
        follower = await scene.follow(session.session_id)

        await scene.say(session.session_id, "hello")
        answering = await scene.claim(session.session_id)
        await answering.say("Hel")
        await answering.say("lo 🙂")
        await answering.say("!")
        await answering.complete()
        events = await follower.until("turn.completed")

        assert [kind for kind in types(events) if kind not in {"session.renewed", "session.snapshot"}] == [
            "message.created", "turn.queued", "turn.started", "turn.delta", "turn.delta", "turn.delta",
            "message.created", "turn.completed",
        ]  # fmt: skip
        assert [data(e)["offset"] for e in events if e.type == "turn.delta"] == [0, 3, 8]
        assert contents(events) == ["hello", "Hello 🙂!"]
        assert types(events).count("session.snapshot") == 1
        follower.close()

    async def test_in_mid_answer_the_snapshot_has_the_text_so_far(self, scene: Scene) -> None:
        session = await scene.session()
        await scene.say(session.session_id, "hello")
        answering = await scene.claim(session.session_id)
        await answering.say("Hello 🙂")

        follower = await scene.follow(session.session_id)
        await answering.say(" there")
        snapshot = await follower.next()
        delta = await follower.next()

        turn = data(snapshot)["turn"]
        assert (turn["text"], turn["offset"], turn["messageId"], turn["attempt"]) == (
            "Hello 🙂", 8, answering.message_id, 1,
        )  # fmt: skip
        assert (delta.type, data(delta)["offset"], data(delta)["text"]) == ("turn.delta", 8, " there")
        follower.close()

    async def test_while_an_answer_streams_no_piece_is_lost_or_repeated(self, scene: Scene) -> None:
        """Followers that join at any moment all see the same text."""
        session = await scene.session()
        await scene.say(session.session_id, "go")
        answering = await scene.claim(session.session_id)
        followers = []

        for number in range(120):
            saying = asyncio.create_task(answering.say(f"{number} "))
            if number % 6 == 0:
                followers.append(await scene.follow(session.session_id, after=0 if number % 12 else None))
            await saying
        await answering.complete()

        for follower in followers:
            text = None
            for event in await follower.until("turn.completed"):
                if event.type == "session.snapshot":
                    turn = data(event)["turn"]
                    text = turn["text"] if turn else ""
                elif event.type == "turn.delta":
                    assert text is not None
                    assert data(event)["offset"] == len(text)
                    text += data(event)["text"]
            assert text == answering.text
            follower.close()

    async def test_unknown_or_anothers_session_is_not_found(self, scene: Scene) -> None:
        session = await scene.session()

        with pytest.raises(SessionNotFound):
            await scene.hub.follow(new_session_id(USER), app=LOCAL_APP, after=None)
        with pytest.raises(SessionNotFound):
            await scene.hub.follow(session.session_id, app=AppName("other"), after=None)

        assert scene.hub.followers == 0

    async def test_is_bounded_per_session_and_per_process(self, server: RealServer) -> None:
        async with Scene(server.url, max_followers=3, max_followers_per_session=2) as scene:
            one, two = await scene.session(), await scene.session()
            first = await scene.follow(one.session_id)
            await scene.follow(one.session_id)

            with pytest.raises(TooManyFollowers):
                await scene.follow(one.session_id)
            await scene.follow(two.session_id)
            with pytest.raises(TooManyFollowers):
                await scene.follow(two.session_id)
            first.close()
            await scene.follow(two.session_id)

    async def test_leaves_the_channel_after_a_while(self, server: RealServer) -> None:
        async with Scene(server.url, linger_s=0.05) as scene:
            session = await scene.session()
            channel = scene.store.keyspace.of(session.session_id).live

            follower = await scene.follow(session.session_id)
            assert server.call("PUBSUB", "NUMSUB", channel)[1] == 1
            follower.close()

            await until(lambda: server.call("PUBSUB", "NUMSUB", channel)[1] == 0)

    async def test_a_change_of_the_configuration_is_told_with_the_session(self, scene: Scene) -> None:
        session = await scene.session()
        follower = await scene.follow(session.session_id)

        await scene.configure(session.session_id, timeout_ms=10 * 60_000)
        await scene.store.sessions.heartbeat(session.session_id, app=LOCAL_APP, op=new_op_id())
        events = await follower.until("session.updated")

        assert data(events[-1])["timeoutConfig"]["timeoutMinutes"] == 10
        assert types(events) == ["session.snapshot", "session.renewed", "session.updated"]
        follower.close()


class TestGap:
    async def test_trimmed_goes_on_from_the_oldest(self, scene: Scene, server: RealServer) -> None:
        session = await scene.session()
        said = [await scene.say(session.session_id, str(number)) for number in range(4)]
        keys = scene.store.keyspace.of(session.session_id)
        for gone in said[:2]:
            server.call("XDEL", keys.all()[2], f"{gone.cursor}-0")

        follower = await scene.follow(session.session_id, after=said[0].cursor)
        events = await follower.until(lambda event: contents([event]) == ["3"])

        assert types(events) == ["session.snapshot", "gap", "message.created", "message.created"]
        assert data(events[1]) == {
            "reason": "trimmed",
            "requested": said[0].cursor,
            "oldest": said[2].cursor,
            "newest": said[3].cursor,
        }
        follower.close()

    async def test_rewound_when_the_log_ends_before_the_position(self, scene: Scene) -> None:
        session = await scene.session()
        said = await scene.say(session.session_id, "one")

        follower = await scene.follow(session.session_id, after=said.cursor + 5_000)
        events = [await follower.next(), await follower.next()]
        await scene.say(session.session_id, "two")
        rest = await follower.until("message.created")

        assert types(events) == ["session.snapshot", "gap"]
        assert data(events[1])["reason"] == "rewound"
        assert data(events[1])["newest"] == said.cursor
        assert contents(rest) == ["two"]
        follower.close()

    async def test_rewound_when_another_entry_took_the_place(self, scene: Scene) -> None:
        session = await scene.session()
        first = await scene.say(session.session_id, "one")
        second = await scene.say(session.session_id, "two")

        follower = await scene.follow(session.session_id, after=(first.cursor + second.cursor) // 2)
        events = await follower.until("message.created")

        if (first.cursor + second.cursor) // 2 != first.cursor:
            assert data(events[1])["reason"] == "rewound"
        assert contents(events) == ["two"]
        follower.close()


class TestLostPublish:
    """What happens when Redis did what it was asked and the subscriber never heard of it."""

    async def test_of_an_entry_is_noticed_by_the_next(self, scene: Scene) -> None:
        session = await scene.session()
        follower = await scene.follow(session.session_id)
        await follower.next()

        async with Deafened(scene):
            await scene.say(session.session_id, "lost")
        await scene.say(session.session_id, "heard")
        events = await follower.until(lambda event: contents([event]) == ["heard"])

        assert contents(events) == ["lost", "heard"]
        follower.close()

    async def test_of_a_delta_is_noticed_by_the_next(self, scene: Scene) -> None:
        session = await scene.session()
        await scene.say(session.session_id, "go")
        answering = await scene.claim(session.session_id)
        follower = await scene.follow(session.session_id)
        await answering.say("one ")
        await follower.until("turn.delta")

        async with Deafened(scene):
            await answering.say("two ")
        await answering.say("three ")
        snapshot = (await follower.until("session.snapshot"))[-1]
        await answering.say("four")
        delta = (await follower.until("turn.delta"))[-1]

        assert data(snapshot)["turn"]["text"] == "one two three "
        assert snapshot.id == ""
        assert data(delta)["text"] == "four"
        follower.close()

    async def test_of_a_fact_is_noticed_by_the_next(self, scene: Scene) -> None:
        session = await scene.session()
        follower = await scene.follow(session.session_id)
        await follower.next()

        async with Deafened(scene):
            await scene.configure(session.session_id, timeout_ms=20 * 60_000)
        await scene.configure(session.session_id, timeout_ms=10 * 60_000)
        events = await follower.until("session.snapshot")

        assert data(events[-1])["timeoutConfig"]["timeoutMinutes"] == 10
        follower.close()

    async def test_of_the_last_event_is_found_by_comparing_positions(self, server: RealServer) -> None:
        async with Scene(server.url, check_s=SOON) as scene:
            session = await scene.session()
            follower = await scene.follow(session.session_id)
            await follower.next()

            async with Deafened(scene):
                await scene.say(session.session_id, "lost")
            events = await follower.until("message.created")

            assert contents(events) == ["lost"]
            follower.close()

    async def test_of_a_delete_is_found_by_comparing_positions(self, server: RealServer) -> None:
        async with Scene(server.url, check_s=SOON) as scene:
            session = await scene.session()
            follower = await scene.follow(session.session_id)

            async with Deafened(scene):
                await scene.store.sessions.end(session.session_id, app=LOCAL_APP)
            events = await follower.until(lambda event: event.closing is not None)

            assert types(events)[-2:] == ["session.ended", "closing"]
            assert events[-1].closing == GONE

    async def test_of_the_end_is_found_within_a_second(self, scene: Scene) -> None:
        """No keeper runs here, so nobody else even looks."""
        session = await scene.session(timeout_ms=700)
        await scene.say(session.session_id, "never answered")
        follower = await scene.follow(session.session_id)

        async with Deafened(scene):
            events = await follower.until(lambda event: event.closing is not None)

        assert types(events)[-3:] == ["turn.failed", "session.expired", "closing"]
        assert events[-1].closing == OVER

    async def test_a_killed_connection_loses_nothing(self, server: RealServer) -> None:
        async with Proxy(server.url) as proxy, Scene(proxy.url) as near, Scene(server.url) as far:
            session = await far.session()
            follower = await near.follow(session.session_id)
            await follower.next()

            for number in range(30):
                await far.say(session.session_id, str(number), on_busy="merge")
                if number % 10 == 5:
                    proxy.cut()
            events = await follower.until(lambda event: contents([event]) == ["29"])

            assert contents(events) == [str(number) for number in range(30)]
            assert near.hub.subscriber.stats.losses >= 1
            follower.close()

    async def test_redis_away_and_back(self, scene: Scene, server: RealServer) -> None:
        session = await scene.session()
        follower = await scene.follow(session.session_id)
        await scene.say(session.session_id, "before")
        await follower.until("message.created")

        server.restart()
        await until(lambda: scene.redis.is_up)
        await scene.say(session.session_id, "after")
        events = await follower.until("message.created")

        assert contents(events) == ["after"]
        follower.close()


class TestSlowFollower:
    async def test_is_closed_and_comes_back_with_its_cursor(self, scene: Scene) -> None:
        session = await scene.session()
        follower = await scene.follow(session.session_id)
        await follower.next()
        first = await scene.say(session.session_id, "first")
        seen = await follower.until("message.created")

        await _say_many(scene, session.session_id, 300)
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
        assert follower.subscription._bytes < 2**20


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

        server.pause()
        following = asyncio.create_task(scene.follow(session.session_id))
        await until(lambda: scene.hub.followers == 1)
        for listener in scene.hub._listeners():
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

        await scene.store.sessions.end(session.session_id, app=LOCAL_APP)
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


class Deafened:
    """Within it the hub's subscriber hears nothing, as if every publish were lost on the way."""

    def __init__(self, scene: Scene) -> None:
        self._subscriber = scene.hub.subscriber
        self._on_message = self._subscriber._on_message
        self._redis = scene.redis

    async def __aenter__(self) -> None:
        await self._settle()
        self._subscriber._on_message = lambda _channel, _payload: None

    async def __aexit__(self, *_exc: object) -> None:
        await self._settle()
        self._subscriber._on_message = self._on_message

    async def _settle(self) -> None:
        """Return when everything published so far has arrived: a marker that is published now has."""
        arrived = asyncio.Event()
        channel, on_message = b"test:marker", self._subscriber._on_message
        await self._subscriber.subscribe(channel)

        def listen(heard: bytes, payload: bytes) -> None:
            if heard == channel:
                arrived.set()
            else:
                on_message(heard, payload)

        self._subscriber._on_message = listen
        await self._redis.command(b"PUBLISH", channel, b"")
        async with asyncio.timeout(5):
            await arrived.wait()
        self._subscriber._on_message = on_message
        self._subscriber.unsubscribe(channel)


async def _say_many(scene: Scene, session_id: SessionId, count: int) -> None:
    """*count* messages, the last of which says so; answered now and then, since a backlog is bounded."""
    for number in range(count - 1):
        await scene.say(session_id, f"more {number}", on_busy="merge")
        if number % 50 == 49:
            answering = await scene.claim(session_id)
            await answering.complete("")
    await scene.say(session_id, "last", on_busy="merge")


async def _history(scene: Scene, session_id: SessionId) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    before = None
    while True:
        page = await scene.store.log.history(session_id, app=None, limit=100, before=before)
        found += [json.loads(entry.body) for entry in page.entries]
        if not page.has_more:
            return found[::-1]
        before = page.entries[-1].cursor

"""A follower begins where it says, and gets every later event once and in order."""

from __future__ import annotations

import asyncio
import json

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, SessionId, new_op_id, new_session_id
from sessions_api.domain.sessions import ConfigChange
from sessions_api.errors import SessionNotFound, TooManyFollowers
from tests.support.scene import USER, Scene, contents, data, types
from tests.support.servers import RealServer
from tests.support.stores import put_state
from tests.support.waiting import until

pytestmark = pytest.mark.servers("valkey")


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
        saying = asyncio.create_task(scene.say_many(session.session_id, 60))
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

    async def test_a_turn_that_is_given_back_has_no_text_any_more(self, scene: Scene) -> None:
        """Who follows is told so; who comes meanwhile finds none."""
        session = await scene.session()
        follower = await scene.follow(session.session_id)
        said = await scene.say(session.session_id, "hello")
        answering = await scene.claim(session.session_id)
        await answering.say("Hel")
        await follower.until("turn.delta")

        await answering.fail(retry=True)
        newcomer = await scene.follow(session.session_id)

        queued = (await follower.until("turn.queued"))[-1]
        assert data(queued) == {"turnId": said.turn_id}
        snapshot = await newcomer.next()
        assert data(snapshot)["turn"] is None
        assert snapshot.rev == queued.rev
        follower.close()
        newcomer.close()

    @pytest.mark.parametrize("says_more", [False, True])
    async def test_a_turn_whose_worker_returns_has_its_text_again(
        self, scene: Scene, *, says_more: bool
    ) -> None:
        """Its lease had lapsed and followers dropped what it said: they get all of it, without a read."""
        session = await scene.session()
        follower = await scene.follow(session.session_id)
        await scene.say(session.session_id, "hello")
        answering = await scene.claim(session.session_id)
        for piece in ("Hel", "lo 🙂"):
            await answering.say(piece)
        await put_state(scene.store, session.session_id, held_until_ms=1)
        assert (await scene.store.alarms.ring(session.session_id)).outcome == "lapsed"
        await follower.until(lambda event: event.type == "turn.queued" and event.rev > 2)

        if says_more:
            await answering.say("!")
        else:
            await scene.store.turns.extend(session.session_id, answering.turn_id, fence=answering.fence)
        await answering.say(" there")
        events = [await follower.next() for _ in range(3)]

        assert types(events) == ["turn.started", "turn.delta", "turn.delta"]
        assert [(data(e)["offset"], data(e)["text"]) for e in events[1:]] == [
            (0, answering.text.removesuffix(" there")),
            (9 if says_more else 8, " there"),
        ]
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
            await scene.hub.follow(new_session_id(USER), grant=LOCAL_APP, after=None)
        with pytest.raises(SessionNotFound):
            await scene.hub.follow(session.session_id, grant="other", after=None)

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
        await scene.store.sessions.heartbeat(session.session_id, grant=LOCAL_APP, op=new_op_id())
        events = await follower.until("session.updated")

        assert data(events[-1])["timeoutConfig"]["timeoutMinutes"] == 10
        assert types(events) == ["session.snapshot", "session.renewed", "session.updated"]
        follower.close()

    async def test_a_change_that_warns_is_told_as_a_warning_too(self, scene: Scene) -> None:
        """The threshold is widened past now: both events come, and no snapshot has to stand in for one."""
        session = await scene.session()
        follower = await scene.follow(session.session_id)

        change = ConfigChange(warning_ms=("s", session.config.timeout_ms - 1))
        await scene.store.sessions.configure(
            session.session_id, grant=LOCAL_APP, op=new_op_id(), change=change
        )
        events = await follower.until("session.updated")

        assert data(events[-1])["warningState"]["sent"]
        assert types(events) == ["session.snapshot", "session.expiring", "session.updated"]
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


async def _history(scene: Scene, session_id: SessionId) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    before = None
    while True:
        page = await scene.store.log.history(session_id, grant=EVERYTHING, limit=100, before=before)
        found += [json.loads(entry.body) for entry in page.entries]
        if not page.has_more:
            return found[::-1]
        before = page.entries[-1].cursor

"""Whatever publish is lost, its followers notice and catch up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from sessions_api.domain.ids import LOCAL_APP, SessionId
from sessions_api.live.closing import GONE, OVER
from sessions_api.live.outcomes import Beat, Chunk, Outcome
from sessions_api.store.log import Position
from tests.support.proxy import Proxy
from tests.support.scene import Follower, Scene, contents, data, types
from tests.support.servers import RealServer
from tests.support.waiting import until

pytestmark = pytest.mark.servers("valkey")
SOON = (0.2, 0.4)


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

    async def test_of_the_last_delta_before_a_silence_is_noticed_by_and_by(self, server: RealServer) -> None:
        """A text has no position to compare, so whoever follows a running one reads it."""
        async with Scene(server.url, check_s=SOON) as scene:
            session = await scene.session()
            await scene.say(session.session_id, "go")
            answering = await scene.claim(session.session_id)
            follower = await scene.follow(session.session_id)
            await answering.say("one ")
            await follower.until("turn.delta")

            async with Deafened(scene):
                await answering.say("two")
            snapshot = (await follower.until("session.snapshot"))[-1]

            assert data(snapshot)["turn"]["text"] == "one two"
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

    async def test_is_found_soon_also_if_something_came_while_positions_were_read(
        self, server: RealServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those prove nothing then. In a session that streams, the next regular look may meet the same."""
        async with Scene(server.url, check_s=(3600, 3600)) as scene:
            session = await scene.session()
            follower = await scene.follow(session.session_id)
            await follower.next()
            tails = scene.hub._tails
            [tail] = tails._tails.values()
            positions = scene.store.log.positions
            asked: list[int] = []

            async def read(session_ids: list[SessionId]) -> Mapping[SessionId, Position | None]:
                asked.append(len(session_ids))
                tail.heard += len(asked) == 1
                return await positions(session_ids)

            async with Deafened(scene):
                await scene.say(session.session_id, "lost")
            monkeypatch.setattr(scene.store.log, "positions", read)
            tails._look_soon(tail)
            events = await follower.until("message.created")

            assert contents(events) == ["lost"]
            assert asked == [1, 1]
            follower.close()

    async def test_of_a_delete_is_found_by_comparing_positions(self, server: RealServer) -> None:
        async with Scene(server.url, check_s=SOON) as scene:
            session = await scene.session()
            follower = await scene.follow(session.session_id)

            async with Deafened(scene):
                await scene.store.sessions.end(session.session_id, grant=LOCAL_APP)
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


class Belated:
    """Within it the hub's subscriber hears nothing; at the end all of it, late."""

    def __init__(self, scene: Scene, *, at_ms: Callable[[], int] | None = None) -> None:
        self._scene = scene
        self._at_ms = at_ms
        self._held: list[tuple[bytes, bytes]] = []

    async def __aenter__(self) -> None:
        self._deafened = Deafened(self._scene)
        await self._deafened.__aenter__()
        self._scene.hub.subscriber._on_message = lambda *message: self._held.append(message)

    async def __aexit__(self, *exc: object) -> None:
        await self._deafened.__aexit__(*exc)
        for channel, payload in self._held:
            words = payload.split(b" ", 5)
            if self._at_ms is not None and words[0] == b"turn.delta":
                words[4] = b"%d" % self._at_ms()
            self._scene.hub._tails.on_message(channel, b" ".join(words))


class TestLatePublish:
    """What was published before a read may arrive after it, and be of an attempt that is over."""

    @pytest.mark.parametrize("is_same_ms", [False, True])
    async def test_of_a_former_attempts_delta_is_told_to_nobody(
        self, scene: Scene, *, is_same_ms: bool
    ) -> None:
        session = await scene.session()
        await scene.say(session.session_id, "go")
        followers: list[Follower] = []
        at_ms = (lambda: followers[0].subscription._read_ms) if is_same_ms else None

        async with Belated(scene, at_ms=at_ms):
            first = await scene.claim(session.session_id)
            await first.say("void")
            await first.fail(retry=True)
            followers.append(await scene.follow(session.session_id))
        [follower] = followers
        await scene.say(session.session_id, "meanwhile")
        events = await follower.until("message.created")

        assert data(events[0])["turn"] is None
        assert "turn.delta" not in types(events)
        follower.close()

    async def test_of_a_former_attempt_does_not_take_its_poster_back(self, scene: Scene) -> None:
        session = await scene.session()
        said = await scene.say(session.session_id, "go")
        async with scene.hub.watch(session.session_id) as watch:
            parts = watch.stream(said.turn_id, timeout_ms=10_000, is_repeat=True)
            async with Belated(scene):
                first = await scene.claim(session.session_id)
                await first.say("void")
                await scene.store.turns.release(session.session_id, said.turn_id, fence=first.fence)
                second = await scene.claim(session.session_id)
                await second.say("one ")
                chunk = await anext(parts)
            await second.say("two")
            await second.complete()
            rest = [part async for part in parts if not isinstance(part, Beat)]

        assert [type(part) for part in rest] == [Chunk, Outcome]
        assert isinstance(chunk, Chunk)
        assert isinstance(rest[0], Chunk)
        assert chunk.text + rest[0].text == "one two"

"""``/events`` over a real uvicorn."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from sessions_api.domain.ids import SessionId
from sessions_api.errors import InvalidInput
from sessions_api.live.sse import Start, start_of
from tests.live.conftest import LiveApp
from tests.support.scene import Scene
from tests.support.streams import EventStream, Served
from tests.support.waiting import until

pytestmark = pytest.mark.servers("valkey")


class TestStream:
    async def test_begins_with_retry_and_a_snapshot(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with EventStream(served.port, f"/{session.session_id}/events") as stream:
            first = await stream.next()
            snapshot = await stream.next_event()

        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-cache, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert first is not None
        assert first.retry is not None
        assert 1_000 <= first.retry <= 4_000
        assert (snapshot.event, snapshot.id) == ("session.snapshot", "0")
        assert snapshot.data["cursor"] == 0
        assert snapshot.data["data"]["sessionId"] == session.session_id

    async def test_only_what_is_in_the_log_moves_the_position(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with EventStream(served.port, f"/{session.session_id}/events") as stream:
            await stream.next_event()
            said = await scene.say(session.session_id, "hello")
            await scene.answer(session.session_id, "hi")
            events = await stream.until("turn.completed")

        ids = {frame.event: frame.id for frame in events if frame.id is not None}
        assert set(ids) == {"message.created"}
        assert events[0].id == str(said.cursor)
        assert events[0].data["cursor"] == said.cursor
        assert events[0].data["prev"] == 0
        assert events[0].data["sessionId"] == session.session_id
        assert events[0].data["data"]["content"] == "hello"

    async def test_a_reconnect_goes_on_where_it_was(self, scene: Scene, served: Served) -> None:
        """``Last-Event-ID`` wins over the ``?after=`` that is still in the URL."""
        session = await scene.session()
        path = f"/{session.session_id}/events?after=0"
        await scene.say(session.session_id, "one")
        async with EventStream(served.port, path) as stream:
            last = (await stream.until("message.created"))[-1]
            assert last.id is not None

        await scene.say(session.session_id, "two")
        async with EventStream(served.port, path, {"Last-Event-ID": last.id}) as stream:
            events = await stream.until("message.created")

        assert [frame.event for frame in events] == ["session.snapshot", "message.created"]
        assert events[-1].data["data"]["content"] == "two"

    async def test_an_ended_session_ends_its_stream_for_good(self, scene: Scene, served: Served) -> None:
        session = await scene.session(timeout_ms=400)
        path = f"/{session.session_id}/events?after=0"
        await scene.say(session.session_id, "one")

        async with EventStream(served.port, path) as stream:
            events = await stream.until("closing")
            assert await stream.next() is None
            assert stream.is_over
        async with EventStream(served.port, path) as again:
            replayed = await again.until("closing")
        async with EventStream(served.port, path, {"Last-Event-ID": events[-1].id or ""}) as over:
            assert over.status == 204

        assert [frame.event for frame in events][-3:] == ["turn.failed", "session.expired", "closing"]
        assert events[-1].id == f"{events[-3].id}.end"
        assert events[-1].data["data"] == {"code": 4410, "retry": False}
        assert [frame.event for frame in replayed] == [
            "message.created", "turn.failed", "session.expired", "closing",
        ]  # fmt: skip

    async def test_a_comment_is_sent_in_silence(self, scene: Scene) -> None:
        session = await scene.session()

        async with (
            Served(LiveApp(scene, beat_s=0.05)) as served,
            EventStream(served.port, f"/{session.session_id}/events") as stream,
        ):
            await stream.next_event()
            beat = await stream.next()
            await scene.say(session.session_id, "hello")
            event = await stream.next_event()

        assert beat is not None
        assert beat.comment is not None
        assert len(beat.comment) > 256
        assert event.event == "message.created"

    async def test_a_client_that_leaves_is_forgotten(self, scene: Scene, served: Served) -> None:
        session = await scene.session()
        async with EventStream(served.port, f"/{session.session_id}/events") as stream:
            await stream.next_event()
            assert scene.hub.followers == 1

        await until(lambda: scene.hub.followers == 0)

    async def test_a_draining_replica_says_when_to_come_back(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with EventStream(served.port, f"/{session.session_id}/events") as stream:
            await stream.next_event()
            async with asyncio.timeout(5):
                await scene.hub.drain(3_000)
            events = await stream.until("closing")

        assert events[-2].event == "reconnect"
        assert 0 < events[-2].data["data"]["afterMs"] <= 3_000
        assert events[-1].data["data"] == {"code": 1012, "retry": True}
        assert scene.hub.followers == 0


class TestSlowClient:
    async def test_is_told_to_come_back_when_it_reads_again(self, scene: Scene, served: Served) -> None:
        """What the system buffers is read first, then the reason; nothing in between is skipped."""
        session = await scene.session()
        path = f"/{session.session_id}/events"

        async with EventStream(served.port, path, buffer=4096) as stream:
            await _flood(scene, session.session_id)
            events = await stream.until("closing")
        last = [frame for frame in events if frame.id][-1]
        async with EventStream(served.port, f"{path}?after={last.id}") as stream:
            rest = await stream.until("message.created")

        assert events[-1].data["data"] == {"code": 4408, "retry": True}
        logged = [frame for frame in [*events, rest[-1]] if frame.event == "message.created"]
        for before, after in pairwise(logged):
            assert after.data["prev"] == before.data["cursor"]

    async def test_that_never_reads_is_let_go(self, scene: Scene) -> None:
        session = await scene.session()

        async with (
            Served(LiveApp(scene, send_timeout_s=0.3)) as served,
            EventStream(served.port, f"/{session.session_id}/events", buffer=4096),
        ):
            await _flood(scene, session.session_id)
            await until(lambda: scene.hub.followers == 0)


class TestStart:
    @pytest.mark.parametrize(
        "last_event_id, after, start",
        [
            (None, None, Start(None)),
            ("", "", Start(None)),
            (None, "0", Start(0)),
            ("17", None, Start(17)),
            ("17", "4", Start(17)),
            ("17.end", "4", Start(None, is_over=True)),
            ("0.end", None, Start(None, is_over=True)),
        ],
    )
    def test_is_the_position_of_the_latest_event(
        self, last_event_id: str | None, after: str | None, start: Start
    ) -> None:
        assert start_of(last_event_id, after) == start

    @pytest.mark.parametrize("text", ["x", "-1", "1.5", "1e3", "٣", "9" * 17, "17.endx", "1795350930610junk"])
    def test_junk_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidInput):
            start_of(text, None)
        with pytest.raises(InvalidInput):
            start_of(None, text)


async def _flood(scene: Scene, session_id: SessionId) -> None:
    """More than a queue and all buffers of a socket hold, and less than a log does."""
    for number in range(180):
        await scene.say(session_id, f"{number} " + "x" * 40_000, on_busy="merge")
        if number % 50 == 49:
            answering = await scene.claim(session_id)
            await answering.complete("")

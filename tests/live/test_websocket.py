"""``/ws`` over a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, Self

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from sessions_api.domain.ids import LOCAL_APP, SessionId, new_session_id
from sessions_api.live.framing import FRAMES_BURST, MAX_FRAME_BYTES, BadFrame, read_frame
from tests.live.conftest import LiveApp
from tests.support.scene import USER, Scene
from tests.support.streams import Served
from tests.support.waiting import until

pytestmark = pytest.mark.servers("valkey")


class Chat:
    """A client of ``sessions.v1``."""

    def __init__(self, served: Served, session_id: SessionId, query: str = "") -> None:
        self._url = f"ws://127.0.0.1:{served.port}/{session_id}/ws{query}"
        self.socket: ClientConnection

    async def __aenter__(self) -> Self:
        self.socket = await connect(
            self._url, subprotocols=[Subprotocol("sessions.v1")], compression=None, proxy=None, max_size=None
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.socket.close()

    async def send(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return json.loads(await self.socket.recv())

    async def until(self, **wanted: Any) -> list[Any]:
        """The frames up to the first that has all these members."""
        seen: list[Any] = []
        while True:
            seen.append(await self.next())
            if wanted.items() <= seen[-1].items():
                return seen

    async def closed(self) -> int:
        """Read on to the end; its close code."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.socket.recv()
        assert self.socket.close_code is not None
        return self.socket.close_code


class TestEvents:
    async def test_begin_with_a_snapshot_and_go_on(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with Chat(served, session.session_id) as chat:
            snapshot = await chat.next()
            said = await scene.say(session.session_id, "hello")
            message = (await chat.until(type="message.created"))[-1]

            assert chat.socket.subprotocol == "sessions.v1"
        assert (snapshot["type"], snapshot["cursor"]) == ("session.snapshot", 0)
        assert (message["cursor"], message["data"]["content"]) == (said.cursor, "hello")

    async def test_resume_from_the_url_or_by_a_frame(self, scene: Scene, served: Served) -> None:
        """From the ack of a resume on, what comes is exactly what follows the position."""
        session = await scene.session()
        first = await scene.say(session.session_id, "one")
        await scene.say(session.session_id, "two")

        async with Chat(served, session.session_id, f"?after={first.cursor}") as chat:
            by_url = await chat.until(type="message.created")
        async with Chat(served, session.session_id) as chat:
            await chat.next()
            await chat.send(type="resume", ref="r", after=first.cursor)
            ack = (await chat.until(type="ack"))[-1]
            by_frame = await chat.until(type="message.created")
            assert scene.hub.followers == 1

        assert ack == {"type": "ack", "ref": "r", "status": 200, "data": {}}
        assert [frame["type"] for frame in by_url] == ["session.snapshot", "message.created"]
        assert [frame["type"] for frame in by_frame] == ["session.snapshot", "message.created"]
        assert "cursor" not in by_frame[0]
        assert by_url[-1] == by_frame[-1]

    async def test_a_client_that_leaves_is_forgotten(self, scene: Scene, served: Served) -> None:
        session = await scene.session()
        async with Chat(served, session.session_id) as chat:
            await chat.next()
            assert scene.hub.followers == 1

        await until(lambda: scene.hub.followers == 0)


class TestFrames:
    async def test_a_message_is_answered_with_the_body_of_http(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with Chat(served, session.session_id) as chat:
            await chat.send(type="message", ref=7, content="hello")
            seen = await chat.until(type="ack")
            while not any(frame["type"] == "message.created" for frame in seen):
                seen.append(await chat.next())

        ack = next(frame for frame in seen if frame["type"] == "ack")
        message = next(frame for frame in seen if frame["type"] == "message.created")
        assert (ack["ref"], ack["status"]) == (7, 201)
        assert ack["data"]["id"] == message["data"]["id"]

    async def test_each_is_acked_with_its_ref(self, scene: Scene, served: Served) -> None:
        session = await scene.session()
        said = await scene.say(session.session_id, "hello")

        async with Chat(served, session.session_id) as chat:
            await chat.send(type="auth", ref="a", token="whoever")
            await chat.send(type="ping", ref="p")
            await chat.send(type="heartbeat", ref="h")
            await chat.send(type="renew", ref="r")
            await chat.send(type="cancel", ref="c", turnId=said.turn_id)
            acks: dict[str, Any] = {}
            while len(acks) < 5:
                frame = (await chat.until(type="ack"))[-1]
                acks[frame["ref"]] = frame

        assert list(acks) == ["a", "p", "h", "r", "c"]
        assert acks["h"]["data"]["renewed"] in {True, False}
        assert acks["r"]["data"]["sessionId"] == session.session_id
        assert acks["c"]["data"]["state"] == "cancelled"

    async def test_what_is_refused_keeps_the_conversation(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with Chat(served, session.session_id) as chat:
            await chat.send(type="cancel", ref="1", turnId="00000000-0000-4000-8000-000000000000")
            await chat.send(type="resume", ref="2", after="junk")
            await chat.send(type="cancel", ref="3")
            await chat.send(type="ping", ref="4")
            frames = await chat.until(type="ack", ref="4")

        errors = {frame["ref"]: frame for frame in frames if frame["type"] == "error"}
        assert errors["1"]["status"] == 404
        assert errors["1"]["error"]["code"] == "TURN_NOT_FOUND"
        assert errors["1"]["error"]["requestId"] == "test"
        assert errors["2"]["error"]["code"] == "VALIDATION_ERROR"
        assert errors["3"]["error"]["details"]["errors"][0]["field"] == "turnId"

    async def test_an_unknown_type_is_refused_under_its_ref(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with Chat(served, session.session_id) as chat:
            await chat.send(type="nonsense", ref="n")
            error = (await chat.until(type="error"))[-1]

            assert error["ref"] == "n"
            assert await chat.closed() == 4400

    @pytest.mark.parametrize(
        "frame",
        ["{", "[]", '"x"', "{}", '{"type":"nonsense"}', '{"type":"ping","ref":[1]}', "[" * 3000, b"\xff\xfe"],
    )
    async def test_what_is_no_frame_ends_it(self, scene: Scene, served: Served, frame: str | bytes) -> None:
        session = await scene.session()

        async with Chat(served, session.session_id) as chat:
            await chat.send(type="ping", ref="before")
            await chat.until(type="ack")
            await chat.socket.send(frame)
            error = (await chat.until(type="error"))[-1]

            assert error["error"]["code"] == "VALIDATION_ERROR"
            assert await chat.closed() == 4400
        await until(lambda: scene.hub.followers == 0)

    async def test_one_that_is_too_large_ends_it(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with Chat(served, session.session_id) as chat:
            await chat.send(type="message", content="x" * MAX_FRAME_BYTES)
            error = (await chat.until(type="error"))[-1]

            assert error["error"]["code"] == "PAYLOAD_TOO_LARGE"
            assert await chat.closed() == 4400

    async def test_too_many_end_it(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with Chat(served, session.session_id) as chat:
            for number in range(int(FRAMES_BURST) * 3):
                await chat.send(type="ping", ref=number)

            assert await chat.closed() == 4429

    def test_a_lone_surrogate_is_no_frame(self) -> None:
        with pytest.raises(BadFrame):
            read_frame('{"type":"ping","ref":"\ud800"}', None)


class TestClose:
    async def test_unknown_session(self, scene: Scene, served: Served) -> None:
        """The handshake is accepted, the envelope sent, and then closed: browsers see no other way why."""
        async with Chat(served, new_session_id(USER)) as chat:
            error = await chat.next()

            assert error["type"] == "error"
            assert error["error"]["code"] == "SESSION_NOT_FOUND"
            assert await chat.closed() == 4404
        assert scene.hub.followers == 0

    async def test_session_over(self, scene: Scene, served: Served) -> None:
        session = await scene.session(timeout_ms=400)

        async with Chat(served, session.session_id) as chat:
            frames = await chat.until(type="session.expired")
            assert await chat.closed() == 4410
        async with Chat(served, session.session_id) as again:
            assert (await again.next())["type"] == "session.expired"
            assert await again.closed() == 4410

        assert frames[-1]["data"]["reason"] == "timeout"

    async def test_session_deleted(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with Chat(served, session.session_id) as chat:
            await chat.next()
            await scene.store.sessions.end(session.session_id, grant=LOCAL_APP)
            await chat.until(type="session.ended")
            assert await chat.closed() == 4404

    async def test_draining(self, scene: Scene, served: Served) -> None:
        session = await scene.session()

        async with Chat(served, session.session_id) as chat:
            await chat.next()
            draining = asyncio.create_task(scene.hub.drain(3_000))
            frames = await chat.until(type="reconnect")
            assert await chat.closed() == 1012
            await draining
        async with Chat(served, session.session_id) as late:
            assert (await late.next())["error"]["code"] == "DRAINING"
            assert await late.closed() == 1012

        assert 0 < frames[-1]["data"]["afterMs"] <= 3_000

    async def test_too_many_followers(self, scene: Scene, served: Served) -> None:
        session = await scene.session()
        for _ in range(100):
            await scene.follow(session.session_id)

        async with Chat(served, session.session_id) as chat:
            assert (await chat.next())["error"]["code"] == "RATE_LIMIT_EXCEEDED"
            assert await chat.closed() == 4429

    async def test_a_client_that_never_reads_is_let_go(self, scene: Scene) -> None:
        session = await scene.session()

        async with Served(LiveApp(scene, send_timeout_s=0.3)) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
            writer.write(
                f"GET /{session.session_id}/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            await reader.readuntil(b"\r\n\r\n")
            for number in range(180):
                await scene.say(session.session_id, "x" * 40_000, on_busy="merge")
                if number % 50 == 49:
                    await (await scene.claim(session.session_id)).complete("")
            await until(lambda: scene.hub.followers == 0)
            writer.transport.abort()

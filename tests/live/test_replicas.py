"""Two processes of the service on one Redis: whoever follows one of them can go on at the other."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import pytest

from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import SessionId
from sessions_api.domain.messages import utf16_units
from tests.support.ports import free_port
from tests.support.scene import AGENT, Scene
from tests.support.servers import RealServer
from tests.support.streams import EventStream, Frame

pytestmark = pytest.mark.servers("valkey")
BASE = "/api/messaging/sessions"


class Replica:
    """A ``sessions-api serve`` of its own."""

    def __init__(self, redis_url: str, log: Path) -> None:
        self.port = free_port()
        self._environ = {
            "PATH": os.environ["PATH"],
            "REDIS_URL": redis_url,
            "PORT": str(self.port),
            "SESSIONS_DRAIN_SECONDS": "5",
        }
        self._log = log
        self.process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sessions_api", "serve", env=self._environ, stdout=log, stderr=log
            )
        deadline_s = asyncio.get_running_loop().time() + 20
        while not await self._is_ready():
            late = asyncio.get_running_loop().time() > deadline_s
            assert self.process.returncode is None, self._log.read_text()
            assert not late, self._log.read_text()
            await asyncio.sleep(0.02)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(15):
            return await self.process.wait()

    async def _is_ready(self) -> bool:
        try:
            async with EventStream(self.port, "/readyz") as reply:
                return reply.status == 200
        except (OSError, asyncio.IncompleteReadError):
            return False

    async def post(self, session_id: SessionId, content: str) -> int:
        """POST a message; the status."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        body = json.dumps({"content": content, "onBusy": "merge"}).encode()
        writer.write(
            f"POST {BASE}/{session_id}/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        async with asyncio.timeout(10):
            reply = await reader.read()
        writer.close()
        await writer.wait_closed()
        return int(reply.split(b" ", 2)[1])

    def events(self, session_id: SessionId, last_event_id: str = "0") -> EventStream:
        return EventStream(self.port, f"{BASE}/{session_id}/events", {"Last-Event-ID": last_event_id})


@pytest.fixture
async def replicas(server: RealServer, tmp_path: Path) -> AsyncIterator[tuple[Replica, Replica]]:
    async with Replica(server.url, tmp_path / "one") as one, Replica(server.url, tmp_path / "other") as other:
        yield one, other


@pytest.fixture
async def session_id(server: RealServer) -> SessionId:
    async with Scene(server.url) as scene:
        await scene.store.agents.put(AgentDefinition(AGENT, "Echo", "echo"))
        return (await scene.session()).session_id


async def test_what_is_said_at_one_is_followed_at_the_other(
    replicas: tuple[Replica, Replica], session_id: SessionId
) -> None:
    one, other = replicas

    async with one.events(session_id) as stream:
        assert await other.post(session_id, "hello there") == 201
        frames = await stream.until("turn.completed")

    assert _contents(frames) == ["hello there", "echo: hello there"]
    deltas = [frame.data["data"] for frame in frames if frame.event == "turn.delta"]
    assert "".join(delta["text"] for delta in deltas) == "echo: hello there"


async def test_a_killed_replica_costs_its_followers_nothing(
    replicas: tuple[Replica, Replica], session_id: SessionId
) -> None:
    """They go on at the other one, from the last cursor they saw."""
    one, other = replicas
    posted = [f"message {number}" for number in range(60)]

    async def post_all() -> None:
        for content in posted:
            assert await other.post(session_id, content) == 201

    posting = asyncio.create_task(post_all())
    seen: list[Frame] = []
    async with one.events(session_id) as stream:
        while len(_contents(seen)) < 5:
            seen.append(await stream.next_event())
        one.process.kill()
        while (frame := await stream.next()) is not None:
            seen.append(frame)
    last = [frame.id for frame in seen if frame.id][-1]
    async with other.events(session_id, last or "") as stream:
        while posted[-1] not in _contents(seen):
            seen.append(await stream.next_event())
    await posting

    cursors = [frame.data["cursor"] for frame in seen if frame.event == "message.created"]
    assert cursors == sorted(set(cursors))
    assert [content for content in _contents(seen) if not content.startswith("echo")] == posted


async def test_a_replica_killed_in_mid_answer_costs_no_character(
    replicas: tuple[Replica, Replica], server: RealServer
) -> None:
    one, other = replicas
    async with Scene(server.url) as scene:
        await scene.store.agents.put(AgentDefinition(AGENT, "By hand", "worker"))
        session_id = (await scene.session()).session_id
        await scene.say(session_id, "go")
        answering = await scene.claim(session_id)
        async with one.events(session_id) as stream:
            await answering.say("one 🙂 ")
            frames = await stream.until("turn.delta")
            one.process.kill()
        await answering.say("two 𝄞 ")
        last = [frame.id for frame in frames if frame.id][-1]
        async with other.events(session_id, last or "") as stream:
            snapshot = await stream.next_event()
            await answering.say("three")
            delta = (await stream.until("turn.delta"))[-1]
            await answering.complete_streamed()
            rest = await stream.until("turn.completed")

    turn, piece = snapshot.data["data"]["turn"], delta.data["data"]
    assert turn["messageId"] == piece["messageId"] == answering.message_id
    assert piece["offset"] == turn["offset"] == utf16_units(turn["text"])
    assert turn["text"] + piece["text"] == answering.text
    assert _contents(rest) == [answering.text]


async def test_sigterm_sends_followers_elsewhere_and_ends(
    replicas: tuple[Replica, Replica], session_id: SessionId
) -> None:
    one, other = replicas

    async with one.events(session_id) as stream:
        await stream.next_event()
        one.process.send_signal(signal.SIGTERM)
        frames = await stream.until("closing")
        status = await one.ended()
    async with other.events(session_id) as again:
        assert (await again.next_event()).event == "session.snapshot"

    assert [frame.event for frame in frames][-2:] == ["reconnect", "closing"]
    assert frames[-1].data["data"] == {"code": 1012, "retry": True}
    assert status in {0, -signal.SIGTERM}


def _contents(frames: list[Frame]) -> list[str]:
    return [frame.data["data"]["content"] for frame in frames if frame.event == "message.created"]

"""Replicas on one Redis: nothing lost, doubled or reordered by stalls, lost news, races or a wrong clock."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.support.client import BASE, ECHO, Api, problem, received, received_until, some_id
from tests.support.load import Follower, chatting, check, followed, talk, until_more_are_acknowledged
from tests.support.servers import TestServer
from tests.support.service import Service
from tests.support.streams import EventStream

LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def pair(shared: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    services = [Service(tmp_path_factory.mktemp(name), redis_url=shared.url) for name in ("one", "two")]
    for service in services:
        service.start()
    yield services
    for service in services:
        assert service.stop() == 0, service.log[-3000:]
        service.assert_no_bug_logged()


class TestTwoReplicas:
    async def test_what_is_posted_through_one_is_followed_through_the_other(
        self, pair: list[Service]
    ) -> None:
        async with (
            chatting([service.url for service in pair], sessions=5) as chats,
            followed(chats) as followers,
        ):
            await talk(chats, "m", 20)
            await check(chats, followers)
            assert all(follower.connections == 1 for follower in followers)

    def test_an_answer_reaches_whoever_waits_wherever(self, pair: list[Service]) -> None:
        one, two = Api(pair[0].url), Api(pair[1].url)
        session_id = one.session()
        for api in (two, one) * 5:
            assert api.ask(session_id, "hello")["agentResponse"]["text"] == "echo: hello"
        with one.websocket(session_id) as socket:
            received_until(socket, "agent.availability")
            two.call("POST", f"/{session_id}/renew")
            assert received(socket)["type"] == "session.renewed"
        two.call("DELETE", f"/{session_id}")
        problem(one.call("GET", f"/{session_id}"), 404, "SESSION_NOT_FOUND")
        one.close()
        two.close()

    async def test_killed_subscriptions_lose_nothing(self, pair: list[Service], shared: TestServer) -> None:
        async with (
            chatting([service.url for service in pair], sessions=4) as chats,
            followed(chats) as followers,
        ):
            talking = asyncio.create_task(talk(chats, "m", 40, pause_s=0.02))
            killed = 0
            while not talking.done():
                killed += shared.call("CLIENT", "KILL", "TYPE", "pubsub")
                await asyncio.sleep(0.15)
            await talking
            await check(chats, followers)

        assert killed > 5

    async def test_a_frozen_server_costs_time_alone(self, pair: list[Service], shared: TestServer) -> None:
        async with (
            chatting([service.url for service in pair], sessions=3) as chats,
            followed(chats) as followers,
        ):
            talking = asyncio.create_task(talk(chats, "m", 30, pause_s=0.02))
            await until_more_are_acknowledged(chats)
            shared.pause()  # type: ignore[attr-defined]
            try:
                await asyncio.sleep(4)  # the fault's length, longer than the request deadline
            finally:
                shared.resume()  # type: ignore[attr-defined]
            await talking
            await check(chats, followers)

        for chat in chats:
            assert {code for _, code in chat.refusals} <= {"STORAGE_UNAVAILABLE"}
            assert chat.slowest_s < 5

    async def test_cancelled_requests_leave_everything_sound(self, pair: list[Service]) -> None:
        """Of 1,500 requests two thirds are given up in mid-flight; no reply goes to another's request."""
        async with (
            chatting([service.url for service in pair], sessions=20) as chats,
            followed(chats[:2]) as followers,
        ):

            async def give_up(number: int) -> None:
                chat = chats[number % len(chats)]
                url = f"{chat.urls[number % 2]}{BASE}/{chat.session_id}"
                timeout = httpx2.Timeout(5, read=(0.001, 0.004, 5)[number % 3])
                try:
                    response = await chat.http.get(url, timeout=timeout)
                except httpx2.TransportError:
                    return
                assert response.json()["sessionId"] == chat.session_id

            for start in range(0, 1500, 50):
                await asyncio.gather(*(give_up(number) for number in range(start, start + 50)))
            await talk(chats[:2], "m", 10)
            await check(chats[:2], followers)
            for chat in chats:
                assert (await chat.http.get(f"{chat.urls[0]}{BASE}/{chat.session_id}")).status_code == 200


class TestTime:
    async def test_warning_and_end_come_once_to_every_follower_at_every_replica(
        self, shared: TestServer, tmp_path: Path
    ) -> None:
        """Three keepers race for the alarms of forty sessions."""
        env = {"SESSIONS_ENV": "test", "SESSION_MIN_TIMEOUT_MINUTES": "0.005", "SESSIONS_KEY_PREFIX": "race:"}
        services = [Service(tmp_path / str(number), redis_url=shared.url, env=env) for number in range(3)]
        for service in services:
            await asyncio.to_thread(service.start)

        async def told(service: Service, session_id: str) -> list[str]:
            async with EventStream(service.port, f"{BASE}/{session_id}/events") as stream:
                return [frame.event or "" for frame in await stream.until("closing")]

        try:
            api = Api(services[0].url)
            config = {"timeoutMinutes": 0.15, "warningThresholdMinutes": 0.1}
            session_ids = [api.session(timeoutConfig=config) for _ in range(40)]
            api.close()
            seen = await asyncio.gather(
                *(told(service, session_id) for session_id in session_ids for service in services)
            )
        finally:
            statuses = [await asyncio.to_thread(service.stop) for service in services]

        once = ["session.snapshot", "agent.availability", "session.expiring", "session.expired", "closing"]
        assert [names for names in seen if names != once] == []
        assert statuses == [0, 0, 0]
        for service in services:
            service.assert_no_bug_logged()


class TestWrongClock:
    @pytest.mark.skipif(
        LIBFAKETIME is None, reason="SKIPPED LOUDLY: no libfaketime; apt-get install faketime"
    )
    @pytest.mark.parametrize("offset", ["+3600s", "-3600s"])
    def test_of_one_hour_changes_nothing(self, shared: TestServer, tmp_path: Path, offset: str) -> None:
        env = {
            "SESSIONS_ENV": "test",
            "SESSION_MIN_TIMEOUT_MINUTES": "0.005",
            "SESSIONS_KEY_PREFIX": "wrong:",
        }
        wrong = {"FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        services = [
            Service(tmp_path / "right", redis_url=shared.url, env=env),
            Service(tmp_path / "wrong", redis_url=shared.url, env=env | wrong, preload=str(LIBFAKETIME)),
        ]
        for service in services:
            service.start()
        right, off = Api(services[0].url), Api(services[1].url)
        try:
            header = off.http.get("/livez").headers.get("date", "")
            created = off.create(timeoutConfig={"timeoutMinutes": 0.08, "warningThresholdMinutes": 0.05})
            session_id = created["sessionId"]
            near = right.get(session_id)
            assert abs(near["timeRemaining"] - off.get(session_id)["timeRemaining"]) < 1500
            assert off.ask(session_id, "x")["agentResponse"]["text"] == "echo: x"
            with off.events(session_id) as theirs, right.events(session_id) as ours:
                names = [[event.name for event in stream.rest()] for stream in (theirs, ours)]
            for seen in names:
                assert seen.count("session.expiring") == seen.count("session.expired") == 1
            for api in (right, off):
                problem(api.call("GET", f"/{session_id}"), 410, "SESSION_EXPIRED")
            assert not header or time.strftime("%a, %d %b %Y %H", time.gmtime()) not in header
        finally:
            right.close()
            off.close()
            for service in services:
                assert service.stop() == 0
                service.assert_no_bug_logged()


class Lossy:
    """A TCP proxy that forwards all but every third message of a subscription."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self.dropped = 0
        self.is_lossy = True
        self._heard = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream_reader, upstream = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._commands(reader, upstream))
                group.create_task(self._replies(upstream_reader, writer))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            upstream.transport.abort()
            writer.transport.abort()
            self._tasks.discard(task)

    async def _commands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        raise ConnectionResetError

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            frame = await _frame(reader)
            if self.is_lossy and b"message\r\n" in frame[:30] and b"live:" in frame[:120]:
                self._heard += 1
                if self._heard % 3 == 0:
                    self.dropped += 1
                    continue
            writer.write(frame)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """One reply of the Redis protocol, as its bytes."""
    line = await reader.readuntil(b"\r\n")
    kind, count = line[:1], line[1:-2]
    if kind in b"$=" and count != b"-1":
        return line + await reader.readexactly(int(count) + 2)
    if kind in b"*>~%" and count != b"-1":
        parts = int(count) * (2 if kind == b"%" else 1)
        return b"".join([line, *[await _frame(reader) for _ in range(parts)]])
    return line


class TestLostNews:
    async def test_dropped_publishes_cost_time_alone(self, shared: TestServer, tmp_path: Path) -> None:
        """Every third publish is swallowed on its way to one replica; its followers miss nothing."""
        lossy = Lossy(shared.url)
        async with lossy.running() as url:
            services = [
                Service(tmp_path / "lossy", redis_url=url),
                Service(tmp_path / "sound", redis_url=shared.url),
            ]
            for service in services:
                await asyncio.to_thread(service.start)
            try:
                async with chatting([service.url for service in services], sessions=3) as chats:
                    followers = [Follower(chat, at=0) for chat in chats]
                    for follower in followers:
                        follower.start()
                    try:
                        await talk(chats, "m", 20, pause_s=0.01)
                        for chat in chats:
                            await chat.settled()
                        lossy.is_lossy = False
                        await talk(chats, "last", 1)  # who missed a word notices by the next
                        await check(chats, followers)
                    finally:
                        for follower in followers:
                            await follower.stop()
            finally:
                for service in services:
                    await asyncio.to_thread(service.stop)
        assert lossy.dropped > 5
        for service in services:
            service.assert_no_bug_logged()


def test_agents_and_users_are_shared(pair: list[Service]) -> None:
    """Each replica lists what the other made."""
    one, two = Api(pair[0].url), Api(pair[1].url)
    user = some_id()
    made = [api.session(userId=user, agentId=ECHO) for api in (one, two, one)]

    listed = two.call("GET", "", params={"userId": user}).json()

    assert [entry["sessionId"] for entry in listed["sessions"]] == made[::-1]
    one.close()
    two.close()


def test_libfaketime_is_looked_for_where_debian_puts_it() -> None:
    assert shutil.which("faketime") is None or LIBFAKETIME is not None

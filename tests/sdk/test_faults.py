"""Workers, replicas and whole services that go away in mid-answer: it is given all the same, once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from sessions_api.sdk import Agent, Turn
from tests.support.app import App
from tests.support.commands import clean_environment
from tests.support.servers import TestServer, launch
from tests.support.service import Service
from tests.support.waiting import eventually, until

LEASE_S = 30.0

HANGS = """
import asyncio, sys
from sessions_api.sdk import Agent

async def answer(turn):
    yield f"attempt {turn.attempt} in process"
    await asyncio.Event().wait()

Agent(sys.argv[1], sys.argv[2], handler=answer, name="Hangs", grace_s=float(sys.argv[3])).run()
"""


async def tell_attempt(turn: Turn) -> str:
    return f"attempt {turn.attempt}"


@contextmanager
def hanging_worker(url: str, agent_id: str, *, grace_s: float = 0.0) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own that begins every answer and never ends it."""
    command = [sys.executable, "-c", HANGS, url, agent_id, str(grace_s)]
    process = subprocess.Popen(command, env=clean_environment({}), stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def is_there(app: App, agent_id: str) -> bool:
    reply = await app.call("GET", f"/api/agents/{agent_id}/availability")
    return bool(reply.status_code == 200 and reply.json()["state"] != "offline")


async def has_left(app: App, agent_id: str) -> bool:
    return not await is_there(app, agent_id)


class TestWorkers:
    async def test_killed_in_mid_answer_are_followed_by_the_next(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        """What the dead one said is dropped with its attempt; the log has one answer."""
        with hanging_worker(service.url, agent_id) as process:
            await eventually(lambda: is_there(app, agent_id))
            session_id = await app.create(agent_id)
            said = await app.say(session_id, "go")
            await app.has_draft(session_id)
            process.send_signal(signal.SIGKILL)
        async with Agent(service.url, agent_id, handler=tell_attempt):
            turn = await app.ended(session_id, said["turnId"], within_s=2 * LEASE_S)

        assert turn["attempt"] == 2
        assert await app.said(session_id) == ["go", "attempt 2"]

    async def test_told_to_stop_hand_their_turns_back(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        """SIGTERM: at once, uncounted, and the process ends well."""
        with hanging_worker(service.url, agent_id) as process:
            await eventually(lambda: is_there(app, agent_id))
            session_id = await app.create(agent_id)
            said = await app.say(session_id, "go")
            await app.has_draft(session_id)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 20) == 0
        assert not await is_there(app, agent_id)
        async with Agent(service.url, agent_id, handler=tell_attempt):
            await app.ended(session_id, said["turnId"])

        assert await app.said(session_id) == ["go", "attempt 1"]

    async def test_told_twice_do_not_wait_for_their_grace(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        with hanging_worker(service.url, agent_id, grace_s=3600) as process:
            await eventually(lambda: is_there(app, agent_id))
            session_id = await app.create(agent_id)
            await app.say(session_id, "go")
            await app.has_draft(session_id)
            process.send_signal(signal.SIGINT)
            await eventually(lambda: has_left(app, agent_id))  # two signals at once would be one
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, 20) == 0

    async def test_that_hang_lose_the_turn_at_its_deadline(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        """However much it extends; the handler is stopped, and the next attempt answers."""
        stopped = asyncio.Event()

        async def answer(turn: Turn) -> str:
            if turn.attempt == 1:
                try:
                    await asyncio.Event().wait()
                finally:
                    stopped.set()
            return f"attempt {turn.attempt}"

        async with Agent(service.url, agent_id, handler=answer, name="Stuck", turn_timeout_s=2):
            session_id = await app.create(agent_id)
            assert await app.ask(session_id, "go") == "attempt 2"
            await asyncio.wait_for(stopped.wait(), 20)


class TestServiceAway:
    @pytest.mark.parametrize("end", ["stop", "kill"])
    async def test_in_mid_answer_costs_only_time(self, tmp_path: Path, agent_id: str, end: str) -> None:
        """The worker goes on where it was, on whatever comes back at the address."""
        go_on = asyncio.Event()
        attempts = []

        async def answer(turn: Turn) -> AsyncGenerator[str, None]:
            attempts.append(turn.attempt)
            yield "before 😀 "
            await go_on.wait()
            for number in range(20):
                yield f"{number} "
                await asyncio.sleep(0.01)

        service = Service(tmp_path)
        service.start()
        try:
            async with App(service.url) as app, Agent(service.url, agent_id, handler=answer, name="Patient"):
                session_id = await app.create(agent_id)
                said = await app.say(session_id, "go")
                await app.has_draft(session_id)
                await asyncio.to_thread(service.stop if end == "stop" else service.kill)
                go_on.set()
                await asyncio.to_thread(service.start)
                await app.ended(session_id, said["turnId"])

                text = "before 😀 " + "".join(f"{number} " for number in range(20))
                assert await app.said(session_id) == ["go", text]
                assert attempts == [1]
                assert await app.ask(session_id, "again") == text
        finally:
            if service.is_running:
                service.stop()

    async def test_at_start_is_waited_for(self, tmp_path: Path, agent_id: str) -> None:
        service = Service(tmp_path)
        service.start()
        service.stop()

        serving = asyncio.create_task(
            Agent(service.url, agent_id, handler=tell_attempt, name="Early").serve()
        )
        try:
            await asyncio.to_thread(service.start)
            async with App(service.url) as app:
                await eventually(lambda: is_there(app, agent_id))
                assert await app.ask(await app.create(agent_id), "go") == "attempt 1"
        finally:
            serving.cancel()
            await asyncio.wait({serving})
            service.stop()


class Balancer:
    """One address in front of several replicas; *choose* says which gets a request."""

    def __init__(self, urls: list[str]) -> None:
        self.seen: list[tuple[str, int]] = []
        self._clients = [httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) for url in urls]

    def choose(self, path: str) -> int:
        """Claims go to the first; each kind of write to another one than the kind before it."""
        kinds = {"claim": 0, "delta": 1, "extend": 0, "complete": 0, "fail": 1, "release": 1}
        return kinds.get(path.rpartition("/")[2], 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        path = scope["path"]
        number = self.choose(path)
        self.seen.append((path.rpartition("/")[2], number))
        query = scope["query_string"].decode()
        asking = asyncio.create_task(
            self._clients[number].request(
                scope["method"],
                path + (f"?{query}" if query else ""),
                content=message.get("body", b""),
                headers={"content-type": "application/json"},
            )
        )
        leaving = asyncio.ensure_future(receive())  # a client that leaves has left the replica as well
        await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not asking.done():
            asking.cancel()
            return
        reply = asking.result()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(reply.content)).encode()),
        ]
        await send({"type": "http.response.start", "status": reply.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": reply.content})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        config = uvicorn.Config(self, host="127.0.0.1", port=0, lifespan="off", log_config=None, ws="none")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve())
        await until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            await task
            for client in self._clients:
                await client.aclose()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    server = launch("valkey", tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def pair(redis_server: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    services = [Service(tmp_path_factory.mktemp(name), redis_url=redis_server.url) for name in ("one", "two")]
    for service in services:
        service.start()
    yield services
    for service in services:
        if service.is_running:
            service.stop()


class TestReplicas:
    async def test_share_one_turn_between_them(self, pair: list[Service], agent_id: str) -> None:
        """Claimed at one, streamed through the other, completed at the first: any replica takes any write."""
        balancer = Balancer([service.url for service in pair])

        async def answer(turn: Turn) -> AsyncGenerator[str, None]:
            for word in turn.text.split():
                yield word.upper() + " "
                await asyncio.sleep(0.05)

        async with (
            balancer.serving() as url,
            App(pair[1].url) as app,
            Agent(url, agent_id, handler=answer, name="Everywhere"),
        ):
            session_id = await app.create(agent_id)
            assert await app.ask(session_id, "one two three") == "ONE TWO THREE "

        assert {("claim", 0), ("delta", 1), ("complete", 0)} <= set(balancer.seen)

    async def test_tell_a_cancel_to_a_worker_at_another_one(self, pair: list[Service], agent_id: str) -> None:
        stopped = asyncio.Event()

        async def answer(_turn: Turn) -> AsyncGenerator[str, None]:
            yield "so far"
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

        async with App(pair[1].url) as app, Agent(pair[0].url, agent_id, handler=answer, name="Deaf"):
            session_id = await app.create(agent_id)
            said = await app.say(session_id, "go")
            await app.has_draft(session_id)
            await app.cancel(session_id, said["turnId"])
            async with asyncio.timeout(3):  # the next extend is ten seconds away
                await stopped.wait()

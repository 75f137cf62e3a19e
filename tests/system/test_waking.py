"""Waking workers over several replicas: what it costs, and what a lost hint or a lost client costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sessions_api.agents import presences
from sessions_api.keeper.keeper import Keeper
from sessions_api.store import Store
from tests.support.proxy import Proxy
from tests.support.replicas import stores
from tests.support.servers import RealServer, TestServer
from tests.support.service import Service
from tests.support.stores import AGENT, complete, say
from tests.support.waiters import Calls, Replica, is_waiting, metric, replica, session_of
from tests.support.waiting import eventually, until

BASE = "/api/messaging/sessions"
USER = "11111111-1111-4111-8111-111111111111"
REAL = ("valkey", "redis62", "debian")


@asynccontextmanager
async def replicas(url: str, number: int) -> AsyncIterator[list[Replica]]:
    """As many replicas, each with its own connections."""
    async with stores(url, number) as opened_stores, AsyncExitStack() as stack:
        yield [await stack.enter_async_context(replica(store)) for store in opened_stores]


@asynccontextmanager
async def kept(store: Store) -> AsyncIterator[None]:
    """A keeper that looks after all partitions, and knows who is there as the application has it."""
    keeper = Keeper(store, replica_id="keeper")
    await keeper.start()
    try:
        await until(lambda: len(keeper.kept) == 64)
        yield
    finally:
        await keeper.stop()


def is_idle(each: Replica, marker: str = "") -> bool:
    """Nothing is under way, and the marker was heard."""
    is_quiet = not each.desk._tasks and not each.desk._presences._telling
    return is_quiet and (not marker or marker in each.finder._stopped)


async def is_deaf_to_nothing(replicas: list[Replica]) -> None:
    """All hints so far have been heard, and what they led to is done."""
    replicas[0].store.redis.post(b"PUBLISH", replicas[0].store.keyspace.wake(AGENT), b"nobody marker")
    for each in replicas:
        await until(partial(is_idle, each, "marker"))


class TestOneMessage:
    async def test_to_a_thousand_waiters_on_three_replicas_costs_three_claims_at_most(
        self, server: TestServer
    ) -> None:
        async with replicas(server.url, 3) as three:
            waiting = [
                asyncio.create_task(three[number % 3].claim(worker=f"worker-{number}", wait_s=60))
                for number in range(1000)
            ]
            for number, each in enumerate(three):
                await is_waiting(each, 334 if number == 0 else 333)
            sid = await session_of(three[0].store)
            calls = Calls(*(each.store for each in three))
            await say(three[0].store, sid)
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            [turn] = [task.result() for task in done]
            assert turn is not None
            await complete(three[0].store, turn)
            await until(lambda: calls.of("claim") >= 3)  # each replica has heard of it, and asked
            await is_deaf_to_nothing(three)

            assert calls.of("claim") == 3
            for each in three:
                each.desk.drain()
            await asyncio.wait(waiting)
            assert sum(task.result() is not None for task in waiting) == 1

    async def test_claims_are_counted_by_what_they_brought(self, redis_url: str) -> None:
        async with replicas(redis_url, 2) as two:
            before = [metric("sessions_claims_total", outcome=each) for each in ("claimed", "taken")]
            waiting = [asyncio.create_task(each.claim()) for each in two]
            for each in two:
                await is_waiting(each)
            sid = await session_of(two[0].store)
            await say(two[0].store, sid)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in two:
                await until(partial(is_idle, each))
                each.desk.drain()
            await asyncio.wait(waiting)
            after = [metric("sessions_claims_total", outcome=each) for each in ("claimed", "taken")]

            assert after[0] - before[0] == 1
            assert after[1] - before[1] <= 1


class TestIdleWaiters:
    @pytest.mark.servers(*REAL)
    async def test_cost_redis_no_calls(self, server: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thousand of them over three replicas, for two seconds: the server counts what reaches it.

        What it gets are the probes of the replicas' subscriber connections.
        """
        monkeypatch.setattr(presences, "MARGIN_S", 60.0)
        async with replicas(server.url, 3) as three:
            waiting = [
                asyncio.create_task(three[number % 3].claim(worker=f"worker-{number}", wait_s=60))
                for number in range(1000)
            ]
            for each in three:
                await is_waiting(each, 333)
                await until(partial(is_idle, each))
            before = server.calls()
            sent = Calls(*(each.store for each in three))
            probes = sum(each.store.redis.stats.commands for each in three)
            await until(lambda: sum(each.store.redis.stats.commands for each in three) >= probes + 6)
            after = server.calls()
            grown = {name for name, calls in after.items() if calls > before.get(name, 0)}

            assert grown <= {"publish", "info", "client|setinfo", "client", "hello", "select", "ping"}
            assert sent.of("claim") == sent.of("attend") == 0
            for each in three:
                each.desk.drain()
            await asyncio.wait(waiting)


class TestALostHint:
    @pytest.mark.servers(*REAL)
    async def test_is_repeated_by_the_keeper(self, server: RealServer) -> None:
        """The replica is deaf while the message comes: nothing but a second hint can tell it."""
        async with stores(server.url, 2) as (near, far), replica(far) as here:
            waiting = asyncio.create_task(here.claim(wait_s=60))
            await is_waiting(here)
            await until(lambda: not here.desk._presences._telling)
            await near.agents.refresh()
            await near.attendance.refresh()
            sid = await session_of(near)
            here.finder._trails, trails = {}, here.finder._trails
            await say(near, sid)
            await is_deaf_to_nothing([here])
            here.finder._trails = trails
            calls = Calls(far)
            async with kept(near):
                turn = await asyncio.wait_for(waiting, 10)

            assert turn is not None
            assert turn.session_id == sid
            assert calls.of("claim") == 1
            assert calls.commands < 64  # no look at the partitions

    @pytest.mark.servers(*REAL)
    async def test_by_a_cut_connection_is_found_when_that_is_back(self, server: RealServer) -> None:
        async with (
            stores(server.url, 1) as (near,),
            Proxy(server.url) as proxy,
            stores(proxy.url, 1) as (far,),
            replica(far) as here,
        ):
            waiting = asyncio.create_task(here.claim(wait_s=60))
            await is_waiting(here)
            await proxy.refuse()
            await until(lambda: not here.finder._subscriber.is_up)
            sid = await session_of(near)
            await say(near, sid)
            await proxy.accept()
            turn = await asyncio.wait_for(waiting, 20)

            assert turn is not None
            assert turn.session_id == sid


class Worker:
    """Claims over HTTP from one replica."""

    def __init__(self, service: Service, http: httpx2.AsyncClient) -> None:
        self._url = f"{service.url}/api/agents/{AGENT}/turns/claim"
        self._http = http

    async def claim(self, *, wait: int = 30, worker: str = "worker-1") -> Any:
        reply = await self._http.post(f"{self._url}?wait={wait}", json={"worker": worker})
        return reply.json() if reply.status_code == 200 else reply.status_code


@asynccontextmanager
async def served(folder: Path, server: RealServer, number: int) -> AsyncIterator[list[Service]]:
    with ExitStack() as stack:
        services = [
            stack.enter_context(Service(folder, redis_url=server.url, name=f"replica-{each}"))
            for each in range(number)
        ]
        async with httpx2.AsyncClient() as http:
            body = {"name": "Workers", "kind": "worker"}
            reply = await http.put(f"{services[0].url}/api/agents/{AGENT}", json=body)
            assert reply.status_code == 201, reply.text
        yield services
        for service in services:
            service.assert_no_bug_logged()


async def a_session(http: httpx2.AsyncClient, service: Service) -> str:
    async def is_there() -> bool:
        reply = await http.get(f"{service.url}/api/agents/{AGENT}/availability")
        return reply.status_code == 200 and reply.json()["state"] != "offline"

    await eventually(is_there)
    body = {"agentId": AGENT, "userId": USER}
    reply = await http.post(f"{service.url}{BASE}", json=body)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["sessionId"])


async def waiters(http: httpx2.AsyncClient, service: Service) -> int:
    text = (await http.get(f"{service.url}/metrics")).text
    [line] = [line for line in text.splitlines() if line.startswith("sessions_waiting_workers ")]
    return int(float(line.split(" ")[1]))


@pytest.mark.servers("valkey")
class TestRealReplicas:
    async def test_whose_client_is_gone_give_the_turn_to_the_next_uncounted(
        self, server: RealServer, tmp_path: Path
    ) -> None:
        """It is released at once: the lease of ten seconds is longer than this test waits."""
        async with served(tmp_path, server, 1) as [service], httpx2.AsyncClient(timeout=60) as http:
            worker = Worker(service, http)
            leaving = asyncio.create_task(worker.claim(worker="leaves"))

            async def waits(number: int) -> bool:
                return await waiters(http, service) == number

            await eventually(lambda: waits(1))
            sid = await a_session(http, service)
            leaving.cancel()
            with suppress(asyncio.CancelledError):
                await leaving
            await http.post(f"{service.url}{BASE}/{sid}/messages", json={"content": "hello"})

            turn = await asyncio.wait_for(worker.claim(worker="stays"), 8)
            assert turn["session"]["sessionId"] == sid
            assert turn["attempt"] == 1
            await eventually(lambda: waits(0))

    async def test_that_drain_answer_those_who_wait(self, server: RealServer, tmp_path: Path) -> None:
        async with served(tmp_path, server, 2) as [leaving, staying], httpx2.AsyncClient(timeout=60) as http:
            waiting = [asyncio.create_task(Worker(leaving, http).claim()) for _ in range(10)]

            async def wait() -> bool:
                return await waiters(http, leaving) == 10

            await eventually(wait)
            leaving.ask_to_stop()

            assert await asyncio.wait_for(asyncio.gather(*waiting), 15) == [204] * 10
            sid = await a_session(http, staying)
            await http.post(f"{staying.url}{BASE}/{sid}/messages", json={"content": "hello"})
            turn = await asyncio.wait_for(Worker(staying, http).claim(), 15)
            assert turn["session"]["sessionId"] == sid

"""The world of a schedule: replicas, workers, a webhook, and where sessions are kept (``storages.py``)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx2
from starlette.responses import Response, StreamingResponse

from sessions_api.store.keys import Keyspace
from tests.chaos.processes import Replica, Worker
from tests.chaos.schedule import Schedule
from tests.chaos.storages import STORAGES
from tests.support.client import ECHO, eventually
from tests.support.webhook_server import SECRET, Received, Receiver

WORKER_AGENT = "c4a05000-0000-4000-8000-000000000001"
WEBHOOK_AGENT = "c4a05000-0000-4000-8000-000000000002"
AGENTS = {"echo": ECHO, "worker": WORKER_AGENT, "webhook": WEBHOOK_AGENT}

# The turn of a killed worker is handed out again when its time is up: soon, so that a schedule ends.
DEFINITION = {"turnTimeoutMs": 3_000, "maxAttempts": 5}

ENV = {
    "SESSIONS_ENV": "test",
    "SESSION_MIN_TIMEOUT_MINUTES": "0.005",
    "SESSION_RETENTION_MINUTES": "10",
    "SESSIONS_DRAIN_SECONDS": "2",
}
WORKERS = 2


class World:
    """Everything that runs; as a context manager it brings all up and takes it down again."""

    def __init__(self, folder: Path, schedule: Schedule) -> None:
        self._folder = folder
        self._size = schedule.replicas
        self._env = ENV | ({"SESSIONS_DURABILITY": "replicated"} if schedule.is_replicated else {})
        self.storage = STORAGES[schedule.topology]()
        self.replicas: list[Replica] = []
        self.workers: list[Worker] = []
        self.badly_ended: list[str] = []
        self.descriptors: list[int] = []
        """Of each replica, before anybody came."""
        self._receiver = Receiver(answer_webhook)
        self._stack = AsyncExitStack()

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.replicas]

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        urls = await self.storage.start(self._stack, self._folder, self._size)
        await self._stack.enter_async_context(self._receiver)
        for number, url in enumerate(urls):
            replica = Replica(self._folder, redis_url=url, env=self._env, name=f"replica-{number}")
            self.replicas.append(replica)
            self._stack.callback(_end, replica)
        await in_threads(replica.start for replica in self.replicas)
        await self._define()
        for number in range(WORKERS):
            url = self.urls[number % len(self.urls)]
            worker = Worker(self._folder, url, WORKER_AGENT, name=f"worker-{number}")
            self.workers.append(worker)
            self._stack.callback(worker.kill)
            await asyncio.to_thread(worker.start)
        for agent_id in AGENTS.values():
            await in_threads(partial(wait_until_available, url, agent_id) for url in self.urls)
        self.descriptors = [replica.descriptors for replica in self.replicas]

    async def _define(self) -> None:
        bodies: dict[str, dict[str, Any]] = {
            WORKER_AGENT: {"name": "Worker", "kind": "worker"},
            WEBHOOK_AGENT: {
                "name": "Webhook",
                "kind": "webhook",
                "config": {"url": self._receiver.url, "secret": SECRET},
            },
        }
        async with httpx2.AsyncClient(timeout=10) as http:
            for agent_id, body in bodies.items():
                reply = await http.put(f"{self.urls[0]}/api/agents/{agent_id}", json=DEFINITION | body)
                assert reply.status_code in {200, 201}, reply.text

    # ------------------------------------------------------------ afterwards

    async def stop_in_order(self) -> list[str]:
        """Workers, then replicas, by SIGTERM; what did not end as it should."""
        for worker in self.workers:
            if status := await asyncio.to_thread(worker.stop):
                self.badly_ended.append(f"{worker.name} ended with {status}")
        ends = await asyncio.gather(*(asyncio.to_thread(_stopped, replica) for replica in self.replicas))
        self.badly_ended += [f"replica {number} ended with {end}" for number, end in enumerate(ends) if end]
        return self.badly_ended

    async def immortal_keys(self) -> list[str]:
        """Keys without a TTL that are none of those that may be."""
        keyspace = Keyspace()
        keys = await self.storage.keys()
        return [key.decode() for key, ttl in keys.items() if ttl == -1 and not keyspace.is_standing(key)]


def _stopped(replica: Replica) -> int | str:
    """Its exit status, or why there is none."""
    try:
        return replica.stop()
    except AssertionError as error:
        return str(error)


def _end(replica: Replica) -> None:
    if replica.is_running:
        replica.kill()


def wait_until_available(url: str, agent_id: str) -> None:
    """Until the replica at *url* says that somebody serves the agent."""
    path = f"{url}/api/agents/{agent_id}/availability"
    eventually(lambda: httpx2.get(path, timeout=10).json().get("state") == "available", within_s=20)


async def in_threads(works: Iterable[Callable[[], object]]) -> None:
    """All at once; each of them blocks."""
    await asyncio.gather(*(asyncio.to_thread(work) for work in works))


def answer_webhook(received: Received) -> Response:
    """As the workers: which session this is, and what was said there."""
    turn = received.event["data"]
    text = "\n".join(message["content"] for message in turn["messages"])

    async def stream() -> AsyncIterator[str]:
        for word in f"{turn['session']['sessionId']} answers {text}".split(" "):
            yield f"event: delta\ndata: {json.dumps({'text': word + ' '})}\n\n"
            await asyncio.sleep(0.02)
        yield "event: done\ndata: {}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


async def until(condition: Callable[[], Awaitable[object]], *, within_s: float) -> bool:
    """Whether *condition* came to hold in time."""
    deadline_s = asyncio.get_running_loop().time() + within_s
    while not await condition():
        if asyncio.get_running_loop().time() > deadline_s:
            return False
        await asyncio.sleep(0.1)
    return True

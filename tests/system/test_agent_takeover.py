"""A replica killed while it asks an agent: another one asks again, and one answer stands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.support.client import BASE, Event, some_id
from tests.support.conversations import streamed
from tests.support.servers import launch
from tests.support.service import Service
from tests.support.waiting import eventually
from tests.support.webhook_server import SECRET, Received, Receiver

pytestmark = pytest.mark.timeout(120)

# The killed one's lease ends with its turn's time, so that nobody waits for long.
DEFINITION = {"name": "Taken over", "turnTimeoutMs": 3_000, "maxAttempts": 20}
ENV = {"SESSIONS_OUTGOING_ALLOW": "127.0.0.0/8"}
WORDS = "one two three four five six"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Service]]:
    """Two replicas, of which only the first is started: nobody else can have the turn."""
    server = launch("valkey", tmp_path / "redis")
    services = [Service(tmp_path / name, redis_url=server.url, env=ENV) for name in ("one", "two")]
    services[0].start()
    yield services
    statuses = [service.stop() for service in services]
    server.stop()
    assert statuses == [0, 0], [service.log[-3000:] for service in services]
    for service in services:
        service.assert_no_bug_logged()


class Agent:
    """One that is slow until it is told to hurry."""

    def __init__(self) -> None:
        self.agent_id = some_id()
        self.text = ""

    async def define(self, http: httpx2.AsyncClient, url: str, *, is_slow: bool) -> None:
        body = DEFINITION | self.definition(is_slow=is_slow)
        response = await http.put(f"{url}/api/agents/{self.agent_id}", json=body)
        assert response.status_code in {200, 201}, response.text

    def definition(self, *, is_slow: bool) -> dict[str, Any]:
        raise NotImplementedError

    def check(self, attempts: int) -> None:
        """Of what it saw itself."""


class Echo(Agent):
    """Says a word a second."""

    def __init__(self) -> None:
        super().__init__()
        self.text = f"echo: {WORDS}"

    def definition(self, *, is_slow: bool) -> dict[str, Any]:
        return {"kind": "echo", "config": {"delayMs": 1_000 if is_slow else 0}}


class Webhook(Agent):
    """Streams a word, and nothing more on that request; later ones it answers at once."""

    def __init__(self) -> None:
        super().__init__()
        self.text = "well then"
        self.is_slow = True
        self.receiver = Receiver(self._answer)

    def _answer(self, _received: Received) -> Response:
        if not self.is_slow:
            return JSONResponse({"content": self.text})

        async def stream() -> AsyncIterator[str]:
            yield f"event: delta\ndata: {json.dumps({'text': 'well '})}\n\n"
            await asyncio.Event().wait()  # until its caller is gone

        return StreamingResponse(stream(), media_type="text/event-stream")

    def definition(self, *, is_slow: bool) -> dict[str, Any]:
        self.is_slow = is_slow
        return {"kind": "webhook", "config": {"url": self.receiver.url, "secret": SECRET}}

    def check(self, attempts: int) -> None:
        seen = [received.headers["webhook-attempt"] for received in self.receiver.received]
        assert seen[0] == "1"
        assert seen[-1] == str(attempts)
        assert len({received.headers["webhook-id"] for received in self.receiver.received}) == 1


@asynccontextmanager
async def running(kind: str) -> AsyncIterator[Agent]:
    if kind == "echo":
        yield Echo()
        return
    agent = Webhook()
    async with agent.receiver:
        yield agent


@pytest.mark.parametrize("kind", ["echo", "webhook"])
async def test_a_replica_killed_in_mid_stream(pair: list[Service], kind: str) -> None:
    """Its poster asks again under the same key, elsewhere: one message, and the new attempt's answer."""
    first, second = pair
    async with running(kind) as agent, httpx2.AsyncClient(timeout=60) as http:
        await agent.define(http, first.url, is_slow=True)

        session_id = await session_with(agent, http, first.url)
        key = {"Idempotency-Key": some_id()}

        broken = await posted(http, first.url, session_id, key, until="chunk")
        await asyncio.to_thread(first.kill)
        await asyncio.to_thread(second.start)
        await agent.define(http, second.url, is_slow=False)
        whole = await posted(http, second.url, session_id, key)

        assert [name for name, _ in broken] == ["user_message", "chunk"]
        assert whole[0] == broken[0]
        name, done = whole[-1]
        assert name == "done"
        assert done["text"] == agent.text
        assert streamed([Event(None, *event) for event in whole]) == agent.text
        turn = (await http.get(f"{second.url}{BASE}/{session_id}/turns/{done['message']['turnId']}")).json()
        assert turn["state"] == "completed"
        assert turn["attempt"] >= 2
        history = (await http.get(f"{second.url}{BASE}/{session_id}/messages")).json()["messages"]
        assert [message["content"] for message in history] == [agent.text, WORDS]
        agent.check(turn["attempt"])


async def session_with(agent: Agent, http: httpx2.AsyncClient, url: str) -> str:
    """The id of a new session, once the agent is there."""
    found = ""

    async def is_created() -> bool:
        nonlocal found
        response = await http.post(f"{url}{BASE}", json={"agentId": agent.agent_id, "userId": some_id()})
        found = response.json().get("sessionId", "")
        return response.status_code == 201

    await eventually(is_created, within_s=30)
    return found


async def posted(
    http: httpx2.AsyncClient, url: str, session_id: str, headers: dict[str, str], *, until: str = ""
) -> list[tuple[str, Any]]:
    """The events of a streamed reply, up to the first called *until*."""
    events: list[tuple[str, Any]] = []
    body = {"content": WORDS, "transport": "sse", "timeoutMs": 90_000}
    name = ""
    async with http.stream(
        "POST", f"{url}{BASE}/{session_id}/messages", json=body, headers=headers
    ) as stream:
        assert stream.status_code == 200
        async for line in stream.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                events.append((name, json.loads(value)))
                if name == until:
                    break
    return events

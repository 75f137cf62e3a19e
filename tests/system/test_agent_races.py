"""An answer while a cancel is in flight: exactly one of the two wins, and everybody is told the same."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.client import BASE, some_id
from tests.support.crowd import all_of
from tests.support.load import Chat, followed
from tests.support.servers import launch
from tests.support.service import Service
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(120)

SESSIONS = 40


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Service]]:
    server = launch("valkey", tmp_path / "redis")
    services = [Service(tmp_path / name, redis_url=server.url) for name in ("one", "two")]
    for service in services:
        service.start()
    yield services
    statuses = [service.stop() for service in services]
    server.stop()
    assert statuses == [0, 0], [service.log[-3000:] for service in services]
    for service in services:
        service.assert_no_bug_logged()


class Race:
    """One session whose turn is completed and cancelled at once, through different replicas."""

    def __init__(self, chat: Chat, claiming: asyncio.Task[httpx2.Response]) -> None:
        self.chat = chat
        self._claiming = claiming
        self._path = f"{BASE}/{chat.session_id}"
        self.turn_id = ""
        self.answered: Any = None
        self.cancelled: Any = None
        self.posted: Any = None

    async def run(self, lead_s: float) -> None:
        """*lead_s*: by so much the cancel leaves earlier (negative: later) than the answer."""
        posting = asyncio.create_task(self._call(0, "messages", content="go", transport="http"))
        response = await self._claiming
        assert response.status_code == 200, response.text
        claimed = response.json()
        self.turn_id = claimed["turnId"]
        turn, fence = f"turns/{self.turn_id}", claimed["fence"]
        status, _ = await self._call(1, f"{turn}/delta", fence=fence, text="half", offset=0)
        assert status == 200
        self.answered, self.cancelled = await asyncio.gather(
            self._later(lead_s, self._call(1, f"{turn}/complete", fence=fence, content="half and half")),
            self._later(-lead_s, self._call(0, f"{turn}/cancel")),
        )
        self.posted = await posting
        # The worker asks again, as if its reply had been lost.
        assert await self._call(0, f"{turn}/complete", fence=fence, content="half and half") == self.answered

    async def _later(self, after_s: float, work: Any) -> Any:
        await asyncio.sleep(max(0.0, after_s))
        return await work

    async def _call(self, at: int, what: str, **body: Any) -> tuple[int, Any]:
        url = f"{self.chat.urls[at]}{self._path}/{what}"
        response = await self.chat.http.post(url, json=body, timeout=40)
        return response.status_code, response.json()

    async def winner(self, entries: list[dict[str, Any]]) -> str:
        """Hold all that anybody was told against the turn; *entries* are what a follower heard."""
        turn = (await self.chat.http.get(f"{self.chat.urls[1]}{self._path}/turns/{self.turn_id}")).json()
        state = str(turn["state"])
        is_cancelled = state == "cancelled"
        text, status = ("half", "cancelled") if is_cancelled else ("half and half", "complete")
        assert state in {"completed", "cancelled"}
        assert self.answered == (200, {"cancelled": is_cancelled})
        assert (self.cancelled[0], self.cancelled[1]["state"]) == (200, state)
        assert self.posted[0] == 201
        assert self.posted[1]["agentResponse"]["text"] == text
        assert self.posted[1]["agentResponse"]["message"]["status"] == status
        history = await self.chat.history()
        assert [message["content"] for message in history] == ["go", text]
        assert history[1]["status"] == status
        told = [{"turnId": self.turn_id, "by": "user"}] if is_cancelled else []
        assert entries == history + told
        return state


async def test_an_answer_and_a_cancel_at_once(pair: list[Service]) -> None:
    """Followers at both replicas, the poster, the worker, whoever cancels, and the history agree."""
    dice = random.Random(5)
    urls = [service.url for service in pair]
    async with httpx2.AsyncClient(timeout=20, limits=httpx2.Limits(max_connections=200)) as http:
        won: Counter[str] = Counter()
        races = await asyncio.gather(*(_race(http, urls) for _ in range(SESSIONS)))
        async with followed([race.chat for race in races]) as followers:
            await all_of([partial(race.run, dice.uniform(-0.01, 0.01)) for race in races], at_once=4)
            for race in races:
                last = (await _session(race.chat))["cursor"]
                for follower in (each for each in followers if each.chat is race.chat):
                    await follower.until(last)
                    assert follower.faults == []
                    won[await race.winner(follower.entries)] += 1
    print(f"won: {dict(won)}")
    assert won.total() == 2 * SESSIONS


async def _race(http: httpx2.AsyncClient, urls: list[str]) -> Race:
    """A session with an agent of its own, for whose turn a worker waits."""
    agent_id = some_id()
    agent = f"/api/agents/{agent_id}"
    response = await http.put(urls[0] + agent, json={"name": "Raced", "kind": "worker"})
    assert response.status_code == 201, response.text
    claim = http.post(f"{urls[1]}{agent}/turns/claim?wait=60", json={"worker": "racer"}, timeout=90)
    claiming = asyncio.create_task(claim)

    async def is_there() -> bool:
        return bool((await http.get(f"{urls[0]}{agent}/availability")).json()["state"] == "available")

    await eventually(is_there)
    response = await http.post(f"{urls[0]}{BASE}", json={"agentId": agent_id, "userId": some_id()})
    assert response.status_code == 201, response.text
    return Race(Chat(urls, response.json()["sessionId"], http), claiming)


async def _session(chat: Chat) -> dict[str, Any]:
    response = await chat.http.get(f"{chat.urls[0]}{BASE}/{chat.session_id}")
    session: dict[str, Any] = response.json()
    return session

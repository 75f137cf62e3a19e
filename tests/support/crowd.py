"""Many sessions that speak to one agent through several replicas, and the checker of what came of it.

Everybody repeats a message under its idempotency key, at the next replica, until
it is acknowledged. Afterwards :meth:`Crowd.check` holds all that was acknowledged
against the logs: each message there once and answered once, in order, by its own
session's answer, and nothing else there.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import httpx2

from tests.support.client import BASE
from tests.support.load import PATIENCE_S, Chat
from tests.support.waiting import eventually

ANSWERED_S = 120.0  # for the last of them


class Acknowledged(NamedTuple):
    """What the reply to a message said."""

    content: str
    message_id: str
    cursor: int
    turn_id: str


class Speaker(Chat):
    """One session; what it says is acknowledged in order."""

    def __init__(self, urls: Sequence[str], session_id: str, http: httpx2.AsyncClient) -> None:
        super().__init__(urls, session_id, http)
        self.said: list[Acknowledged] = []

    async def say(self, content: str, key: str, *, at: int) -> None:
        """Post until acknowledged, at replica *at* first."""
        path = f"{BASE}/{self.session_id}/messages"
        headers = {"Idempotency-Key": key, "Prefer": "return=minimal"}
        reply = await insist(self.http, self.urls, path, {"content": content}, headers, at=at)
        message = reply["userMessage"]
        self.said.append(Acknowledged(content, message["id"], reply["cursor"], reply["turnId"]))


async def insist(
    http: httpx2.AsyncClient,
    urls: Sequence[str],
    path: str,
    body: Any,
    headers: dict[str, str] | None = None,
    *,
    at: int,
) -> dict[str, Any]:
    """The JSON of a 201, from whichever replica gives one."""
    deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        refusal = "no reply"
        try:
            response = await http.post(f"{urls[at % len(urls)]}{path}", json=body, headers=headers)
            if response.status_code == 201:
                reply: dict[str, Any] = response.json()
                return reply
            refusal = response.text
            assert response.status_code == 503, refusal
        except httpx2.TransportError:
            pass
        assert asyncio.get_running_loop().time() < deadline_s, refusal
        at += 1
        await asyncio.sleep(0.05)


class Crowd:
    """The sessions of one agent; *dice* choose who speaks when and where."""

    def __init__(self, urls: Sequence[str], http: httpx2.AsyncClient, dice: random.Random) -> None:
        self._urls = list(urls)
        self._http = http
        self._dice = dice
        self.speakers: list[Speaker] = []

    @property
    def acknowledged(self) -> int:
        return sum(len(speaker.said) for speaker in self.speakers)

    async def gather(self, agent_id: str, size: int, *, at_once: int) -> None:
        """Create the sessions."""

        async def join(number: int) -> None:
            body = {"agentId": agent_id, "userId": str(_uuid(self._dice))}
            created = await insist(self._http, self._urls, BASE, body, at=number)
            self.speakers.append(Speaker(self._urls, created["sessionId"], self._http))

        await all_of([partial(join, number) for number in range(size)], at_once)

    async def speak(self, messages: int, *, at_once: int) -> None:
        """Everybody says so many, without waiting for answers; *at_once* sessions at a time."""

        async def speak(speaker: Speaker, plan: list[tuple[str, int]]) -> None:
            for number, (key, at) in enumerate(plan):
                await speaker.say(f"message {number}", key, at=at)

        plans = [
            (speaker, [(_uuid(self._dice), self._dice.randrange(len(self._urls))) for _ in range(messages)])
            for speaker in self.speakers
        ]
        self._dice.shuffle(plans)
        await all_of([partial(speak, *plan) for plan in plans], at_once)

    async def check(self, *, at_once: int) -> Counter[int]:
        """Wait until all is answered, and compare. How many answers came at which attempt."""
        attempts: Counter[int] = Counter()

        async def check(speaker: Speaker) -> None:
            attempts.update(check_one(speaker, await settled(speaker)))

        await all_of([partial(check, speaker) for speaker in self.speakers], at_once)
        return attempts


async def settled(speaker: Speaker) -> list[dict[str, Any]]:
    """The log once no turn is open."""

    async def is_settled() -> bool:
        response = await speaker.http.get(f"{speaker.urls[0]}{BASE}/{speaker.session_id}")
        assert response.status_code == 200, response.text
        return bool(response.json()["stage"] != "waiting")

    await eventually(is_settled, within_s=ANSWERED_S)
    return await speaker.history()


def check_one(speaker: Speaker, log: list[dict[str, Any]]) -> list[int]:
    """Hold the log against what was acknowledged. The attempts at which the answers came."""
    cursors = [message["cursor"] for message in log]
    assert cursors == sorted(set(cursors)), log
    spoken = [
        Acknowledged(message["content"], message["id"], message["cursor"], message["turnId"])
        for message in log
        if message["role"] == "user"
    ]
    assert spoken == speaker.said, "lost, doubled or in another order"
    answers = [message for message in log if message["role"] == "agent"]
    assert [answer["turnId"] for answer in answers] == [said.turn_id for said in speaker.said], log
    assert len({message["id"] for message in log}) == len(log) == 2 * len(speaker.said)
    for said, answer in zip(speaker.said, answers, strict=True):
        assert answer["content"] == f"{speaker.session_id} answers {said.content}"
        assert answer["cursor"] > said.cursor
        assert answer["status"] == "complete"
    found = [answer["metadata"]["attempt"] for answer in answers]
    assert min(found) >= 1
    return found


async def all_of(works: Sequence[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Do all of them, so many at once."""
    places = asyncio.Semaphore(at_once)

    async def one(work: Callable[[], Awaitable[None]]) -> None:
        async with places:
            await work()

    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(one(work))


def _uuid(dice: random.Random) -> str:
    text = f"{dice.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"

"""Posters and followers that go on through faults, and the checker that compares what they were told.

A poster repeats a message under its idempotency key until it is acknowledged. A
follower comes back with its cursor, to the next replica, whenever its stream
ends. Afterwards :func:`check` holds both against the history: nothing that was
acknowledged is missing, nothing came twice, nothing out of order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from tests.support.client import BASE, ECHO, some_id
from tests.support.streams import EventStream
from tests.support.waiting import until

PATIENCE_S = 75.0  # a turn whose worker was struck is handed out again when its lease of 30 s has lapsed
RETRY_S = 0.02
LOGGED = {"message.created", "turn.failed", "turn.cancelled"}


class Chat:
    """One session, spoken to and followed through several replicas."""

    def __init__(self, urls: Sequence[str], session_id: str, http: httpx2.AsyncClient) -> None:
        self.urls = list(urls)
        self.session_id = session_id
        self.http = http
        self.acknowledged: dict[str, int] = {}  # content → cursor
        self.refusals: list[
            tuple[int, str]
        ] = []  # status (0: no reply) and code of what was not acknowledged
        self.slowest_s = 0.0

    async def post(self, content: str, *, at: int = 0) -> None:
        """Post until acknowledged, at replica *at* first, then at the others in turn."""
        key = str(uuid.uuid4())
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + PATIENCE_S
        while content not in self.acknowledged:
            assert loop.time() < deadline_s, f"{content!r} was never acknowledged: {self.refusals[-5:]}"
            url = self.urls[at % len(self.urls)]
            started_s = loop.time()
            try:
                response = await self.http.post(
                    f"{url}{BASE}/{self.session_id}/messages",
                    json={"content": content, "onBusy": "merge"},
                    headers={"Idempotency-Key": key, "Prefer": "return=minimal"},
                )
            except httpx2.TransportError as error:
                self.refusals.append((0, type(error).__name__))
                at += 1
                await asyncio.sleep(RETRY_S)
                continue
            self.slowest_s = max(self.slowest_s, loop.time() - started_s)
            if response.status_code == 201:
                self.acknowledged[content] = response.json()["cursor"]
                return
            self.refusals.append((response.status_code, response.json()["error"]["code"]))
            if response.status_code == 503:
                assert int(response.headers["retry-after"]) >= 0
            at += 1
            await asyncio.sleep(RETRY_S)

    async def history(self, *, at: int = 0) -> list[dict[str, Any]]:
        """Every message, oldest first, read page by page."""
        messages: list[dict[str, Any]] = []
        before: dict[str, int] = {}
        while True:
            url = f"{self.urls[at]}{BASE}/{self.session_id}/messages"
            response = await self.http.get(url, params={"limit": 100} | before)
            assert response.status_code == 200, response.text
            page = response.json()
            messages += page["messages"]
            if not page["hasMore"]:
                return messages[::-1]
            before = {"before": page["cursors"]["before"]}

    async def settled(self) -> list[dict[str, Any]]:
        """The history once no turn is open."""
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            response = await self.http.get(f"{self.urls[0]}{BASE}/{self.session_id}")
            if response.status_code == 200 and response.json()["stage"] != "waiting":
                return await self.history()
            assert asyncio.get_running_loop().time() < deadline_s, response.text
            await asyncio.sleep(0.02)


class Follower:
    """Follows a session from its beginning, through ends and errors, until stopped."""

    def __init__(self, chat: Chat, *, at: int = 0) -> None:
        self.chat = chat
        self._at = at
        self.cursor = 0
        self.entries: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self.connections = 0
        self.closings: list[Any] = []
        self._task: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                await self._connection()
            self._at += 1
            await asyncio.sleep(RETRY_S)

    async def _connection(self) -> None:
        port = int(self.chat.urls[self._at % len(self.chat.urls)].rpartition(":")[2])
        path = f"{BASE}/{self.chat.session_id}/events"
        async with EventStream(port, path, {"Last-Event-ID": str(self.cursor)}) as stream:
            if stream.status != 200:
                return
            self.connections += 1
            while (frame := await stream.next(within_s=60)) is not None:
                if frame.event == "gap":
                    self.faults.append(f"gap: {frame.data}")
                elif frame.event == "closing":
                    self.closings.append(frame.data)
                elif frame.event in LOGGED:
                    self._take(frame.data)

    def _take(self, event: dict[str, Any]) -> None:
        if event["prev"] != self.cursor or event["cursor"] <= self.cursor:
            self.faults.append(f"at {self.cursor} came {event['prev']} → {event['cursor']}")
        self.cursor = event["cursor"]
        self.entries.append(event["data"])

    async def until(self, cursor: int) -> None:
        """Until it has heard of *cursor*."""
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while self.cursor < cursor:
            assert asyncio.get_running_loop().time() < deadline_s, (
                f"stuck at {self.cursor}, waiting for {cursor}"
            )
            await asyncio.sleep(0.01)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


@asynccontextmanager
async def chatting(urls: Sequence[str], *, sessions: int = 1) -> AsyncIterator[list[Chat]]:
    """New sessions with Echo, through all the replicas at *urls*."""
    async with httpx2.AsyncClient(timeout=10, limits=httpx2.Limits(max_connections=200)) as http:
        chats = []
        for _ in range(sessions):
            response = await http.post(f"{urls[0]}{BASE}", json={"agentId": ECHO, "userId": some_id()})
            assert response.status_code == 201, response.text
            chats.append(Chat(urls, response.json()["sessionId"], http))
        yield chats


@asynccontextmanager
async def followed(chats: list[Chat]) -> AsyncIterator[list[Follower]]:
    """A follower of each chat at each replica."""
    followers = [Follower(chat, at=at) for chat in chats for at in range(len(chat.urls))]
    for follower in followers:
        follower.start()
    try:
        yield followers
    finally:
        for follower in followers:
            await follower.stop()


async def talk(
    chats: list[Chat],
    prefix: str,
    count: int,
    *,
    pause_s: float = 0.0,
    enough: asyncio.Event | None = None,
) -> None:
    """Post *count* messages in each chat, or fewer once it is *enough*, at the replicas in turn."""

    async def in_one(chat: Chat) -> None:
        for number in range(count):
            if enough is not None and enough.is_set():
                return
            await chat.post(f"{prefix}{number}", at=number)
            await asyncio.sleep(pause_s)

    await asyncio.gather(*(in_one(chat) for chat in chats))


async def until_more_are_acknowledged(chats: list[Chat], more: int = 3) -> None:
    """Until *more* messages than now are acknowledged in each chat."""
    counts = [len(chat.acknowledged) + more for chat in chats]
    await until(
        lambda: all(len(chat.acknowledged) >= count for chat, count in zip(chats, counts, strict=True)),
        within_s=45,
    )


async def check(chats: list[Chat], followers: list[Follower]) -> None:
    """Hold what was acknowledged, and what each follower was told, against the history."""
    for chat in chats:
        history = await chat.settled()
        cursors = [message["cursor"] for message in history]
        assert cursors == sorted(set(cursors))
        spoken = {message["content"]: message["cursor"] for message in history if not message["isAgent"]}
        contents = [message["content"] for message in history if not message["isAgent"]]
        assert len(contents) == len(set(contents)), "a message came twice"
        missing = chat.acknowledged.items() - spoken.items()
        assert not missing, f"acknowledged and missing: {missing}"
        turns = {message["turnId"] for message in history}
        answered = [message["turnId"] for message in history if message["isAgent"]]
        assert sorted(answered) == sorted(turns), "a turn without an answer, or with two"
        for follower in followers:
            if follower.chat is chat:
                await follower.until(cursors[-1])
                assert follower.faults == [], follower.faults
                assert json.dumps(follower.entries) == json.dumps(history)

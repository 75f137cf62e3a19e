"""Posters and followers that go on through a failover, and what of theirs it may have lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.support.load import Chat, chatting, check
from tests.support.reloading import Reloading
from tests.support.sentinel import DOWN_AFTER_MS
from tests.support.service import Service
from tests.support.waiting import until

AWAY = frozenset({"redis_circuit_opened"})
STORAGE_UNAVAILABLE, NOT_REPLICATED = (503, "STORAGE_UNAVAILABLE"), (503, "NOT_REPLICATED")
REFUSALS = {
    STORAGE_UNAVAILABLE,
    NOT_REPLICATED,
    # The backlog: a claim whose answer was lost holds the session's turns for a lease of 10 s.
    (429, "RATE_LIMIT_EXCEEDED"),
}
DEADLINE_S = 2.5
PAUSE_S = 0.02
STALL_S = DOWN_AFTER_MS / 1000 + 30
"""A failover takes down-after and two seconds more, a lost claim ten; the rest is for a busy machine."""


class Talk:
    """Posters that go on through everything, each of their sessions followed at each replica."""

    def __init__(self, chats: list[Chat]) -> None:
        self.chats = chats
        self.followers = [Reloading(chat, at=at) for chat in chats for at in range(len(chat.urls))]
        self.lost = 0
        self._enough = asyncio.Event()

    async def talk(self, chat: Chat) -> None:
        number = 0
        while not self._enough.is_set():
            await chat.post(f"m{number}", at=number)
            number += 1
            await asyncio.sleep(PAUSE_S)

    @property
    def acknowledged(self) -> int:
        return sum(len(chat.acknowledged) for chat in self.chats)

    async def go_on(self, number: int = 30) -> None:
        """Until so many more messages are acknowledged in each session."""
        wanted = [len(chat.acknowledged) + number for chat in self.chats]
        await until(
            lambda: all(len(chat.acknowledged) >= n for chat, n in zip(self.chats, wanted, strict=True)),
            within_s=STALL_S,
        )

    async def refused(self, refusals: set[tuple[int, str]]) -> None:
        """Until each session has met one of *refusals*."""
        await until(lambda: all(refusals & {*chat.refusals} for chat in self.chats), within_s=STALL_S)

    def end(self) -> None:
        self._enough.set()

    async def check(self) -> None:
        """What was acknowledged and is not there is counted; all else must fit."""
        for chat in self.chats:
            history = {message["content"]: message["cursor"] for message in await chat.settled()}
            kept = {text: at for text, at in chat.acknowledged.items() if history.get(text) == at}
            self.lost += len(chat.acknowledged) - len(kept)
            chat.acknowledged = kept
        await check(self.chats, self.followers)  # type: ignore[arg-type]
        for chat in self.chats:
            assert set(chat.refusals) <= REFUSALS
            assert chat.slowest_s < DEADLINE_S + 2


@asynccontextmanager
async def talking(services: Sequence[Service], *, sessions: int = 3) -> AsyncIterator[Talk]:
    async with chatting([service.url for service in services], sessions=sessions) as chats:
        talk = Talk(chats)
        for follower in talk.followers:
            follower.start()
        talkers = [asyncio.create_task(talk.talk(chat)) for chat in chats]
        try:
            await talk.go_on()
            yield talk
            talk.end()
            await asyncio.gather(*talkers)
            await talk.check()
        finally:
            for task in talkers:
                task.cancel()
            for follower in talk.followers:
                await follower.stop()


def on_thread(action: Any, *args: Any) -> Any:
    return asyncio.to_thread(action, *args)


def assert_told(talk: Talk) -> None:
    """Whoever followed a session that lost something was told; and reloaded, or the check had failed."""
    if talk.lost:
        assert any(follower.rewound for follower in talk.followers)

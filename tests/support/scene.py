"""A store with sessions in it, and an agent that answers by hand: what live tests play with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

from sessions_api.domain.agents import ECHO_ID
from sessions_api.domain.ids import (
    LOCAL_APP,
    AgentId,
    SessionId,
    TurnId,
    UserId,
    new_message_id,
    new_op_id,
    new_session_id,
    new_turn_id,
)
from sessions_api.domain.messages import NewMessage, utf16_units
from sessions_api.domain.sessions import ConfigChange, NewSession, OnBusy, Session
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.domain.turns import Answer
from sessions_api.live.events import Event
from sessions_api.live.hub import Hub
from sessions_api.live.subscription import Subscription
from sessions_api.store import Redis, Store
from sessions_api.store.keys import Keyspace
from sessions_api.store.log import Appended
from sessions_api.wire.messages import answer_around, answer_body, user_body

USER = UserId("11111111-1111-4111-8111-111111111111")
AGENT = AgentId(ECHO_ID)
MINUTE_MS = 60_000


class Answering:
    """The agent's side of one claimed turn."""

    def __init__(
        self, store: Store, session_id: SessionId, turn_id: TurnId, fence: str, message_id: str
    ) -> None:
        self._turns = store.turns
        self.session_id = session_id
        self.turn_id = turn_id
        self.fence = fence
        self.message_id = message_id
        self.text = ""

    async def say(self, text: str) -> bool:
        offset = utf16_units(self.text)
        self.text += text
        written = await self._turns.delta(
            self.session_id, self.turn_id, fence=self.fence, text=text, offset=offset
        )
        return written.is_cancelled

    async def complete(self, content: str | None = None) -> bool:
        content = self.text if content is None else content
        body = answer_body(content, Answer())
        written = await self._turns.complete(self.session_id, self.turn_id, fence=self.fence, body=body)
        return written.is_cancelled

    async def complete_streamed(self, metadata: bytes = b"{}") -> bool:
        """The answer is what was said."""
        answer = Answer(metadata=metadata)
        written = await self._turns.complete(
            self.session_id,
            self.turn_id,
            fence=self.fence,
            around=answer_around(answer),
            is_more=answer.is_more,
        )
        return written.is_cancelled

    async def fail(self, *, retry: bool = False) -> bool:
        written = await self._turns.fail(
            self.session_id, self.turn_id, fence=self.fence, code="BOOM", message="It broke", retry=retry
        )
        return written.is_cancelled


class Scene:
    """One replica: its own connections to Redis, its store and its hub."""

    def __init__(self, url: str, **hub: Any) -> None:
        self.redis = Redis.from_url(url)
        self.store = Store(self.redis, Keyspace())
        self._hub_numbers = hub
        self.hub: Hub

    async def __aenter__(self) -> Self:
        self.hub = Hub(self.store, **self._hub_numbers)
        await self.redis.start()
        await self.hub.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.hub.stop()
        await self.redis.stop()

    async def session(
        self,
        *,
        timeout_ms: int = 30 * MINUTE_MS,
        retention_ms: int = 60 * MINUTE_MS,
        auto_renew: bool = True,
        max_duration_ms: int = 720 * MINUTE_MS,
        warning_ms: int = 0,
    ) -> Session:
        new = NewSession(
            session_id=new_session_id(USER),
            app=LOCAL_APP,
            agent_id=AGENT,
            user_id=USER,
            metadata=b"{}",
            config=TimeoutConfig(
                timeout_ms, auto_renew, max_duration_ms, warning_ms or min(5 * MINUTE_MS, timeout_ms // 2)
            ),
            on_busy="queue",
            retention_ms=retention_ms,
        )
        session, _ = await self.store.sessions.create(new)
        return session

    async def say(self, session_id: SessionId, content: str, *, on_busy: OnBusy | None = None) -> Appended:
        message_id = new_message_id()
        return await self.store.log.append(
            session_id,
            grant=LOCAL_APP,
            message=NewMessage(message_id, user_body(message_id, content, USER)),
            turn_id=new_turn_id(),
            on_busy=on_busy,
        )

    async def say_many(self, session_id: SessionId, count: int) -> None:
        """*count* messages, the last of which says so; answered now and then, since a backlog is bounded."""
        for number in range(count - 1):
            await self.say(session_id, f"more {number}", on_busy="merge")
            if number % 50 == 49:
                answering = await self.claim(session_id)
                await answering.complete("")
        await self.say(session_id, "last", on_busy="merge")

    async def claim(self, session_id: SessionId, *, max_attempts: int = 3) -> Answering:
        claim = await self.store.turns.claim(
            session_id,
            agent_id=AGENT,
            worker="test",
            fence_bits=new_op_id(),
            message_id=new_message_id(),
            turn_ms=300_000,
            max_attempts=max_attempts,
        )
        assert claim.turn is not None
        turn = claim.turn.turn
        return Answering(self.store, session_id, turn.turn_id, turn.fence, turn.message_id)

    async def answer(self, session_id: SessionId, content: str) -> None:
        answering = await self.claim(session_id)
        await answering.say(content)
        await answering.complete()

    async def configure(self, session_id: SessionId, *, timeout_ms: int) -> Session:
        change = ConfigChange(timeout_ms=("s", timeout_ms))
        return await self.store.sessions.configure(session_id, grant=LOCAL_APP, op=new_op_id(), change=change)

    async def follow(self, session_id: SessionId, after: int | None = None) -> Follower:
        return Follower(await self.hub.follow(session_id, grant=LOCAL_APP, after=after))


class Follower:
    """Reads a subscription, with a deadline."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.events: list[Event] = []

    async def next(self, *, within_s: float = 10) -> Event:
        async with asyncio.timeout(within_s):
            event = await self.subscription.next()
        self.events.append(event)
        return event

    async def until(self, wanted: str | Callable[[Event], bool], *, within_s: float = 10) -> list[Event]:
        """The events up to the first of type *wanted*, or for which it holds."""
        seen: list[Event] = []
        while True:
            seen.append(await self.next(within_s=within_s))
            event = seen[-1]
            if event.type == wanted if isinstance(wanted, str) else wanted(event):
                return seen
            assert event.closing is None, types(seen)

    def close(self) -> None:
        self.subscription.close()


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def contents(events: list[Event]) -> list[str]:
    """The contents of all messages among *events*."""
    return [data(event)["content"] for event in events if event.type == "message.created"]


def data(event: Event) -> Any:
    return json.loads(event.data)

"""The store as the measurements use it: users, sessions and conversations in tick batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import msgspec

from sessions_api.domain.agents import ECHO_ID
from sessions_api.domain.ids import (
    LOCAL_APP,
    AgentId,
    SessionId,
    UserId,
    new_message_id,
    new_op_id,
    new_session_id,
    new_turn_id,
)
from sessions_api.domain.messages import NewMessage
from sessions_api.domain.sessions import NewSession
from sessions_api.domain.timeouts import MINUTE_MS, TimeoutConfig
from sessions_api.store import Redis, Store
from sessions_api.store.attendance import Presence
from sessions_api.store.keys import Keyspace
from sessions_api.store.turns import Claim

T = TypeVar("T")
A = TypeVar("A")

METADATA = (
    b'{"plan":"pro","locale":"en-GB","page":"/pricing","referrer":"newsletter","campaign":"autumn-sale24"}'
)
"""100 bytes: the budget for a session's memory counts on at most so many."""
CONFIG = TimeoutConfig(30 * MINUTE_MS, True, 720 * MINUTE_MS, 5 * MINUTE_MS)
RETENTION_MS = 60 * MINUTE_MS
QUESTION = "Could you tell me which plan fits a team of five, and what it costs per month?"
ANSWER = "For five people the Team plan fits best: 12 euro per person and month, billed yearly. " * 2


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """A store of this process. A long deadline: batches are large, and nobody waits."""
    async with Redis.from_url(url, deadline_ms=60_000, reply_timeout_s=60) as redis:
        store = Store(redis, Keyspace())
        await store.open()
        yield store


async def info(store: Store, section: str) -> dict[str, str]:
    text: bytes = await store.redis.command(b"INFO", section, safe=True)
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


class Ran(NamedTuple):
    """How often Redis ran a command since its start, and for how many microseconds."""

    calls: int = 0
    us: int = 0


async def commands(store: Store) -> dict[str, Ran]:
    """By their names, all commands that Redis ran: those in scripts, too."""
    ran = {}
    for name, text in (await info(store, "commandstats")).items():
        values = dict(pair.split("=") for pair in text.split(","))
        ran[name.removeprefix("cmdstat_")] = Ran(int(values["calls"]), int(values["usec"]))
    return ran


async def scripts_of(store: Store) -> Ran:
    """The scripts that Redis knew already."""
    return (await commands(store)).get("evalsha", Ran())


async def in_batches(calls: Iterable[Awaitable[T]], size: int = 500) -> list[T]:
    """Await *calls*, *size* of them in flight in one tick of the event loop."""
    pending = iter(calls)
    results: list[T] = []
    while batch := list(islice(pending, size)):
        results += await asyncio.gather(*batch)
    return results


async def open_sessions(
    store: Store,
    count: int,
    *,
    config: TimeoutConfig | Callable[[int], TimeoutConfig] = CONFIG,
    user_id: UserId | None = None,
    agent_id: AgentId = ECHO_ID,
) -> list[SessionId]:
    """*count* idle sessions, each of another user unless *user_id* says whose.

    *config* may be made for each by its number, right before it is opened.
    """

    def opening() -> Iterable[Awaitable[Any]]:
        for number in range(count):
            user = user_id or UserId(str(uuid4()))
            yield store.sessions.create(
                NewSession(
                    session_id=new_session_id(user),
                    app=LOCAL_APP,
                    agent_id=agent_id,
                    user_id=user,
                    metadata=METADATA,
                    config=config if isinstance(config, TimeoutConfig) else config(number),
                    on_busy="queue",
                    retention_ms=RETENTION_MS,
                ),
                max_open=1_000_000,
            )

    return [session.session_id for session, _ in await in_batches(opening())]


def body(content: str) -> bytes:
    """A message as the log stores it."""
    return msgspec.json.encode({"id": new_message_id(), "content": content, "metadata": {}})


async def say(store: Store, session_id: SessionId, content: str = QUESTION) -> None:
    message = NewMessage(new_message_id(), body(content))
    await store.log.append(session_id, grant=LOCAL_APP, message=message, turn_id=new_turn_id())


async def claim(store: Store, session_id: SessionId, history: int = 50) -> Claim:
    return await store.turns.claim(
        session_id,
        agent_id=ECHO_ID,
        worker="bench",
        fence_bits=new_op_id(),
        message_id=new_message_id(),
        turn_ms=300_000,
        max_attempts=3,
        history=history,
    )


async def attend(store: Store) -> None:
    """Somebody is there for Echo, for a day, so that sessions with it may be created; it answers nothing."""
    await store.attendance.attend([Presence(ECHO_ID, "bench", 1_000, 86_400_000, is_free=True)])


async def answer(store: Store, session_id: SessionId, content: str = ANSWER) -> None:
    """Claim the session's next turn and complete it."""
    taken = (await claim(store, session_id, history=0)).turn
    if taken is None:
        raise RuntimeError(f"no turn to claim in {session_id}")
    reply = msgspec.json.encode({"content": content, "metadata": {}})
    await store.turns.complete(session_id, taken.turn.turn_id, fence=taken.turn.fence, body=reply)


async def each(items: Sequence[A], do: Callable[[A], Awaitable[T]]) -> list[T]:
    """*do* with each of *items*, in tick batches."""
    return await in_batches(do(item) for item in items)


async def until_over(store: Store, session_id: SessionId) -> None:
    """Wait until the session's end has passed, by Redis's clock.

    Raises:
        RuntimeError: there is no such session.
    """
    while True:
        position = (await store.log.positions([session_id]))[session_id]
        if position is None:
            raise RuntimeError(f"session {session_id} is gone")
        if position.is_over:
            return
        left_s = position.end_ms / 1000 - time.time()  # only a guess of when to look again
        await asyncio.sleep(min(max(left_s, 0.01), 1.0))

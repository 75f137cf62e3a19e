"""Several replicas in one test: each with its own connection, and one listener to all that is published."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from sessions_api.domain.agents import ECHO_ID, AgentDefinition
from sessions_api.domain.ids import SessionId
from sessions_api.live.events import facts_of
from sessions_api.store import Redis, Store
from sessions_api.store.keys import Keyspace
from sessions_api.store.pubsub import Subscriber


@asynccontextmanager
async def stores(url: str, number: int) -> AsyncIterator[list[Store]]:
    """As many opened stores, each as a replica has it."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(number):
            redis = await stack.enter_async_context(Redis.from_url(url))
            store = Store(redis, Keyspace())
            await store.open()
            found.append(store)
        yield found


class Facts:
    """What was published on the sessions' live channels, by session."""

    def __init__(self) -> None:
        self.types: dict[SessionId, list[str]] = {}
        self.on_fact: Callable[[SessionId, str], None] = lambda _session_id, _kind: None

    def hear(self, channel: bytes, payload: bytes) -> None:
        session_id = SessionId(channel[-36:].decode())
        for words, _ in facts_of(payload):
            self.types.setdefault(session_id, []).append(words[0])
            self.on_fact(session_id, words[0])

    def count(self, session_id: SessionId) -> Counter[str]:
        return Counter(self.types.get(session_id, []))

    def all_have(self, session_ids: Iterable[SessionId], kind: str) -> bool:
        return all(kind in self.types.get(session_id, []) for session_id in session_ids)


@asynccontextmanager
async def facts(store: Store) -> AsyncIterator[Facts]:
    """Hear everything from now on."""
    heard = Facts()
    subscriber = Subscriber(store.redis, on_message=heard.hear, on_resubscribed=lambda: None)
    await subscriber.start()
    try:
        await subscriber.psubscribe(store.keyspace.prefix.encode() + b"live:*")
        yield heard
    finally:
        await subscriber.stop()


def echo(**settings: object) -> AgentDefinition:
    """The built-in agent's definition."""
    return AgentDefinition(ECHO_ID, "Echo", "echo", **settings)  # type: ignore[arg-type]

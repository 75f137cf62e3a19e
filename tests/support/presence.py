"""Agents that are there and answer nothing, for tests in which a turn has to stay as it is.

Whoever creates a session with an agent that is offline gets 503; a replica
without a dispatcher makes nobody present. What a worker would say, is said here.
"""

from __future__ import annotations

import asyncio

from sessions_api.domain.ids import AgentId
from sessions_api.store import Redis, Store
from sessions_api.store.attendance import Presence
from sessions_api.store.keys import Keyspace

HOUR_MS = 3_600_000


async def attend(store: Store, *agent_ids: str, ttl_ms: int = HOUR_MS) -> None:
    """Somebody is there for the agents, with places enough, for an hour."""
    await store.attendance.attend(
        [Presence(AgentId(agent_id), "nobody", 1_000, ttl_ms, is_free=True) for agent_id in agent_ids]
    )


def attend_at(redis_url: str, *agent_ids: str, key_prefix: str) -> None:
    """:meth:`attend` for a service in another process, by the Redis that both know."""

    async def say_so() -> None:
        async with Redis.from_url(redis_url) as redis:
            await attend(Store(redis, Keyspace(key_prefix)), *agent_ids)

    asyncio.run(say_so())

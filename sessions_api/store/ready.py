"""Work by agent: which sessions wait to be claimed, and which have a turn that runs.

Both are indexes of every partition (``ready``, ``running``), kept by the scripts
of turns; here they are only read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sessions_api.domain.ids import PARTITIONS, AgentId, SessionId
from sessions_api.store.loader import load

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sessions_api.store.scripts import Scripts

STALE = load("stale")
STALE_READY_MS: Final = 500
OPEN_PER_PARTITION: Final = 100


class Ready:
    """Finds work, and counts it."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def open_of(self, agent_id: AgentId) -> list[SessionId]:
        """Sessions of the agent with a turn that runs or could be claimed. One round trip.

        At most a hundred of each from each partition: call again when they are
        done with. A turn that pauses between two attempts is not among them; its
        alarm makes it ready, within a minute.
        """
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        batches = await asyncio.gather(
            *(
                redis.command(
                    b"ZRANGEBYLEX", key, *_span(agent_id), b"LIMIT", 0, OPEN_PER_PARTITION, safe=True
                )
                for number in range(PARTITIONS)
                for key in (keyspace.partition(number).running, keyspace.partition(number).ready)
            )
        )
        return [SessionId(member[-36:].decode()) for batch in batches for member in batch]

    async def counts(self, agent_id: AgentId) -> tuple[int, int]:
        """How many of the agent's turns run, and how many sessions wait to be claimed. One round trip."""
        numbers = await asyncio.gather(*self.counting(agent_id))
        return sum(numbers[:PARTITIONS]), sum(numbers[PARTITIONS:])

    def counting(self, agent_id: AgentId) -> list[Awaitable[int]]:
        """The calls of :meth:`counts`: running of each partition, then waiting of each.

        To be gathered with other calls, so that all share one round trip.
        """
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        return [
            redis.command(
                b"ZLEXCOUNT", getattr(keyspace.partition(number), index), *_span(agent_id), safe=True
            )
            for index in ("running", "ready")
            for number in range(PARTITIONS)
        ]

    async def next_ready(self, agent_id: AgentId) -> list[SessionId]:
        """The agent's first session with work in each partition. One round trip for all 64."""
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        batches = await asyncio.gather(
            *(
                redis.command(
                    b"ZRANGEBYLEX",
                    keyspace.partition(number).ready,
                    *_span(agent_id),
                    b"LIMIT",
                    0,
                    1,
                    safe=True,
                )
                for number in range(PARTITIONS)
            )
        )
        return [SessionId(member[-36:].decode()) for batch in batches for member in batch]

    async def stale_ready(self, partition: int, limit: int = 100) -> list[tuple[AgentId, SessionId]]:
        """For each agent whose work waits for longer than half a second, its oldest session here."""
        key = self._scripts.keyspace.partition(partition).ready
        members = await self._scripts.redis.script(STALE, [key], (STALE_READY_MS, limit))
        return [(AgentId(member[:36].decode()), SessionId(member[-36:].decode())) for member in members]

    def wake(self, agent_id: AgentId, session_id: SessionId) -> None:
        """Hint again that a session of the agent has work; may get lost, as hints do."""
        self._scripts.redis.post(b"PUBLISH", self._scripts.keyspace.wake(agent_id), session_id)


def _span(agent_id: AgentId) -> tuple[str, str]:
    """The lexical range of an agent's members in ``ready`` and ``running``."""
    return f"[{agent_id}:", f"({agent_id};"

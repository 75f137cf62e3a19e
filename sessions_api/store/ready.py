"""Work by agent: which sessions wait to be claimed, and which have a turn that runs.

Both are indexes of every partition (``ready``, ``running``), kept by the scripts
of turns; here they are only read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from sessions_api.domain.ids import PARTITIONS, AgentId, SessionId
from sessions_api.store.loader import load
from sessions_api.store.parts import from_those_there

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sessions_api.store.scripts import Scripts

STALE = load("stale")
STALE_READY_MS: Final = 500
OPEN_PER_PARTITION: Final = 100


class Waiting(NamedTuple):
    """Sessions with work; not *is_whole*: a server of a cluster was away, and could not tell of its own."""

    session_ids: list[SessionId]
    is_whole: bool


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

    def counts(self, agent_id: AgentId) -> Awaitable[tuple[int, int]]:
        """How many of the agent's turns run, and how many sessions wait to be claimed.

        Of a cluster, on the servers that are there. One round trip, which begins at
        once: others can share it.

        Raises:
            StorageUnavailable: none is.
        """
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        return _halves(
            from_those_there(
                redis.command(
                    b"ZLEXCOUNT", getattr(keyspace.partition(number), index), *_span(agent_id), safe=True
                )
                for index in ("running", "ready")
                for number in range(PARTITIONS)
            )
        )

    async def next_ready(self, agent_id: AgentId) -> Waiting:
        """The agent's first session with work in each partition. One round trip for all 64.

        Raises:
            StorageUnavailable: no partition could tell.
        """
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        batches: list[list[bytes] | None] = await from_those_there(
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
        found = [SessionId(member[-36:].decode()) for batch in batches for member in batch or ()]
        return Waiting(found, None not in batches)

    async def stale_ready(self, partition: int, limit: int = 100) -> list[tuple[AgentId, SessionId]]:
        """For each agent whose work waits for longer than half a second, its oldest session here."""
        key = self._scripts.keyspace.partition(partition).ready
        members = await self._scripts.redis.script(STALE, [key], (STALE_READY_MS, limit))
        return [(AgentId(member[:36].decode()), SessionId(member[-36:].decode())) for member in members]

    def wake(self, agent_id: AgentId, session_id: SessionId) -> None:
        """Hint again that a session of the agent has work; may get lost, as hints do."""
        self._scripts.redis.post(b"PUBLISH", self._scripts.keyspace.wake(agent_id), session_id)


async def _halves(counts: Awaitable[list[int | None]]) -> tuple[int, int]:
    numbers = [count or 0 for count in await counts]
    return sum(numbers[:PARTITIONS]), sum(numbers[PARTITIONS:])


def _span(agent_id: AgentId) -> tuple[str, str]:
    """The lexical range of an agent's members in ``ready`` and ``running``."""
    return f"[{agent_id}:", f"({agent_id};"

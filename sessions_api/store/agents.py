"""Agents' definitions: in Redis for all replicas, read twice a second into the process.

They are one hash, so that a list is one read and a change is seen by all: its
field ``version`` rises with each change, and a replica reads the hash only when
it has. Creating a session therefore costs no extra round trip to know its agent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import PARTITIONS, AgentId
from sessions_api.errors import AgentNotFound
from sessions_api.store.loader import load
from sessions_api.store.scripts import unknown

if TYPE_CHECKING:
    from sessions_api.store.scripts import Scripts

DEFINE = load("define")
UNDEFINE = load("undefine")
SERVING = load("serving")

_decode = msgspec.json.Decoder(AgentDefinition).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


class Agents:
    """Definitions by agent id, from this process's copy."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._definitions: dict[AgentId, AgentDefinition] = {}
        self._version = -1

    def get(self, agent_id: AgentId) -> AgentDefinition | None:
        """The definition as this process last read it, at most half a second ago."""
        return self._definitions.get(agent_id)

    def all(self) -> list[AgentDefinition]:
        return sorted(self._definitions.values(), key=lambda definition: definition.agent_id)

    async def find(self, agent_id: AgentId) -> AgentDefinition:
        """The definition; asks Redis once if this process does not know it.

        Raises:
            AgentNotFound
        """
        known = self._definitions.get(agent_id)
        if known is None:
            await self.refresh()
            known = self._definitions.get(agent_id)
        if known is None:
            raise AgentNotFound(agent_id)
        return known

    async def put(self, definition: AgentDefinition) -> bool:
        """Define an agent; whether it is new. The last definition wins, the same again changes nothing."""
        key = self._scripts.keyspace.definitions
        reply = await self._scripts.redis.script(DEFINE, [key], (definition.agent_id, _encode(definition)))
        self._definitions[definition.agent_id] = definition
        match reply:
            case [b"new"]:
                return True
            case [b"changed" | b"same"]:
                return False
            case _:
                raise unknown(DEFINE, reply)

    async def forget(self, agent_id: AgentId) -> bool:
        """Forget a definition; False if there was none. What the agent's sessions hold stays."""
        key = self._scripts.keyspace.definitions
        reply, repeated = await self._scripts.redis.script_reply(UNDEFINE, [key], (agent_id,))
        self._definitions.pop(agent_id, None)
        match reply:
            case [b"ok"]:
                return True
            case [b"unknown"]:
                return repeated
            case _:
                raise unknown(UNDEFINE, reply)

    async def sessions_of(self, agent_id: AgentId) -> int:
        """How many live sessions the agent has, of all apps. One round trip."""
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        counts = await asyncio.gather(
            *(
                redis.script(SERVING, [keyspace.partition(number).agents], (agent_id,))
                for number in range(PARTITIONS)
            )
        )
        return sum(counts)

    async def refresh(self) -> bool:
        """Read the definitions if they changed; whether they had."""
        key = self._scripts.keyspace.definitions
        redis = self._scripts.redis
        version = int(await redis.command(b"HGET", key, b"version", safe=True) or 0)
        if version == self._version:
            return False
        flat = await redis.command(b"HGETALL", key, safe=True)
        pairs = dict(zip(flat[::2], flat[1::2], strict=True))
        self._version = int(pairs.pop(b"version", 0))
        self._definitions = {AgentId(agent_id.decode()): _decode(text) for agent_id, text in pairs.items()}
        return True

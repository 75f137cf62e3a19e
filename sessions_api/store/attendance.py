"""Which agents are there: presences of their workers, and the state those make.

A worker (a process that long-polls, a replica's dispatcher) says that it is
there for so long, free or not. An agent is ``offline`` when no presence of it
lives, ``available`` when one that lives is free, else ``busy``. It is at once no
longer offline, or offline when its last worker says goodbye; a worker that died
is noticed when its presence has passed, by :meth:`Attendance.settle`, once a
second. Between available and busy an agent changes every two seconds at most,
since each change goes to every follower of each of its sessions.

The states are one hash with a ``version``, read as the definitions are
(``agents.py``): a process compares it twice a second, so that whether an agent
is there costs no request a round trip. All keys lie in one slot: a replica
attends for all of its agents in one script, and the states have one version.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from sessions_api.domain.agents import AgentState, Availability
from sessions_api.domain.ids import AgentId
from sessions_api.store import alarms
from sessions_api.store.loader import load
from sessions_api.store.scripts import unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sessions_api.store.connection import Script
    from sessions_api.store.lines import Arg
    from sessions_api.store.ready import Ready
    from sessions_api.store.scripts import Scripts

ATTEND = load("attend")
SETTLE = load("settle")
DISMISS = load("dismiss")

SETTLED_AT_ONCE: Final = 200
OFFLINE: Final = AgentState()


class Presence(msgspec.Struct, frozen=True):
    """A worker serves an agent, for *ttl_ms* from now.

    *capacity*: turns it takes at once, 0: as many as it said last. *by*: the
    replica that says so; a worker may wait at several, and is free while it is at
    one of them. Neither name has a space in it.
    """

    agent_id: AgentId
    worker: str
    capacity: int
    ttl_ms: int
    is_free: bool
    by: str = ""


class Attendance:
    """States of agents, from this process's copy; each method but the last two steps is one script."""

    def __init__(self, scripts: Scripts, ready: Ready) -> None:
        self._scripts = scripts
        self._ready = ready
        self._states: dict[AgentId, AgentState] = {}
        self._told: dict[AgentId, AgentState] = {}
        self._version = 0

    async def attend(self, presences: Sequence[Presence]) -> None:
        """Say of workers that they are there, all in one script."""
        if presences:
            await self._run(
                ATTEND,
                [each.agent_id for each in presences],
                [
                    arg
                    for each in presences
                    for arg in (
                        each.agent_id,
                        each.worker,
                        each.ttl_ms,
                        int(each.is_free),
                        each.capacity,
                        each.by,
                    )
                ],
            )

    async def leave(self, agent_id: AgentId, worker: str) -> None:
        """The worker is there no longer, whoever knew of it; the last one takes its agent offline."""
        await self._run(ATTEND, [agent_id], (agent_id, worker, 0, 0, 0, ""))

    async def settle(self) -> None:
        """Look at the agents of which a presence may have passed; nothing was due: one call."""
        redis, key = self._scripts.redis, self._scripts.keyspace.presence
        while True:
            _now, _next, due = await redis.script(alarms.DUE, [key], (SETTLED_AT_ONCE,))
            if due:
                await self._run(SETTLE, [AgentId(agent_id.decode()) for agent_id in due], due)
            if len(due) < SETTLED_AT_ONCE:
                return

    async def forget(self, agent_id: AgentId) -> None:
        """Keep nothing of the agent: whoever still serves it is nobody."""
        await self._run(DISMISS, [agent_id], (agent_id,))

    def state(self, agent_id: AgentId) -> AgentState:
        """The agent's state as this process last read it, at most half a second ago."""
        return self._states.get(agent_id, OFFLINE)

    async def confirm(self, agent_id: AgentId) -> AgentState:
        """The agent's state, asked of Redis now."""
        text = await self._scripts.redis.command(b"HGET", self._scripts.keyspace.states, agent_id, safe=True)
        state = _state_of(text)
        self._states[agent_id] = state
        return state

    async def refresh(self) -> dict[AgentId, AgentState]:
        """Read the states if they changed; those that are others than at the last call."""
        redis, key = self._scripts.redis, self._scripts.keyspace.states
        version = int(await redis.command(b"HGET", key, b"version", safe=True) or 0)
        if version == self._version:
            return {}
        flat = await redis.command(b"HGETALL", key, safe=True)
        pairs = dict(zip(flat[::2], flat[1::2], strict=True))
        self._version = int(pairs.pop(b"version", 0))
        self._states = {AgentId(agent_id.decode()): _state_of(text) for agent_id, text in pairs.items()}
        changed = {
            agent_id: self.state(agent_id)
            for agent_id in self._states.keys() | self._told.keys()
            if self.state(agent_id) != self._told.get(agent_id, OFFLINE)
        }
        self._told = dict(self._states)
        return changed

    async def read(self, agent_id: AgentId) -> Availability:
        """The agent's state with what it rests on. One round trip.

        Turns are counted on those servers of a cluster that are there.
        """
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        time, text, flat, (running, waiting) = await asyncio.gather(
            redis.command(b"TIME", safe=True),
            redis.command(b"HGET", keyspace.states, agent_id, safe=True),
            redis.command(b"HGETALL", keyspace.workers(agent_id), safe=True),
            self._ready.counts(agent_id),
        )
        now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        capacities: dict[bytes, int] = {}  # by worker, whatever the replica
        for name, presence in zip(flat[::2], flat[1::2], strict=True):
            until_ms, _free, capacity = map(int, presence.split())
            worker = name.split(b" ")[0]
            if until_ms > now_ms:
                capacities[worker] = max(capacity, capacities.get(worker, 0))
        state = _state_of(text)
        return Availability(
            state=state.state,
            since_ms=state.since_ms,
            workers=len(capacities),
            capacity=sum(capacities.values()),
            running=running,
            waiting=waiting,
        )

    async def _run(self, script: Script, agent_ids: Sequence[AgentId], args: Sequence[Arg]) -> None:
        keyspace = self._scripts.keyspace
        keys = [keyspace.presence, keyspace.states, *map(keyspace.workers, agent_ids)]
        reply = await self._scripts.redis.script(script, keys, args)
        if reply != [b"ok"]:
            raise unknown(script, reply)


def _state_of(text: bytes | None) -> AgentState:
    """From ``<state> <since_ms>``."""
    if text is None:
        return OFFLINE
    state, since_ms = text.decode().split()
    return AgentState(state, int(since_ms))  # type: ignore[arg-type]  # written by lib/attendance.lua alone

"""A dispatcher of agents whose connectors answer as they are told, and turns for it to find."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sessions_api.agents.connectors import Connector
from sessions_api.agents.dispatcher import Dispatcher
from sessions_api.agents.finder import Finder
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import AgentId, SessionId, UserId
from sessions_api.domain.turns import Answer, ClaimedTurn, Turn
from sessions_api.store import Store
from tests.support.stores import opened, say
from tests.support.waiting import eventually

AGENTS = [AgentId(f"{number:08x}-aaaa-4aaa-8aaa-aaaaaaaaaaaa") for number in range(6)]
AGENT = AGENTS[0]


class Says:
    """Ends each turn with *pieces*."""

    def __init__(self, *pieces: str | Answer | Exception) -> None:
        self._pieces = pieces

    async def answer(
        self, turn: ClaimedTurn, definition: AgentDefinition
    ) -> AsyncGenerator[str | Answer, None]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class Hangs:
    """Says *piece*, then nothing more; an agent of *others* answers at once."""

    def __init__(self, *hanging: AgentId, piece: str = "") -> None:
        self.hanging = hanging or (AGENT,)
        self.piece = piece
        self.open = 0
        self.closed = 0

    async def answer(
        self, turn: ClaimedTurn, definition: AgentDefinition
    ) -> AsyncGenerator[str | Answer, None]:
        if definition.agent_id not in self.hanging:
            yield "at once"
            return
        self.open += 1
        try:
            if self.piece:
                yield self.piece
            await asyncio.Event().wait()
        finally:
            self.open -= 1
            self.closed += 1


@asynccontextmanager
async def dispatching(
    store: Store, connector: Connector, *agents: AgentId, turns: int = 256, **settings: Any
) -> AsyncIterator[Dispatcher]:
    for agent_id in agents or (AGENT,):
        await store.agents.put(AgentDefinition(agent_id, "Tested", "webhook", **settings))
    async with dispatching_by({"webhook": connector}, store, turns=turns) as dispatcher:
        yield dispatcher


@asynccontextmanager
async def dispatching_by(
    connectors: Mapping[str, Connector], store: Store, *, turns: int
) -> AsyncIterator[Dispatcher]:
    """A dispatcher of the agents that are defined, of the kinds that *connectors* name."""
    finder = Finder(store)
    dispatcher = Dispatcher(store, finder, worker="here", turns=turns, connectors=connectors)
    await finder.start()
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.stop()
        await finder.stop()


_users = iter(range(1, 1 << 30))


async def asked(store: Store, agent: AgentId = AGENT) -> tuple[SessionId, Any]:
    """A session of the agent with a message in it; its turn."""
    user = UserId(f"{next(_users):08x}-1111-4111-8111-111111111111")
    sid = (await opened(store, user, agent=agent)).session_id
    return sid, (await say(store, sid)).turn_id


async def is_now(store: Store, sid: SessionId, turn_id: Any, state: str) -> Turn:
    found: list[Turn] = []

    async def is_so() -> bool:
        found.append(await store.turns.read(sid, turn_id, grant=EVERYTHING))
        return found[-1].state == state and (state != "queued" or found[-1].attempt > 0)

    await eventually(is_so)
    return found[-1]

"""How to reach an agent: one file for each kind of agent that lives outside of a worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from sessions_api.agents.connectors.echo import Echo
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.turns import ClaimedTurn


class Connector(Protocol):
    """Asks one kind of agent."""

    def answer(self, turn: ClaimedTurn, definition: AgentDefinition) -> AsyncGenerator[str, None]:
        """The answer, piece by piece as it comes; an empty piece says no more than "still at it".

        Whatever it raises gives the attempt up, and another one follows. It is
        closed in mid-answer when the turn is cancelled, lost or out of time.
        """
        ...


CONNECTORS: Final[Mapping[str, Connector]] = MappingProxyType({"echo": Echo()})
"""By the kind of agent."""

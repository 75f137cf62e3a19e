"""How to reach an agent: one file for each kind of agent that lives outside of a worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from sessions_api.agents.connectors.echo import Echo
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.turns import Answer, ClaimedTurn


class Connector(Protocol):
    """Asks one kind of agent."""

    def answer(self, turn: ClaimedTurn, definition: AgentDefinition) -> AsyncGenerator[str | Answer, None]:
        """The answer, piece by piece as it comes; an empty piece says no more than "still at it".

        An :class:`Answer` ends it: what the agent has to say besides its text, or
        in place of what was streamed. Without one, the pieces are the answer.

        It raises :class:`~sessions_api.agents.connectors.failure.AttemptFailed`
        to say what became of it; any other error gives the attempt up as
        ``AGENT_ERROR``. It is closed in mid-answer when the turn is cancelled,
        lost or out of time, and must then end at once.
        """
        ...


CONNECTORS: Final[Mapping[str, Connector]] = MappingProxyType({"echo": Echo()})
"""By the kind of agent: those that need nothing from outside."""

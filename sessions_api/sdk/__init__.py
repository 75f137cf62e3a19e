"""Write an agent: a process that takes turns from the service and streams its answers.

::

    from sessions_api.sdk import Agent, Turn

    agent = Agent("http://127.0.0.1:3000", "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11", name="Shouter")

    @agent.answer
    async def shout(turn: Turn):
        for word in turn.text.upper().split():
            yield word + " "

    agent.run()

The package stands alone: it speaks the worker protocol over HTTP (docs/agents.md)
and knows nothing of the service's own modules.
"""

from __future__ import annotations

from sessions_api.sdk.agent import Agent
from sessions_api.sdk.link import Refused
from sessions_api.sdk.turn import Answer, Message, Session, Turn, TurnFailed

__all__ = ["Agent", "Answer", "Message", "Refused", "Session", "Turn", "TurnFailed"]

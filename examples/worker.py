"""An agent in ten lines: answers in capitals, word by word.

make run                                        # the service, in another terminal
.venv/bin/python examples/worker.py
.venv/bin/sessions-api chat --agent 7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11
"""

import asyncio
import os
from collections.abc import AsyncIterator

from sessions_api.sdk import Agent, Turn

SERVICE = os.environ.get("SESSIONS_URL", "http://127.0.0.1:3000")
agent = Agent(SERVICE, "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11", name="Shouter")


@agent.answer
async def shout(turn: Turn) -> AsyncIterator[str]:
    for word in turn.text.upper().split():
        yield word + " "
        await asyncio.sleep(0.1)  # as if it had to think


if __name__ == "__main__":
    agent.run()

"""An agent of the SDK, in a process of its own: it says which session this is, and what was said there.

python agent_program.py URL AGENT
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator

from sessions_api.sdk import Agent, Turn

PAUSE_S = (0.0, 0.08)


async def answer(turn: Turn) -> AsyncIterator[str]:
    for word in f"{turn.session.id} answers {turn.text}".split(" "):
        yield word + " "
        await asyncio.sleep(random.uniform(*PAUSE_S))


if __name__ == "__main__":
    Agent(sys.argv[1], sys.argv[2], handler=answer, concurrency=32).run()

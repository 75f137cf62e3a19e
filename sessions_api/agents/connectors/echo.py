"""The built-in agent: says what it was told, word by word."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator

from sessions_api.domain.agents import LONGEST_DELAY_MS, AgentDefinition
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.wire.messages import read_body

_WORD = re.compile(r"\s*\S+\s*|\s+")


class Echo:
    """``echo: <content>``; several messages of one turn stand on lines of their own.

    The definition's ``config`` may say ``delayMs``, a pause between two words
    (0 to 10,000; default 0), so that streaming can be watched.
    """

    async def answer(self, turn: ClaimedTurn, definition: AgentDefinition) -> AsyncGenerator[str, None]:
        contents = "\n".join(read_body(entry.body).content for entry in turn.messages)
        delay_s = delay_ms(definition) / 1000
        for number, word in enumerate(_WORD.findall(f"echo: {contents}")):
            if number:
                await asyncio.sleep(delay_s)
            yield word


def delay_ms(definition: AgentDefinition) -> float:
    """The pause between two words; anything but a number in range is no pause."""
    match definition.config.get("delayMs"):
        case bool():
            return 0
        case int() | float() as delay if 0 <= delay <= LONGEST_DELAY_MS:
            return delay
        case _:
            return 0

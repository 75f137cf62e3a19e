"""The terminal chat with an agent that comes and goes."""

from __future__ import annotations

import asyncio
import sys

from sessions_api.sdk import Agent, Turn
from tests.support.app import App
from tests.support.commands import clean_environment
from tests.support.service import Service


async def shout(turn: Turn) -> str:
    return turn.text.upper()


class TestChat:
    async def test_says_when_the_agent_is_away_and_shows_the_answer_when_it_is_back(
        self, service: Service, app: App, agent_id: str
    ) -> None:
        """What was said meanwhile is not lost."""
        async with Agent(service.url, agent_id, handler=shout, name="Back soon"):
            session_id = await app.create(agent_id)
        chat = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "sessions_api", "chat", "--session", session_id),
            env=clean_environment({"SESSIONS_URL": service.url}),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert chat.stdin is not None
            assert chat.stderr is not None
            chat.stdin.write(b"anybody?\n")
            chat.stdin.write_eof()
            async with asyncio.timeout(20):
                assert b"the agent is offline" in await chat.stderr.readline()
                async with Agent(service.url, agent_id, handler=shout):
                    out, _ = await chat.communicate()
        finally:
            if chat.returncode is None:
                chat.kill()
            await chat.wait()

        assert out == b"ANYBODY?\n"
        assert chat.returncode == 0

"""The people of a schedule: each makes sessions, talks in them, and writes down all that it is told.

They do what the documentation asks of a client: a message is sent under an
idempotency key until it is acknowledged or refused, at another replica after each
failure, not before ``Retry-After``. What they do next, their dice say.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

from tests.chaos.asking import Service
from tests.chaos.followers import Follower
from tests.chaos.history import Asked, Life
from tests.chaos.visits import Visit
from tests.support.client import BASE

PAUSE_S = 0.05
"""Before the next replica is asked, where none was prescribed."""
LONGEST_PAUSE_S = 2.0
BRIEF_S = (1.5, 4.0)


class Client:
    """One person with a number and dice of their own."""

    def __init__(self, number: int, seed: int, service: Service, agents: dict[str, str]) -> None:
        self.name = f"client-{number}"
        self.followers: list[Follower] = []
        self._dice = random.Random(f"client {number} {seed}")
        self._service = service
        self._history = service.history
        self._agents = agents
        self._stopping = asyncio.Event()
        self._sessions = 0

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping.set()

    async def run(self) -> None:
        """One session after the other, until told to stop."""
        while not self._stopping.is_set():
            life = await self._create()
            if life is not None:
                await Visit(self, life, self._service, self._dice).run()

    async def pause(self, low_s: float, high_s: float) -> None:
        """A moment; none when it is time to stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._dice.uniform(low_s, high_s))

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def _create(self) -> Life | None:
        """A new session, created twice over now and then; None if nobody would before the end."""
        dice = self._dice
        self._sessions += 1
        agent = dice.choice(sorted(self._agents))
        body: dict[str, Any] = {"agentId": self._agents[agent], "userId": uuid(dice)}
        is_brief = dice.random() < 0.4
        if is_brief:
            idle_s = dice.uniform(*BRIEF_S)
            body["timeoutConfig"] = {
                "timeoutMinutes": round(idle_s / 60, 5),
                "warningThresholdMinutes": round(idle_s / 120, 5),
                "maxDurationMinutes": round(max(idle_s, 6.0) / 60, 5),
                "autoRenew": dice.random() < 0.5,
            }
        headers = {"Idempotency-Key": f"{self.name}-{self._sessions}-{uuid(dice)}"}
        ids: list[str] = []
        wanted = 2 if dice.random() < 0.2 else 1
        at = dice.randrange(12)
        while len(ids) < wanted:
            asked, reply = await self._service.ask(
                "create", "POST", BASE, replica=at, body=body, headers=headers
            )
            if asked.status == 201:
                ids.append(reply["sessionId"])
            elif self.is_stopping and not ids:
                return None
            else:
                await self.wait_as_told(asked)
            at += 1
        life = Life(session_id=ids[0], ids=ids, agent=agent, is_brief=is_brief)
        self._history.lives.append(life)
        return life

    async def wait_as_told(self, asked: Asked) -> None:
        asked_s = float(asked.retry_after or 0) if asked.status in {429, 503} else 0.0
        await asyncio.sleep(min(LONGEST_PAUSE_S, asked_s) or PAUSE_S)

    def follow(self, session_id: str) -> Follower:
        """Somebody who follows the session from now on, or from its beginning, until it is over."""
        dice = self._dice
        follower = Follower(
            self._service.urls,
            session_id,
            who=f"follower-{self.name}-{len(self.followers)}",
            transport=dice.choice(("sse", "websocket")),
            after=dice.choice((None, 0)),
            at=dice.randrange(12),
        )
        self.followers.append(follower)
        self._history.followings.append(follower.following)
        follower.start()
        return follower


def uuid(dice: random.Random) -> str:
    text = f"{dice.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"

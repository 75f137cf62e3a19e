"""The service as clients see it, and the book in which every request is noted."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx2

from tests.chaos.hearing import instant_ms
from tests.chaos.history import Asked, History, now_ms

REPLY_S = 8.0
"""Far beyond the deadline of a request, 2.5 s; a poster that waits for its turn has its own."""
TURN_WAIT_MS = 3_000
KEEP = 0.5
"""Of the requests that an impatient client sends, those it waits for all the same."""


class Service:
    """The replicas as clients see them, and the book in which every request is noted."""

    def __init__(self, urls: list[str], http: httpx2.AsyncClient, history: History, seed: int) -> None:
        self.urls = urls
        self.history = history
        self.is_impatient = False
        self._http = http
        self._dice = random.Random(f"service {seed}")

    async def ask(
        self,
        what: str,
        method: str,
        path: str,
        *,
        session_id: str = "",
        replica: int,
        waits: bool = False,
        may_give_up: bool = True,
        body: Any = None,
        headers: dict[str, str] | None = None,
        params: dict[str, Any] | None = None,
    ) -> tuple[Asked, Any]:
        """One request; what came of it, and the JSON of the reply."""
        replica %= len(self.urls)
        asked = Asked(what=what, session_id=session_id, replica=replica, began_ms=now_ms(), waits=waits)
        timeout_s = REPLY_S + (TURN_WAIT_MS / 1000 if waits else 0.0)
        gives_up = self.is_impatient and may_give_up and self._dice.random() > KEEP
        reply: Any = None
        try:
            async with asyncio.timeout(self._dice.uniform(0.0005, 0.03) if gives_up else timeout_s):
                response = await self._http.request(
                    method, f"{self.urls[replica]}{path}", json=body, headers=headers, params=params
                )
            asked.status = response.status_code
            asked.retry_after = response.headers.get("retry-after")
            asked.is_replay = "idempotency-replayed" in response.headers
            reply = response.json() if response.content else None
        except TimeoutError:
            asked.code, asked.gave_up = "TimeoutError", gives_up
        except httpx2.TransportError as error:
            asked.code = f"{type(error).__name__} {error}"
        asked.ended_ms = now_ms()
        if isinstance(reply, dict):
            note(asked, reply)
        self.history.asked.append(asked)
        return asked, reply


def note(asked: Asked, reply: dict[str, Any]) -> None:
    """What of a reply the checker wants to know."""
    error = reply.get("error")
    if isinstance(error, dict):
        asked.code = error["code"]
        details = error.get("details") or {}
        asked.echoed = details.get("sessionId", "")
        if asked.status == 410:
            asked.end_ms = instant_ms(details["expiresAt"])
    else:
        asked.echoed = reply.get("sessionId", "")


def names_turn(reply: Any) -> bool:
    """Whether an error is about the turn of a message, so that this was accepted."""
    return isinstance(reply, dict) and "turnId" in (reply.get("error", {}).get("details") or {})

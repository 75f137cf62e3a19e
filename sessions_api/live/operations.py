"""What a WebSocket may ask for; ``api/frames.py`` answers, so that bodies and rules are those of HTTP."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from sessions_api.domain.access import Caller
from sessions_api.domain.ids import SessionId


class Answer(NamedTuple):
    """The reply that HTTP would have given: *body* is JSON."""

    status: int
    body: bytes


class Operations(Protocol):
    """The four things that change a session; each raises what its endpoint would answer with."""

    async def send(
        self, session_id: SessionId, caller: Caller, body: dict[str, Any], idempotency_key: str | None
    ) -> Answer:
        """``POST …/messages``; *body* is the request's, its ``transport`` is ``websocket``."""

    async def heartbeat(self, session_id: SessionId, caller: Caller) -> Answer:
        """``POST …/heartbeat``."""

    async def renew(self, session_id: SessionId, caller: Caller, idempotency_key: str | None) -> Answer:
        """``POST …/renew``."""

    async def cancel(self, session_id: SessionId, caller: Caller, turn_id: str) -> Answer:
        """``POST …/turns/{turnId}/cancel``."""

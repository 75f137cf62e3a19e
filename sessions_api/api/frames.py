"""What a WebSocket's frames ask for, answered with the bodies and rules of HTTP."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sessions_api.api.auth import check_route
from sessions_api.api.bodies import read_message
from sessions_api.api.idempotency import checked_key
from sessions_api.api.operations import Operations
from sessions_api.api.state import Rules
from sessions_api.domain.access import Caller
from sessions_api.domain.ids import SessionId
from sessions_api.domain.traces import NO_TRACE, Trace, read_trace
from sessions_api.live.operations import Answer
from sessions_api.wire.sessions import session_json

# Whom each frame is for: as the routes that do the same (api/routes.py).
_SEND: Final = frozenset({"app", "agent", "send"})
_RENEW: Final = frozenset({"app", "renew"})
_CANCEL: Final = frozenset({"app", "cancel"})
_encode = msgspec.json.Encoder().encode


class FrameOperations:
    """:class:`~sessions_api.live.operations.Operations`, by the operations that HTTP has."""

    def __init__(self, operations: Operations, rules: Rules, *, address: str) -> None:
        self._operations = operations
        self._rules = rules
        self._address = address

    async def send(
        self, session_id: SessionId, caller: Caller, body: dict[str, Any], idempotency_key: str | None
    ) -> Answer:
        check_route(caller, _SEND, session_id)
        message = read_message(body, max_chars=self._rules.max_content_chars)
        key = _checked(idempotency_key)
        if message.role != "user":
            spoken = await self._operations.speak(session_id, caller, message, key)
            return Answer(201, spoken.json(minimal=False))
        accepted = await self._operations.accept(
            session_id, caller, message, key, address=self._address, trace=_trace(body)
        )
        return Answer(201, accepted.reply.json(minimal=False))

    async def heartbeat(self, session_id: SessionId, caller: Caller) -> Answer:
        check_route(caller, _RENEW, session_id)
        session, renewed = await self._operations.heartbeat(session_id, caller)
        return Answer(200, session_json(session, renewed=renewed))

    async def renew(self, session_id: SessionId, caller: Caller, idempotency_key: str | None) -> Answer:
        check_route(caller, _RENEW, session_id)
        session, _ = await self._operations.renew(session_id, caller, _checked(idempotency_key))
        return Answer(200, session_json(session))

    async def cancel(self, session_id: SessionId, caller: Caller, turn_id: str) -> Answer:
        check_route(caller, _CANCEL, session_id)
        return Answer(200, _encode(await self._operations.cancel(session_id, caller, turn_id)))


def _trace(frame: dict[str, Any]) -> Trace:
    """A browser's WebSocket has no headers, and one handshake is many requests: so members of the frame."""
    parent, state = frame.get("traceparent"), frame.get("tracestate", "")
    if not isinstance(parent, str):
        return NO_TRACE
    return read_trace(parent, state if isinstance(state, str) else "")


def _checked(key: str | None) -> str | None:
    return None if key is None else checked_key(key)

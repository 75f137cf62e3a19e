"""The live side's doors: SSE and WebSocket; ``live/`` does the talking."""

from __future__ import annotations

from typing import Final

from starlette.types import Receive, Send

from sessions_api.api.auth import NOBODY, check_route
from sessions_api.api.frames import FrameOperations
from sessions_api.api.paging import Query
from sessions_api.api.replies import CLOSED, EMPTY, SAFE, Header, Reply
from sessions_api.api.requests import Request
from sessions_api.domain.access import Caller
from sessions_api.live.handshake import Handshake
from sessions_api.live.sse import start_of, stream_events
from sessions_api.live.websocket import Conversation

ALLOWS: Final = frozenset({"app", "agent", "read"})
"""Who may follow, as for the route of ``/events``."""


class EventStream:
    """``/events`` of one session, from *after* on."""

    def __init__(self, request: Request, after: int | None) -> None:
        self._request = request
        self._after = after

    async def run(self, receive: Receive, send: Send, headers: tuple[Header, ...]) -> None:
        request = self._request
        subscription = await request.state.hub.follow(
            request.session_id,
            grant=request.caller.read_grant,
            after=self._after,
            key_id=request.caller.key_id,
        )
        await stream_events(subscription, receive, send, headers=(*headers, *SAFE, CLOSED))


async def events(request: Request) -> Reply | EventStream:
    """Follow the session: a snapshot, what was missed, then everything as it happens."""
    last_event_id = request.headers.get(b"last-event-id", b"").decode("latin-1")
    start = start_of(last_event_id or None, Query(request.query()).text("after"))
    if start.is_over:
        return EMPTY
    return EventStream(request, start.after)


async def converse(request: Request, handshake: Handshake) -> None:
    """``/ws``: the same events, and frames that send, renew and cancel.

    Raises:
        SessionsError, BadFrame: the conversation did not begin.
        ClientLeft
    """
    access, session_id = request.state.access, request.params["sessionId"]

    def whom(token: str | None) -> Caller:
        caller = access.caller({} if token is None else {b"x-api-key": token.encode("utf-8", "replace")})
        caller = caller or NOBODY
        check_route(caller, ALLOWS, session_id)
        return caller

    start = start_of(None, Query(request.query()).text("after"))
    if request.caller is NOBODY:
        request.caller = await handshake.authenticate(whom)
    else:
        check_route(request.caller, ALLOWS, session_id)
    conversation = Conversation(
        handshake,
        hub=request.state.hub,
        operations=FrameOperations(request.state.operations, request.state.rules, address=request.address),
        session_id=request.session_id,
        caller=request.caller,
        authenticate=whom,
        after=start.after,
    )
    await conversation.run()

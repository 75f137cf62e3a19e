"""The live side's doors: SSE and WebSocket; ``live/`` does the talking."""

from __future__ import annotations

from typing import Final

from starlette.types import Receive, Send

from sessions_api.api.frames import FrameOperations
from sessions_api.api.paging import Query
from sessions_api.api.replies import EMPTY, Header, Reply
from sessions_api.api.requests import Request
from sessions_api.live.sse import start_of, stream_events
from sessions_api.live.websocket import Conversation

NOSNIFF: Final[Header] = (b"x-content-type-options", b"nosniff")


class EventStream:
    """``/events`` of one session, from *after* on."""

    def __init__(self, request: Request, after: int | None) -> None:
        self._request = request
        self._after = after

    async def run(self, receive: Receive, send: Send, headers: tuple[Header, ...]) -> None:
        request = self._request
        subscription = await request.state.hub.follow(
            request.session_id, app=request.caller.app, after=self._after
        )
        await stream_events(subscription, receive, send, headers=(*headers, NOSNIFF))


async def events(request: Request) -> Reply | EventStream:
    """Follow the session: a snapshot, what was missed, then everything as it happens."""
    last_event_id = request.headers.get(b"last-event-id", b"").decode("latin-1")
    start = start_of(last_event_id or None, Query(request.query()).text("after"))
    if start.is_over:
        return EMPTY
    return EventStream(request, start.after)


async def converse(request: Request, send: Send) -> None:
    """``/ws``: the same events, and frames that send, renew and cancel."""
    start = start_of(None, Query(request.query()).text("after"))
    conversation = Conversation(
        request.receive,
        send,
        hub=request.state.hub,
        operations=FrameOperations(request.state.operations, request.state.rules),
        session_id=request.session_id,
        caller=request.caller,
        after=start.after,
        request_id=request.id.decode(),
        instance=request.instance,
        offered=list(request.scope.get("subprotocols", ())),
    )
    await conversation.run()

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs

import pytest
from starlette.types import Receive, Scope, Send

from sessions_api.domain.access import Caller, local_caller
from sessions_api.domain.ids import (
    LOCAL_APP,
    SessionId,
    TurnId,
    new_message_id,
    new_op_id,
    new_turn_id,
)
from sessions_api.domain.messages import NewMessage
from sessions_api.errors import SessionsError
from sessions_api.live.handshake import Handshake
from sessions_api.live.operations import Answer
from sessions_api.live.sse import start_of, stream_events
from sessions_api.live.websocket import Conversation
from sessions_api.store import Store
from sessions_api.wire.messages import user_body
from sessions_api.wire.sessions import session_json
from tests.support.scene import USER, Scene
from tests.support.servers import TestServer
from tests.support.streams import Served


@pytest.fixture
async def scene(server: TestServer) -> AsyncIterator[Scene]:
    """One replica on the server."""
    async with Scene(server.url) as scene:
        yield scene


@pytest.fixture
async def served(scene: Scene) -> AsyncIterator[Served]:
    """The replica's live connections behind uvicorn."""
    async with Served(LiveApp(scene)) as served:
        yield served


LOCAL = local_caller(LOCAL_APP)
"""The caller of a service without keys."""


class LocalOperations:
    """The operations, straight on the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def send(
        self, session_id: SessionId, caller: Caller, body: dict[str, Any], idempotency_key: str | None
    ) -> Answer:
        assert body["transport"] == "websocket"
        message_id = new_message_id()
        appended = await self._store.log.append(
            session_id,
            grant=caller.grant,
            message=NewMessage(message_id, user_body(message_id, body["content"], USER)),
            turn_id=new_turn_id(),
        )
        return Answer(201, f'{{"id":"{message_id}","turnId":"{appended.turn_id}"}}'.encode())

    async def heartbeat(self, session_id: SessionId, caller: Caller) -> Answer:
        session, renewed = await self._store.sessions.heartbeat(
            session_id, grant=caller.grant, op=new_op_id()
        )
        return Answer(200, session_json(session, renewed=renewed))

    async def renew(self, session_id: SessionId, caller: Caller, idempotency_key: str | None) -> Answer:
        session, _ = await self._store.sessions.renew(session_id, grant=caller.grant, op=new_op_id())
        return Answer(200, session_json(session))

    async def cancel(self, session_id: SessionId, caller: Caller, turn_id: str) -> Answer:
        turn = await self._store.turns.cancel(session_id, TurnId(turn_id), grant=caller.grant)
        return Answer(200, f'{{"turnId":"{turn.turn_id}","state":"{turn.state}"}}'.encode())


class LiveApp:
    """``/{sessionId}/events`` and ``/{sessionId}/ws`` of one replica, and nothing else."""

    def __init__(self, scene: Scene, *, beat_s: float = 15, send_timeout_s: float = 30) -> None:
        self._scene = scene
        self._beat_s = beat_s
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, session_id, kind = scope["path"].split("/")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = parse_qs(scope["query_string"].decode())
        start = start_of(headers.get("last-event-id"), query.get("after", [""])[0])
        if kind == "ws":
            handshake = Handshake(
                receive,
                send,
                request_id="test",
                instance=scope["path"],
                offered=scope["subprotocols"],
            )
            conversation = Conversation(
                handshake,
                hub=self._scene.hub,
                operations=LocalOperations(self._scene.store),
                session_id=SessionId(session_id),
                caller=LOCAL,
                authenticate=lambda _token: LOCAL,
                after=start.after,
                send_timeout_s=self._send_timeout_s,
            )
            try:
                await conversation.run()
            except SessionsError as error:
                await handshake.refuse(error)
        elif start.is_over:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            subscription = await self._scene.hub.follow(
                SessionId(session_id), grant=LOCAL_APP, after=start.after
            )
            await stream_events(
                subscription, receive, send, beat_s=self._beat_s, send_timeout_s=self._send_timeout_s
            )

"""What changes a session, said once for HTTP and WebSocket."""

from __future__ import annotations

from typing import Literal

import msgspec

from sessions_api.api.bodies import SendBody
from sessions_api.domain.ids import (
    AgentId,
    SessionId,
    TurnId,
    is_uuid,
    new_message_id,
    new_op_id,
    new_turn_id,
)
from sessions_api.domain.messages import LogEntry, NewMessage
from sessions_api.domain.sessions import Session
from sessions_api.errors import AgentUnavailable, SessionExpired, SessionNotFound
from sessions_api.live.operations import Caller
from sessions_api.store import Store
from sessions_api.store.log import Appended
from sessions_api.store.sessions import Once
from sessions_api.wire.messages import TurnInfo, spoken_body, user_body
from sessions_api.wire.posted import PostedReply, spoken_json

_encode = msgspec.json.Encoder().encode


class Accepted(msgspec.Struct, frozen=True):
    """A message that is in the log, and the reply to it as far as it is known by then."""

    appended: Appended
    reply: PostedReply

    @property
    def turn_id(self) -> TurnId:
        return self.appended.turn_id

    @property
    def is_repeat(self) -> bool:
        return self.appended.is_repeat


class Said(msgspec.Struct, frozen=True):
    """A message of an agent or the system that is in the log."""

    appended: Appended
    body: bytes

    @property
    def is_repeat(self) -> bool:
        return self.appended.is_repeat

    def json(self, *, minimal: bool) -> bytes:
        entry = LogEntry(self.appended.cursor, 0, "message", None, None, self.body)
        return spoken_json(self.appended.session, entry, minimal=minimal)


class Operations:
    """The operations of a session; each raises what its endpoint answers with."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def accept(
        self, session_id: SessionId, caller: Caller, message: SendBody, key: str | None
    ) -> Accepted:
        """Append a user's message.

        Raises:
            InvalidInput: what is wrong with the message; only after the session
                was found live, since a bad message must not hide a 404 or 410.
            AgentUnavailable: the poster wants to wait for the answer, and nobody
                is there to give it; nothing was written.
        """
        if message.fault is not None:
            await self._store.sessions.read(session_id, app=caller.app)
            raise message.fault
        is_agent_away = message.transport != "websocket" and await self._is_agent_away(session_id, caller)
        message_id = new_message_id()
        appended = await self._store.log.append(
            session_id,
            app=caller.app,
            message=NewMessage(
                message_id,
                user_body(message_id, message.content, None, message.metadata, message.attachments),
            ),
            turn_id=new_turn_id(),
            on_busy=message.on_busy,
            once=None if key is None else _once(key, caller, session_id, _content(message)),
            is_agent_away=is_agent_away,
        )
        reply = PostedReply(
            appended.session,
            message_id=appended.message_id,
            content=message.content,
            metadata=message.metadata,
            attachments=message.attachments,
            cursor=appended.cursor,
            turn_id=appended.turn_id,
            was_renewed=appended.was_renewed,
        )
        return Accepted(appended, reply)

    async def speak(self, session_id: SessionId, caller: Caller, message: SendBody, key: str | None) -> Said:
        """Append what the agent or the system says unasked: no turn, no renewal.

        Raises:
            InvalidInput: as :meth:`accept`.
        """
        if message.fault is not None:
            await self._store.sessions.read(session_id, app=caller.app)
            raise message.fault
        role: Literal["agent", "system"] = "system" if message.role == "system" else "agent"

        def body(author_id: str | None) -> bytes:
            return spoken_body(
                message_id,
                message.content,
                role=role,
                author_id=author_id,
                metadata=message.metadata,
                attachments=message.attachments,
            )

        message_id = new_message_id()
        author_id = None if role == "agent" else NOBODY
        said = await self._store.log.speak(
            session_id,
            app=caller.app,
            agent=None,
            message=NewMessage(message_id, body(author_id)),
            once=None if key is None else _once(key, caller, session_id, _content(message)),
        )
        message_id = said.message_id
        return Said(said, body(author_id or said.session.agent_id))

    async def check_available(self, agent_id: AgentId) -> None:
        """Nothing, if somebody is there to answer for the agent.

        Raises:
            AgentUnavailable: by this process's copy and by Redis, which is asked before anybody is refused.
        """
        if await self._is_offline(agent_id):
            raise AgentUnavailable(agent_id)

    async def _is_offline(self, agent_id: AgentId) -> bool:
        attendance = self._store.attendance
        if attendance.state(agent_id).state != "offline":
            return False
        return (await attendance.confirm(agent_id)).state == "offline"

    async def _is_agent_away(self, session_id: SessionId, caller: Caller) -> bool:
        """Whether the session's agent is offline; a session that cannot be read is for others to refuse.

        Costs no trip while every agent is there: only the session knows whose it is.
        """
        state = self._store.attendance.state
        if all(state(agent.agent_id).state != "offline" for agent in self._store.agents.all()):
            return False
        try:
            session = await self._store.sessions.read(session_id, app=caller.app)
        except (SessionNotFound, SessionExpired):
            return False
        return await self._is_offline(session.agent)

    async def renew(self, session_id: SessionId, caller: Caller, key: str | None) -> tuple[Session, bool]:
        """Restart the idle clock by hand; True beside it if *key* had done so before."""
        return await self._store.sessions.renew(
            session_id,
            app=caller.app,
            op=new_op_id(),
            once=None if key is None else _once(key, caller, session_id, b"renew"),
        )

    async def heartbeat(self, session_id: SessionId, caller: Caller) -> tuple[Session, bool]:
        """The user is there; True beside it if that renewed the session."""
        return await self._store.sessions.heartbeat(session_id, app=caller.app, op=new_op_id())

    async def cancel(self, session_id: SessionId, caller: Caller, turn_id: str) -> TurnInfo:
        """End a turn; one that has ended stays as it is."""
        turn = await self._store.turns.cancel(session_id, as_turn_id(turn_id), app=caller.app)
        return TurnInfo.of(turn, session_id)


def _once(key: str, caller: Caller, session_id: SessionId, content: bytes) -> Once:
    return Once.of(app=caller.app, scope=session_id, key=key, content=content)


def _content(message: SendBody) -> bytes:
    """What a repeat under the same key must say again."""
    return _encode(
        (
            "message",
            message.content,
            msgspec.Raw(message.metadata),
            message.attachments and msgspec.Raw(message.attachments),
            message.on_busy,
            *((message.role,) if message.role != "user" else ()),
        )
    )


NOBODY = "00000000-0000-0000-0000-000000000000"
"""The author of what the system says."""
NO_TURN = TurnId("00000000-0000-0000-0000-000000000000")


def as_turn_id(text: str) -> TurnId:
    """*text* as a turn's id; what is no UUID becomes the id that no turn has."""
    return TurnId(text.lower()) if is_uuid(text) else NO_TURN

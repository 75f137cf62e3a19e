"""What changes a session, said once for HTTP and WebSocket."""

from __future__ import annotations

from typing import Literal

import msgspec

from sessions_api.api.bodies import SendBody
from sessions_api.api.gate import Gate
from sessions_api.domain.access import Caller
from sessions_api.domain.ids import (
    AgentId,
    SessionId,
    TurnId,
    is_uuid,
    new_message_id,
    new_op_id,
    new_turn_id,
)
from sessions_api.domain.limits import Standing
from sessions_api.domain.messages import LogEntry, NewMessage
from sessions_api.domain.sessions import Session
from sessions_api.domain.traces import NO_TRACE, Trace
from sessions_api.errors import (
    AgentError,
    AgentUnavailable,
    CallerError,
    Forbidden,
    SessionExpired,
    SessionNotFound,
)
from sessions_api.store import Store
from sessions_api.store.limits import Asked
from sessions_api.store.log import Appended
from sessions_api.store.sessions import Once
from sessions_api.wire.messages import TurnInfo, spoken_body, user_body
from sessions_api.wire.posted import PostedReply, spoken_json

_encode = msgspec.json.Encoder().encode


class Accepted(msgspec.Struct, frozen=True):
    """A message that is in the log, and the reply to it as far as it is known by then."""

    appended: Appended
    reply: PostedReply
    standings: tuple[Standing, ...]
    """How its caller stands with the limits that counted it."""

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
        entry = LogEntry.of(self.appended.cursor, body=self.body)
        return spoken_json(self.appended.session, entry, minimal=minimal)


class Operations:
    """The operations of a session; each raises what its endpoint answers with."""

    def __init__(self, store: Store, gate: Gate) -> None:
        self._store = store
        self._gate = gate

    async def check_poster(self, session_id: SessionId, caller: Caller) -> None:
        """Nothing, if the caller may send to the session; awaited before anything listens for an answer.

        Raises:
            Forbidden: as :meth:`accept`.
            SessionNotFound
        """
        _check_user(caller)
        await self._store.log.check_opens(session_id, caller.grant)

    async def accept(
        self,
        session_id: SessionId,
        caller: Caller,
        message: SendBody,
        key: str | None,
        *,
        address: str,
        trace: Trace = NO_TRACE,
    ) -> Accepted:
        """Append a user's message, which came from *address*; its turn goes on with *trace*.

        Raises:
            Forbidden: the caller is an agent, and no user.
            RateLimited: too many of its kind came of late.
            InvalidInput: what is wrong with the message; only after the session
                was found live, since a bad message must not hide a 404 or 410.
            AgentUnavailable: the poster wants to wait for the answer, and nobody
                is there to give it; nothing was written.
        """
        _check_user(caller)
        if message.fault is not None:
            await self._store.sessions.read(session_id, grant=caller.grant)
            raise message.fault
        admission = await self._gate.message(caller, address, session_id)
        try:
            appended = await self._append(session_id, caller, message, key, admission.asked, trace)
        except (CallerError, AgentError):
            await self._gate.give_back(admission)
            raise
        if appended.is_repeat:
            await self._gate.give_back(admission)
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
        return Accepted(
            appended, reply, () if appended.is_repeat else admission.standings + appended.standings
        )

    async def _append(
        self,
        session_id: SessionId,
        caller: Caller,
        message: SendBody,
        key: str | None,
        limits: list[Asked],
        trace: Trace,
    ) -> Appended:
        message_id = new_message_id()
        return await self._store.log.append(
            session_id,
            grant=caller.grant,
            message=NewMessage(
                message_id,
                user_body(message_id, message.content, None, message.metadata, message.attachments),
                trace,
            ),
            turn_id=new_turn_id(),
            on_busy=message.on_busy,
            once=None if key is None else _once(key, caller, session_id, _content(message)),
            is_agent_away=message.transport != "websocket" and await self._is_agent_away(session_id, caller),
            limits=limits,
        )

    async def speak(self, session_id: SessionId, caller: Caller, message: SendBody, key: str | None) -> Said:
        """Append what the agent or the system says unasked: no turn, no renewal.

        Raises:
            Forbidden: another's role is not the caller's to take.
            RateLimited: its key sent too many messages of late.
            InvalidInput: as :meth:`accept`.
        """
        role: Literal["agent", "system"] = "system" if message.role == "system" else "agent"
        if role == "agent" and not (caller.agents or caller.is_admin):
            raise Forbidden("role: agent takes a key of the session's agent")
        if role == "system" and not caller.is_app:
            raise Forbidden("role: system takes a key of the session's application")
        grant = caller.work_grant if role == "agent" else caller.grant
        if message.fault is not None:
            await self._store.sessions.read(session_id, grant=grant)
            raise message.fault
        self._gate.speak(caller)

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
            grant=grant,
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
            session = await self._store.sessions.read(session_id, grant=caller.grant)
        except (SessionNotFound, SessionExpired):
            return False
        return await self._is_offline(session.agent)

    async def renew(self, session_id: SessionId, caller: Caller, key: str | None) -> tuple[Session, bool]:
        """Restart the idle clock by hand; True beside it if *key* had done so before."""
        return await self._store.sessions.renew(
            session_id,
            grant=caller.grant,
            op=new_op_id(),
            once=None if key is None else _once(key, caller, session_id, b"renew"),
        )

    async def heartbeat(self, session_id: SessionId, caller: Caller) -> tuple[Session, bool]:
        """The user is there; True beside it if that renewed the session."""
        return await self._store.sessions.heartbeat(session_id, grant=caller.grant, op=new_op_id())

    async def cancel(self, session_id: SessionId, caller: Caller, turn_id: str) -> TurnInfo:
        """End a turn; one that has ended stays as it is."""
        turn = await self._store.turns.cancel(session_id, as_turn_id(turn_id), grant=caller.grant)
        return TurnInfo.of(turn, session_id)


def _check_user(caller: Caller) -> None:
    if not caller.is_app and caller.rights is None:
        raise Forbidden("An agent's key speaks with role: agent, not as the session's user")


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

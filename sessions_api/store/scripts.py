"""How scripts are run: each state transition is one (``loader.py`` puts them together).

Every reply of a session's script has the session's id in second place, so that
another session's reply can never pass for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sessions_api.domain.access import Grant
from sessions_api.domain.ids import SessionId
from sessions_api.errors import SessionExpired, SessionNotFound, StorageFault, Unauthenticated
from sessions_api.store.connection import Redis, Reply, Script

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sessions_api.store.keys import Keyspace
    from sessions_api.store.lines import Arg


def expired_of(session_id: SessionId, reply: list[Any]) -> SessionExpired:
    """The error for an ``expired`` reply."""
    return SessionExpired(
        session_id=session_id,
        expires_ms=int(reply[3]),
        retained_until_ms=int(reply[4]),
        reason=reply[5].decode(),
    )


class Scripts:
    """Runs the scripts of sessions and reads what all of their replies have in common."""

    def __init__(self, redis: Redis, keyspace: Keyspace) -> None:
        self.redis = redis
        self.keyspace = keyspace
        self.overdue: Callable[[SessionId], None] = lambda _session_id: None
        """Called with a session that a request found past its time and unsettled."""

    async def run(
        self,
        script: Script,
        session_id: SessionId,
        grant: Grant,
        *args: Arg,
        once: str | None = None,
        more_keys: Sequence[bytes] = (),
    ) -> list[Any]:
        """Run *script* with all keys of the session, that of the digest *once*, and *more_keys*.

        Raises:
            SessionNotFound: absent, or not what *grant* opens.
            Unauthenticated: *grant* is of a session token that has ended.
            SessionExpired: past its end.
        """
        of = self.keyspace.of(session_id)
        keys = of.all()
        if once is not None:
            keys.append(of.once(once))
        keys += more_keys
        reply = await self.redis.script(script, keys, (of.sid, grant, *args))
        return self.checked(script, session_id, reply)

    async def look(
        self, script: Script, session_id: SessionId, grant: Grant, *args: Arg, keys: int = 4
    ) -> list[Any]:
        """Run *script*, which only reads, with the first *keys* keys of the session."""
        of = self.keyspace.of(session_id)
        own = [of.session] if keys == 1 else of.all()[:keys]
        reply = await self.redis.script(script, own, (of.sid, grant, *args))
        return self.checked(script, session_id, reply)

    async def run_noting_repeats(
        self, script: Script, session_id: SessionId, grant: Grant, *args: Arg
    ) -> Reply:
        """As :meth:`run`, unchecked, with whether an earlier try may have been run."""
        of = self.keyspace.of(session_id)
        return await self.redis.script_reply(script, of.all(), (of.sid, grant, *args))

    def checked(self, script: Script, session_id: SessionId, reply: list[Any]) -> list[Any]:
        """*reply*, if it is this session's and the session can be used."""
        if reply[1] != session_id.encode():
            raise StorageFault(f"{script.name} replied for another session")
        word = reply[0]
        if word == b"absent":
            raise SessionNotFound(session_id)
        if word == b"token":
            raise Unauthenticated(TOKEN_ENDED[reply[2]])
        if word == b"expired" and script.name not in READS_EXPIRED:
            self.report_unsettled(session_id, reply)
            raise expired_of(session_id, reply)
        return reply

    def report_unsettled(self, session_id: SessionId, reply: list[Any]) -> None:
        """An ``expired`` reply: if nobody settled the session yet, have it done."""
        if reply[6] == b"unsettled":
            self.overdue(session_id)


TOKEN_ENDED: Final = {
    b"revoked": "The session token was revoked",
    b"expired": "The session token has expired",
}
READS_EXPIRED: Final = frozenset({"replay", "alarm"})


def unknown(script: Script, reply: list[Any]) -> StorageFault:
    """For a word that is not in the script's REPLY line: our bug."""
    return StorageFault(f"{script.name} replied {reply[0]!r}")

"""The scripts: each state transition is one, and this is how they are put together and run.

A file in ``lua/`` says ``-- needs: session clock``; those parts of ``lua/lib`` are
put before it, and the session's fields, whose one list is here, before them.
Every reply of a session's script has the session's id in second place, so that
another session's reply can never pass for it.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from sessions_api.domain.access import Grant
from sessions_api.domain.ids import AppName, SessionId, TurnId
from sessions_api.domain.sessions import Session
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.errors import SessionExpired, SessionNotFound, StorageFault, Unauthenticated
from sessions_api.store.connection import Redis, Reply, Script

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sessions_api.store.keys import Keyspace
    from sessions_api.store.lines import Arg

TEXTS: Final = (
    "app",
    "agent_id",
    "user_id",
    "metadata",
    "sources",
    "on_busy",
    "turn",
    "turn_state",
    "ops",
    "reason",
)
NUMBERS: Final = (
    "created_ms", "timeout_ms", "auto_renew", "max_duration_ms", "warning_ms", "retention_ms",
    "expires_ms", "held_until_ms", "last_activity_ms", "last_renewal_ms", "renewals", "warned_ms",
    "cursor", "config_version", "rev", "queued", "queued_bytes", "retry_ms", "ready_ms", "alarm_ms",
    "log_bytes", "listed_ms", "token_epoch",
)  # fmt: skip
FIELDS: Final = TEXTS + NUMBERS
"""The fields of ``session:{t}:<sid>``, in the order scripts reply them."""


_TELL: Final = "redis.call('PUBLISH', live, message)"
_TELL_SHARD: Final = f"if type(redis.pcall('SPUBLISH', live, message)) == 'table' then {_TELL} end"
"""On a cluster: past its bus, to those who subscribed at this server (``fleet.py``). Redis 6.2 cannot."""

_FUNCTION: Final = re.compile(r"^local function (\w+)\(.*(?: end|\n(?:(?!end$).*\n)*end)$", re.MULTILINE)


def load(name: str) -> Script:
    """The script in ``lua/<name>.lua``, with what it needs of the parts before it."""
    folder = files("sessions_api.store") / "lua"
    text = (folder / f"{name}.lua").read_text()
    needs = re.search(r"^-- needs: (.+)$", text, re.MULTILINE)
    if not needs:
        return Script(name, text)
    parts = "\n".join((folder / "lib" / f"{part}.lua").read_text() for part in needs[1].split())
    session = [_field_access()] if "session" in needs[1].split() else []
    whole = "\n".join([*session, _used(parts, by=text), text])
    return Script(name, whole, on_cluster=whole.replace(_TELL, _TELL_SHARD))


def _used(parts: str, *, by: str) -> str:
    """*parts* without the functions that the script does not reach: each would be made anew at every call."""
    functions = {function[1]: function[0] for function in _FUNCTION.finditer(parts)}
    reached: set[str] = set()
    ahead = [_FUNCTION.sub("", parts), by]
    while ahead:
        for word in set(re.findall(r"\w+", ahead.pop())) & functions.keys() - reached:
            reached.add(word)
            ahead.append(functions[word])
    return _FUNCTION.sub(lambda function: function[0] if function[1] in reached else "", parts)


def _field_access() -> str:
    """Lua that reads and replies the fields, written out once for all of them."""
    names = ", ".join(f"'{name}'" for name in FIELDS)
    place = {name: number for number, name in enumerate(FIELDS, start=1)}
    texts = ", ".join(f"{name} = v[{place[name]}] or ''" for name in TEXTS)
    numbers = ", ".join(f"{name} = tonumber(v[{place[name]}] or 0)" for name in NUMBERS)
    told = [f"changed.{name} ~= nil and s.{name} or v[{place[name]}] or ''" for name in TEXTS]
    told += [f"changed.{name} ~= nil and int(s.{name}) or v[{place[name]}] or '0'" for name in NUMBERS]
    return (
        f"local function read_fields(key) local v = redis.call('HMGET', key, {names}) "
        f"return {{{texts}, {numbers}}}, v end\n"
        f"local function reply_fields(s, v, changed, int) return {{{', '.join(told)}}} end"
    )


def session_of(session_id: SessionId, now: bytes, fields: list[bytes]) -> Session:
    """A session from a script's ``now`` and ``fields``."""
    texts, numbers = fields[: len(TEXTS)], fields[len(TEXTS) :]
    app, agent_id, user_id, metadata, sources, on_busy, turn, turn_state, _ops, _reason = texts
    (
        created_ms, timeout_ms, auto_renew, max_duration_ms, warning_ms, retention_ms,
        expires_ms, held_until_ms, last_activity_ms, last_renewal_ms, renewals, warned_ms,
        cursor, config_version, rev, queued, *_, token_epoch,
    ) = map(int, numbers)  # fmt: skip
    return Session(
        session_id=session_id,
        now_ms=int(now),
        app=AppName(app.decode()),
        agent_id=agent_id.decode(),
        user_id=user_id.decode(),
        created_ms=created_ms,
        metadata=metadata,
        config=TimeoutConfig(timeout_ms, auto_renew == 1, max_duration_ms, warning_ms, sources.decode()),
        on_busy=on_busy.decode(),  # type: ignore[arg-type]  # written by create alone, from the same Literal
        retention_ms=retention_ms,
        expires_ms=expires_ms,
        held_until_ms=held_until_ms,
        last_activity_ms=last_activity_ms,
        last_renewal_ms=last_renewal_ms,
        renewals=renewals,
        warned_ms=warned_ms,
        cursor=cursor,
        config_version=config_version,
        rev=rev,
        turn_id=TurnId(turn.decode()) if turn else None,
        turn_state=(turn_state.decode() or None),  # type: ignore[arg-type]  # queued, running or none
        queued=queued,
        token_epoch=token_epoch,
    )


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
        self, script: Script, session_id: SessionId, grant: Grant, *args: Arg, keys: int = 5
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

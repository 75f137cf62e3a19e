"""The scripts: each state transition is one, and this is how they are put together and run.

A file in ``lua/`` says ``-- needs: session clock``; those parts of ``lua/lib`` are
put before it, and what reads a session's state (``state.py``) before them. What it
calls ``-- rarely:`` is made when it is called.
Every reply of a session's script has the session's id in second place, so that
another session's reply can never pass for it.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from sessions_api.domain.access import Grant
from sessions_api.domain.ids import SessionId
from sessions_api.errors import SessionExpired, SessionNotFound, StorageFault, Unauthenticated
from sessions_api.store.connection import Redis, Reply, Script
from sessions_api.store.state import STATE_OF, in_places

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sessions_api.store.keys import Keyspace
    from sessions_api.store.lines import Arg

_TELL: Final = "redis.call('PUBLISH', live, message)"
_TELL_SHARD: Final = f"if type(redis.pcall('SPUBLISH', live, message)) == 'table' then {_TELL} end"
"""On a cluster: past its bus, to those who subscribed at this server (``fleet.py``). Redis 6.2 cannot."""

_COMMENT: Final = re.compile(r"--\[\[(?s:.*?)\]\]|--.*")
_FUNCTION: Final = re.compile(r"^local function (\w+)\(.*?(?: end|\n(?:(?!end$).*\n)*end)$", re.MULTILINE)


def load(name: str) -> Script:
    """The script in ``lua/<name>.lua``, with what it needs of the parts before it."""
    folder = files("sessions_api.store") / "lua"
    text = (folder / f"{name}.lua").read_text()
    needs = re.search(r"^-- needs: (.+)$", text, re.MULTILINE)
    if not needs:
        return Script(name, text)
    parts = "\n".join((folder / "lib" / f"{part}.lua").read_text() for part in needs[1].split())
    rare = re.search(r"^-- rarely: (.+)$", text, re.MULTILINE)
    whole = _assembled(parts, text, rare[1].split() if rare else [])
    if "session" in needs[1].split():
        whole = f"{STATE_OF}\n{in_places(whole)}"
    return Script(name, whole, on_cluster=whole.replace(_TELL, _TELL_SHARD))


def _assembled(parts: str, text: str, rare: list[str]) -> str:
    """*text* after what it needs of *parts*. Lua makes each function anew at every call of the script,
    which costs more than most of them do; so those that it does not reach are left out, and those that
    it reaches by the *rare* ones alone are made when the first of these is called.
    """
    functions = {function[1]: function[0] for function in _FUNCTION.finditer(parts)}
    top = _FUNCTION.sub("", parts)
    often = _reached(functions, [top, text], without=rare)
    seldom = _reached(functions, [functions[name] for name in rare]) | set(rare)
    if not rare:
        return f"{_only(often, parts)}\n{text}"
    calls = re.compile(rf"\b({'|'.join(rare)})\(")
    made = "\n".join(functions[name] for name in functions if name in seldom - often)
    kept = ", ".join(f"{name} = {name}" for name in rare)
    rarely = (
        f"local rare\nrarely = function()\nif not rare then\n{made}\nrare = {{{kept}}}\nend\nreturn rare\nend"
    )
    front, behind = (calls.sub(r"rarely().\1(", part) for part in (_only(often, parts), text))
    return f"local rarely\n{front}\n{rarely}\n{behind}"


def _only(names: set[str], parts: str) -> str:
    return _FUNCTION.sub(lambda function: function[0] if function[1] in names else "", parts)


def _reached(functions: dict[str, str], texts: list[str], *, without: Sequence[str] = ()) -> set[str]:
    """The *functions* that *texts* call, and those that these call."""
    reached: set[str] = set()
    ahead = list(texts)
    while ahead:
        words = set(re.findall(r"\w+", _COMMENT.sub("", ahead.pop())))
        for word in words & functions.keys() - reached - set(without):
            reached.add(word)
            ahead.append(functions[word])
    return reached


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

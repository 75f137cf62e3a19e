"""The state of a session: one field of its hash, an array that Lua and Python read alike.

``session:{t}:<sid>`` has ``metadata``, as it was given, ``state``, a MessagePack array
in the order of :class:`State`, and the records of turns (``lua/lib/turns.lua``). One
field with thirty-six members costs a script a third of what as many fields do, and
does without the memory of their names. In Lua the array is ``s``; in ``s.rev`` the
place is put when a script is loaded, so a name that is no field does not load.

A field that a later release adds stands at the end: what was written without it
is read as blank, and who does not know it keeps it.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sessions_api.domain.ids import AppName, SessionId, TurnId
from sessions_api.domain.sessions import Session
from sessions_api.domain.timeouts import TimeoutConfig


class State(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Instants are milliseconds of Redis's clock. 0 and "": nothing, or not yet."""

    app: str = ""
    agent_id: str = ""
    user_id: str = ""
    sources: str = ""
    on_busy: str = ""
    turn: str = ""
    """The running turn, else the oldest queued one."""
    turn_state: str = ""
    queue: str = ""
    """Ids of the queued turns, oldest first."""
    ops: str = ""
    reason: str = ""
    created_ms: int = 0
    timeout_ms: int = 0
    auto_renew: int = 0
    max_duration_ms: int = 0
    warning_ms: int = 0
    retention_ms: int = 0
    expires_ms: int = 0
    held_until_ms: int = 0
    last_activity_ms: int = 0
    last_renewal_ms: int = 0
    renewals: int = 0
    warned_ms: int = 0
    cursor: int = 0
    config_version: int = 0
    rev: int = 0
    queued: int = 0
    """Messages in queued turns."""
    queued_bytes: int = 0
    retry_ms: int = 0
    """Until when the first turn of the queue pauses."""
    ready_ms: int = 0
    """Since when it stands in its agent's ``ready``."""
    alarm_ms: int = 0
    """Its score in ``due``."""
    hint_ms: int = 0
    """The TTL of its alarm key."""
    log_bytes: int = 0
    listed_ms: int = 0
    token_epoch: int = 0
    keys_until_ms: int = 0
    """The TTL of its keys."""
    ended_turns: int = 0
    """How many turns have ended: where the next one stands in their ring."""


_PLACES: Final = {name: place for place, name in enumerate(State.__struct_fields__, start=1)}
_BLANK: Final = ", ".join("''" if blank == "" else "0" for blank in State.__struct_defaults__)
_FIELD: Final = re.compile(r"\bs\.(\w+)")
_READ: Final = re.compile(r"^local s = state_of\((.+)\)$", re.MULTILINE)
_UNPACKED: Final = (
    r"local s = \1 and cmsgpack.unpack(\1) or {}\n"
    f"if #s < {len(_PLACES)} then local blank = {{{_BLANK}}} "
    f"for i = #s + 1, {len(_PLACES)} do s[i] = blank[i] end end"
)
"""A field that is not there yet is blank."""

read_state: Final = msgspec.msgpack.Decoder(State).decode
"""The state in field ``state`` of a session's hash."""


def in_places(lua: str) -> str:
    """*lua* with the state read where it says ``state_of``, and the place of a field where it names one.

    Raises:
        KeyError: it names a field that there is not.
    """
    lua = _READ.sub(_UNPACKED, lua)
    return _FIELD.sub(lambda found: f"s[{_PLACES[found[1]]}]", lua)


def session_of(session_id: SessionId, now: bytes, fields: list[Any]) -> Session:
    """A session from a script's ``now`` and ``fields``, which are its state and its metadata."""
    state = read_state(fields[0])
    # By position: names would take as long as all the rest, of every request.
    return Session(
        session_id,
        int(now),
        AppName(state.app),
        state.agent_id,
        state.user_id,
        state.created_ms,
        fields[1],
        TimeoutConfig(
            state.timeout_ms, state.auto_renew == 1, state.max_duration_ms, state.warning_ms, state.sources
        ),
        state.on_busy,  # type: ignore[arg-type]  # written by create alone, from the same Literal
        state.retention_ms,
        state.expires_ms,
        state.held_until_ms,
        state.last_activity_ms,
        state.last_renewal_ms,
        state.renewals,
        state.warned_ms,
        state.cursor,
        state.config_version,
        state.rev,
        TurnId(state.turn) if state.turn else None,
        state.turn_state or None,  # type: ignore[arg-type]  # queued, running or none
        state.queued,
        state.token_epoch,
    )

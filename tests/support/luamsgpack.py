"""``cmsgpack`` for the Lua of fakeredis 2.40, which every real server has, and it has not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fakeredis.commands_mixins.scripting_mixin import LUA_MODULE, ScriptingCommandsMixin

_runtime_of: Callable[[Any, Any], Any] = ScriptingCommandsMixin._get_server_runtime


def teach() -> None:
    """From now on the scripts of every fakeredis server have it."""
    ScriptingCommandsMixin._get_server_runtime = _with_cmsgpack  # type: ignore[method-assign,assignment]


def _with_cmsgpack(mixin: Any, server: Any) -> Any:
    lua = _runtime_of(mixin, server)
    names = lua.globals()
    if names[b"cmsgpack"] is None:
        names[b"cmsgpack"] = lua.table_from(
            {
                b"pack": lambda value: msgspec.msgpack.encode(_from_lua(value)),
                b"unpack": lambda packed: _to_lua(lua, msgspec.msgpack.decode(packed)),
            }
        )
        server._lua_expected_globals.add(b"cmsgpack")
    return lua


def _from_lua(value: Any) -> Any:
    """A table with the keys 1 to n is an array, an empty one too, as in lua_cmsgpack.c."""
    if LUA_MODULE.lua_type(value) != "table":
        return value.decode() if isinstance(value, bytes) else value
    members = {key: _from_lua(member) for key, member in value.items()}
    if set(members) == set(range(1, len(members) + 1)):
        return [members[place] for place in sorted(members)]
    return {key.decode(): member for key, member in members.items()}


def _to_lua(lua: Any, value: Any) -> Any:
    match value:
        case dict():
            return lua.table_from({name.encode(): _to_lua(lua, member) for name, member in value.items()})
        case list():
            return lua.table_from([_to_lua(lua, member) for member in value])
        case str():
            return value.encode()
        case _:
            return value

"""The scripts, put together: what Redis gets is made of a file in ``lua/`` and parts of ``lua/lib``.

The file says in comments what it takes:

- ``-- needs: session clock``: these parts are put before it, as far as it reaches their functions.
- ``-- rarely: expire cancel``: these functions are made when one of them is called; more such lines
  are more such groups.
- ``-- turn: ARGV[3]``: the record of the turn with that id is read with the session's state.

Lua makes a script's functions anew at every run, and a call of one takes as long as a dozen of
its steps. So the parts are written for who reads them, and those that can be are put where they
are called. With half a hundred functions an appended message took Redis half as long again.
"""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import chain
from typing import TYPE_CHECKING, Final

from sessions_api.store.connection import Script
from sessions_api.store.state import in_places

if TYPE_CHECKING:
    from collections.abc import Sequence

_TELL: Final = "redis.call('PUBLISH', live, message)"
_TELL_SHARD: Final = f"if type(redis.pcall('SPUBLISH', live, message)) == 'table' then {_TELL} end"
"""On a cluster: past its bus, to those who subscribed at this server (``fleet.py``). Redis 6.2 cannot."""

_READ: Final = "redis.call('HMGET', session, 'state', 'metadata')"
_ASKED: Final = "local asked = nil"
_COMMENT: Final = re.compile(r"\s*--\[\[(?s:.*?)\]\]|\s*--.*")
_FUNCTION: Final = re.compile(r"^local function (\w+)\(.*?(?: end|\n(?:(?!end$).*\n)*end)$", re.MULTILINE)

_EXPRESSION: Final = re.compile(r"^local function (\w+)\(\) return (.+) end$", re.MULTILINE)
_STATEMENTS: Final = re.compile(
    r"^local function (\w+)\(\)\n((?:(?!end$|.*\breturn\b).*\n)*)end$", re.MULTILINE
)
_FRONT: Final = re.compile(r"^local function (\w+)\((\w+)\) return (.+), \2\) end$", re.MULTILINE)
"""A function whose argument comes last in the one call that it is, and ends both."""


def load(name: str) -> Script:
    """The script in ``lua/<name>.lua``."""
    folder = files("sessions_api.store") / "lua"
    text = (folder / f"{name}.lua").read_text()
    needs = _said("needs", text)
    if not needs:
        return Script(name, text)
    parts = "\n".join((folder / "lib" / f"{part}.lua").read_text() for part in needs)
    for turn in _said("turn", text):
        parts = parts.replace(_ASKED, f"local asked = {turn}").replace(_READ, f"{_READ[:-1]}, {turn})")
    rare = [names.split() for names in re.findall(r"^-- rarely: (.+)$", text, re.MULTILINE)]
    whole = _assembled(_COMMENT.sub("", parts), _COMMENT.sub("", text), rare)
    if "session" in needs:
        whole = in_places(inlined(whole, without=list(chain.from_iterable(rare))))
    return Script(name, whole, on_cluster=whole.replace(_TELL, _TELL_SHARD))


def _said(word: str, text: str) -> list[str]:
    found = re.search(rf"^-- {word}: (.+)$", text, re.MULTILINE)
    return found[1].split() if found else []


def _assembled(parts: str, text: str, rare: list[list[str]]) -> str:
    """*text* after what it reaches of *parts*; each group of *rare* is made when one of it is called."""
    functions = {function[1]: function[0] for function in _FUNCTION.finditer(parts)}
    top = _FUNCTION.sub("", parts)
    often = _reached(functions, [top, text], without=list(chain.from_iterable(rare)))
    front, makers = _only(often, parts), ""
    for number, names in enumerate(rare):
        seldom = _reached(functions, [functions[name] for name in names]) | set(names)
        made = "\n".join(functions[name] for name in functions if name in seldom - often)
        kept = ", ".join(f"{name} = {name}" for name in names)
        maker, its = f"rarely_{number}", f"rare_{number}"
        calls = re.compile(rf"\b({'|'.join(names)})\(")
        front, text = (calls.sub(rf"{maker}().\1(", part) for part in (front, text))
        front = f"local {maker}\n{front}"
        makers += f"local {its}\n{maker} = function()\nif not {its} then\n{made}\n{its} = {{{kept}}}\nend\n"
        makers += f"return {its}\nend\n"
    return f"{front}\n{makers}{text}"


def _only(names: set[str], parts: str) -> str:
    return _FUNCTION.sub(lambda function: function[0] if function[1] in names else "", parts)


def _reached(functions: dict[str, str], texts: list[str], *, without: Sequence[str] = ()) -> set[str]:
    """The *functions* that *texts* call, and those that these call."""
    reached: set[str] = set()
    ahead = list(texts)
    while ahead:
        words = set(re.findall(r"\w+", ahead.pop()))
        for word in words & functions.keys() - reached - set(without):
            reached.add(word)
            ahead.append(functions[word])
    return reached


def inlined(lua: str, *, without: list[str]) -> str:
    """*lua*, where functions of one expression, or of statements alone, stand where they are called."""
    for kind, call, before, after in (
        (_EXPRESSION, r"\(\)", "(", ")"),
        (_FRONT, r"\(", "", ", "),
        (_STATEMENTS, r"\(\)", "do ", " end"),
    ):
        at = 0
        while found := kind.search(lua, at):
            name, *_, body = found.groups()
            if name in without:
                at = found.end()
                continue
            there = before + body.replace("\n", " ") + after
            lua = lua[: found.start()] + lua[found.end() :]
            lua = re.sub(rf"(?<![.\w]){name}{call}", lambda _, there=there: there, lua)  # type: ignore[misc]
            if re.search(rf"(?<![.\w]){name}\b", lua):
                raise ValueError(f"{name} is handed on, or called otherwise than it is made")
    return re.sub(r"\n\s*\n+", "\n", lua)

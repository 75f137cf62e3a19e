"""How much structure JSON may have: told from its bytes, before a decoder makes objects of it.

A body of 256 KiB can be 100,000 empty arrays. To decode them takes 5 ms, and the
garbage collector, which looks at every object there is once so many are new,
ten times as long; all other clients wait meanwhile.
"""

from __future__ import annotations

import re
from typing import Final

from sessions_api.errors import MalformedBody

MAX_DEPTH: Final = 64
MAX_KEYS: Final = 10_000
MAX_CONTAINERS: Final = 10_000
TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"
# A string that does not end runs to the end of the text: else each quote in it would be tried as a start.
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.|\\\Z)*+(?:"|\Z)', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")


def check_shape(text: bytes) -> None:
    """Hold JSON against the bounds; whether it is JSON shows later.

    Raises:
        MalformedBody: more than 64 levels, 10,000 keys, or 10,000 objects and arrays.
    """
    # Most texts have too few of the characters for a closer look, even if some stand in strings.
    if text.count(b"{") + text.count(b"[") <= MAX_DEPTH and text.count(b":") <= MAX_KEYS:
        return
    bare = _STRING.sub(b"", text)
    if bare.count(b":") > MAX_KEYS:
        raise MalformedBody(f"it has more than {MAX_KEYS:,} keys")
    if bare.count(b"{") + bare.count(b"[") > MAX_CONTAINERS:
        raise MalformedBody(f"it has more than {MAX_CONTAINERS:,} objects and arrays")
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise MalformedBody(TOO_DEEP)

"""Slots: which of a cluster's 16,384 a command's key lies in, and who serves them.

A key's slot is the CRC16 of its hash tag; Python's own ``crc_hqx`` is the one that
Redis uses, so there is no table here and nothing to cache.
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sessions_api.store.address import Host

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sessions_api.store.lines import Arg

SLOTS: Final = 16384
_REDIRECTION: Final = re.compile(r"(?:MOVED|ASK) (\d+) (.*):(\d+)")

# What names no key: any server may answer, or each for itself. All else has its key in second place.
KEYLESS: Final = frozenset(
    (
        b"ACL CLIENT CLUSTER COMMAND CONFIG DBSIZE ECHO FLUSHALL INFO LATENCY PING PUBLISH ROLE SCAN SCRIPT "
        b"SLOWLOG TIME WAIT"
    ).split()
)


class Range(NamedTuple):
    """Slots *first* to *last*, and the primary that serves them."""

    first: int
    last: int
    host: Host


def slot_of(key: bytes) -> int:
    """The slot of *key*: of what stands in its first braces, if anything does."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) & (SLOTS - 1)


def slot_of_command(command: tuple[Arg, ...]) -> int | None:
    """The slot of the first key of *command*; None: it has none. All keys of ours lie in one slot."""
    name = command[0]
    if name in (b"EVALSHA", b"EVAL"):
        key = command[3] if command[2] else None
    else:
        name = name.upper().encode() if isinstance(name, str) else name
        if name in KEYLESS or len(command) < 2:
            return None
        key = command[2] if name == b"MEMORY" else command[1]
    if key is None:
        return None
    return slot_of(key if isinstance(key, bytes) else str(key).encode())


def redirection(error: str, *, asked: Host) -> tuple[int, Host] | None:
    """Slot and server of a ``MOVED`` or ``ASK``, said by *asked*; None where it names no server.

    An empty host is the one that was asked. ``?`` is a server set to announce a
    hostname that it does not have: nobody can be reached by that.
    """
    found = _REDIRECTION.fullmatch(error)
    if found is None or found[2] == "?":
        return None
    return int(found[1]), Host(found[2] or asked.name, int(found[3]))


def ranges(reply: Any, *, asked: Host) -> Iterator[Range]:
    """What ``CLUSTER SLOTS`` says, when *asked* said it.

    A host that is missing or empty is the one that was asked (a cluster behind one
    address, or a lone server that does not know its own); for ``?`` its IP address
    is taken, which newer servers tell beside it.
    """
    for first, last, (name, port, *more), *_replicas in reply:
        host = name.decode() if name else asked.name
        if host == "?":
            flat = more[1] if len(more) > 1 else []
            host = dict(zip(flat[::2], flat[1::2], strict=False)).get(b"ip", b"?").decode()
        if host != "?":
            yield Range(first, last, Host(host, port))


def covered(found: Iterable[Range]) -> int:
    """How many slots somebody serves."""
    return sum(part.last - part.first + 1 for part in found)

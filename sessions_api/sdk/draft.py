"""The answer as it grows: what was yielded, how much of it has arrived.

The service counts UTF-16 units, as JavaScript does, and a delta may not split a
surrogate pair; so the text is kept as UTF-16 and cut between characters. What a
handler passes on from elsewhere may end in half a pair: the half waits for the
next piece, and one that stays alone becomes U+FFFD.
"""

from __future__ import annotations

import asyncio
from typing import Final

MOST_UNSENT: Final = 65_536
"""UTF-16 units that a handler may be ahead of the network before it waits."""
_UNIT: Final = 2  # bytes


class Draft:
    """Text in at one end, pieces of at most so many units out at the other."""

    def __init__(self) -> None:
        self._text = bytearray()  # UTF-16, little endian, whole pairs only
        self._half = ""
        self._arrived = 0  # bytes
        self._is_closed = False
        self._grew = asyncio.Event()
        self._drained = asyncio.Event()

    @property
    def offset(self) -> int:
        """How many units have arrived."""
        return self._arrived // _UNIT

    @property
    def unsent(self) -> int:
        """How many units have not."""
        return (len(self._text) - self._arrived) // _UNIT

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    async def add(self, piece: str) -> None:
        """Take one more piece; waits while too much is on its way."""
        self._append(piece)
        while self.unsent > MOST_UNSENT:
            self._drained.clear()
            await self._drained.wait()

    def close(self) -> None:
        """Nothing more comes."""
        if self._half:
            self._half, half = "", self._half
            self._text += _utf16(half)
        self._is_closed = True
        self._grew.set()

    async def has_more(self) -> bool:
        """Wait until something is to be sent; False once all has arrived and nothing more comes."""
        while not self.unsent and not self._is_closed:
            self._grew.clear()
            await self._grew.wait()
        return self.unsent > 0

    async def closed_within(self, wait_s: float) -> None:
        """Return after *wait_s*, or as soon as nothing more comes."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + wait_s
        while not self._is_closed and (left_s := end_s - loop.time()) > 0:
            self._grew.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._grew.wait()
            except TimeoutError:
                return

    def peek(self, most_units: int) -> str:
        """What comes next, at most so many units (two or more), never half a pair."""
        end = min(len(self._text), self._arrived + most_units * _UNIT)
        if end < len(self._text) and 0xD8 <= self._text[end - 1] <= 0xDB:  # the first half of a pair
            end -= _UNIT
        return self._text[self._arrived : end].decode("utf-16-le")

    def arrived(self, piece: str) -> None:
        """The service has *piece*, which was the next."""
        self._arrived += len(_utf16(piece))
        self._drained.set()

    def rewind(self, offset: object) -> bool:
        """The service has the first *offset* units, whatever it said before; False if it cannot be so."""
        if not isinstance(offset, int) or not 0 <= offset * _UNIT <= len(self._text) or offset == self.offset:
            return False
        self._arrived = offset * _UNIT
        return True

    def _append(self, piece: str) -> None:
        text = self._half + piece
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        self._text += _utf16(text[: len(text) - len(self._half)])
        self._grew.set()


def well_formed(text: str) -> str:
    """*text* as it can be sent: halves of pairs joined, lone ones replaced."""
    return _utf16(text).decode("utf-16-le")


def _utf16(text: str) -> bytes:
    """*text* in UTF-16, its halves of pairs joined, lone ones replaced one for one."""
    try:
        return text.encode("utf-16-le")
    except UnicodeEncodeError:
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return joined.encode("utf-16-le")

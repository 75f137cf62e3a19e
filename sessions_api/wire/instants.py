"""Instants on the wire: RFC 3339, UTC, milliseconds, ``Z``."""

from __future__ import annotations

import re
import time
from datetime import date
from functools import lru_cache

LAST_MS = 253_402_300_799_999
"""The end of the year 9999, past which RFC 3339 has no words."""
EPOCH_DAY = date(1970, 1, 1).toordinal()
_REST = [f".{ms:03d}Z" for ms in range(1000)]


@lru_cache(maxsize=8192)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def iso(ms: int) -> str:
    """*ms* since the epoch as ``2026-11-22T23:31:34.123Z``."""
    second, rest = divmod(ms, 1000)
    return _second(second) + _REST[rest]


@lru_cache(maxsize=8192)
def _second_of(digits: bytes) -> bytes:
    return _second(int(digits)).encode()


def iso_of(digits: bytes) -> bytes:
    """As :func:`iso`, from a cursor's digits and in bytes."""
    if len(digits) <= 3:
        return iso(int(digits)).encode()
    return _second_of(digits[:-3]) + b"." + digits[-3:] + b"Z"


def iso_now() -> str:
    """This machine's own time: for what is stamped and never compared (errors, health)."""
    return iso(time.time_ns() // 1_000_000)


_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,30}))?)?(?:Z|([+-])(\d\d):(\d\d))?)?",
    re.ASCII | re.IGNORECASE,
)


def parse_instant(text: str) -> int:
    """The milliseconds of an ISO instant, of a date its midnight; one without an offset is UTC.

    Before 1970 they are negative. The second 60 of a leap second is the next minute's first.

    Raises:
        ValueError: *text* is no instant.
    """
    found = _INSTANT.fullmatch(text)
    if found is None:
        raise ValueError(text)
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    fraction, sign, offset_h, offset_m = found.groups()[6:]
    if hour > 23 or minute > 59 or second > 60 or int(offset_h or 0) > 23 or int(offset_m or 0) > 59:
        raise ValueError(text)
    # Year 0, which RFC 3339 has and Python has not, is as long as 2000, 730,485 days later.
    days = date(year or 2000, month, day).toordinal() - EPOCH_DAY - (0 if year else 730_485)
    offset = (int(offset_h or 0) * 60 + int(offset_m or 0)) * (-1 if sign == "-" else 1)
    whole = ((days * 24 + hour) * 60 + minute - offset) * 60 + second
    return whole * 1000 + int(f"{fraction or 0:0<3}"[:3])

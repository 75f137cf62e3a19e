"""Ids: UUIDs in lower case, and the partition that a session's id carries."""

from __future__ import annotations

import os
import re
import secrets
import zlib
from typing import NewType

SessionId = NewType("SessionId", str)
"""A session's UUID v4, lower case. Its last byte carries the partition."""
AgentId = NewType("AgentId", str)
"""An agent's UUID, lower case."""
UserId = NewType("UserId", str)
"""A user's UUID, lower case."""
TurnId = NewType("TurnId", str)
MessageId = NewType("MessageId", str)
OpId = NewType("OpId", str)
"""Names one attempt to change a session, so that repeating it changes nothing more."""
AppName = NewType("AppName", str)
"""The application that owns a session: ``[a-z0-9-]{1,32}``; ``local`` without keys."""

LOCAL_APP = AppName("local")
PARTITIONS = 64

_VARIANT = {digit: "89ab"[number % 4] for number, digit in enumerate("0123456789abcdef")}
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def is_uuid(text: str) -> bool:
    """Whether *text* is 8-4-4-4-12 hex digits, of any version and case."""
    return len(text) == 36 and _UUID.fullmatch(text) is not None


def partition_of_user(user_id: UserId) -> int:
    """The partition that holds all of the user's sessions.

    CRC-32 of the lower-case id: stable over releases and cheap. Ids are random,
    so nothing better is needed; a user who picks ids by hand can only crowd a
    partition with sessions of their own.
    """
    return zlib.crc32(user_id.encode()) % PARTITIONS


def partition_of_session(session_id: SessionId) -> int:
    """The partition written in the last byte of a session's id."""
    return int(session_id[-2:], 16) % PARTITIONS


def new_session_id(user_id: UserId) -> SessionId:
    """A fresh UUID v4 whose last byte leads to the user's partition."""
    text = _new_uuid()
    return SessionId(f"{text[:-2]}{int(text[-2:], 16) & 0xC0 | partition_of_user(user_id):02x}")


def new_turn_id() -> TurnId:
    return TurnId(_new_uuid())


def new_message_id() -> MessageId:
    return MessageId(_new_uuid())


_drawn = bytearray()
os.register_at_fork(after_in_child=_drawn.clear)  # a child must not draw its parent's ids


def _new_uuid() -> str:
    """A UUID v4. The system's randomness is drawn in bulk: a message needs two, and asking is what costs."""
    if len(_drawn) < 16:
        _drawn.extend(os.urandom(4096))
    text = _drawn[-16:].hex()
    del _drawn[-16:]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:]}"


def new_op_id() -> OpId:
    """64 random bits; only ever compared with the last four of one session."""
    return OpId(secrets.token_urlsafe(8))

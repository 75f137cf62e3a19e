"""The ``Idempotency-Key`` header: a repeat with the same key finds what the first request did."""

from __future__ import annotations

from typing import Final

from sessions_api.errors import FieldError, InvalidInput

MAX_KEY_CHARS: Final = 255


def read_key(sent: bytes | None) -> str | None:
    """The key of an ``Idempotency-Key`` header: a structured-field String, or bare.

    Raises:
        InvalidInput: it is empty, too long, or holds what a key may not.
    """
    if sent is None:
        return None
    text = sent.decode("latin-1").strip()
    if text.startswith('"'):
        text = _unquoted(text)
    return checked_key(text)


def checked_key(key: str) -> str:
    """*key*, if it may be one.

    Raises:
        InvalidInput: as :func:`read_key`.
    """
    if not 1 <= len(key) <= MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise InvalidInput(
            "Invalid Idempotency-Key",
            [
                FieldError(
                    "Idempotency-Key", "is unusable", None, f"1..{MAX_KEY_CHARS} printable ASCII characters"
                )
            ],
        )
    return key


def _unquoted(text: str) -> str:
    """The String of RFC 8941; empty, and so refused, if it is none."""
    inner: list[str] = []
    escaped = False
    for position, char in enumerate(text[1:], 1):
        if escaped:
            if char not in '"\\':
                return ""
            inner.append(char)
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            return "".join(inner) if position == len(text) - 1 else ""
        else:
            inner.append(char)
    return ""

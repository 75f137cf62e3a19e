"""Keyrings in a line: of one key whose secret is known, or of so many new ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sessions_api.access.keyring import Keyring, mint

SECRET = "Zm9vYmFyYmF6cXV4_Zm9vYmFyYmF6cXV4-Zm9vYmFyY"
HASH = hashlib.sha256(SECRET.encode()).hexdigest()
GOOD = f"key1 shop app sha256:{HASH}"


def loaded(*, text: str = "", path: Path | None = None) -> Keyring:
    keyring = Keyring(text=text, path=path)
    keyring.load()
    return keyring


def lines(count: int) -> tuple[list[str], list[str]]:
    """So many lines, and the keys that they are for."""
    pairs = [mint("shop", ["app"]) for _ in range(count)]
    return [line for line, _ in pairs], [key for _, key in pairs]

"""How times and events look in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

CONTROL = {code: "�" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def duration(ms: float) -> str:
    """``4:59``, or ``1:04:59``: what a countdown shows, rounded up to a second."""
    seconds = max(0, -(-int(ms) // 1000))
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def clean(text: str) -> str:
    """*text* without control characters: what others wrote must not steer this terminal."""
    return text.translate(CONTROL)


def style(text: str, code: str, stream: TextIO | None = None) -> str:
    """*text* in colour *code* where the stream is a terminal."""
    return f"\x1b[{code}m{text}\x1b[0m" if (stream or sys.stdout).isatty() else text


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under their columns' names; nothing where there are none."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def instant_ms(text: str) -> int:
    """An RFC 3339 instant in milliseconds."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def local_time(text: str) -> str:
    """The time of day of an instant, on this machine."""
    return datetime.fromisoformat(text).astimezone().strftime("%H:%M:%S")


def now_ms() -> int:
    return round(datetime.now(UTC).timestamp() * 1000)


def describe(event: dict[str, Any]) -> str:
    """One event in words, on one line."""
    data = event["data"]
    match event["type"]:
        case "session.snapshot":
            words = f"{data['stage']}, ends in {duration(data['timeRemaining'])}, cursor {data['cursor']}"
        case "message.created":
            stopped = " (stopped)" if data.get("status") == "cancelled" else ""
            words = f"{data['role']}: {data['content']}{stopped}"
        case "turn.delta":
            words = repr(data["text"])
        case "turn.failed":
            words = f"{data['code']}: {data['message']} (after {data['attempts']} attempts)"
        case "turn.cancelled":
            words = f"by {data['by']}"
        case "session.expiring":
            words = f"in {data['minutesRemaining']} min, {data['reason']}"
        case "session.renewed":
            words = f"until {local_time(data['expiresAt'])}, by {data['by']}"
        case "session.expired":
            words = f"at {local_time(data['expiredAt'])}, {data['reason']}"
        case "gap":
            kept = f"{data['oldest']}..{data['newest']}"
            words = f"{data['reason']}: asked for {data['requested']}, kept are {kept}"
        case "closing":
            words = f"{data['code']}"
        case _:
            words = " ".join(f"{name}={value}" for name, value in data.items())
    return clean(words).replace("\n", " ⏎ ")

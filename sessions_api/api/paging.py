"""Query parameters of lists: limits, positions, instants, filters."""

from __future__ import annotations

import re
from typing import Final

from sessions_api.domain.ids import is_uuid
from sessions_api.errors import FieldError, InvalidInput
from sessions_api.wire.instants import LAST_MS, parse_instant

_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{0,400})?([eE][+-]?[0-9]{1,4})?", re.ASCII)
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,400}", re.ASCII)
LAST_JAVASCRIPT_MS: Final = 8_640_000_000_000_000
"""The range of a JavaScript Date, which the reference reads its cursors with."""
_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}


class Query:
    """Reads one query; :meth:`check` raises what was wrong with all of it."""

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields
        self._faults: list[InvalidInput] = []

    def limit(self, default: int, highest: int) -> int:
        """``limit``: numbers are clamped to 1..*highest*, junk is refused."""
        text = self._fields.get("limit", "").strip()
        if not text:  # as the reference has it
            return default
        if _NUMBER.fullmatch(text) is None:
            self._refuse("limit", text, "Must be a number")
            return default
        return int(max(1, min(highest, float(text))))

    def position(self, name: str) -> int | None:
        """A cursor, exclusive: an integer as pages and events give it, or an ISO instant."""
        ms = self.instant(name) if self._fields.get(name) else None  # empty is absent, as in the reference
        return None if ms is None else max(0, min(ms, LAST_MS))

    def instant(self, name: str) -> int | None:
        """Milliseconds, or an ISO instant."""
        text = self._fields.get(name)
        if text is None:
            return None
        text = text.strip()
        if _INTEGER.fullmatch(text):
            number = int(text)
            if abs(number) > LAST_JAVASCRIPT_MS:
                self._refuse(name, text, "Invalid date from timestamp")
                return None
            return number
        try:
            return parse_instant(text.replace(" ", "+"))  # in a query a bare "+" arrives as a space
        except ValueError:
            self._refuse(name, text, "Must be a valid timestamp")
            return None

    def uuid(self, name: str) -> str | None:
        """A UUID, lower case."""
        text = self._fields.get(name)
        if text is None:
            return None
        if not is_uuid(text):
            self._faults.append(
                InvalidInput(
                    f"Invalid UUID format for field '{name}'",
                    [FieldError(name, "is no UUID", text[:64], "8-4-4-4-12 hex digits")],
                    {"providedValue": text[:64], "expectedFormat": "UUID v4"},
                )
            )
            return None
        return text.lower()

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        text = self._fields.get(name)
        if text is not None and text not in allowed:
            self._refuse(name, text, f"Must be one of: {', '.join(allowed)}", kind="query")
            return None
        return text

    def matching(self, name: str, pattern: str) -> str | None:
        text = self._fields.get(name)
        if text is not None and re.fullmatch(pattern, text, re.ASCII) is None:
            self._refuse(name, text, f"Must match {pattern}", kind="query")
            return None
        return text

    def truth(self, name: str) -> bool:
        text = self._fields.get(name)
        if text is None:
            return False
        value = _TRUTH.get(text.lower())
        if value is None:
            self._refuse(name, text, "Must be true or false", kind="query")
        return bool(value)

    def text(self, name: str) -> str | None:
        return self._fields.get(name)

    def check(self) -> None:
        """Raises InvalidInput: with every bad parameter; the first one's message."""
        if self._faults:
            first = self._faults[0]
            errors = [bad for fault in self._faults for bad in fault.errors]
            raise InvalidInput(first.message, errors, first.details)

    def _refuse(self, name: str, text: str, reason: str, *, kind: str = "pagination") -> None:
        shown = text[:64]
        self._faults.append(
            InvalidInput(
                f"Invalid {kind} parameter '{name}': {reason}",
                [FieldError(name, reason, shown)],
                {"parameter": name, "value": shown, "reason": reason},
            )
        )

"""What a rule of the checker finds."""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    """One promise that was broken: which, in which session, and how it shows."""

    kind: str
    session_id: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.session_id or 'service'}: {self.text}"

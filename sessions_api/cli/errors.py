"""What a command says when it cannot do its work."""

from __future__ import annotations


class CommandError(Exception):
    """One helpful line for the terminal, and the command's exit status."""

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status

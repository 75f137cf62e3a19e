"""How a connector says that its agent did not answer: one exception, in the words of the turn's record."""

from __future__ import annotations

from typing import Final, Literal, NewType

FailureCode = Literal[
    "AGENT_ERROR",
    "AGENT_TIMEOUT",
    "AGENT_UNREACHABLE",
    "AGENT_RATE_LIMITED",
    "AGENT_REFUSED",
    "ANSWER_TOO_LARGE",
]
AgentCode = NewType("AgentCode", str)
"""The agent's own word for its failure: 1..64 of A-Z, 0-9 and _."""

LONGEST_PAUSE_S: Final = 60.0


class AttemptFailed(Exception):
    """The attempt is given up.

    *message* is for the user: it names no secret, and quotes nothing the agent
    sent but what it meant for the user. With *retry* another attempt follows, if
    any is left, after the backoff or *pause_s* (seconds, at most a minute),
    whichever is longer: what a rate limit asked for. Without it the turn has
    failed for good.
    """

    def __init__(
        self, code: FailureCode | AgentCode, message: str, retry: bool = True, pause_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.code: FailureCode | AgentCode = code
        self.message = message
        self.retry = retry
        self.pause_s = min(max(pause_s, 0.0), LONGEST_PAUSE_S)

"""What a waiting poster gets: the text as it comes, and what became of its turn."""

from __future__ import annotations

from typing import Literal

import msgspec

from sessions_api.domain.ids import MessageId, TurnId
from sessions_api.domain.messages import LogEntry
from sessions_api.errors import SessionsError

OutcomeKind = Literal[
    "completed", "cancelled", "failed", "timed_out", "expired", "deleted", "draining", "forgotten"
]


class Outcome(msgspec.Struct, frozen=True):
    """What became of a turn, as far as the poster could wait.

    ============  ==========================================================  ==================
    kind          meaning                                                     *error*
    ============  ==========================================================  ==================
    completed     *answer*, or None if the agent answered with nothing
    cancelled     by somebody or by an interrupt; *answer* is what was said
                  so far, or None
    failed        for good                                                    AgentFailed
    timed_out     the poster's time is over; the turn goes on                 AgentTimedOut
    expired       the session's expiry ended the turn                         SessionExpired
    deleted       with its session                                            SessionNotFound
    draining      this replica shuts down; the turn goes on                   Draining
    forgotten     ended more than 50 turns ago, and no answer is in the log
    ============  ==========================================================  ==================
    """

    kind: OutcomeKind
    turn_id: TurnId
    """The turn that was waited for in the end: an interrupt may have put another in its place."""
    answer: LogEntry | None = None
    error: SessionsError | None = None


class Chunk(msgspec.Struct, frozen=True):
    """A piece of the answer; *index* counts from 0 without a hole, *offset* is in UTF-16 units."""

    turn_id: TurnId
    message_id: MessageId
    text: str
    index: int
    offset: int


class Restart(msgspec.Struct, frozen=True):
    """The text so far is void: a new attempt began, or the answer is other than what was streamed."""

    turn_id: TurnId
    message_id: MessageId
    attempt: int


class Beat(msgspec.Struct, frozen=True):
    """Nothing was said for a while: time for a comment, so that nobody takes the stream for dead."""


Part = Chunk | Restart | Beat | Outcome

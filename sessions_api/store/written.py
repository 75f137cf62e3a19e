"""What became of a worker's write: read from its script's reply, and counted once, wherever it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from sessions_api.domain.ids import AgentId
from sessions_api.telemetry import metrics

if TYPE_CHECKING:
    from sessions_api.store.connection import Reply

Outcome = Literal["", "completed", "failed", "released"]
"""What a write makes of its attempt; the empty one lets it go on."""

DONE: Final = (b"ok", b"cancelled", b"large")


class Written(msgspec.Struct, frozen=True):
    """What became of a write, and whose it was."""

    is_cancelled: bool
    """The turn was cancelled, and nothing is written."""
    is_end: bool
    """This call ended the attempt with what it brought; a repeat finds it ended."""
    agent_id: AgentId
    worker: str
    """As it was named at its claim; empty of a cancelled turn that another worker had last."""


def read_written(reply: Reply, outcome: Outcome, *, is_first_text: bool = False) -> Written | None:
    """The write that *reply* tells of (lib/worker.lua), counted; None if it was refused.

    *is_first_text*: no other write of the attempt can bring its first text.
    """
    match reply.value:
        case [word, _, how, agent, worker, ran_ms, became] if word in DONE:
            written = Written(
                is_cancelled=word == b"cancelled",
                is_end=bool(outcome) and word == b"ok" and _is_news(how, reply),
                agent_id=AgentId(agent.decode()),
                worker=worker.decode(),
            )
        case _:
            return None
    count_became(became)
    if _is_news(how, reply):
        ended = {b"cancelled": "cancelled", b"large": "failed"}.get(word, outcome)
        if ended:
            label = metrics.agent(written.agent_id)
            metrics.TURNS.of(label, ended).inc()
            metrics.TURN_SECONDS.of(label).observe(int(ran_ms) / 1000)
        if is_first_text and word == b"ok":
            metrics.FIRST_DELTA_SECONDS.of(metrics.agent(written.agent_id)).observe(int(ran_ms) / 1000)
    return written


def _is_news(how: bytes, reply: Reply) -> bool:
    """Whether this very call did it: now, or at a try whose reply was lost."""
    return how == b"new" or reply.repeated


def count_lost(agent_id: str) -> None:
    """Count an attempt that was never given back: its lease lapsed, and its worker did not return."""
    metrics.TURNS.of(metrics.agent(agent_id), "lost").inc()


def count_became(became: Any) -> None:
    """Count what the end of a turn did to its session (lib/ending.lua)."""
    match became:
        case b"renewed":
            metrics.RENEWALS.of("turn").inc()
        case b"warned" | b"expired":
            metrics.count_due(became.decode(), lag_ms=0)
        case _:
            pass

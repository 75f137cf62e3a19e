"""An agent: who answers, what its sessions start with, and whether it is there."""

from __future__ import annotations

from typing import Literal

import msgspec

from sessions_api.domain.ids import AgentId
from sessions_api.domain.sessions import OnBusy
from sessions_api.domain.timeouts import TimeoutChoice

AgentKind = Literal["worker", "webhook", "openai", "echo"]
AvailabilityState = Literal["available", "busy", "offline"]

LONGEST_DELAY_MS = 10_000
"""Between two words of an ``echo`` agent: well below a lease."""

ECHO_ID = AgentId("00000000-0000-4000-8000-000000000001")


class AgentDefinition(msgspec.Struct, frozen=True):
    """What is known of an agent; the last definition put wins."""

    agent_id: AgentId
    name: str
    kind: AgentKind
    config: dict[str, object] = {}
    session: TimeoutChoice = TimeoutChoice()
    on_busy: OnBusy | None = None
    history: int = 50
    turn_timeout_ms: int = 300_000
    """Longest life of one attempt, whatever it extends."""
    max_attempts: int = 3
    concurrency: int = 64
    """Most turns of this agent that one replica runs at once; a worker's own capacity is its own."""


class AgentState(msgspec.Struct, frozen=True):
    """Whether anybody is there to answer, and the instant since when (Redis's clock; 0: never seen)."""

    state: AvailabilityState = "offline"
    since_ms: int = 0


class Availability(msgspec.Struct, frozen=True):
    """An agent's state with what it rests on.

    *workers* are present (one per process that serves the agent), *capacity* is
    what they say they take at once; *running* turns and *waiting* sessions with
    queued work are counted over all partitions.
    """

    state: AvailabilityState
    since_ms: int
    workers: int
    capacity: int
    running: int
    waiting: int

"""Agents as they are shown: a definition without its secrets, and who is there to answer."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from sessions_api.domain.agents import (
    AgentDefinition,
    AgentKind,
    AgentState,
    Availability,
    AvailabilityState,
)
from sessions_api.domain.sessions import OnBusy
from sessions_api.domain.timeouts import TimeoutChoice
from sessions_api.wire.agentconfig import masked
from sessions_api.wire.instants import iso
from sessions_api.wire.timeouts import minutes


class AgentSession(msgspec.Struct, rename="camel"):
    """The middle tier of its sessions' timeouts; what is absent comes from the environment."""

    timeout_minutes: float | UnsetType = UNSET
    auto_renew: bool | UnsetType = UNSET
    max_duration_minutes: float | UnsetType = UNSET
    warning_threshold_minutes: float | UnsetType = UNSET

    @classmethod
    def of(cls, choice: TimeoutChoice) -> AgentSession:
        return cls(
            _minutes(choice.timeout_ms),
            UNSET if choice.auto_renew is None else choice.auto_renew,
            _minutes(choice.max_duration_ms),
            _minutes(choice.warning_ms),
        )


class AgentPresence(msgspec.Struct, rename="camel"):
    """Whether anybody is there to answer; ``since`` is absent of one that never was."""

    state: AvailabilityState
    since: str | UnsetType = UNSET

    @classmethod
    def of(cls, state: AgentState) -> AgentPresence:
        return cls(state.state, iso(state.since_ms) if state.since_ms else UNSET)


class AgentInfo(msgspec.Struct, rename="camel"):
    """One agent's definition; of its ``config`` a secret is shown as ``********``."""

    agent_id: str
    name: str
    kind: AgentKind
    config: dict[str, Any]
    session: AgentSession
    history: int
    turn_timeout_ms: int
    max_attempts: int
    concurrency: int
    availability: AgentPresence
    on_busy: OnBusy | UnsetType = UNSET

    @classmethod
    def of(cls, definition: AgentDefinition, state: AgentState, *, shows_secret: bool = False) -> AgentInfo:
        """*shows_secret*: to the one caller for whom it was made."""
        return cls(
            definition.agent_id,
            definition.name,
            definition.kind,
            definition.config if shows_secret else masked(definition),
            AgentSession.of(definition.session),
            definition.history,
            definition.turn_timeout_ms,
            definition.max_attempts,
            definition.concurrency,
            AgentPresence.of(state),
            definition.on_busy or UNSET,
        )


class AgentList(msgspec.Struct):
    """Every agent that is defined, by id."""

    agents: list[AgentInfo]


class AvailabilityInfo(msgspec.Struct, rename="camel"):
    """An agent's state with what it rests on.

    ``workers`` are present, ``capacity`` is what they take at once; ``running``
    turns, and ``waiting`` sessions whose next turn nobody has taken.
    """

    agent_id: str
    state: AvailabilityState
    workers: int
    capacity: int
    running: int
    waiting: int
    since: str | UnsetType = UNSET

    @classmethod
    def of(cls, agent_id: str, found: Availability) -> AvailabilityInfo:
        return cls(
            agent_id,
            found.state,
            found.workers,
            found.capacity,
            found.running,
            found.waiting,
            iso(found.since_ms) if found.since_ms else UNSET,
        )


class AgentDeleted(msgspec.Struct, rename="camel"):
    """The reply of a delete: how many sessions lost their agent, and how many of their turns failed."""

    success: bool
    message: str
    sessions: int
    failed_turns: int


def _minutes(ms: int | None) -> float | UnsetType:
    return UNSET if ms is None else minutes(ms)

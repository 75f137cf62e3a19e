"""An agent's definition: who answers, and what its sessions start with."""

from __future__ import annotations

from typing import Literal

import msgspec

from sessions_api.domain.ids import AgentId
from sessions_api.domain.sessions import OnBusy
from sessions_api.domain.timeouts import TimeoutChoice

AgentKind = Literal["echo"]

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

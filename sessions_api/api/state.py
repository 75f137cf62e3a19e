"""What a running service is made of, as endpoints see it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from sessions_api.access.keyring import Keyring
from sessions_api.access.tokens import Tokens
from sessions_api.agents.desk import Desk
from sessions_api.agents.work import Work
from sessions_api.api.addresses import Addresses
from sessions_api.api.auth import Access
from sessions_api.api.counts import Counts
from sessions_api.api.gate import Gate
from sessions_api.api.operations import Operations
from sessions_api.domain.ids import AppName
from sessions_api.domain.sessions import OnBusy
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.errors import Draining, StorageUnavailable
from sessions_api.live.hub import Hub
from sessions_api.store import Store
from sessions_api.wire.timeouts import TimeoutBounds


async def _nobody() -> None:
    """A replica without a dispatcher answers for no agent."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's choices that requests are held against; times in milliseconds."""

    app: AppName
    bounds: TimeoutBounds
    default_config: TimeoutConfig
    retention_ms: int
    max_content_chars: int = 4000
    max_open_per_user: int = 1000
    on_busy: OnBusy = "queue"
    is_dev: bool = False


@dataclass(slots=True)
class State:
    """One per process; the composition root fills it."""

    rules: Rules
    access: Access
    addresses: Addresses
    gate: Gate
    tokens: Tokens
    keyring: Keyring
    store: Store
    hub: Hub
    counts: Counts
    operations: Operations
    desk: Desk
    work: Work
    attend: Callable[[], Awaitable[None]] = _nobody
    """This replica's own agents say that they are there; for one that was defined just now."""
    is_open: bool = False
    """The store has been opened: schema and partitions are ours."""
    is_draining: bool = False
    started_s: float = field(default_factory=time.monotonic)

    @property
    def key_ids(self) -> frozenset[str]:
        """The keys that callers come by: access keys, and those that sign tokens."""
        return self.keyring.ids | self.store.signing.ids

    def check_serves(self) -> None:
        """Raises Draining or StorageUnavailable: this replica takes no request that needs the store."""
        if self.is_draining:
            raise Draining
        self.check_open()

    def check_open(self) -> None:
        """Raises StorageUnavailable: Redis was never reached."""
        if not self.is_open:
            raise StorageUnavailable("not opened yet")

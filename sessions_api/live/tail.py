"""The end of one session's channel in this process, and whoever listens at it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from sessions_api.domain import timeouts
from sessions_api.domain.ids import SessionId
from sessions_api.domain.sessions import Session
from sessions_api.live.events import Event
from sessions_api.telemetry import metrics

if TYPE_CHECKING:
    from sessions_api.live.hub import Hub


class Listener(Protocol):
    """A follower (``subscription.py``) or a waiting poster (``waiting.py``)."""

    def offer(self, event: Event) -> None:
        """A live event, in the order of the channel; must be quick, and must not raise."""

    def compare(self, cursor: int, rev: int) -> None:
        """The session's true position; where it is not the listener's, something was missed."""

    def fall_behind(self) -> None:
        """Something may have been missed: read."""

    def vanish(self) -> None:
        """The session is no more."""

    def drain(self, after_ms: int) -> None:
        """This replica stops; come back elsewhere, after *after_ms*."""

    def stop(self) -> None:
        """This process ends now."""


class Tail:
    """One followed session: its listeners, and when it has to be looked at next."""

    __slots__ = ("_hub", "channel", "due_s", "heard", "is_settled", "linger", "listeners", "session_id")

    def __init__(self, hub: Hub, session_id: SessionId, channel: bytes) -> None:
        self._hub = hub
        self.session_id = session_id
        self.channel = channel
        self.listeners: dict[Listener, None] = {}
        self.heard = 0
        """Events heard so far: a position read while this moved proves nothing."""
        self.due_s = float("inf")
        """Loop time of the next position check."""
        self.is_settled = False
        """The session is over, and everything that its end has to write is written."""
        self.linger: asyncio.TimerHandle | None = None

    @property
    def now_ms(self) -> int:
        """Redis's clock, about: for the times of events that the hub makes itself."""
        return self._hub.now_ms

    def offer(self, event: Event) -> None:
        self.heard += 1
        if event.end_ms:
            self._hub.look_after_end(self, event.end_ms, event.time_ms)
        if event.type == "session.expired":
            self.is_settled = True
        for listener in tuple(self.listeners):
            listener.offer(event)

    def learn(self, session: Session) -> None:
        """What a read of the session says about its end."""
        self._hub.look_after_end(self, timeouts.end_ms(session.clock), session.now_ms)

    async def settle(self) -> bool:
        """A session past its end may not have been looked after yet: do it; whether there was need.

        Raises:
            StorageError: Redis cannot be asked now.
        """
        if self.is_settled:
            return False
        rung = await self._hub.store.alarms.ring(self.session_id)
        metrics.count_alarm("request", rung.outcome, rung.lag_ms)
        self.is_settled = True
        return rung.outcome == "expired"

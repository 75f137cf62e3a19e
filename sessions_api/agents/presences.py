"""Tells Redis which workers are there, and as seldom as it can.

A worker is free while a wait of it is open, and for a second after: the next one
usually follows at once. Its presence lasts ten seconds longer than the wait;
with a turn in hand 40 s, which its writes renew every ten; without either, ten.
Waits that begin in one tick of the loop are told in one script. Nobody waits for
it to be told; what could not be is tried again, or told with the next sign of life.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

import structlog

from sessions_api.domain.ids import AgentId
from sessions_api.errors import StorageError
from sessions_api.store.attendance import Attendance, Presence
from sessions_api.telemetry import metrics

MARGIN_S: Final = 10.0
BUSY_S: Final = 40.0
RENEW_S: Final = 10.0
PAUSE_S: Final = 1.0
KEPT: Final = 10_000

log = structlog.get_logger(__name__)
Name = tuple[AgentId, str]


class _Worker:
    """What this process knows and has told of one worker of one agent."""

    __slots__ = ("capacity", "is_leaving", "is_told_free", "pause", "told_s", "told_until_s", "waits")

    def __init__(self) -> None:
        self.capacity = 0
        self.waits = 0
        self.is_leaving = False
        self.is_told_free = False
        self.told_s = float("-inf")
        self.told_until_s = float("-inf")
        self.pause: asyncio.TimerHandle | None = None

    def unpause(self) -> None:
        if self.pause is not None:
            self.pause.cancel()
            self.pause = None


class Presences:
    """The workers that speak to this replica; all methods but the last two only take note."""

    def __init__(self, attendance: Attendance) -> None:
        self._attendance = attendance
        self._by = secrets.token_hex(4)  # this replica
        self._workers: dict[Name, _Worker] = {}
        self._untold: dict[Name, Presence] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._is_draining = False

    def waits(self, agent_id: AgentId, worker: str, *, capacity: int, wait_s: float) -> None:
        """The worker waits for a turn, for so long."""
        known = self._of(agent_id, worker)
        known.waits += 1
        known.is_leaving = False
        known.unpause()
        is_news = not known.is_told_free or known.capacity != capacity
        known.capacity = capacity
        if is_news or known.told_until_s < self._now_s() + wait_s:
            self._tell(agent_id, worker, known, is_free=True, ttl_s=wait_s + MARGIN_S)

    def waited(self, agent_id: AgentId, worker: str, *, has_turn: bool, is_gone: bool) -> None:
        """A wait is over; *is_gone*: its connection closed before its time."""
        known = self._workers.get((agent_id, worker))
        if known is None:
            return
        known.waits -= 1
        if known.waits > 0 or known.is_leaving or self._is_draining:
            return
        if is_gone:
            self._tell(agent_id, worker, known, is_free=False, ttl_s=MARGIN_S)
            return
        known.unpause()
        known.pause = asyncio.get_running_loop().call_later(
            PAUSE_S, self._rested, agent_id, worker, BUSY_S if has_turn else MARGIN_S
        )

    def _rested(self, agent_id: AgentId, worker: str, ttl_s: float) -> None:
        known = self._workers.get((agent_id, worker))
        if known is not None and not known.waits and not self._is_draining:
            known.pause = None
            self._tell(agent_id, worker, known, is_free=False, ttl_s=ttl_s)

    def works(self, agent_id: AgentId, worker: str) -> None:
        """The worker wrote to a turn that it holds."""
        known = self._of(agent_id, worker)
        if known.is_leaving or known.told_s + RENEW_S > self._now_s():
            return
        if known.waits and known.told_until_s > self._now_s():
            return
        self._tell(agent_id, worker, known, is_free=known.waits > 0, ttl_s=BUSY_S)

    def drain(self) -> None:
        """Waits end from here on because this replica does; their workers go to another one."""
        self._is_draining = True
        for known in self._workers.values():
            known.unpause()

    async def leave(self, agent_id: AgentId, worker: str) -> None:
        """The worker says goodbye; what it still holds does not bring it back.

        Raises:
            StorageError
        """
        known = self._of(agent_id, worker)
        known.is_leaving = True
        known.is_told_free = False
        known.told_until_s = float("-inf")
        known.unpause()
        self._untold.pop((agent_id, worker), None)
        if self._telling:  # what is on its way must not come after the goodbye
            await asyncio.wait(self._telling)
        await self._attendance.leave(agent_id, worker)

    async def stop(self) -> None:
        self.drain()
        if self._telling:
            await asyncio.wait(self._telling)

    def _of(self, agent_id: AgentId, worker: str) -> _Worker:
        known = self._workers.get((agent_id, worker))
        if known is None:
            if len(self._workers) >= KEPT:
                self._forget_old()
            known = self._workers[agent_id, worker] = _Worker()
        return known

    def _forget_old(self) -> None:
        now_s = self._now_s()
        for name, known in list(self._workers.items()):
            if not known.waits and known.pause is None and known.told_until_s < now_s:
                del self._workers[name]

    def _tell(self, agent_id: AgentId, worker: str, known: _Worker, *, is_free: bool, ttl_s: float) -> None:
        known.is_told_free = is_free
        known.told_s = self._now_s()
        known.told_until_s = known.told_s + ttl_s
        if not self._untold:
            task = asyncio.get_running_loop().create_task(self._tell_all(), name="presences")
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        presence = Presence(agent_id, worker, known.capacity, round(ttl_s * 1000), is_free, self._by)
        self._untold[agent_id, worker] = presence

    async def _tell_all(self) -> None:
        untold, self._untold = self._untold, {}
        if not untold:
            return
        try:
            await self._attendance.attend(list(untold.values()))
        except Exception as error:  # noqa: BLE001  see above
            if not isinstance(error, StorageError):
                metrics.LOOP_FAILURES.of("presences").inc()
            log.warning("presence_not_told", error=repr(error))
            for presence in untold.values():
                self._untold_again(presence)

    def _untold_again(self, presence: Presence) -> None:
        known = self._workers.get((presence.agent_id, presence.worker))
        if known is None or known.is_leaving:
            return
        known.is_told_free = False
        known.told_s = known.told_until_s = float("-inf")
        if known.waits and not self._is_draining:  # it says nothing more until its wait is over
            known.unpause()
            known.pause = asyncio.get_running_loop().call_later(PAUSE_S, self._try_again, presence)

    def _try_again(self, presence: Presence) -> None:
        known = self._workers.get((presence.agent_id, presence.worker))
        if known is not None and known.waits and not self._is_draining:
            known.pause = None
            ttl_s = presence.ttl_ms / 1000
            self._tell(presence.agent_id, presence.worker, known, is_free=True, ttl_s=ttl_s)

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()

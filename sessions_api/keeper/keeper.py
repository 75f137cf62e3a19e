"""The keeper: makes what is due to a session happen, in the partitions this replica keeps.

``membership.py`` knows which replicas live, ``leases.py`` decides which partitions
this one keeps, ``sweep.py`` is the promise that nothing is forgotten, ``hints.py``
makes it quick. What an alarm does, and
why ringing it twice is the same as once, stands in ``store/alarms.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sessions_api.domain.ids import SessionId, partition_of_session
from sessions_api.keeper.hints import Hints
from sessions_api.keeper.leases import Leases
from sessions_api.keeper.membership import Membership
from sessions_api.keeper.sweep import Sweep
from sessions_api.store import Store
from sessions_api.store.replicas import Identity
from sessions_api.telemetry.loops import cancelled, run_forever


class Keeper:
    """Keeps a fair share of the partitions from :meth:`start` to :meth:`stop`.

    1. ``start`` returns at once, whether Redis is there or not.
    2. ``stop`` ends every task, then gives the partitions back, so that other
       keepers have them within a second. It may be called before ``start``.
    3. Killed instead, the others have them within 5 s.

    With *is_keeping* off it keeps none, says that this replica lives, and only rings
    what requests met: each replica needs that much (:meth:`ring_soon`). *identity* is
    what the others are told of this one.
    """

    def __init__(
        self, store: Store, *, replica_id: str, is_keeping: bool = True, identity: Identity | None = None
    ) -> None:
        self._is_keeping = is_keeping
        self.membership = Membership(store, identity or Identity(replica_id, keeps=is_keeping))
        self._leases = Leases(store, replica_id=replica_id, membership=self.membership)
        self._sweep = Sweep(store, self._leases)
        self._hints = Hints(store, on_alarm=self._hinted)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def kept(self) -> frozenset[int]:
        """The partitions kept now."""
        return frozenset(self._leases.kept)

    def ring_soon(self, session_id: SessionId) -> None:
        """A request met this session past its time: have it settled, whoever keeps it."""
        self._sweep.notice(session_id, "request")

    async def start(self) -> None:
        self._run("keeper-sweep", self._sweep.step)
        if self._is_keeping:
            self._run("keeper-leases", self._leases.step)
            await self._hints.start()
            self._run("keeper-hints", self._hints.step)
        else:
            self._run("replica", self.membership.step)

    async def stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        await cancelled(*tasks)
        if self._is_keeping and tasks:
            await self._hints.stop()
            self._sweep.clear_gauges()
        if tasks:
            await self._leases.release()

    def _run(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(run_forever(step, loop=name), name=name))

    def _hinted(self, session_id: SessionId) -> None:
        if partition_of_session(session_id) in self._leases.kept:
            self._sweep.notice(session_id, "hint")

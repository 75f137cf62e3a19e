"""Which partitions this replica keeps: leases, shared out fairly over the replicas that live.

Nobody assigns anything. A replica takes free partitions up to its share, the
number of partitions over the number of replicas, rounded up; whoever has more
gives some back when another replica appears. A dead replica's leases end by
themselves, ``LEASE_MS`` after its last renewal, and are found free within
``membership.PERIOD_S``: less than 5 s after the death. Two replicas that believe to keep
one partition at once (one of them stood still) do no harm: ringing an alarm
twice is the same as once.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

import structlog

from sessions_api.domain.ids import PARTITIONS
from sessions_api.errors import StorageError, StorageUnavailable
from sessions_api.keeper.membership import Membership
from sessions_api.store import Store
from sessions_api.store.parts import from_those_there
from sessions_api.store.replicas import Identity
from sessions_api.telemetry import metrics

LEASE_MS: Final = 4_000

log = structlog.get_logger(__name__)


class Leases:
    """The partitions kept by this replica; :attr:`kept` changes in place."""

    def __init__(self, store: Store, *, replica_id: str, membership: Membership | None = None) -> None:
        self.kept: set[int] = set()
        self._membership = membership or Membership(store, Identity(replica_id))
        self._alarms = store.alarms
        self._replica_id = replica_id
        self._is_anybody_there = False
        """Whether a partition's lease could be asked for in this step."""
        self._asked_for: set[int] = set()
        """Partitions whose taking is under way; Redis may have given them although no reply came yet."""

    @property
    def replicas(self) -> int:
        """Keepers that live, this one included."""
        return self._membership.keepers

    async def step(self) -> None:
        """Say that we live, renew what we keep, take or give back what fairness asks.

        Where the one server of a cluster is away that knows who lives, whatever is free is taken.
        """
        share = PARTITIONS
        away: StorageUnavailable | None = None
        self._is_anybody_there = False
        try:
            await self._membership.give_sign()
            share = -(-PARTITIONS // self.replicas)
        except StorageUnavailable as error:
            away = error
        before = len(self.kept)
        await self._renew()
        if len(self.kept) > share:
            await self._give_back(len(self.kept) - share)
        elif len(self.kept) < share:
            await self._take(share - len(self.kept))
        if away is not None and not self._is_anybody_there:
            raise away
        if len(self.kept) != before:
            log.info("partitions_kept", kept=len(self.kept), replicas=self.replicas)
        metrics.KEPT_PARTITIONS.set(len(self.kept))
        await self._membership.pause()

    async def release(self) -> None:
        """Give everything back and say goodbye; with Redis away, the leases end by themselves."""
        kept = self.kept | self._asked_for
        self.kept.clear()
        metrics.KEPT_PARTITIONS.set(0)
        try:
            await asyncio.gather(
                *(self._alarms.yield_(partition, self._replica_id) for partition in kept),
                self._membership.leave(),
            )
        except StorageError as error:
            log.warning("leases_left_behind", kept=len(kept), code=error.code)

    async def _renew(self) -> None:
        kept = list(self.kept)
        renewed = await self._keep(kept)
        self.kept.difference_update(p for p, is_ours in zip(kept, renewed, strict=True) if is_ours is False)

    async def _keep(self, partitions: list[int]) -> list[bool | None]:
        """Whether each is ours now; None: its server is away, and it stays as it was."""
        calls = (self._alarms.keep(partition, self._replica_id, LEASE_MS) for partition in partitions)
        try:
            kept = await from_those_there(calls)
        except StorageUnavailable:
            return [None] * len(partitions)
        self._is_anybody_there |= bool(kept)
        return kept

    async def _give_back(self, surplus: int) -> None:
        partitions = random.sample(sorted(self.kept), surplus)
        self.kept.difference_update(partitions)
        await asyncio.gather(*(self._alarms.yield_(p, self._replica_id) for p in partitions))

    async def _take(self, wanted: int) -> None:
        """Try the others in random order, as many at once as we still want, so as to take no more."""
        others = random.sample(range(PARTITIONS), PARTITIONS)
        untried = [partition for partition in others if partition not in self.kept]
        while untried and wanted:
            batch, untried = untried[:wanted], untried[wanted:]
            self._asked_for = set(batch)
            taken = await self._keep(batch)
            ours = [partition for partition, is_ours in zip(batch, taken, strict=True) if is_ours]
            self.kept.update(ours)
            self._asked_for.clear()
            wanted -= len(ours)

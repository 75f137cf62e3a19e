"""Which replicas live, and whether they are alike: what this one hears with each of its signs of life.

Replicas that differ serve the same sessions by different rules: one keeps an ended
session for an hour, the other for a day; one knows an agent, the other refuses it.
During a rolling upgrade that is meant, and over in minutes. So a difference is no
error: it is logged, once for each kind, and stands in a gauge until it has ended.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

import structlog

from sessions_api.store.replicas import UNTOLD
from sessions_api.telemetry import metrics

if TYPE_CHECKING:
    from sessions_api.store import Store
    from sessions_api.store.replicas import Identity, Replica

PRESENCE_MS: Final = 3_000
PERIOD_S: Final = 0.75

log = structlog.get_logger(__name__)


class Membership:
    """This replica among the others, as of its last sign of life."""

    def __init__(self, store: Store, me: Identity) -> None:
        self.me = me
        self.alive: list[Replica] = []
        self._replicas = store.replicas
        self._other_versions: set[str] = set()
        self._other_settings: set[str] = set()  # by digest

    @property
    def keepers(self) -> int:
        """How many share out the partitions; 1 before anything is known."""
        return max(1, sum(replica.keeps for replica in self.alive))

    async def step(self) -> None:
        """One sign of life, and the pause after it: the loop of a replica that keeps no partitions."""
        await self.give_sign()
        await self.pause()

    async def pause(self) -> None:
        await asyncio.sleep(PERIOD_S * random.uniform(0.9, 1.0))  # noqa: S311  keeps replicas apart

    async def give_sign(self) -> None:
        """Say that this replica lives, and see who else does.

        Raises:
            StorageError
        """
        self.alive = await self._replicas.present(self.me, PRESENCE_MS)
        versions = {replica.version for replica in self.alive} - {self.me.version}
        # Who says nothing has told no settings either: that is another version, and no more is known.
        digests = {replica.digest for replica in self.alive} - {self.me.digest, ""}
        metrics.REPLICAS.set(len(self.alive))
        metrics.REPLICAS_DIFFERING.labels("version").set(
            sum(replica.version in versions for replica in self.alive)
        )
        metrics.REPLICAS_DIFFERING.labels("settings").set(
            sum(replica.digest in digests for replica in self.alive)
        )
        if versions != self._other_versions:
            self._tell_of_versions(versions)
        if digests != self._other_settings:
            await self._tell_of_settings(digests)

    async def leave(self) -> None:
        """Say goodbye.

        Raises:
            StorageError
        """
        self.alive = []
        metrics.REPLICAS.set(0)
        for what in metrics.REPLICAS_DIFFER_IN:
            metrics.REPLICAS_DIFFERING.labels(what).set(0)
        await self._replicas.leave(self.me)

    def _tell_of_versions(self, versions: set[str]) -> None:
        new, self._other_versions = versions - self._other_versions, versions
        if new:
            names = ["of a release that does not tell" if v == UNTOLD else v for v in sorted(versions)]
            log.info("replicas_of_other_versions", here=self.me.version, there=names)
        elif not versions:
            log.info("replicas_agree", what="version")

    async def _tell_of_settings(self, digests: set[str]) -> None:
        new, before = digests - self._other_settings, self._other_settings
        for digest in new:
            theirs = await self._replicas.settings(digest)
            if not theirs:  # not stored yet: the next sign of life is soon
                digests.discard(digest)
                continue
            log.warning(
                "replicas_differ",
                settings=differing(self.me.settings, theirs),
                replicas=[replica.replica_id for replica in self.alive if replica.digest == digest],
            )
        self._other_settings = digests
        if before and not digests:
            log.info("replicas_agree", what="settings")


def differing(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """The names of the settings that are not the same."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))

"""Counts of sessions for lists and health, at most a second old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final

from sessions_api.domain.ids import AgentId, AppName, UserId
from sessions_api.store.listing import Listing

MAX_AGE_S: Final = 1.0
MAX_KEPT: Final = 1_000


class Counts:
    """Totals by the index; a second's worth of them is kept, so that polling costs Redis nothing."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._totals: dict[tuple[AppName | None, AgentId | None, UserId | None], tuple[float, int]] = {}
        self._near: tuple[float, int] = (0.0, 0)

    async def total(
        self,
        *,
        app: AppName | None,
        apps: Collection[AppName] = (),
        agent_id: AgentId | None = None,
        user_id: UserId | None = None,
    ) -> int:
        """Live sessions of an app, of one of its agents, or of one of its users; None: of all *apps*."""
        key = (app, agent_id, user_id)
        now_s = time.monotonic()
        known = self._totals.get(key)
        if known is not None and now_s - known[0] < MAX_AGE_S:
            return known[1]
        total = await self._listing.total(app=app, apps=apps, agent_id=agent_id, user_id=user_id)
        if len(self._totals) >= MAX_KEPT:
            self._totals.clear()
        self._totals[key] = (now_s, total)
        return total

    async def health(self) -> tuple[int, int]:
        """All live sessions, and those that were warned of their end."""
        now_s = time.monotonic()
        if now_s - self._near[0] >= MAX_AGE_S:
            total, near = await asyncio.gather(self._listing.total(app=None), self._listing.near())
            self._near = (now_s, near)
            self._totals[None, None, None] = (now_s, total)
        return await self.total(app=None), self._near[1]

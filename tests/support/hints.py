"""Hints of alarms, noted as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sessions_api.domain.ids import SessionId
from sessions_api.keeper.hints import Hints
from sessions_api.store import Store
from sessions_api.telemetry.loops import cancelled, run_forever
from tests.support.waiting import until


class NotedHints(Hints):
    def __init__(self, store: Store) -> None:
        self.heard: list[SessionId] = []
        super().__init__(store, on_alarm=self.heard.append)

    @property
    def are_on(self) -> bool:
        """Every primary that we know of is listened to, and none is left to be asked for its events."""
        return self.subscriber.is_up and not self._news.is_set() and not self._subscribed


@asynccontextmanager
async def hinting(store: Store) -> AsyncIterator[NotedHints]:
    hints = NotedHints(store)
    await hints.start()
    task = asyncio.create_task(run_forever(hints.step, loop="test-hints"))
    try:
        await until(lambda: hints.are_on)
        yield hints
    finally:
        await cancelled(task)
        await hints.stop()

"""What is told of workers, and how seldom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sessions_api.agents import presences as module
from sessions_api.agents.presences import Presences
from sessions_api.errors import StorageUnavailable
from sessions_api.store.attendance import Attendance, Presence
from tests.support.replicas import stores
from tests.support.stores import AGENT
from tests.support.waiters import worker_agent
from tests.support.waiting import eventually, until


class Notebook(Attendance):
    """Writes down what it is told, in place of telling Redis."""

    def __init__(self) -> None:
        self.told: list[list[Presence]] = []
        self.left: list[str] = []
        self.failures = 0

    async def attend(self, presences: Sequence[Presence]) -> None:
        if self.failures:
            self.failures -= 1
            raise StorageUnavailable("away")
        self.told.append(list(presences))

    async def leave(self, agent_id: str, worker: str) -> None:
        self.left.append(worker)

    @property
    def last(self) -> Presence:
        return self.told[-1][-1]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    monkeypatch.setattr(module, "PAUSE_S", 0.02)
    return Notebook()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class TestAWorker:
    async def test_is_free_for_its_wait_and_ten_seconds(self, notebook: Notebook) -> None:
        presences = Presences(notebook)
        presences.waits(AGENT, "w", capacity=3, wait_s=25)
        await until(lambda: notebook.told)
        presence = notebook.last

        assert (presence.worker, presence.capacity, presence.ttl_ms, presence.is_free) == (
            "w",
            3,
            35_000,
            True,
        )
        await presences.stop()

    async def test_that_comes_again_at_once_is_not_told_again(self, notebook: Notebook) -> None:
        presences = Presences(notebook)
        for _ in range(10):
            presences.waits(AGENT, "w", capacity=1, wait_s=5)
            await settled()
            presences.waited(AGENT, "w", has_turn=True, is_gone=False)

        assert len(notebook.told) == 1
        await presences.stop()

    async def test_is_told_again_when_its_next_wait_outlasts_what_was_told(self, notebook: Notebook) -> None:
        presences = Presences(notebook)
        presences.waits(AGENT, "w", capacity=1, wait_s=1)
        await settled()
        presences.waited(AGENT, "w", has_turn=False, is_gone=False)
        presences.waits(AGENT, "w", capacity=1, wait_s=60)
        await settled()

        assert [told[0].ttl_ms for told in notebook.told] == [11_000, 70_000]
        await presences.stop()

    @pytest.mark.parametrize("has_turn,ttl_ms", [(True, 40_000), (False, 10_000)])
    async def test_that_stays_away_is_busy(self, notebook: Notebook, has_turn: bool, ttl_ms: int) -> None:
        presences = Presences(notebook)
        presences.waits(AGENT, "w", capacity=1, wait_s=25)
        await settled()
        presences.waited(AGENT, "w", has_turn=has_turn, is_gone=False)
        await until(lambda: len(notebook.told) == 2)

        assert (notebook.last.is_free, notebook.last.ttl_ms) == (False, ttl_ms)
        await presences.stop()

    async def test_with_another_wait_open_stays_free(self, notebook: Notebook) -> None:
        presences = Presences(notebook)
        presences.waits(AGENT, "w", capacity=2, wait_s=25)
        presences.waits(AGENT, "w", capacity=2, wait_s=25)
        await settled()
        presences.waited(AGENT, "w", has_turn=True, is_gone=False)
        await settled()

        assert all(presence.is_free for told in notebook.told for presence in told)
        presences.waited(AGENT, "w", has_turn=True, is_gone=False)
        await until(lambda: not notebook.last.is_free)
        await presences.stop()

    async def test_whose_connection_closed_has_ten_seconds(self, notebook: Notebook) -> None:
        presences = Presences(notebook)
        presences.waits(AGENT, "w", capacity=1, wait_s=25)
        await settled()
        presences.waited(AGENT, "w", has_turn=False, is_gone=True)
        await settled()

        assert (notebook.last.is_free, notebook.last.ttl_ms) == (False, 10_000)
        await presences.stop()

    async def test_that_works_is_told_every_ten_seconds(
        self, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        presences = Presences(notebook)
        for _ in range(10):
            presences.works(AGENT, "w")
            await settled()
        assert [told[0].ttl_ms for told in notebook.told] == [40_000]
        assert notebook.last.capacity == 0  # what it said elsewhere stays

        monkeypatch.setattr(module, "RENEW_S", 0.0)
        presences.works(AGENT, "w")
        await until(lambda: len(notebook.told) == 2)
        await presences.stop()

    async def test_that_said_goodbye_is_not_brought_back_by_its_last_writes(self, notebook: Notebook) -> None:
        presences = Presences(notebook)
        presences.waits(AGENT, "w", capacity=1, wait_s=25)
        await presences.leave(AGENT, "w")
        presences.waited(AGENT, "w", has_turn=False, is_gone=False)
        told = len(notebook.told)
        presences.works(AGENT, "w")
        await settled()

        assert notebook.left == ["w"]
        assert len(notebook.told) == told
        await presences.stop()

    async def test_that_could_not_be_told_is_tried_again_while_it_waits(self, notebook: Notebook) -> None:
        presences = Presences(notebook)
        notebook.failures = 2
        presences.waits(AGENT, "w", capacity=1, wait_s=25)

        await until(lambda: notebook.told)
        assert notebook.last.is_free
        await presences.stop()

    async def test_is_forgotten_when_it_is_gone_and_many_come(
        self, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "KEPT", 10)
        monkeypatch.setattr(module, "BUSY_S", -1.0)
        presences = Presences(notebook)
        for number in range(100):
            presences.works(AGENT, f"w{number}")

        assert len(presences._workers) <= 11
        await presences.stop()


class TestManyWorkers:
    async def test_that_come_in_one_tick_are_told_in_one_call(self, notebook: Notebook) -> None:
        presences = Presences(notebook)
        for number in range(100):
            presences.waits(AGENT, f"w{number}", capacity=1, wait_s=25)
        await until(lambda: notebook.told)

        assert [len(told) for told in notebook.told] == [100]
        await presences.stop()


class TestTheAgent:
    async def test_stays_available_while_its_worker_waits_at_another_replica(self, redis_url: str) -> None:
        """Its requests may go to any replica; its capacity is what it said with its last claim."""
        async with stores(redis_url, 2) as (one, two):
            await one.agents.put(worker_agent())
            here, there = Presences(one.attendance), Presences(two.attendance)
            here.waits(AGENT, "w", capacity=4, wait_s=25)

            async def is_available() -> bool:
                return (await one.attendance.confirm(AGENT)).state == "available"

            await eventually(is_available)
            there.works(AGENT, "w")
            await there.stop()
            availability = await one.attendance.read(AGENT)
            assert (availability.state, availability.workers, availability.capacity) == ("available", 1, 4)
            calm = await two.attendance.confirm(AGENT)
            assert calm.state == "available"
            await here.stop()

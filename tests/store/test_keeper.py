"""Keepers: leases that are shared fairly, taken over and given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sessions_api.keeper.keeper import Keeper
from sessions_api.keeper.leases import LEASE_MS, Leases
from sessions_api.keeper.membership import PERIOD_S
from sessions_api.store import Store
from sessions_api.telemetry.loops import cancelled, run_forever
from tests.support.replicas import stores
from tests.support.servers import TestServer
from tests.support.waiting import until


@asynccontextmanager
async def keeping(url: str, number: int) -> AsyncIterator[list[Keeper]]:
    """Started keepers, each as a replica has it; a test may stop some of them itself."""
    async with stores(url, number) as replicas:
        keepers = [Keeper(store, replica_id=f"replica-{i}") for i, store in enumerate(replicas)]
        for keeper in keepers:
            await keeper.start()
        try:
            yield keepers
        finally:
            for keeper in keepers:
                await keeper.stop()


async def kill(keeper: Keeper) -> None:
    """End *keeper* as SIGKILL would: nothing is given back."""
    tasks, keeper._tasks = keeper._tasks, []
    await cancelled(*tasks)
    await keeper._hints.stop()


def are_shared(*keepers: Keeper) -> bool:
    """Whether every partition is kept by exactly one of *keepers*, none with more than its share."""
    kept = [keeper.kept for keeper in keepers]
    return sorted(p for each in kept for p in each) == list(range(64)) and max(map(len, kept)) <= -(
        -64 // len(keepers)
    )


class TestLeases:
    async def test_give_all_partitions_to_the_only_keeper(self, redis_url: str) -> None:
        async with keeping(redis_url, 1) as (only,):
            await until(lambda: len(only.kept) == 64)

    async def test_are_shared_out_fairly_and_each_partition_has_one_keeper(self, redis_url: str) -> None:
        async with keeping(redis_url, 3) as keepers:
            await until(lambda: are_shared(*keepers))

    async def test_go_to_the_others_when_a_keeper_stops(self, redis_url: str) -> None:
        async with keeping(redis_url, 2) as (leaving, staying):
            await until(lambda: are_shared(leaving, staying))

            await leaving.stop()

            await until(lambda: len(staying.kept) == 64)
            assert not leaving.kept

    async def test_are_taken_over_from_a_keeper_that_died(self, redis_url: str) -> None:
        async with keeping(redis_url, 2) as (dying, staying):
            await until(lambda: are_shared(dying, staying))

            await kill(dying)

            await until(lambda: len(staying.kept) == 64)

    async def test_are_all_given_back_by_a_keeper_stopped_while_taking(
        self, store: Store, server: TestServer
    ) -> None:
        """Redis may have given a lease whose reply the stopping keeper never read."""

        def given() -> list[bytes]:
            keys = server.keys()
            return [key for key in keys if key.startswith(b"sa:keeper")]

        leases = Leases(store, replica_id="test")
        task = asyncio.create_task(leases.step())
        while not given():  # noqa: ASYNC110  it must stop before the loop reads the replies
            await asyncio.sleep(0)

        await cancelled(task)
        await leases.release()

        assert given() == []

    async def test_last_less_than_the_promised_five_seconds(self, store: Store, server: TestServer) -> None:
        """A lease, and the time until somebody looks, are together what a takeover may take."""
        leases = Leases(store, replica_id="test")
        task = asyncio.create_task(run_forever(leases.step, loop="test-leases"))
        await until(lambda: leases.kept)

        left_ms = server.call("PTTL", store.keyspace.partition(next(iter(leases.kept))).keeper)

        await cancelled(task)
        await leases.release()
        assert 0 < left_ms <= LEASE_MS
        assert LEASE_MS + PERIOD_S * 1000 < 5_000

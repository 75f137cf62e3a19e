"""Workers at the desk: who waits gets work, one turn each, and nothing is kept from those who wait."""

from __future__ import annotations

import asyncio
import random

import pytest

from sessions_api.agents import desk as desk_module
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import SessionId, UserId
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.store import Store
from tests.support.replicas import stores
from tests.support.servers import TestServer
from tests.support.stores import AGENT, complete, opened, say
from tests.support.waiters import Calls, became, is_waiting, metric, replica, session_of
from tests.support.waiting import eventually, until


async def many_sessions(store: Store, number: int) -> list[SessionId]:
    users = [UserId(f"{count:08x}-0000-4000-8000-000000000000") for count in range(number)]
    return [(await opened(store, user)).session_id for user in users]


class TestAClaim:
    async def test_brings_what_comes_while_it_waits(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            waiting = asyncio.create_task(here.claimed())
            await is_waiting(here)
            appended = await say(store, sid)

            turn = await waiting
            assert turn.turn.turn_id == appended.turn_id
            assert turn.turn.worker == "worker-1"

    async def test_brings_what_was_said_before_anybody_listened(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,):
            sid = await session_of(store)
            appended = await say(store, sid)
            async with replica(store) as here:
                assert (await here.claimed()).turn.turn_id == appended.turn_id

    async def test_without_patience_brings_what_is_there(self, redis_url: str) -> None:
        """The first look is made all the same."""
        async with stores(redis_url, 1) as (store,):
            sid = await session_of(store)
            await say(store, sid)
            async with replica(store) as here:
                assert await here.claim(wait_s=0) is not None
                assert await here.claim(wait_s=0) is None

    async def test_brings_nothing_when_its_time_is_up(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            assert await here.claim(wait_s=0.05) is None
            assert not here.desk._counters[AGENT].free

    async def test_gives_each_turn_to_one_of_those_who_wait_over_replicas(self, redis_url: str) -> None:
        async with (
            stores(redis_url, 2) as (one, two),
            replica(one) as here,
            replica(two) as there,
        ):
            waiting = [asyncio.create_task(each.claimed()) for each in (here, there) for _ in range(5)]
            await is_waiting(here, 5)
            await is_waiting(there, 5)
            for sid in await many_sessions(one, 10):
                await say(one, sid)

            turns = await asyncio.gather(*waiting)
            assert len({turn.turn.turn_id for turn in turns}) == 10

    async def test_works_a_backlog_off_without_further_hints(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,):
            sids = await many_sessions(store, 100)
            for sid in sids:
                await say(store, sid)
            async with replica(store) as here:
                found = [await here.claimed() for _ in range(100)]

        assert {turn.session_id for turn in found} == set(sids)

    async def test_serves_who_waits_longest_first(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            waiting = []
            for number in range(3):
                waiting.append(asyncio.create_task(here.claimed(worker=f"worker-{number}")))
                await is_waiting(here, number + 1)
            for number, sid in enumerate(await many_sessions(store, 3)):
                await say(store, sid)
                assert (await waiting[number]).turn.worker == f"worker-{number}"

    async def test_for_an_agent_that_is_no_worker_any_more_brings_nothing(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            waiting = asyncio.create_task(here.claim(wait_s=0.3))
            await is_waiting(here)
            definition = store.agents.get(AGENT)
            assert definition is not None
            store.agents._definitions[AGENT] = type(definition)(AGENT, "Echo now", "echo")
            await say(store, sid)

            assert await waiting is None


class TestWhoLeaves:
    async def test_takes_no_turn_along(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            leaving = asyncio.create_task(here.claim())
            await is_waiting(here)
            leaving.cancel()
            await asyncio.wait((leaving,))
            appended = await say(store, sid)

            turn = await here.claimed()
            assert turn.turn.turn_id == appended.turn_id
            assert turn.turn.attempt == 1

    async def test_while_its_claim_is_under_way_gives_the_turn_back_uncounted(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            leaving = asyncio.create_task(here.claim())
            await is_waiting(here)
            counter = here.desk._counters[AGENT]
            await say(store, sid)
            while counter.free:  # noqa: ASYNC110  by the tick: a claim takes a millisecond
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait((leaving,))
            assert leaving.cancelled()

            turn = await here.claimed()
            assert turn.session_id == sid
            assert turn.turn.attempt == 1

    async def test_with_a_turn_that_was_never_written_gives_it_back_uncounted(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            await say(store, sid)
            turn = await here.claimed()
            before = metric("sessions_turns_total", agent=AGENT, outcome="released")
            here.desk.hand_back(turn)

            again = await here.claimed(worker="worker-2")
            assert (again.turn.turn_id, again.turn.attempt) == (turn.turn.turn_id, 1)
            assert again.turn.fence != turn.turn.fence
            assert metric("sessions_turns_total", agent=AGENT, outcome="released") == before + 1

    async def test_at_any_moment_costs_nobody_a_turn_or_an_attempt(self, redis_url: str) -> None:
        """No keeper repeats a hint here: what is given back is announced and found."""
        dice = random.Random(4)
        async with stores(redis_url, 2) as (one, two), replica(one) as here, replica(two) as there:
            sids = await many_sessions(one, 80)
            for sid in sids[:40]:
                await say(one, sid)
            answered: list[ClaimedTurn] = []

            async def work(name: str) -> None:
                while True:
                    claiming = asyncio.create_task(dice.choice((here, there)).claim(worker=name, wait_s=0.5))
                    await asyncio.wait((claiming,), timeout=dice.choice((0, 0.001, 0.002, 0.005, 1)))
                    claiming.cancel()
                    await asyncio.wait((claiming,))
                    turn = None if claiming.cancelled() else claiming.result()
                    if turn is not None:
                        await complete(one, turn)
                        answered.append(turn)

            workers = [asyncio.create_task(work(f"worker-{number}")) for number in range(6)]
            for sid in sids[40:]:
                await say(two, sid)
            try:
                await until(lambda: len(answered) == 80, within_s=30)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.wait(workers)

        assert {turn.session_id for turn in answered} == set(sids)
        assert {turn.turn.attempt for turn in answered} == {1}

    async def test_leaves_its_channel_after_a_while(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(desk_module, "LINGER_S", 0.01)
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            assert await here.claim(wait_s=0.01) is None
            await until(lambda: not here.desk._counters)
            assert not here.finder._trails

            sid = await session_of(store)
            await say(store, sid)
            assert await here.claim() is not None

    async def test_and_comes_back_soon_finds_work_without_another_look(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            assert await here.claim(wait_s=0.01) is None
            await say(store, sid)
            trail = here.desk._counters[AGENT].trail
            await until(lambda: trail._leads)
            calls = Calls(store)

            assert await here.claim() is not None
            assert calls.of("claim") == 1
            assert calls.commands < 64  # a look would read every partition


class TestAGoodbye:
    async def test_takes_the_agent_offline_at_once(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            waiting = asyncio.create_task(here.claim())

            async def is_there() -> bool:
                return (await store.attendance.confirm(AGENT)).state == "available"

            await eventually(is_there)
            assert await here.claim(capacity=0) is None

            assert await waiting is None
            assert (await store.attendance.confirm(AGENT)).state == "offline"

    async def test_leaves_other_workers_waiting(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            waiting = asyncio.create_task(here.claim(worker="stays"))
            await is_waiting(here)
            await here.claim(worker="leaves", capacity=0)
            await say(store, sid)

            assert await waiting is not None


class TestADrain:
    async def test_answers_everyone_who_waits(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            waiting = [asyncio.create_task(here.claim()) for _ in range(20)]
            await is_waiting(here)
            here.desk.drain()

            assert await asyncio.gather(*waiting) == [None] * 20
            assert await here.claim() is None

    async def test_leaves_new_work_to_other_replicas(self, redis_url: str) -> None:
        async with (
            stores(redis_url, 2) as (one, two),
            replica(one) as leaving,
            replica(two) as staying,
        ):
            waiting = asyncio.create_task(leaving.claim())
            await is_waiting(leaving)
            leaving.desk.drain()
            assert await waiting is None
            sid = await session_of(one)
            await say(one, sid)

            assert (await staying.claimed()).session_id == sid

    async def test_loses_no_turn_that_is_claimed_meanwhile(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            waiting = asyncio.create_task(here.claim())
            await is_waiting(here)
            counter = here.desk._counters[AGENT]
            await say(store, sid)
            await until(lambda: not counter.free)
            here.desk.drain()
            await here.desk.stop()

            turn = await waiting
            if turn is None:
                async with replica(store) as other:
                    turn = await other.claimed()
            assert turn.turn.attempt == 1
            await complete(store, turn)
            await became(store, turn, "completed")


class TestWhoWaits:
    async def test_costs_redis_nothing(self, server: TestServer) -> None:
        """Neither a thousand of them nor the time they wait; what they say when they come is one call."""
        async with stores(server.url, 1) as (store,), replica(store) as here:
            calls = Calls(store)
            waiting = [
                asyncio.create_task(here.claim(worker=f"worker-{number}", wait_s=5)) for number in range(1000)
            ]
            await is_waiting(here)
            await until(lambda: calls.of("attend") and metric("sessions_waiting_workers") == 1000)
            assert calls.of("attend") == 1
            idle = Calls(store)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            # Here, not when the last one is over: the first rests for a second, and is then told of.
            assert idle.of("attend") == 0
            assert await asyncio.gather(*waiting) == [None] * 1000

            assert idle.of("claim") == 0
            assert metric("sessions_waiting_workers") == 0


class TestWatching:
    async def test_hears_that_a_turn_was_cancelled(self, redis_url: str) -> None:
        async with stores(redis_url, 2) as (one, two), replica(one) as here, replica(two) as there:
            sid = await session_of(one)
            await say(one, sid)
            turn = await here.claimed()
            async with there.desk.watch(AGENT, turn.turn.turn_id) as watched:
                await one.turns.cancel(sid, turn.turn.turn_id, grant=EVERYTHING)

                await asyncio.wait_for(watched.stop.wait(), 10)

    async def test_hears_nothing_of_other_turns(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sids = await many_sessions(store, 2)
            for sid in sids:
                await say(store, sid)
            turns = [await here.claimed() for _ in sids]
            async with here.desk.watch(AGENT, turns[0].turn.turn_id) as watched:
                other = turns[1]
                await store.turns.cancel(SessionId(other.session_id), other.turn.turn_id, grant=EVERYTHING)
                await until(lambda: other.turn.turn_id in here.finder._stopped)

                assert not watched.stop.is_set()

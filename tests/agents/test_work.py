"""Writes of workers: one call each on whichever replica, and a sign of life of who made it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from sessions_api.agents import presences
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import SessionId
from sessions_api.domain.turns import Answer
from sessions_api.errors import AnswerTooLarge, SessionNotFound, TurnLost
from sessions_api.store import Store
from tests.support.replicas import stores
from tests.support.servers import RealServer
from tests.support.stores import AGENT, say
from tests.support.waiters import Calls, metric, replica, session_of
from tests.support.waiting import eventually, until


async def workers(store: Store) -> int:
    return (await store.attendance.read(AGENT)).workers


class TestAWrite:
    async def test_to_another_replica_keeps_its_worker_there(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The replica that was asked for the turn may be gone by then."""
        monkeypatch.setattr(presences, "RENEW_S", 0.0)
        async with stores(redis_url, 2) as (one, two), replica(one) as here, replica(two) as there:
            sid = await session_of(one)
            await say(one, sid)
            turn = (await here.claimed(capacity=3)).turn
            await one.attendance.leave(AGENT, "worker-1")
            assert await workers(one) == 0
            assert not await there.work.extend(sid, turn.turn_id, grant=EVERYTHING, fence=turn.fence)

            async def is_there() -> bool:
                return await workers(one) == 1

            await eventually(is_there)

    async def test_that_is_refused_keeps_nobody_there(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(presences, "RENEW_S", 0.0)
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            await say(store, sid)
            turn = (await here.claimed()).turn
            await store.attendance.leave(AGENT, "worker-1")
            with pytest.raises(TurnLost):
                await here.work.extend(sid, turn.turn_id, grant=EVERYTHING, fence="1.0")

            assert not here.desk._presences._telling
            assert await workers(store) == 0

    @pytest.mark.servers("valkey")
    @pytest.mark.parametrize("is_here", [True, False])
    async def test_is_one_call_of_one_script_on_any_replica(
        self, redis_url: str, server: RealServer, *, is_here: bool
    ) -> None:
        """Counted by the server itself, behind the first call of each script."""
        async with stores(redis_url, 2) as (one, two), replica(one) as here, replica(two) as there:
            sid = await session_of(one)
            asked, work = (one, here.work) if is_here else (two, there.work)
            answers = (Answer(), Answer("done", b'{"thought":"hm"}'), Answer("a" * 100_001))

            async def writes(answer: Answer) -> None:
                await say(one, sid)
                turn = (await here.claimed()).turn
                await work.release(sid, turn.turn_id, grant=EVERYTHING, fence=turn.fence)
                turn = (await here.claimed()).turn
                server.call("CONFIG", "RESETSTAT")
                trips = asked.redis.stats.round_trips
                await work.delta(sid, turn.turn_id, grant=EVERYTHING, fence=turn.fence, text="so", offset=0)
                await work.extend(sid, turn.turn_id, grant=EVERYTHING, fence=turn.fence)
                with suppress(AnswerTooLarge):  # its failure is one call, too
                    await work.complete(sid, turn.turn_id, grant=EVERYTHING, fence=turn.fence, answer=answer)
                calls = server.calls()
                counts.append((calls.get("evalsha", 0), asked.redis.stats.round_trips - trips))

            counts: list[tuple[int, int]] = []
            for answer in (*answers, *answers):
                await writes(answer)

            assert counts[len(answers) :] == [(3, 3)] * len(answers)

    async def test_of_a_session_that_is_gone_says_so(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = SessionId(await session_of(store))
            appended = await say(store, sid)
            await store.sessions.end(sid, grant=EVERYTHING)
            with pytest.raises(SessionNotFound):
                await here.work.complete(
                    sid, appended.turn_id, grant=EVERYTHING, fence="1.ab", answer=Answer()
                )
            with pytest.raises(SessionNotFound):
                await here.work.extend(sid, appended.turn_id, grant=EVERYTHING, fence="1.ab", wait_s=5)


class TestAnswers:
    async def test_are_counted_once_whichever_replica_hears_of_them(self, redis_url: str) -> None:
        async with stores(redis_url, 2) as (one, two), replica(one) as here, replica(two) as there:
            sid = await session_of(one)
            await say(one, sid)
            turn = (await here.claimed()).turn
            names = ("sessions_tokens_total", "sessions_turns_total")
            labels = ({"agent": AGENT, "kind": "output"}, {"agent": AGENT, "outcome": "completed"})
            before = [metric(name, **label) for name, label in zip(names, labels, strict=True)]
            answer = Answer("done", usage=b'{"outputTokens":7}')
            for each in (there, here, there):
                await each.work.complete(sid, turn.turn_id, grant=EVERYTHING, fence=turn.fence, answer=answer)

            after = [metric(name, **label) for name, label in zip(names, labels, strict=True)]
            assert after == [before[0] + 7, before[1] + 1]


class TestStaying:
    async def test_costs_one_call_where_hints_are_heard(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            await say(store, sid)
            turn = (await here.claimed()).turn
            calls = Calls(store)
            assert not await here.work.extend(
                sid, turn.turn_id, grant=EVERYTHING, fence=turn.fence, wait_s=0.05
            )

            assert calls.of("extend") == 1

    @pytest.mark.parametrize("is_here", [True, False])
    async def test_hears_that_the_turn_was_ended(self, redis_url: str, *, is_here: bool) -> None:
        async with stores(redis_url, 2) as (one, two), replica(one) as here, replica(two) as there:
            sid = await session_of(one)
            await say(one, sid)
            turn = (await here.claimed()).turn
            work, desk = (here.work, here.desk) if is_here else (there.work, there.desk)
            staying = asyncio.create_task(
                work.extend(sid, turn.turn_id, grant=EVERYTHING, fence=turn.fence, wait_s=20)
            )
            await until(lambda: any(counter.stops for counter in desk._counters.values()))
            await one.turns.cancel(sid, turn.turn_id, grant=EVERYTHING)

            assert await asyncio.wait_for(staying, 10)

    async def test_misses_no_end_between_its_call_and_the_ear(self, redis_url: str) -> None:
        """This replica hears nothing of the agent yet: the turn is asked for again once it does."""
        async with stores(redis_url, 2) as (one, two), replica(one) as here, replica(two) as there:
            sid = await session_of(one)
            await say(one, sid)
            turn = (await here.claimed()).turn
            extend, times = two.turns.extend, 0

            async def cancelled_meanwhile(*args: object, **named: object) -> object:
                nonlocal times
                times += 1
                written = await extend(*args, **named)  # type: ignore[arg-type]
                if times == 1:
                    await one.turns.cancel(sid, turn.turn_id, grant=EVERYTHING)
                return written

            two.turns.extend = cancelled_meanwhile  # type: ignore[assignment, method-assign]
            staying = there.work.extend(sid, turn.turn_id, grant=EVERYTHING, fence=turn.fence, wait_s=20)

            assert await asyncio.wait_for(staying, 10)

    async def test_ends_with_the_drain_of_its_replica(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), replica(store) as here:
            sid = await session_of(store)
            await say(store, sid)
            turn = (await here.claimed()).turn
            staying = asyncio.create_task(
                here.work.extend(sid, turn.turn_id, grant=EVERYTHING, fence=turn.fence, wait_s=20)
            )
            await until(lambda: any(counter.stops for counter in here.desk._counters.values()))
            here.desk.drain()

            assert not await asyncio.wait_for(staying, 10)

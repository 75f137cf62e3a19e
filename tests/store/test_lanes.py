"""Who shares a line with somebody that floods it waits for a few commands, never for all."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from itertools import groupby
from typing import Any

import pytest

from sessions_api.store.connection import Redis
from sessions_api.store.lanes import FEW, LANE, MANY, OWN_SHARE, STAY, TURN_LANE, Lanes
from sessions_api.store.lines import LOOKS

FLOOD = 500


def waiter() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def sends(lanes: Lanes, lane: str, count: int) -> int:
    """How many of *count* commands go onto the line; the others wait."""
    entered = 0
    for number in range(count):
        if lanes.enter(lane):
            entered += 1
        else:
            lanes.wait(lane, b"%s %d" % (lane.encode(), number), waiter())
    return entered


def shared() -> Lanes:
    """Lanes of a line that two senders have just used."""
    lanes = Lanes()
    for lane in ("a", "b"):
        assert lanes.enter(lane)
        lanes.leave(lane)
    return lanes


class TestLanes:
    async def test_a_sender_that_is_alone_has_the_line_to_itself(self) -> None:
        """What the service itself does beside it makes no difference."""
        lanes = Lanes()

        assert sends(lanes, "", 10) + sends(lanes, TURN_LANE, 100) == 110
        assert sends(lanes, "a", 1000) == 1000

    async def test_where_two_are_about_each_has_a_few_there(self) -> None:
        lanes = shared()

        assert sends(lanes, "a", 100) == FEW
        assert sends(lanes, "b", 1) == 1
        assert sends(lanes, TURN_LANE, 100) == FEW // 2
        assert sends(lanes, "", 100) == FEW * OWN_SHARE

    async def test_a_reply_makes_room_for_the_next_of_the_same_lane(self) -> None:
        lanes = shared()
        sends(lanes, "a", FEW + 2)

        lanes.leave("a")

        assert [command.packed for _, command in lanes.next()] == [b"a %d" % FEW]
        assert lanes.next() == []
        assert lanes.waiting == 1

    async def test_lanes_take_turns_and_keep_their_order(self) -> None:
        lanes = shared()
        for lane in ("a", "b"):
            sends(lanes, lane, FEW * 2)
        for lane in ("a", "b"):
            for _ in range(FEW):
                lanes.leave(lane)

        admitted = [command.packed for _, command in lanes.next()]

        assert admitted == [b"%s %d" % (lane, FEW + n) for n in range(FEW) for lane in (b"a", b"b")]

    async def test_nobody_overtakes_in_a_lane(self) -> None:
        """Also not when its sender has become the only one meanwhile."""
        lanes = shared()
        sends(lanes, "a", FEW + 1)
        for _ in range(STAY):
            lanes.look(LOOKS * 10)

        assert not lanes.enter("a")

    async def test_a_caller_that_left_takes_no_room(self) -> None:
        lanes = shared()
        sends(lanes, "a", FEW)
        gone, there = waiter(), waiter()
        lanes.wait("a", b"gone", gone)
        lanes.wait("a", b"there", there)
        gone.cancel()

        lanes.leave("a")

        assert [command.packed for _, command in lanes.next()] == [b"there"]

    async def test_a_while_after_the_other_has_gone_a_sender_is_alone_again(self) -> None:
        lanes = shared()
        assert sends(lanes, "a", 1) == 1

        for _ in range(STAY):
            lanes.look(LOOKS)

        assert sends(lanes, "a", 100) == 100

    async def test_who_waits_too_long_is_told(self) -> None:
        lanes = shared()
        sends(lanes, "a", FEW)
        waiting = waiter()
        lanes.wait("a", b"", waiting)

        told = [lanes.look(LOOKS) for _ in range(LOOKS + 1)]

        assert told == [*[[]] * LOOKS, [waiting]]
        assert lanes.waiting == 0

    @pytest.mark.parametrize("way_ms, room", [(0.1, FEW), (1, FEW + 4), (5, FEW + 20), (1000, MANY)])
    async def test_a_longer_way_has_room_for_more(self, way_ms: float, room: int) -> None:
        """What is on its way keeps nobody waiting; a line that is mostly way must not be mostly empty."""
        lanes = Lanes()

        lanes.measured(way_ms / 1000)

        assert lanes.room == room


class TestFlood:
    async def test_makes_another_caller_wait_for_a_few_commands_only(self, redis: Redis) -> None:
        """Each command counts up, so a reply tells how many were run before it."""

        def send(lane: str) -> asyncio.Task[Any]:
            context = copy_context()
            context.run(LANE.set, lane)
            return asyncio.create_task(redis.command(b"INCR", b"test:lanes"), context=context)

        await send("good")
        await send("flood")
        flood = [send("flood") for _ in range(FLOOD)]
        before = await flood[FLOOD // 10]
        good = await send("good")
        await asyncio.gather(*flood)

        assert good - before <= FLOOD // 10, "it waited for more than what had room on the line"
        assert good < FLOOD

    async def test_reaches_the_server_whole_and_in_order(self, redis: Redis) -> None:
        """Lanes decide when a command leaves, and lose, double or reorder none of one sender's."""

        async def sender(name: str) -> list[int]:
            LANE.set(name)
            key = b"test:lanes:" + name.encode()
            return list(await asyncio.gather(*(redis.command(b"INCR", key) for _ in range(FLOOD))))

        counted = await asyncio.gather(*(sender(name) for name in ("a", "b", "c")))

        assert counted == [list(range(1, FLOOD + 1))] * 3

    async def test_leaves_nothing_behind(self, redis: Redis) -> None:
        async def sender(name: str) -> None:
            LANE.set(name)
            tasks = [asyncio.create_task(redis.command(b"PING")) for _ in range(FLOOD)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [len(list(group)) for key, group in groupby(sorted(map(str, done)))] == [FLOOD // 2] * 2

        await asyncio.gather(*(sender(name) for name in ("a", "b")))
        assert await redis.command(b"PING") == b"PONG"

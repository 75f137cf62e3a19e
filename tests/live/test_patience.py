"""A follower's one timer does for each of its waits what `asyncio.timeout` would."""

from __future__ import annotations

import asyncio

import pytest

from sessions_api.live.patience import Patience

LONG_S = 60.0


class TestPatience:
    async def test_ends_a_wait_that_takes_too_long(self) -> None:
        patience = Patience()

        for _ in range(3):
            with pytest.raises(TimeoutError), patience.within(0.01):
                await asyncio.Event().wait()

        assert not _this_task().cancelling()

    async def test_counts_from_where_the_wait_began(self) -> None:
        """The timer of the first wait goes off during a later one, whose time has not come."""
        patience, loop = Patience(), asyncio.get_running_loop()
        began_s = loop.time()
        while loop.time() < began_s + 0.2:
            with patience.within(0.15):
                await asyncio.sleep(0.01)
        last_s = loop.time()

        with pytest.raises(TimeoutError), patience.within(0.15):
            await asyncio.Event().wait()

        assert loop.time() >= last_s + 0.15

    async def test_a_short_wait_after_a_long_one_is_short(self) -> None:
        patience = Patience()
        with patience.within(LONG_S):
            await asyncio.sleep(0)

        with pytest.raises(TimeoutError), patience.within(0.01):
            await asyncio.Event().wait()
        patience.close()

    async def test_between_two_waits_nobody_is_cut(self) -> None:
        patience = Patience()
        with patience.within(0.01):
            await asyncio.sleep(0)

        await asyncio.sleep(0.05)

        with patience.within(LONG_S):
            await asyncio.sleep(0)
        patience.close()

    async def test_who_is_cancelled_is_not_told_of_a_timeout(self) -> None:
        patience = Patience()
        is_waiting = asyncio.Event()

        async def wait() -> None:
            with patience.within(LONG_S):
                is_waiting.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(wait())
        await is_waiting.wait()
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        patience.close()

    async def test_who_is_cancelled_in_the_moment_of_the_timeout_ends(self) -> None:
        patience = Patience()

        async def wait() -> None:
            with patience.within(0.01):
                try:
                    await asyncio.Event().wait()
                finally:
                    _this_task().cancel()

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(wait())

    async def test_a_timeout_within_is_its_own(self) -> None:
        patience = Patience()

        with patience.within(LONG_S):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError), patience.within(0.01):
            async with asyncio.timeout(LONG_S):
                await asyncio.Event().wait()

        patience.close()

    async def test_several_tasks_may_wait_one_after_the_other(self) -> None:
        patience = Patience()

        async def wait(limit_s: float) -> None:
            with patience.within(limit_s):
                await asyncio.Event().wait()

        with patience.within(LONG_S):
            await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.create_task(wait(0.01))

        assert not _this_task().cancelling()
        patience.close()

    async def test_an_error_inside_comes_out_as_it_is(self) -> None:
        patience = Patience()

        with pytest.raises(ZeroDivisionError), patience.within(LONG_S):
            raise ZeroDivisionError
        patience.close()


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task

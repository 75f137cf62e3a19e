"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Return when *condition* holds; fail the test if it does not within *within_s*."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while not condition():
        if loop.time() > deadline_s:
            raise AssertionError(f"did not happen within {within_s} s")
        await asyncio.sleep(0.005)


async def eventually(condition: Callable[[], Awaitable[object]], *, within_s: float = 10.0) -> None:
    """As :func:`until`, of a condition that has to ask."""
    deadline_s = asyncio.get_running_loop().time() + within_s
    while not await condition():
        if asyncio.get_running_loop().time() > deadline_s:
            raise AssertionError(f"did not happen within {within_s} s")
        await asyncio.sleep(0.005)

"""Background loops: they outlive every failure, and say so.

A step that fails is logged and counted, and the next one follows after a pause
that grows from 0.1 to 5 s. Storage that is away is no news to a loop that looks
twice a second: it is logged once, without a stack, until a step succeeds again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from sessions_api.errors import StorageError
from sessions_api.telemetry import metrics

PAUSE_FIRST_S: Final = 0.1
PAUSE_LAST_S: Final = 5.0

log = structlog.get_logger(__name__)


async def run_forever(step: Callable[[], Awaitable[None]], *, loop: str) -> None:
    """Repeat *step*, which waits for its own next time, until cancelled; *loop* is its name in logs."""
    failures = 0
    while True:
        try:
            await step()
            if failures:
                log.info("loop_recovered", loop=loop, failures=failures)
            failures = 0
        except StorageError as error:
            if not failures:
                log.warning("loop_failed", loop=loop, code=error.code, reason=getattr(error, "reason", ""))
            failures += 1
        except Exception:
            log.exception("loop_failed", loop=loop)
            failures += 1
        if failures:
            metrics.LOOP_FAILURES.of(loop).inc()
            await asyncio.sleep(min(PAUSE_FIRST_S * 2 ** min(failures - 1, 10), PAUSE_LAST_S))


async def cancelled(*tasks: asyncio.Task[None]) -> None:
    """Cancel *tasks* and return when they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)

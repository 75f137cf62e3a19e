"""Keeps one line to one Redis open: connects, reconnects, and says fast when it cannot.

While Redis is away, tries follow each other with a growing, jittered pause, so
that a hundred replicas do not fall upon a server that just came back. After
``OPEN_AFTER`` failed tries in a row the circuit is open: whoever asks for the
line is refused at once instead of hanging until its deadline, and one try every
``PROBE_S`` closes the circuit again.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import structlog

from sessions_api.errors import StorageUnavailable
from sessions_api.store.lines import Stats, Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

OPEN_AFTER: Final = 5
PROBE_S: Final = 0.5
PAUSE_FIRST_S: Final = 0.020
PAUSE_LAST_S: Final = 0.250
SHORT_LIFE_S: Final = 1.0

log = structlog.get_logger(__name__)
W = TypeVar("W", bound=Wire)


def pause_s(tries: int) -> float:
    """Seconds to wait after *tries* failures in a row: 20 ms doubling to 250 ms, half of it jitter."""
    full: float = min(PAUSE_FIRST_S * 2 ** min(tries, 10), PAUSE_LAST_S)
    return full * random.uniform(0.5, 1.0)  # noqa: S311  jitter, not a secret


class Lifeline(Generic[W]):
    """One line, kept open by one task from :meth:`start` to :meth:`stop`.

    *connect* opens a line or raises StorageUnavailable. *on_up* is called with
    each new line before anyone else may use it.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[W]],
        *,
        name: str,
        stats: Stats,
        on_up: Callable[[W], None] = lambda _line: None,
    ) -> None:
        self.line: W | None = None  # the open line; None the moment it is lost
        self.reason = "not started"  # why there is no line
        self._connect = connect
        self._name = name
        self._stats = stats
        self._on_up = on_up
        self._failures = 0
        self._short_lives = 0
        self._keeping: asyncio.Task[None] | None = None

    @property
    def is_open_circuit(self) -> bool:
        """Redis is away for good: callers are refused at once."""
        return self.line is None and self._failures >= OPEN_AFTER

    async def start(self) -> None:
        """Begin to keep a line; returns when the first try has ended, well or badly."""
        self._lost = asyncio.Event()
        self._news = asyncio.Event()  # a line, an open circuit or the end: no reason to wait on
        first_try = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep(first_try), name=f"{self._name} lifeline")
        self._keeping.add_done_callback(lambda _task: first_try.set())
        await first_try.wait()

    async def stop(self) -> None:
        """Close the line and end the task; whoever waits for either gets StorageUnavailable."""
        keeping, self._keeping = self._keeping, None
        if keeping is None:
            return
        self.reason = "stopped"
        self._news.set()
        keeping.cancel()
        await asyncio.wait([keeping])
        line, self.line = self.line, None
        if line is not None:
            line.on_lost = lambda: None
            await line.close()

    async def wait(self) -> W:
        """The line, as soon as there is one.

        Raises:
            StorageUnavailable: the circuit is open, or nothing keeps a line.
        """
        while (line := self.line) is None:
            if self._keeping is None or self._failures >= OPEN_AFTER:
                raise StorageUnavailable(self.reason)
            await self._news.wait()
        return line

    async def _keep(self, first_try: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        # Asked anew each time: a cancellation that arrives during a connect can get lost below us
        # (seen on uvloop, about once in 100 stops), and stop() would wait for ever.
        while not self._is_stopped():
            try:
                line = await self._connect()
            except Exception as error:  # noqa: BLE001  whatever it is, the process must find back to Redis
                self._failed(error.reason if isinstance(error, StorageUnavailable) else repr(error))
                first_try.set()
                is_open = self._failures >= OPEN_AFTER
                await asyncio.sleep(PROBE_S if is_open else pause_s(self._failures))
                continue
            if self._is_stopped():
                await line.close()
                return
            since = loop.time()
            self._came_up(line)
            first_try.set()
            await self._lost.wait()
            # A line that comes and goes (a broken balancer in between) must not be a busy loop.
            self._short_lives = self._short_lives + 1 if loop.time() - since < SHORT_LIFE_S else 0
            await asyncio.sleep(pause_s(self._short_lives))

    def _is_stopped(self) -> bool:
        return self._keeping is None

    def _came_up(self, line: W) -> None:
        self._stats.connects += 1
        self._failures = 0
        self._lost.clear()
        line.on_lost = self._on_lost
        self._on_up(line)
        if line.reason:  # lost already, while on_up wrote to it
            return
        self.line = line
        self._news.set()
        log.info("redis_connected", line=self._name)

    def _on_lost(self) -> None:
        line, self.line = self.line, None
        self.reason = line.reason if line is not None else "lost at once"
        self._stats.losses += 1
        self._news.clear()
        self._lost.set()
        log.warning("redis_lost", line=self._name, reason=self.reason)

    def _failed(self, reason: str) -> None:
        self._stats.failed_connects += 1
        self._failures += 1
        self.reason = reason
        if self._failures == OPEN_AFTER:
            self._news.set()
            log.error("redis_circuit_opened", line=self._name, reason=reason)

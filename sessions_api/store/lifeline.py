"""Keeps one line to one Redis open: connects, reconnects, and says fast when it cannot.

While Redis is away, tries follow each other with a growing, jittered pause, so
that a hundred replicas do not fall upon a server that just came back. After
``OPEN_AFTER`` failed tries in a row the circuit is open: whoever asks for the
line is refused at once instead of hanging until its deadline, and one try every
``PROBE_S`` closes the circuit again. Where another server may take over, as in a
cluster, callers had better wait: there the circuit stays closed for *patience_s*.
"""

from __future__ import annotations

import asyncio
import random
from contextvars import Context
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
    each new line before anyone else may use it; *on_news* when a line came up, was
    lost, or the circuit opened. *server* tells it from others of its *name* in the log.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[W]],
        *,
        name: str,
        stats: Stats,
        on_up: Callable[[W], None] = lambda _line: None,
        on_news: Callable[[], None] = lambda: None,
        server: str = "",
        patience_s: float = 0,
    ) -> None:
        self.line: W | None = None  # the open line; None the moment it is lost
        self.reason = "not started"  # why there is no line
        self.is_open_circuit = False  # Redis is away for good: callers are refused at once
        self.server = server
        self._connect = connect
        self._log = log.bind(line=name, server=server) if server else log.bind(line=name)
        self._name = name
        self._stats = stats
        self._on_up = on_up
        self._on_news = on_news
        self._patience_s = patience_s
        self._away_since_s = 0.0
        self._failures = 0
        self._short_lives = 0
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to keep a line; returns when the first try has ended, well or badly."""
        self.begin()
        await self.tried()

    def begin(self) -> None:
        """Begin to keep a line, and wait for nothing."""
        self._lost = asyncio.Event()
        self._news = asyncio.Event()  # a line, an open circuit or the end: no reason to wait on
        self._tried = asyncio.Event()
        self._away_since_s = asyncio.get_running_loop().time()
        self._keeping = asyncio.create_task(
            self._keep(),
            name=f"{self._name} lifeline",
            context=Context(),  # it outlives the request that may have brought us to this server
        )
        self._keeping.add_done_callback(lambda _task: self._tried.set())

    async def tried(self) -> None:
        """Return when the first try has ended."""
        await self._tried.wait()

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
            if self._keeping is None or self.is_open_circuit:
                raise StorageUnavailable(self.reason)
            await self._news.wait()
        return line

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        # Asked anew each time: a cancellation that arrives during a connect can get lost below us
        # (seen on uvloop, about once in 100 stops), and stop() would wait for ever.
        while not self._is_stopped():
            try:
                line = await self._connect()
            except Exception as error:  # noqa: BLE001  whatever it is, the process must find back to Redis
                self._failed(error.reason if isinstance(error, StorageUnavailable) else repr(error))
                self._tried.set()
                await asyncio.sleep(PROBE_S if self.is_open_circuit else pause_s(self._failures))
                continue
            if self._is_stopped():
                await line.close()
                return
            since = loop.time()
            self._came_up(line)
            self._tried.set()
            await self._lost.wait()
            # A line that comes and goes (a broken balancer in between) must not be a busy loop.
            self._short_lives = self._short_lives + 1 if loop.time() - since < SHORT_LIFE_S else 0
            await asyncio.sleep(pause_s(self._short_lives))

    def _is_stopped(self) -> bool:
        return self._keeping is None

    def _came_up(self, line: W) -> None:
        self._stats.connects += 1
        self._failures = 0
        self.is_open_circuit = False
        self._lost.clear()
        line.on_lost = self._on_lost
        self._on_up(line)
        if line.reason:  # lost already, while on_up wrote to it
            return
        self.line = line
        self._news.set()
        self._log.info("redis_connected")
        self._on_news()

    def _on_lost(self) -> None:
        line, self.line = self.line, None
        self.reason = line.reason if line is not None else "lost at once"
        self._away_since_s = asyncio.get_running_loop().time()
        self._stats.losses += 1
        self._news.clear()
        self._lost.set()
        self._log.warning("redis_lost", reason=self.reason)
        self._on_news()

    def _failed(self, reason: str) -> None:
        self._stats.failed_connects += 1
        self._failures += 1
        self.reason = reason
        if self.is_open_circuit or self._failures < OPEN_AFTER:
            return
        if asyncio.get_running_loop().time() - self._away_since_s >= self._patience_s:
            self.is_open_circuit = True
            self._news.set()
            self._log.error("redis_circuit_opened", reason=reason)
            self._on_news()

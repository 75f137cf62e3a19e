"""One open connection to one Redis server: commands share writes, replies come in order.

Knows the wire protocol (through hiredis) and asyncio transports, and nothing of
addresses, repeats or scripts: ``connection.py`` opens lines and decides what a
lost one means, ``lifeline.py`` keeps one open.

Replies carry no id: the n-th reply belongs to the n-th command, so one stray
byte would hand a caller another caller's data. Hence two rules. A line owns its
slots, not the callers: the reply of a cancelled caller is still read, and thrown
away at its turn. And bytes that no command has asked for end the line.

Commands of one lane (``lanes.py``) leave in their order; others' may come between.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import hiredis

from sessions_api.store.lanes import LANE, Lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Arg: TypeAlias = bytes | str | int | float

pack: Callable[[tuple[Arg, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]  # its stub knows 1-tuples

# A silent line is dead after this many looks, not after a span of time: a loop that was
# itself blocked for a second has looked once, and had no chance to read the replies.
LOOKS: Final = 4
INCOMPLETE: Final = object()
ASKING_LANE: Final = ":asking"

# Redis 6.2 wraps what a command inside a script answered: "ERR Error running script
# (call to f_…): @user_script:1: @user_script: 1: -OOM command not allowed …".
_INNER_WORD: Final = re.compile(r": -?([A-Z]{3,}) ")
# How Valkey 9, and Redis 6.2 and 7.0, say NOPERM of a command inside a script.
_MAY_NOT: Final = re.compile(r"ACL failure in script|The user executing the script can't run this command")


class ServerError(Exception):
    """Redis answered with an error; the command was refused or failed there."""

    @cached_property
    def word(self) -> str:
        """The word that names the error, also where a script wraps it: ``OOM``, ``NOSCRIPT``…"""
        message = str(self)
        if message.startswith("ERR ") and _MAY_NOT.search(message):
            return "NOPERM"
        if message.startswith("ERR Error running script"):
            inner = _INNER_WORD.search(message)
            if inner is not None:
                return inner.group(1)
        return message.split(" ", 1)[0].rstrip(":")


class LineLost(Exception):
    """The line ended before the reply came; *sent* says if Redis may have run the command."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


@dataclass(slots=True)
class Stats:
    """What one process did to one Redis since it started; read by metrics, by tests and by readiness."""

    round_trips: int = 0  # loop ticks in which commands left; those of one are under way together
    commands: int = 0
    connects: int = 0  # lines that came up; all but the first are reconnects
    failed_connects: int = 0
    losses: int = 0  # lines that ended without our asking
    dirty: int = 0  # … because bytes came that nothing had asked for
    timeouts: int = 0  # … because the oldest reply was overdue
    repeats: int = 0  # commands sent once more
    unknown_scripts: int = 0  # NOSCRIPT answered by sending the source
    scripts: Counter[str] = field(default_factory=Counter)  # calls by script name


class Wire(asyncio.Protocol):
    """The part that all lines share: batched writing, and an end that comes once.

    *on_lost* is called at once, in the same tick in which the line is given up.
    """

    def __init__(self, stats: Stats) -> None:
        self.stats = stats
        self.reader = hiredis.Reader(
            protocolError=hiredis.ProtocolError,
            replyError=ServerError,
            notEnoughData=INCOMPLETE,
        )
        self.reason = ""  # why the line ended; empty while it is open
        self.on_lost: Callable[[], None] = lambda: None
        self._out: list[bytes] = []
        self._is_leaving = False  # what is queued leaves at the end of this tick

    def take_over(self, transport: asyncio.Transport, keep_alive: object) -> None:
        """Become the protocol of an open *transport*; *keep_alive* lives as long as the line."""
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()
        self._transport = transport
        self._keep_alive = keep_alive
        transport.set_protocol(self)

    def write(self, packed: bytes) -> None:
        """Queue one command; it leaves at the end of this tick at the latest, with what is queued by then."""
        if not self._is_leaving:
            self._is_leaving = True
            self._loop.call_soon(self._end_tick)
        self._out.append(packed)

    def _end_tick(self) -> None:
        self._is_leaving = False
        self.send_off()

    def send_off(self) -> None:
        """The commands of a tick are complete, and leave."""
        if not self.reason:
            self.stats.round_trips += 1
            if self._out:
                self._flush()

    def _flush(self) -> None:
        out, self._out = self._out, []
        self.stats.commands += len(out)
        self.sent(len(out))
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def sent(self, commands: int) -> None:
        """*commands* are about to be written."""

    def drop(self, reason: str) -> None:
        """Give the line up, once: whoever waits on it is told, then *on_lost*."""
        if self.reason:
            return
        self.reason = reason
        self._transport.abort()
        self.ended(reason)
        self.on_lost()

    def ended(self, reason: str) -> None:
        """The line ended for *reason*; fail whoever waits on it."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop(str(exc) if exc else "closed by the server")
        if not self._closed.done():
            self._closed.set_result(None)

    async def close(self) -> None:
        """Give the line up and wait until its socket is closed."""
        self.drop("closed by us")
        await self._closed


class Line(Wire):
    """A line of commands and their replies, shared by every caller of the process.

    *reply_timeout_s*: with the oldest reply overdue by this much (and at most a
    quarter more), the line is dead. Looking four times in that span costs the
    callers nothing, where a timer each would cost more than the rest of the call.
    """

    handful = 8
    """So many commands leave at once, before their tick is over. Redis answers what it read in one piece
    when it has run it all: with the whole tick in one write, it would wait while this process works, and
    then this process for it.
    """

    def __init__(self, stats: Stats, *, reply_timeout_s: float) -> None:
        super().__init__(stats)
        self._look_s = reply_timeout_s / LOOKS
        self._queued: list[tuple[asyncio.Future[Any], str]] = []  # each with its lane
        self._pending: deque[tuple[asyncio.Future[Any], str]] = deque()
        self._lanes = Lanes()
        self._asked_s = 0.0  # when the only command on the line was sent; 0: there are several, or none
        self._way_s = float("inf")
        self._sent = 0
        self._sent_by_look: deque[int] = deque()
        self._look_timer: asyncio.TimerHandle | None = None

    def take_over(self, transport: asyncio.Transport, keep_alive: object) -> None:
        super().take_over(transport, keep_alive)
        self._look_timer = self._loop.call_later(self._look_s, self._look)

    @property
    def waiting(self) -> int:
        """How many commands have no reply yet."""
        return len(self._pending) + len(self._queued) + self._lanes.waiting

    def send(self, command: tuple[Arg, ...]) -> asyncio.Future[Any]:
        """Queue *command*; the future gets its reply, bytes undecoded, or ServerError or LineLost.

        The future may be cancelled or forgotten at any time.
        """
        packed = pack(command)  # before anything else: it may refuse a type
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.reason:
            future.set_exception(LineLost(self.reason, sent=False))
            return future
        lane = LANE.get()
        if self._lanes.enter(lane):
            self._queue(packed, future, lane)
        else:
            self._lanes.wait(lane, packed, future)
        return future

    def send_asking(self, command: tuple[Arg, ...]) -> asyncio.Future[Any]:
        """As :meth:`send`, to the server of a cluster that is just taking the slot over.

        ``ASKING`` holds for the next command of the line, whosever that is: so the
        two enter it together, past the lanes.
        """
        packed = pack(command)
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.reason:
            future.set_exception(LineLost(self.reason, sent=False))
            return future
        asking: asyncio.Future[Any] = self._loop.create_future()
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())  # the command's own tells
        self._lanes.on_line[ASKING_LANE] = self._lanes.on_line.get(ASKING_LANE, 0) + 2
        self._queue(pack((b"ASKING",)), asking, ASKING_LANE)
        self._queue(packed, future, ASKING_LANE)
        return future

    def _queue(self, packed: bytes, future: asyncio.Future[Any], lane: str) -> None:
        self.write(packed)
        self._queued.append((future, lane))
        if len(self._queued) >= self.handful:
            self._flush()

    def _refill(self) -> None:
        """Let those of the lanes onto the line for whom there is room."""
        for lane, command in self._lanes.next():
            self._queue(command.packed, command.future, lane)

    def sent(self, commands: int) -> None:
        # Only now: a reply to a command that has not left yet is nobody's.
        self._asked_s = monotonic() if commands == 1 and not self._pending else 0.0
        self._pending.extend(self._queued)
        self._queued = []
        self._sent += commands

    def data_received(self, data: bytes) -> None:
        pending = self._pending
        if not pending:
            self._end_dirty()
            return
        if self._asked_s:
            self._measure()
        reader = self.reader
        gets = reader.gets
        leave = self._lanes.leave
        try:
            reader.feed(data)
            while pending:
                reply = gets()
                if reply is INCOMPLETE:
                    break
                future, lane = pending.popleft()
                leave(lane)
                if future.done():  # its caller was cancelled
                    continue
                if type(reply) is ServerError:
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except hiredis.ProtocolError as error:
            self.drop(f"not the Redis protocol: {error}")
            return
        if not pending and reader.has_data():
            self._end_dirty()
        elif self._lanes.waiting:
            self._refill()

    def _measure(self) -> None:
        way_s = monotonic() - self._asked_s
        self._asked_s = 0.0
        if way_s < self._way_s:
            self._way_s = way_s
            self._lanes.measured(way_s)

    def _end_dirty(self) -> None:
        if not self.reason:
            self.stats.dirty += 1
            self.drop("bytes came that nothing had asked for")

    def _look(self) -> None:
        overdue = self._sent_by_look
        overdue.append(self._sent)
        if len(overdue) > LOOKS and overdue.popleft() > self._sent - len(self._pending):
            self.stats.timeouts += 1
            self.drop("no reply in time")
            return
        _fail(self._lanes.look(LOOKS), "no room on the line in time", sent=False)
        self._look_timer = self._loop.call_later(self._look_s, self._look)

    def ended(self, reason: str) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
        _fail([future for future, _ in self._pending], reason, sent=True)
        _fail([future for future, _ in self._queued], reason, sent=False)
        _fail(self._lanes.clear(), reason, sent=False)
        self._pending = deque()
        self._queued = []
        self._out = []


def _fail(futures: Iterable[asyncio.Future[Any]], reason: str, *, sent: bool) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(LineLost(reason, sent=sent))

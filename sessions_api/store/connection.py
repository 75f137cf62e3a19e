"""The connection to Redis: calls, their repeats and their deadline; where Redis's errors end.

redis-py finds the server and shakes hands (``address.py``); then its socket
becomes a :class:`~sessions_api.store.lines.Line`, on which every command of one
event-loop tick shares one write. A third of a request's CPU is saved that way,
and each snare below lies in what redis-py would do *after* the handshake:

- *A cancelled request's reply reaches the next user* (ChatGPT, March 2023).
  The line owns the slot of each command, not the caller: ``lines.py``.
- *The dirty-connection guard is off by default* in redis-py 8.1, whose
  maintenance notifications switch it off. Ours are off and our guard has no
  switch: bytes that nothing asked for end the line. RESP2, so that the server
  never has a reason to send any.
- *Library retries send writes again*: one ``xadd()`` through a lossy network
  became three entries. redis-py's retry is zero, here only the handshake could
  use it. We alone repeat, and only what is told to be repeatable: every script
  is, by its op id, fence, offset or nature.
- *``socket_timeout`` of 5 s breaks blocking reads.* Nothing blocks on this
  connection, and nothing may: it would hold up the whole process. The same
  goes for MULTI, SELECT and SUBSCRIBE, which change it for everybody.
- *A hung server says nothing.* A reply overdue by 1 s ends the line, whatever
  TCP thinks. For pub/sub see the probe in ``pubsub.py``.
- *NOSCRIPT recovery by SCRIPT LOAD needs every primary alive.* We answer
  NOSCRIPT with EVAL, on the same server, and never load.
- *Valkey says it is Redis 7.2.4*: nothing here looks at versions.
- *Redis 6.2 wraps errors inside a script*: :attr:`ServerError.word` unwraps.

**Time.** A caller waits 2.5 s at most, whatever happens: for a line, for a
reply, through repeats. With the circuit open (``lifeline.py``) not at all.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha1
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import structlog

from sessions_api.errors import StorageFault, StorageFull, StorageUnavailable
from sessions_api.store.address import Address
from sessions_api.store.lifeline import PAUSE_FIRST_S, PAUSE_LAST_S, Lifeline
from sessions_api.store.lines import Arg, Line, LineLost, ServerError, Stats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

REPLY_TIMEOUT_S: Final = 1.0
MAX_WAITING: Final = 20_000

# Refused before anything was done, and soon over: worth a repeat within the deadline.
PASSING: Final = frozenset(
    {"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "BUSY"}
)
# Refused until somebody changes the server or our settings.
REFUSING: Final = frozenset({"NOPERM", "NOAUTH", "WRONGPASS", "MISCONF"})

log = structlog.get_logger(__name__)
_trips: ContextVar[set[tuple[int, int]] | None] = ContextVar("redis_trips", default=None)
_called: ContextVar[list[str] | None] = ContextVar("redis_scripts", default=None)


class Script:
    """A Lua script: *name* for metrics, *source*, and the *sha1* that Redis knows it by.

    Every script is repeatable: run twice with the same arguments, the second
    run finds what the first did and answers the same.
    """

    __slots__ = ("name", "sha1", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source.encode()
        self.sha1 = sha1(self.source).hexdigest().encode()  # noqa: S324  Redis's name for it, no secret

    def __repr__(self) -> str:
        return f"Script({self.name})"


class Reply(NamedTuple):
    """*repeated*: an earlier try of the same call may have been run already, its reply lost."""

    value: Any
    repeated: bool


class Redis:
    """One Redis server, shared by all tasks of the process; it comes and goes, callers wait 2.5 s.

    ::

        redis = Redis.from_url("redis://localhost")
        await redis.start()                       # never raises: readiness asks is_up
        await redis.script(RENEW, keys, args)     # bytes, undecoded
        await redis.stop()
    """

    def __init__(
        self,
        address: Address,
        *,
        deadline_ms: int = 2500,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.address = address
        self.stats = Stats()
        self._deadline_s = deadline_ms / 1000
        self._reply_timeout_s = min(reply_timeout_s, self._deadline_s)
        self._max_waiting = max_waiting
        self._lifeline = Lifeline(self._connect, name="commands", stats=self.stats)
        self._loop_time: Callable[[], float] = lambda: asyncio.get_running_loop().time()

    @classmethod
    def from_url(
        cls, url: str, *, deadline_ms: int = 2500, reply_timeout_s: float = REPLY_TIMEOUT_S
    ) -> Redis:
        """A Redis that is not started yet.

        Raises:
            SettingsError: the URL is unusable.
        """
        return cls(Address(url), deadline_ms=deadline_ms, reply_timeout_s=reply_timeout_s)

    async def start(self) -> None:
        """Begin to connect; returns after the first try, whether Redis is there or not."""
        self._loop_time = asyncio.get_running_loop().time
        await self._lifeline.start()

    async def stop(self) -> None:
        """Close the connection; calls that wait get StorageUnavailable. No task is left."""
        await self._lifeline.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    @property
    def is_up(self) -> bool:
        """There is a connection, and no reply on it is overdue."""
        return self._lifeline.line is not None

    @property
    def circuit(self) -> str:
        """``closed``, or ``open`` while calls are refused at once."""
        return "open" if self._lifeline.is_open_circuit else "closed"

    async def ping(self) -> None:
        """Ask for a sign of life.

        Raises:
            StorageUnavailable: none came in time.
        """
        await self.command(b"PING", safe=True)

    async def script(self, script: Script, keys: Sequence[Arg], args: Sequence[Arg] = ()) -> Any:
        """Run *script* and return its reply, bytes undecoded.

        Raises:
            StorageUnavailable: no answer within the deadline, through all repeats.
            StorageFull: Redis is out of memory; nothing was written.
            StorageFault: the script failed: our bug.
        """
        self._count(script)
        return (await self._call((b"EVALSHA", script.sha1, len(keys), *keys, *args), script=script)).value

    async def script_reply(self, script: Script, keys: Sequence[Arg], args: Sequence[Arg] = ()) -> Reply:
        """As :meth:`script`, for callers to whom a repeat makes a difference."""
        self._count(script)
        return await self._call((b"EVALSHA", script.sha1, len(keys), *keys, *args), script=script)

    async def command(self, *command: Arg, safe: bool = False) -> Any:
        """Run one plain command and return its reply, bytes undecoded.

        *safe* says that running it twice does no harm; only then is it repeated
        when its outcome is unknown. Raises as :meth:`script`.
        """
        return (await self._call(command, safe=safe)).value

    def post(self, *command: Arg) -> None:
        """Send one command and forget it: for hints, which may get lost."""
        line = self._lifeline.line
        if line is not None:
            line.send(command).add_done_callback(_forget)

    def _count(self, script: Script) -> None:
        self.stats.scripts[script.name] += 1
        called = _called.get()
        if called is not None:
            called.append(script.name)

    def _send(self, line: Line, command: tuple[Arg, ...]) -> asyncio.Future[Any]:
        if line.waiting >= self._max_waiting:
            raise StorageUnavailable(f"{line.waiting} commands wait for Redis already")
        trips = _trips.get()
        if trips is not None:
            trips.add((id(line), self.stats.round_trips))
        return line.send(command)

    async def _call(
        self, command: tuple[Arg, ...], *, script: Script | None = None, safe: bool = False
    ) -> Reply:
        """The first try, without a timer of its own: the line has one for all of its replies."""
        line = self._lifeline.line
        started_s = self._loop_time()
        error: Exception | None = None
        if line is not None:
            try:
                return Reply(await self._send(line, command), repeated=False)
            except (LineLost, ServerError) as failure:
                error = failure
        return await self._persist(command, started_s, error, script=script, safe=safe)

    async def _persist(
        self,
        command: tuple[Arg, ...],
        started_s: float,
        error: Exception | None,
        *,
        script: Script | None = None,
        safe: bool = False,
    ) -> Reply:
        """Try until there is an answer, the deadline, or an *error* that a repeat cannot mend."""
        deadline_s = started_s + self._deadline_s
        may_repeat = safe or script is not None
        outcome_unknown = False
        pause_s = PAUSE_FIRST_S
        while True:
            pauses = False
            if isinstance(error, LineLost):
                outcome_unknown |= error.sent
                if error.sent and not may_repeat:
                    raise StorageUnavailable(f"outcome unknown: {error.reason}") from error
                pauses = True
            elif isinstance(error, ServerError):
                if error.word == "NOSCRIPT" and script is not None:
                    self.stats.unknown_scripts += 1
                    command = (b"EVAL", script.source, *command[2:])
                elif error.word in PASSING and may_repeat:
                    self._turn_away(error)
                    pauses = True
                else:
                    raise _translated(error, script) from error
            try:
                async with asyncio.timeout_at(deadline_s):
                    if pauses:
                        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  jitter
                        pause_s = min(pause_s * 2, PAUSE_LAST_S)
                    line = self._lifeline.line or await self._lifeline.wait()
                    if pauses:
                        self.stats.repeats += 1
                    return Reply(await self._send(line, command), outcome_unknown)
            except TimeoutError:
                reason = str(error) if error else self._lifeline.reason
                raise StorageUnavailable(f"no answer within the deadline: {reason}") from error
            except (LineLost, ServerError) as failure:
                error = failure

    def _turn_away(self, error: ServerError) -> None:
        """A primary that became a replica stays one: the next line may reach the new primary."""
        line = self._lifeline.line
        if error.word == "READONLY" and line is not None:
            line.drop("the server became a replica")

    async def _connect(self) -> Line:
        line = Line(self.stats, reply_timeout_s=self._reply_timeout_s)
        await self.address.connect(line)
        return line


def _forget(future: asyncio.Future[Any]) -> None:
    """Read a forgotten future's error, or asyncio logs that nobody did."""
    error = None if future.cancelled() else future.exception()
    if isinstance(error, ServerError):
        log.warning("redis_refused_post", reason=str(error))


def _translated(error: ServerError, script: Script | None) -> Exception:
    if error.word == "OOM":
        return StorageFull()
    if error.word in PASSING or error.word in REFUSING:
        return StorageUnavailable(str(error))
    return StorageFault(f"{script or 'a command'}: {error}")


@contextmanager
def counted_trips() -> Iterator[set[tuple[int, int]]]:
    """Collect the round trips to Redis made inside: the set has one member for each.

    Commands of one tick share a trip, a NOSCRIPT or a repeat costs one more.
    """
    trips: set[tuple[int, int]] = set()
    token = _trips.set(trips)
    try:
        yield trips
    finally:
        _trips.reset(token)


@contextmanager
def named_scripts() -> Iterator[list[str]]:
    """Collect the names of the scripts called inside, in their order."""
    names: list[str] = []
    token = _called.set(names)
    try:
        yield names
    finally:
        _called.reset(token)

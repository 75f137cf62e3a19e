"""The connection to Redis: calls, their repeats and their deadline; where Redis's errors end.

redis-py finds the server and shakes hands (``address.py``); then its socket
becomes a :class:`~sessions_api.store.lines.Line`, on which commands of one
event-loop tick share writes. A third of a request's CPU is saved that way, and
each snare below lies in what redis-py would do *after* the handshake:

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

**Place.** To which server a command goes is the topology's (``topology.py``). What a
caller is told is done may have a line of its own, which waits for replicas (``replicated.py``).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from functools import partial
from hashlib import sha1
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import structlog

from sessions_api.errors import NotReplicated, StorageFault, StorageFull, StorageUnavailable
from sessions_api.store.asked import CALLED, TRIPS
from sessions_api.store.doors import door_of, topology_of
from sessions_api.store.lifeline import PAUSE_FIRST_S, PAUSE_LAST_S
from sessions_api.store.lines import Arg, Line, LineLost, ServerError, Stats
from sessions_api.store.replicated import TOLD, ReplicatedLine, Unreplicated
from sessions_api.store.sentinel import SentinelAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from sessions_api.store.topology import Door, Link, Topology

REPLY_TIMEOUT_S: Final = 1.0
MAX_WAITING: Final = 20_000

# Refused before anything was done, and soon over: worth a repeat within the deadline.
PASSING: Final = frozenset(
    {"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "BUSY"}
)
# Another server's to answer: nothing was done, and it says whose. So many times without a pause.
REDIRECTING: Final = frozenset({"MOVED", "ASK"})
MAX_HOPS: Final = 4
# Refused until somebody changes the server or our settings.
REFUSING: Final = frozenset({"NOPERM", "NOAUTH", "WRONGPASS", "MISCONF"})

log = structlog.get_logger(__name__)


class Script:
    """A Lua script: *name* for metrics, *source*, and the *sha1* that Redis knows it by.

    *on_cluster*: the source that a cluster gets, if that is another.
    Every script is repeatable: run twice with the same arguments, the second
    run finds what the first did and answers the same.
    """

    __slots__ = ("is_told", "name", "on_cluster", "sha1", "source")

    def __init__(self, name: str, source: str, *, on_cluster: str = "") -> None:
        self.name = name
        self.is_told = name in TOLD  # a caller is told that what it writes is done: ``replicated.py``
        self.source = source.encode()
        self.sha1 = sha1(self.source).hexdigest().encode()  # noqa: S324  Redis's name for it, no secret
        self.on_cluster: Script = Script(name, on_cluster) if on_cluster not in ("", source) else self

    def __repr__(self) -> str:
        return f"Script({self.name})"


class Reply(NamedTuple):
    """*repeated*: an earlier try of the same call may have been run already, its reply lost."""

    value: Any
    repeated: bool


@dataclass(slots=True)
class _Call:
    """A call that its first try did not settle."""

    command: tuple[Arg, ...]
    script: Script | None
    may_repeat: bool
    at: Link | None  # the server it is meant for; None: whichever has its key
    topology: Topology
    link: Link  # where it was tried last
    error: LineLost | ServerError | None  # what came of it; None: there was no line
    hops: int = 0
    is_outcome_unknown: bool = False


class Redis:
    """One Redis, shared by all tasks of the process; it comes and goes, callers wait 2.5 s.

    ::

        redis = Redis.from_url("redis://localhost")
        await redis.start()                       # never raises: readiness asks is_up
        await redis.script(RENEW, keys, args)     # bytes, undecoded
        await redis.stop()
    """

    def __init__(
        self,
        address: Door,
        *,
        deadline_ms: int = 2500,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
        max_waiting: int = MAX_WAITING,
        replicas: int = 0,
        key_prefix: bytes = b"sa:",
    ) -> None:
        self.address = address
        self.stats = Stats()
        self._deadline_s = deadline_ms / 1000
        self._max_waiting = max_waiting
        way = partial(
            topology_of,
            address,
            stats=self.stats,
            reply_timeout_s=min(reply_timeout_s, self._deadline_s),
            patience_s=self._deadline_s,
        )
        self.topology = self._told = way()
        self._is_cluster = self.topology.is_cluster
        if replicas:
            make_line = partial(ReplicatedLine, replicas=replicas, key_prefix=key_prefix)
            self._told = way(make_line=make_line, name="replicated")
        self._loop_time: Callable[[], float] = lambda: asyncio.get_running_loop().time()

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        deadline_ms: int = 2500,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
        replicas: int = 0,
        key_prefix: bytes = b"sa:",
    ) -> Redis:
        """A Redis that is not started yet.

        *replicas*: so many of Redis's own must have a write before a caller is told
        that it is done; *key_prefix*: of the keys that are written to find out.

        Raises:
            SettingsError: the URL is unusable.
        """
        return cls(
            door_of(url),
            deadline_ms=deadline_ms,
            reply_timeout_s=reply_timeout_s,
            replicas=replicas,
            key_prefix=key_prefix,
        )

    async def start(self) -> None:
        """Begin to connect; returns after the first try, whether Redis is there or not."""
        self._loop_time = asyncio.get_running_loop().time
        if isinstance(self.address, SentinelAddress):
            await self.address.start()
        await self.topology.start()
        if self._told is not self.topology:
            await self._told.start()

    async def stop(self) -> None:
        """Close every connection; calls that wait get StorageUnavailable. No task is left."""
        await self.topology.stop()
        if self._told is not self.topology:
            await self._told.stop()
        if isinstance(self.address, SentinelAddress):
            await self.address.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    @property
    def is_up(self) -> bool:
        """There is a connection, and no reply on it is overdue."""
        return self.topology.is_up and self._told.is_up

    @property
    def circuit(self) -> str:
        """``closed``, or ``open`` while calls are refused at once: in a cluster, those to some server."""
        return "open" if self.topology.is_open_circuit or self._told.is_open_circuit else "closed"

    async def ping(self) -> None:
        """Ask for a sign of life: in a cluster, of any server.

        Raises:
            StorageUnavailable: none came in time.
        """
        await self.command(b"PING", safe=True)

    def script(
        self, script: Script, keys: Sequence[Arg], args: Sequence[Arg] = ()
    ) -> Coroutine[Any, Any, Any]:
        """Run *script* and return its reply, bytes undecoded.

        Raises:
            StorageUnavailable: no answer within the deadline, through all repeats.
            NotReplicated: it is done, and too few replicas have it.
            StorageFull: Redis is out of memory; nothing was written.
            StorageFault: the script failed: our bug.
        """
        script = self._noted(script)
        return self._call((b"EVALSHA", script.sha1, len(keys), *keys, *args), script=script)

    async def script_reply(self, script: Script, keys: Sequence[Arg], args: Sequence[Arg] = ()) -> Reply:
        """As :meth:`script`, for callers to whom a repeat makes a difference."""
        script = self._noted(script)
        tries: list[_Call] = []
        command = (b"EVALSHA", script.sha1, len(keys), *keys, *args)
        value = await self._call(command, script=script, tries=tries)
        return Reply(value, bool(tries) and tries[0].is_outcome_unknown)

    def command(self, *command: Arg, safe: bool = False, at: Link | None = None) -> Coroutine[Any, Any, Any]:
        """Run one plain command and return its reply, bytes undecoded.

        *safe* says that running it twice does no harm; only then is it repeated
        when its outcome is unknown. *at*: the server that it is meant for, one of
        ``topology.primaries``. Raises as :meth:`script`.
        """
        return self._call(command, safe=safe, at=at)

    def post(self, *command: Arg) -> None:
        """Send one command and forget it: for hints, which may get lost."""
        line = self.topology.link(command).line
        if line is not None:
            line.send(command).add_done_callback(_forget)

    def _noted(self, script: Script) -> Script:
        """*script* as these servers get it, counted."""
        self.stats.scripts[script.name] += 1
        called = CALLED.get()
        if called is not None:
            called.append(script.name)
        return script.on_cluster if self._is_cluster else script

    def _send(self, line: Line, command: tuple[Arg, ...], *, asking: bool = False) -> asyncio.Future[Any]:
        if line.waiting >= self._max_waiting:
            raise StorageUnavailable(f"{line.waiting} commands wait for Redis already")
        trips = TRIPS.get()
        if trips is not None:
            trips.add((id(line), self.stats.round_trips))
        return line.send_asking(command) if asking else line.send(command)

    async def _call(
        self,
        command: tuple[Arg, ...],
        *,
        script: Script | None = None,
        safe: bool = False,
        at: Link | None = None,
        tries: list[_Call] | None = None,
    ) -> Any:
        """The first try, without a timer of its own: the line has one for all of its replies.

        *tries* gets the call, should there be others.
        """
        topology = self._told if script is not None and script.is_told else self.topology
        link = at or topology.link(command)
        line = link.line
        started_s = self._loop_time()
        error: LineLost | ServerError | None = None
        if line is not None:
            try:
                return await self._send(line, command)
            except (LineLost, ServerError) as failure:
                error = failure
        call = _Call(command, script, safe or script is not None, at, topology, link, error)
        if tries is not None:
            tries.append(call)
        return await self._persist(call, started_s)

    async def _persist(self, call: _Call, started_s: float) -> Any:
        """Try until there is an answer, the deadline, or an error that a repeat cannot mend."""
        deadline_s = started_s + self._deadline_s
        pause_s = PAUSE_FIRST_S
        while True:
            pauses, detour = self._reconsider(call)
            try:
                async with asyncio.timeout_at(deadline_s):
                    if pauses:
                        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  jitter
                        pause_s = min(pause_s * 2, PAUSE_LAST_S)
                    line = await self._line(call, detour)
                    if pauses:
                        self.stats.repeats += 1
                    return await self._send(line, call.command, asking=detour is not None)
            except TimeoutError:
                reason = str(call.error) if call.error else call.link.reason
                refusal = NotReplicated if isinstance(call.error, Unreplicated) else StorageUnavailable
                raise refusal(f"no answer within the deadline: {reason}") from call.error
            except (LineLost, ServerError) as failure:
                call.error = failure

    def _reconsider(self, call: _Call) -> tuple[bool, Link | None]:
        """After a failed try: whether to pause before the next, and a server that alone is to be asked then.

        Raises:
            StorageError, StorageFault: another try cannot mend it.
        """
        error, script = call.error, call.script
        if isinstance(error, LineLost):
            call.is_outcome_unknown |= error.sent
            if error.sent and not call.may_repeat:
                raise StorageUnavailable(f"outcome unknown: {error.reason}") from error
            return True, None
        if isinstance(error, ServerError):
            if error.word == "NOSCRIPT" and script is not None:
                self.stats.unknown_scripts += 1
                call.command = (b"EVAL", script.source, *call.command[2:])
                return False, None
            if error.word in REDIRECTING:
                call.hops += 1
                return call.hops > MAX_HOPS, call.topology.heed(error, call.link)
            if error.word not in PASSING or not call.may_repeat:
                raise _translated(error, script) from error
            call.topology.heed(error, call.link)
            return True, None
        return False, None

    async def _line(self, call: _Call, detour: Link | None) -> Line:
        """The line for the next try, as soon as it is there."""
        chosen = detour or call.at
        if chosen is not None:
            call.link = chosen
            return chosen.line or await chosen.wait()
        call.link = call.topology.link(call.command)
        if call.link.line is None:
            call.link = await call.topology.wait(call.command)
        return call.link.line or await call.link.wait()


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

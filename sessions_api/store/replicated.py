"""Writes that are answered once replicas have them too: WAIT, once for all that came meanwhile.

Replication follows the reply, so a primary that dies takes along what its replicas
had not got yet. With ``SESSIONS_DURABILITY=replicated`` the scripts whose outcome a
caller is told (:data:`TOLD`) go over a line of their own, on which each batch ends
with WAIT; their callers are answered when enough replicas have acknowledged.

- *WAIT blocks its connection*: hence the second line, so that reads, alarms and
  leases do not queue behind it.
- *Group commit*: while a batch waits for its replicas nothing else is sent; what
  comes meanwhile is the next batch, with one WAIT for all of it. A batch costs the
  way to Redis and the way from there to a replica, however many are in it.
- *A repeat writes nothing*, and since Redis 7.2 WAIT is about the connection's own
  last write: a repeat of what another process wrote would pass though no replica
  has it. So each batch writes a key of its own before it waits. (Measured on Valkey
  9.1: WAIT 1 after a read said 1 while the replica was stopped, after a SET 0.)
- *Too few replicas in time*: the write is done, and callers are not told so. The
  call is repeated, which waits anew, until its deadline; then it is NotReplicated.
  Whoever reads or follows the session may see the write before that.

docs/adr/0014 says why it is an error and no header, and which scripts are told.
"""

from __future__ import annotations

import sys
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sessions_api.store.lines import Arg, Line, LineLost, ServerError, Stats, pack

if TYPE_CHECKING:
    import asyncio

    from sessions_api.store.topology import Door

TOLD: Final = frozenset(
    {
        "abandon", "append", "cancel", "complete", "configure", "create", "define", "delta", "end", "extend",
        "fail", "heartbeat", "renew", "revoke", "signing", "speak", "undefine",
    }
)  # fmt: skip
"""Scripts that write what a caller is then told is done."""
UNTOLD: Final = frozenset(
    {
        "alarm", "attend", "claim", "dismiss", "keep", "postpone", "presence", "prune", "rights", "settle",
        "take", "used",
    }
)  # fmt: skip
"""Scripts that write for the service's own sake: what is lost of that is done again, or made good."""
COMMIT_LIFE_S: Final = 3600
COMMIT_LANE: Final = ":commit"


class Unreplicated(LineLost):
    """The command was run, and too few replicas acknowledged it in time."""


class ReplicatedLine(Line):
    """A line whose replies are held until *replicas* have what they tell of.

    *key_prefix* is that of the keys it writes, one for each hash tag. A wait for
    replicas lasts half of *reply_timeout_s*, so that the line outlives it.
    """

    handful = sys.maxsize  # a batch leaves whole

    def __init__(
        self, stats: Stats, *, reply_timeout_s: float, replicas: int, key_prefix: bytes = b"sa:"
    ) -> None:
        super().__init__(stats, reply_timeout_s=reply_timeout_s)
        self._replicas = replicas
        self._within_ms = int(reply_timeout_s * 500)
        self._wait = pack(("WAIT", replicas, self._within_ms))
        self._key_prefix = key_prefix
        self._last: tuple[Arg, ...] = ()
        self._held: list[tuple[asyncio.Future[Any], Any]] = []
        self._is_committing = False
        self._quickest_s = float("inf")

    def send(self, command: tuple[Arg, ...]) -> asyncio.Future[Any]:
        """As of any line; a reply that is no error comes when the replicas have what it tells of."""
        return self._told(command, super().send(command))

    def send_asking(self, command: tuple[Arg, ...]) -> asyncio.Future[Any]:
        return self._told(command, super().send_asking(command))

    def _told(self, command: tuple[Arg, ...], reply: asyncio.Future[Any]) -> asyncio.Future[Any]:
        told: asyncio.Future[Any] = self._loop.create_future()
        reply.add_done_callback(partial(self._hold, told))
        self._last = command
        return told

    def _hold(self, told: asyncio.Future[Any], reply: asyncio.Future[Any]) -> None:
        error = None if reply.cancelled() else reply.exception()
        if error is None:
            self._held.append((told, None if reply.cancelled() else reply.result()))
        elif not told.done():
            told.set_exception(error)

    def send_off(self) -> None:
        if self._is_committing or not self._out:
            return
        self._is_committing = True
        # Past the lanes: it belongs to all of them, and has to be the last.
        self._lanes.on_line[COMMIT_LANE] = 2
        wrote, waited = self._loop.create_future(), self._loop.create_future()
        wrote.add_done_callback(
            lambda future: future.exception()
        )  # out of memory: WAIT still says what it can
        waited.add_done_callback(partial(self._committed, monotonic()))
        self._queue(pack(("SET", self._key(), "", "EX", COMMIT_LIFE_S)), wrote, COMMIT_LANE)
        self._queue(self._wait, waited, COMMIT_LANE)
        super().send_off()

    def _key(self) -> bytes:
        """A key in the slot of the last command's, which is at this server."""
        key = self._last[3] if self._last[0] in (b"EVALSHA", b"EVAL") else b""
        key = key if isinstance(key, bytes) else str(key).encode()
        tag = key.partition(b"{")[2].partition(b"}")[0]
        return b"%scommit:{%s}" % (self._key_prefix, tag or key or b"-")

    def _committed(self, since_s: float, waited: asyncio.Future[Any]) -> None:
        held, self._held = self._held, []
        self._is_committing = False
        error = waited.exception()
        if error is None and waited.result() < self._replicas:
            error = ServerError(f"{waited.result()} of {self._replicas} replicas within {self._within_ms} ms")
        for told, value in held:
            if told.done():
                continue
            if error is None:
                told.set_result(value)
            else:
                told.set_exception(Unreplicated(str(error), sent=True))
        if error is None and (way_s := monotonic() - since_s) < self._quickest_s:
            self._quickest_s = way_s
            self._lanes.measured(way_s)
        self.send_off()


async def open_replicated(
    door: Door, stats: Stats, *, reply_timeout_s: float, replicas: int, key_prefix: bytes = b"sa:"
) -> Line:
    """A :class:`ReplicatedLine` to the server behind *door*.

    Raises:
        StorageUnavailable: it cannot be reached now.
    """
    line = ReplicatedLine(stats, reply_timeout_s=reply_timeout_s, replicas=replicas, key_prefix=key_prefix)
    await door.connect(line)
    return line

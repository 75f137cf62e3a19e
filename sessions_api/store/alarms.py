"""Alarms: the next instant at which something must happen to a session.

That instant (a warning, expiry, a lapsed lease, the end of a pause between two
attempts) stands twice: as the score of the session in ``due:{t}``, which is the
promise, and, but for a lease, as the TTL of ``alarm:{t}:<sid>``, whose ``expired``
notification is the hint. ``alarm.lua`` looks, does whatever is due, each at most once, tells
followers, and sets the next alarm: whoever calls it, and how often, is the same.

A renewal does not touch either of them: it only makes the end later, and an
alarm that rings early finds nothing due and is set again. That is one idle call
per timeout instead of two writes per heartbeat. They are rewritten when the next
instant becomes earlier; and ``due`` when a turn ends whose lease stood there.

Notifications off, lost, forbidden or late: only the hint is gone. The sweep of
``due`` by the partition's keeper finds every session within half a second. And
whatever the sweep does, an expired session is unusable at its instant, because
every script compares that instant with Redis's clock.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from sessions_api.domain.ids import AgentId, SessionId, TurnId, partition_of_session
from sessions_api.store.loader import load
from sessions_api.store.scripts import unknown
from sessions_api.store.written import count_lost

if TYPE_CHECKING:
    from sessions_api.store.keys import PartitionKeys
    from sessions_api.store.scripts import Scripts

ALARM = load("alarm")
DUE = load("due")
POSTPONE = load("postpone")
KEEP = load("keep")
PRUNE = load("prune")


class Lapse(msgspec.Struct, frozen=True):
    """A turn whose worker did not extend its lease; *became*: what that made of it."""

    agent_id: AgentId
    turn_id: TurnId
    attempt: int
    worker: str
    became: Literal["queued", "failed"]


class Rung(msgspec.Struct, frozen=True):
    """What an alarm did, and how long after its instant."""

    outcome: Literal["expired", "warned", "lapsed", "idle", "absent"]
    lag_ms: int
    lapse: Lapse | None = None


class Due(msgspec.Struct, frozen=True):
    """The sessions of a partition whose alarm has come, oldest first; *next_ms*: the first after them."""

    session_ids: list[SessionId]
    next_ms: int | None
    now_ms: int


class PartitionGauges(msgspec.Struct, frozen=True):
    """Counts of one partition."""

    live: int
    near: int
    due: int
    ready: int
    running: int


class Memory(msgspec.Struct, frozen=True):
    """What a server says of its memory."""

    fullness: float
    """Used over ``maxmemory``; 0 where that is no limit."""
    policy: str
    """``maxmemory-policy``: with any but ``noeviction`` a full server forgets conversations."""

    @property
    def may_evict(self) -> bool:
        return self.policy != NOEVICTION


NOEVICTION: Final = "noeviction"


class Alarms:
    """What keepers do; every method is safe to repeat and to race."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def ring(self, session_id: SessionId) -> Rung:
        """Do whatever is due for the session, and set its next alarm."""
        of = self._scripts.keyspace.of(session_id)
        reply = await self._scripts.redis.script(ALARM, of.all(), (of.sid, b""))
        if reply[0] == b"absent":
            return Rung("absent", 0)
        match self._scripts.checked(ALARM, session_id, reply):
            case [b"expired" | b"warned" | b"lapsed" | b"idle" as word, _, lag_ms, lapse]:
                rung = Rung(word.decode(), int(lag_ms), _lapse_of(lapse) if lapse else None)
                if rung.lapse and rung.lapse.became == "failed":  # others are counted by the next claim
                    count_lost(rung.lapse.agent_id)
                return rung
            case _:
                raise unknown(ALARM, reply)

    async def due(self, partition: int, limit: int = 100) -> Due:
        """The partition's sessions whose alarm has come, by Redis's clock."""
        key = self._of(partition).due
        now, following, sids = await self._scripts.redis.script(DUE, [key], (limit,))
        next_ms = int(float(following)) if following else None
        return Due([SessionId(sid.decode()) for sid in sids], next_ms, int(now))

    async def postpone(self, session_id: SessionId, delay_ms: int) -> None:
        """Move an alarm that could not be rung ahead, so that it blocks nobody."""
        key = self._of(partition_of_session(session_id)).due
        await self._scripts.redis.script(POSTPONE, [key], (session_id, delay_ms))

    async def keep(self, partition: int, replica: str, lease_ms: int = 5_000) -> bool:
        """Take or renew the lease of a partition; False if another replica has it."""
        reply = await self._scripts.redis.script(KEEP, [self._of(partition).keeper], (replica, lease_ms))
        match reply:
            case [b"kept"]:
                return True
            case [b"other", _] | [b"free"]:
                return False
            case _:
                raise unknown(KEEP, reply)

    async def yield_(self, partition: int, replica: str) -> None:
        """Give the lease of a partition back, if *replica* has it."""
        await self._scripts.redis.script(KEEP, [self._of(partition).keeper], (replica, 0))

    async def prune(self, partition: int, index: str, after: bytes = b"", limit: int = 500) -> bytes | None:
        """Drop members of *index* whose session is gone: one batch; the position to go on from, or None.

        *index*: users, agents, near, ready, running or due. Indexes in order of members;
        ``near`` and ``due``, whose scores differ, are taken whole by rank.
        """
        keys = self._of(partition)
        key = getattr(keys, index)
        redis = self._scripts.redis
        if index in {"near", "due"}:
            start = int(after or b"0")
            members = await redis.command(b"ZRANGE", key, start, start + limit - 1, safe=True)
        else:
            low = b"(" + after if after else b"-"
            members = await redis.command(b"ZRANGEBYLEX", key, low, b"+", b"LIMIT", 0, limit, safe=True)
        if not members:
            return None
        sessions = [keys.session_ + member[-36:] for member in members]
        _, dropped = await redis.script(PRUNE, [key, *sessions], members)
        if len(members) < limit:
            return None
        if index in {"near", "due"}:
            return str(int(after or b"0") + limit - int(dropped)).encode()
        return bytes(members[-1])

    async def gauges(self, partition: int) -> PartitionGauges:
        """Counts of the partition. One round trip."""
        keys = self._of(partition)
        counts = await asyncio.gather(
            *(
                self._scripts.redis.command(b"ZCARD", key, safe=True)
                for key in (keys.users, keys.near, keys.due, keys.ready, keys.running)
            )
        )
        return PartitionGauges(*counts)

    async def memory(self) -> list[Memory]:
        """How it is with the memory of each primary that tells."""
        redis = self._scripts.redis
        asked = (redis.command(b"INFO", b"memory", safe=True, at=link) for link in redis.topology.primaries)
        told = await asyncio.gather(*asked, return_exceptions=True)
        return [_memory(text) for text in told if isinstance(text, bytes)]

    async def script_time(self) -> tuple[int, int]:
        """How many scripts the primaries have run since they started, and for how many microseconds.

        (0, 0) where none tells. Anybody's scripts, by Redis's own clock.
        """
        redis = self._scripts.redis
        asked = (
            redis.command(b"INFO", b"commandstats", safe=True, at=link) for link in redis.topology.primaries
        )
        told = await asyncio.gather(*asked, return_exceptions=True)
        stats = [_SCRIPT_TIME.search(text) for text in told if isinstance(text, bytes)]
        calls, micros = zip((0, 0), *((int(each[1]), int(each[2])) for each in stats if each), strict=True)
        return sum(calls), sum(micros)

    def _of(self, partition: int) -> PartitionKeys:
        return self._scripts.keyspace.partition(partition)


_SCRIPT_TIME: Final = re.compile(rb"cmdstat_evalsha:calls=(\d+),usec=(\d+)")


def _lapse_of(reply: list[Any]) -> Lapse:
    agent, turn, attempt, worker, became = reply
    return Lapse(
        AgentId(agent.decode()), TurnId(turn.decode()), int(attempt), worker.decode(), became.decode()
    )


def _memory(info: bytes) -> Memory:
    lines = dict(line.partition(b":")[::2] for line in info.split(b"\r\n"))
    used, limit = int(lines.get(b"used_memory", 0)), int(lines.get(b"maxmemory", 0))
    policy = lines.get(b"maxmemory_policy", b"").decode() or NOEVICTION
    return Memory(used / limit if limit else 0.0, policy)

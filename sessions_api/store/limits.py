"""Limits on how often, counted in Redis over all replicas: exactly, or without waiting for it.

A limit (``domain/limits.py``) on a subject is one key that ``take.lua`` moves on;
a session's scripts apply theirs themselves (``lib/limits.lua``), in their own
round trip. For everything else there are two ways to ask.

:meth:`Limits.take` asks and waits: exact, one round trip.

:meth:`Limits.meter` answers at once, from what Redis said last of the subject and
what passed here since; Redis is told in the same tick, all requests of one subject
and tick in one call, and its answer corrects what this process knows. So a limit
on the hot path costs its caller no time. What passes beyond the quota, over all
replicas, is at most what arrived while an answer was on its way. It is owed: a
replica that let through more than Redis admitted has them counted as soon as
there is room, and lets nobody through before. Hence the rate holds in the long
run, however many replicas are asked at once; used by one caller after the
other, at one replica, it is exact. A debt is forgotten with the subject (the
10,000 used last are known), or when nobody asked for as long as it would take.

**Without Redis** there are two modes. ``closed``: nobody is let through;
``take`` raises what Redis's absence raises, ``meter`` does so from the first
question that failed until one is answered, and one is asked every 100 ms at
most. ``local``: each process counts for itself, so R replicas admit up to R times
the quota. On a cluster both hold for the subjects whose limit lies on the server
that is away. A Redis that is only *full* can still be read, so metered requests go
on in both modes, by what this process knows; ``take`` raises StorageFull.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import structlog

from sessions_api.domain.limits import Limit, Standing
from sessions_api.errors import RateLimited, StorageError, StorageFault, StorageFull, StorageUnavailable
from sessions_api.store.loader import load
from sessions_api.store.scripts import unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sessions_api.store.connection import Redis
    from sessions_api.store.keys import Keyspace, SessionKeys
    from sessions_api.store.topology import Link

TAKE = load("take")

SUBJECTS: Final = 10_000
ASK_AGAIN_S: Final = 0.1
ROUNDED_MS: Final = 0.001  # as in lib/limits.lua

WithoutRedis: TypeAlias = Literal["closed", "local"]
Asked: TypeAlias = tuple[str, str, Limit]
"""Policy, subject, and the limit that the policy sets."""

log = structlog.get_logger(__name__)


class Limits:
    """Counts against limits; ``stop()`` leaves no task. *subjects*: of how many ``meter`` knows."""

    def __init__(
        self,
        redis: Redis,
        keyspace: Keyspace,
        *,
        without_redis: WithoutRedis = "closed",
        subjects: int = SUBJECTS,
    ) -> None:
        self._redis = redis
        self._keyspace = keyspace
        self._is_closed = without_redis == "closed"
        self._subjects = subjects
        self._accounts: OrderedDict[tuple[str, str], _Account] = OrderedDict()
        self._counting: set[asyncio.Task[None]] = set()
        self._away: dict[Link, str] = {}  # servers whose last question had no answer, and why
        self._asking_on: set[Link] = set()

    async def stop(self) -> None:
        """Wait for no answer any more; requests of the last tick may stay uncounted."""
        for task in self._counting:
            task.cancel()
        if self._counting:
            await asyncio.wait(self._counting)

    async def take(self, policy: str, subject: str, limit: Limit) -> Standing:
        """Count one request, if the limit admits it.

        Raises:
            RateLimited: it does not; nothing was counted.
            StorageUnavailable, StorageFull: ``closed``, and Redis cannot count.
        """
        try:
            reply = await self._ask(self._keyspace.limit(policy, subject), limit, 1)
        except StorageError:
            if self._is_closed:
                raise
            return self._account(policy, subject).admit(policy, limit, _now_s())
        match reply:
            case [b"ok", _, left, _, reset_ms]:
                return Standing(policy, limit, left, _seconds(float(reset_ms)))
            case [b"limited", _, _, retry_after_ms, _]:
                raise _refusal(policy, limit, retry_after_ms)
            case _:
                raise unknown(TAKE, reply)

    async def give_back(self, policy: str, subject: str, limit: Limit) -> None:
        """Undo one that :meth:`take` counted; it stays counted if Redis cannot be told."""
        with suppress(StorageError):
            await self._ask(self._keyspace.limit(policy, subject), limit, -1)

    def meter(self, policy: str, subject: str, limit: Limit) -> Standing:
        """Decide on one request at once, and have it counted; must be called in the event loop.

        Raises:
            RateLimited: as far as this process knows, the limit does not admit it.
            StorageUnavailable: ``closed``, and the server that counts did not answer the last question.
        """
        account, now_s = self._account(policy, subject), _now_s()
        if self._away and self._is_closed and (reason := self._away.get(self._link(account))) is not None:
            raise StorageUnavailable(reason)
        try:
            standing = account.admit(policy, limit, now_s)
        except RateLimited:
            if account.untold and now_s >= account.room_s:
                self._tell(account, limit)
            raise
        account.untold += 1
        self._tell(account, limit)
        return standing

    def _account(self, policy: str, subject: str) -> _Account:
        accounts, name = self._accounts, (policy, subject)
        account = accounts.get(name)
        if account is None:
            account = accounts[name] = _Account(self._keyspace.limit(policy, subject))
            if len(accounts) > self._subjects:
                accounts.popitem(last=False)
        else:
            accounts.move_to_end(name)
        return account

    def _tell(self, account: _Account, limit: Limit) -> None:
        """Have the untold counted in the next tick, by a task that runs before this tick's commands leave."""
        if account.is_telling or (self._away and self._link(account) in self._away):
            return
        account.is_telling = True
        task = asyncio.get_running_loop().create_task(self._count(account, limit), name="limit")
        self._counting.add(task)
        task.add_done_callback(self._counting.discard)

    async def _count(self, account: _Account, limit: Limit) -> None:
        """Tell Redis once; whoever finds a server away first asks on until it or its successor answers."""
        account.is_telling = False
        link = self._link(account)
        is_answered = await self._put(account, limit, link)
        if is_answered or link in self._asking_on:
            return
        self._asking_on.add(link)
        while not is_answered:
            await asyncio.sleep(ASK_AGAIN_S)
            is_answered = await self._put(account, limit, link)
        self._asking_on.discard(link)

    async def _put(self, account: _Account, limit: Limit, link: Link) -> bool:
        """Whether Redis answered, be it that it could not count; else *link*'s server is away."""
        told = account.tell()
        try:
            match await self._ask(account.key, limit, told):
                case [b"ok" | b"limited", admitted, _, retry_after_ms, reset_ms]:
                    account.learn(limit, told, admitted, retry_after_ms, float(reset_ms))
                case reply:
                    raise unknown(TAKE, reply)
        except StorageUnavailable as error:
            account.keep(told)
            if link not in self._away:
                log.warning("limits_lost_redis", reason=error.reason)
            self._away[link] = error.reason
            return False
        except StorageFull:
            account.keep(told)
        except StorageFault as fault:
            account.keep(told)
            log.error("limit_not_counted", what=fault.what)  # noqa: TRY400  its message says all
        if self._away.pop(link, None) is not None:
            log.info("limits_found_redis")
        return True

    def _link(self, account: _Account) -> Link:
        """The server that counts for *account* now."""
        return self._redis.topology.link((b"EVALSHA", TAKE.sha1, 1, account.key))

    async def _ask(self, key: bytes, limit: Limit, count: int) -> Any:
        return await self._redis.script(TAKE, [key], (limit.quota, limit.window_s * 1000, count))


class _Account:
    """What this process knows of one subject and policy: the limit's own instant, on its own clock.

    *whole_s*: when the whole quota is there again, counting all that passed here.
    *untold*, *told*: how many passed that Redis has not counted: was not told of
    or did not admit, is being told. *room_s*: when it may admit one of them.
    """

    __slots__ = ("is_telling", "key", "room_s", "told", "untold", "whole_s")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.whole_s = self.room_s = 0.0
        self.untold = self.told = 0
        self.is_telling = False

    def admit(self, policy: str, limit: Limit, now_s: float) -> Standing:
        """Let one pass.

        Raises:
            RateLimited
        """
        window_ms, interval_ms = limit.window_s * 1000, limit.interval_ms
        ahead_ms = max(0.0, (self.whole_s - now_s) * 1000)
        left_ms = window_ms - ahead_ms - interval_ms
        if left_ms < -ROUNDED_MS:
            raise _refusal(policy, limit, -left_ms)
        if self.untold:  # what is there again needs no counting
            self.untold = min(self.untold, math.ceil(ahead_ms / interval_ms))
        self.whole_s = now_s + (ahead_ms + interval_ms) / 1000
        left = int((left_ms + ROUNDED_MS) / interval_ms)
        return Standing(policy, limit, left, _seconds(ahead_ms + interval_ms))

    def tell(self) -> int:
        """How many Redis is to be told of now."""
        count, self.untold = self.untold, 0
        self.told += count
        return count

    def keep(self, told: int) -> None:
        """Redis was not told after all."""
        self.told -= told
        self.untold += told

    def learn(self, limit: Limit, told: int, admitted: int, retry_after_ms: int, reset_ms: float) -> None:
        """Redis counted *admitted* of those told; what it did not count is ahead all the same."""
        now_s = _now_s()
        self.told -= told
        self.untold = min(self.untold + told - admitted, limit.quota)
        self.whole_s = now_s + (reset_ms + (self.untold + self.told) * limit.interval_ms) / 1000
        self.room_s = now_s + retry_after_ms / 1000


def in_script(of: SessionKeys, limits: Sequence[Asked]) -> tuple[list[bytes], list[int]]:
    """The last keys and arguments of a session's script that applies *limits* (``read_limits``)."""
    keys = [of.limit(policy, subject) for policy, subject, _ in limits]
    return keys, [arg for *_, limit in limits for arg in (limit.quota, limit.window_s * 1000)]


def standings(limits: Sequence[Asked], flat: Sequence[int]) -> tuple[Standing, ...]:
    """From what ``charge_all`` replied."""
    return tuple(
        Standing(policy, limit, left, _seconds(reset_ms))
        for (policy, _, limit), left, reset_ms in zip(limits, flat[::2], flat[1::2], strict=True)
    )


def refused(limits: Sequence[Asked], index: int, retry_after_ms: int) -> RateLimited:
    """From what ``refusing`` replied: *index* counts from 1."""
    policy, _, limit = limits[index - 1]
    return _refusal(policy, limit, retry_after_ms)


def _now_s() -> float:
    """The event loop's clock, which never goes back; instants are Redis's."""
    return asyncio.get_running_loop().time()


def _refusal(policy: str, limit: Limit, retry_after_ms: float) -> RateLimited:
    return RateLimited(policy, limit.quota, limit.window_s, max(1, _seconds(retry_after_ms)))


def _seconds(ms: float) -> int:
    return math.ceil(ms / 1000)

"""Lists of live sessions, by user, by agent, or all, from the indexes.

Members of an index never move (``<app>:<owner>:<listedMs>:<sid>``), so a page is
stable while sessions come and go; what ended leaves its indexes in the script
that ends it, so a list never names it. *listedMs* is the creation's, or the
millisecond after the user's newest session: two of one millisecond are listed
in the order they were made.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Any

import msgspec

from sessions_api.domain.access import EVERYTHING, Grant
from sessions_api.domain.ids import (
    PARTITIONS,
    AgentId,
    AppName,
    SessionId,
    UserId,
    is_uuid,
    partition_of_session,
    partition_of_user,
)
from sessions_api.domain.sessions import Session
from sessions_api.errors import FieldError, InvalidInput, StorageFault
from sessions_api.store.parts import from_those_there
from sessions_api.store.sessions import READ
from sessions_api.store.state import session_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Iterable

    from sessions_api.store.scripts import Scripts

TAIL_CHARS = 50
"""``<listedMs>:<sid>``: the end of every member, and the position within a list of one owner."""
ABREAST = 16
"""Partitions read at once while a page fills."""


class SessionPage(msgspec.Struct, frozen=True):
    """A page of live sessions; *next* continues it, None at its end."""

    sessions: list[Session]
    next: str | None


class Listing:
    """Reads the indexes; what it finds gone it leaves out."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def page(
        self,
        *,
        app: AppName | None,
        apps: Collection[AppName] = (),
        agent_id: AgentId | None = None,
        user_id: UserId | None = None,
        limit: int = 1_000,
        after: str | None = None,
    ) -> SessionPage:
        """Live sessions in a stable order: of a user or an agent newest first, else by partition.

        *app*: None lists every application's; by user or agent, those of the known *apps*.
        *after* is an earlier page's *next*. What has expired or is deleted is left
        out, so a page may be short. Two round trips: the index, then the sessions.

        Raises:
            InvalidInput: *after* is no cursor of ours.
        """
        owners = apps if app is None else (app,)
        if user_id is not None:
            home = partition_of_user(user_id)
            prefixes = [f"{owner}:{user_id}:" for owner in owners]
            found, more = await self._newest("users", prefixes, range(home, home + 1), limit, after)
        elif agent_id is not None:
            prefixes = [f"{owner}:{agent_id}:" for owner in owners]
            found, more = await self._newest("agents", prefixes, range(PARTITIONS), limit, after)
        else:
            found, more = await self._by_partition(app, limit, after)
        grant = EVERYTHING if app is None else app
        sessions = await self._read_many([SessionId(member[-36:]) for member in found], grant)
        position = None
        if more and found:
            tail = found[-1] if user_id is None and agent_id is None else found[-1][-TAIL_CHARS:]
            position = base64.urlsafe_b64encode(tail.encode()).decode().rstrip("=")
        return SessionPage(sessions, position)

    async def _newest(
        self, index: str, prefixes: list[str], partitions: range, limit: int, after: str | None
    ) -> tuple[list[str], bool]:
        """Members of one owner, newest first over *partitions*; ``<listedMs>:<sid>`` is the position."""
        end = _position(after, TAIL_CHARS) if after else "~"
        redis = self._scripts.redis
        keyspace = self._scripts.keyspace
        batches = await _together(
            redis.command(
                b"ZREVRANGEBYLEX",
                getattr(keyspace.partition(number), index),
                f"({prefix}{end}",
                f"[{prefix}",
                b"LIMIT",
                0,
                limit + 1,
                safe=True,
            )
            for number in partitions
            for prefix in prefixes
        )
        members = [member.decode() for batch in batches for member in batch]
        members.sort(key=lambda member: member[-TAIL_CHARS:], reverse=True)
        return members[:limit], len(members) > limit

    async def _by_partition(
        self, app: AppName | None, limit: int, after: str | None
    ) -> tuple[list[str], bool]:
        """Members by partition, agent and creation; the whole member is the position."""
        low, high = _span(f"{app}:" if app else "")
        number, start = 0, low
        if after:
            member = _position(after)
            if not member.startswith(f"{app}:" if app else "") or not is_uuid(member[-36:]):
                raise _bad_cursor(after)
            number, start = partition_of_session(SessionId(member[-36:])), f"({member}"
        found: list[str] = []
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        while number < PARTITIONS and len(found) <= limit:
            span = range(number, min(number + ABREAST, PARTITIONS))
            batches = await _together(
                redis.command(
                    b"ZRANGEBYLEX",
                    keyspace.partition(each).agents,
                    start if each == number else low,
                    high,
                    b"LIMIT",
                    0,
                    limit + 1,
                    safe=True,
                )
                for each in span
            )
            found += [member.decode() for batch in batches for member in batch]
            number, start = span.stop, low
        return found[:limit], len(found) > limit

    async def _read_many(self, session_ids: list[SessionId], grant: Grant) -> list[Session]:
        replies = await _together(
            self._scripts.redis.script(READ, [of.session], (of.sid, grant))
            for of in map(self._scripts.keyspace.of, session_ids)
        )
        sessions = []
        for session_id, reply in zip(session_ids, replies, strict=True):
            if reply[1] != session_id.encode():
                raise StorageFault("read replied for another session")
            if reply[0] == b"ok":
                sessions.append(session_of(session_id, reply[2], reply[3]))
            elif reply[0] == b"expired":
                self._scripts.report_unsettled(session_id, reply)
        return sessions

    async def total(
        self,
        *,
        app: AppName | None,
        apps: Collection[AppName] = (),
        agent_id: AgentId | None = None,
        user_id: UserId | None = None,
    ) -> int:
        """How many live sessions there are, by the index, of what :meth:`page` lists. One round trip.

        Of a cluster, on the servers that are there.

        Raises:
            StorageUnavailable: none is.
        """
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        owners = apps if app is None else (app,)
        index, partitions = "agents", range(PARTITIONS)
        prefixes = [f"{app}:" if app else ""]
        if user_id is not None:
            home = partition_of_user(user_id)
            index, partitions = "users", range(home, home + 1)
            prefixes = [f"{owner}:{user_id}:" for owner in owners]
        elif agent_id is not None:
            prefixes = [f"{owner}:{agent_id}:" for owner in owners]
        counts = await from_those_there(
            redis.command(b"ZLEXCOUNT", getattr(keyspace.partition(number), index), *_span(prefix), safe=True)
            for number in partitions
            for prefix in prefixes
        )
        return sum(count or 0 for count in counts)

    async def near(self) -> int:
        """How many live sessions were warned of their end, as :meth:`total` counts. One round trip."""
        redis, keyspace = self._scripts.redis, self._scripts.keyspace
        counts = await from_those_there(
            redis.command(b"ZCARD", keyspace.partition(number).near, safe=True)
            for number in range(PARTITIONS)
        )
        return sum(count or 0 for count in counts)


async def _together(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await calls that were issued in one tick, so that they share one round trip."""
    return list(await asyncio.gather(*calls))


def _span(prefix: str) -> tuple[str, str]:
    """The lexical range of all members that begin with *prefix*."""
    return (f"[{prefix}", f"({prefix}~") if prefix else ("-", "+")


def _position(after: str, length: int | None = None) -> str:
    try:
        text = base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise _bad_cursor(after) from error
    if length is not None and len(text) != length:
        raise _bad_cursor(after)
    return text


def _bad_cursor(after: str) -> InvalidInput:
    reason = "must be the nextCursor of an earlier page"
    return InvalidInput(
        f"Invalid pagination parameter 'cursor': {reason}",
        [FieldError("cursor", reason, after[:100])],
        {"parameter": "cursor", "value": after[:100], "reason": reason},
    )

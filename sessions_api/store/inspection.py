"""Servers as an operator looks at them: each by itself, on a connection of its own, nothing changed.

The service has one line to whoever serves a key; what is asked here concerns a
server, its replicas or a sentinel. A question may be refused, as on a managed
service: that is an answer too (:class:`Refused`), and the next one is asked all the same.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from redis.exceptions import ResponseError

from sessions_api.errors import StorageUnavailable
from sessions_api.store.address import Address, Host, asked
from sessions_api.store.keys import TAGS, Keyspace
from sessions_api.store.loader import load
from sessions_api.store.seeds import ClusterAddress
from sessions_api.store.sentinel import SentinelAddress
from sessions_api.store.slots import SLOTS, Range, covered, ranges, slot_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from redis.asyncio.connection import Connection

    from sessions_api.store.connection import Redis

RIGHTS = load("rights")
_CALLED: Final = re.compile(r"redis\.p?call\(\s*'(\w+)'")
_REPLICA: Final = re.compile(r"ip=(?P<host>[^,]+),port=(?P<port>\d+),state=(?P<state>\w+)")


class Refused(NamedTuple):
    """Instead of a reply: the server would not answer, and why."""

    reason: str


class Server(NamedTuple):
    """One server that holds sessions, or a copy of them."""

    name: str
    address: Address
    is_replica: bool = False
    slots: tuple[Range, ...] = ()
    """Of a cluster's primary; empty where there is no cluster."""


class Inspection:
    """Questions to one server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ask(self, *command: str | bytes | int) -> Any:
        """The reply, bytes undecoded; :class:`Refused` where the server says no.

        Raises:
            OSError, RedisError: the connection ended.
        """
        try:
            return await asked(self._connection, *cast("tuple[str, ...]", command))
        except ResponseError as error:
            return Refused(str(error))

    async def info(self, section: str = "default") -> dict[str, str] | Refused:
        """``INFO`` as a dict."""
        reply = await self.ask("INFO", section)
        if isinstance(reply, Refused):
            return reply
        return dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)

    async def setting(self, name: str) -> str | None:
        """A setting of the server; None where it may not be asked for, or does not exist."""
        reply = await self.ask("CONFIG", "GET", name)
        return reply[1].decode() if isinstance(reply, list) and reply else None

    async def pairs(self, *command: str) -> dict[str, str] | Refused:
        """A reply of names and values in turn."""
        reply = await self.ask(*command)
        return reply if isinstance(reply, Refused) else _pairs(reply)

    async def rows(self, *command: str) -> list[dict[str, str]] | Refused:
        """A reply of such replies."""
        reply = await self.ask(*command)
        return reply if isinstance(reply, Refused) else [_pairs(row) for row in reply]


@asynccontextmanager
async def inspecting(address: Address) -> AsyncIterator[Inspection]:
    """Ask the server at *address*.

    Raises:
        StorageUnavailable: it cannot be reached, or hung up.
    """
    async with address.opened() as connection:
        yield Inspection(connection)


async def servers_of(redis: Redis) -> list[Server]:
    """Every server behind the URL of *redis*: primaries, then the replicas that they tell of.

    Raises:
        StorageUnavailable: nobody tells.
    """
    door = redis.address
    if isinstance(door, ClusterAddress):
        return await _of_cluster(door)
    primary = door.server(await door.find()) if isinstance(door, SentinelAddress) else cast("Address", door)
    found = [Server(str(primary), primary)]
    async with inspecting(primary) as ask:
        info = await ask.info("replication")
    if not isinstance(info, Refused):
        found += [Server(str(host), primary.at(host), is_replica=True) for host in _replicas(info)]
    return found


def _replicas(info: dict[str, str]) -> Iterator[Host]:
    """The replicas that ``INFO replication`` names."""
    for name, value in info.items():
        row = _REPLICA.match(value) if name.startswith("slave") else None
        if row is not None:
            yield Host(row["host"], int(row["port"]))


async def _of_cluster(door: ClusterAddress) -> list[Server]:
    """As the first tells who knows of every slot, else who knows of most."""
    reason = ""
    best: list[Server] = []
    for seed in door.anywhere():
        try:
            async with inspecting(door.of(seed)) as ask:
                reply = await ask.ask("CLUSTER", "SLOTS")
        except StorageUnavailable as error:
            reason = f"{seed}: {error.reason}"
            continue
        if isinstance(reply, Refused):
            reason = f"{seed}: {reply.reason}"
            continue
        if not reply:
            reason = f"{seed}: it knows of no server that serves a slot"
        best = min(_servers(door, seed, reply), best, key=uncovered)
        if not uncovered(best):
            return best
    if not best:
        raise StorageUnavailable(reason)
    return best


def _servers(door: ClusterAddress, asked: Host, reply: Any) -> list[Server]:
    primaries: dict[Host, list[Range]] = {}
    for part in ranges(reply, asked=asked):
        primaries.setdefault(part.host, []).append(part)
    replicas = dict.fromkeys(
        Host(row[0].decode() or asked.name, row[1]) for part in reply for row in part[3:]
    )
    return [
        *(Server(str(host), door.of(host), slots=tuple(parts)) for host, parts in primaries.items()),
        *(Server(str(host), door.of(host), is_replica=True) for host in replicas),
    ]


def tags_at(server: Server) -> list[str]:
    """The partitions' tags whose keys lie at *server*; all of them where it is no part of a cluster."""
    if not server.slots:
        return list(TAGS)
    return [
        tag for tag in TAGS if any(part.first <= slot_of(tag.encode()) <= part.last for part in server.slots)
    ]


def uncovered(servers: list[Server]) -> int:
    """How many slots of a cluster no primary serves."""
    return SLOTS - covered(part for server in servers for part in server.slots)


def commands_of_scripts() -> list[str]:
    """Every command that a script calls, by the scripts' own text."""
    folder = files("sessions_api.store") / "lua"
    texts = [
        entry.read_text()
        for place in (folder, folder / "lib")
        for entry in place.iterdir()
        if entry.name.endswith(".lua")
    ]
    return sorted({name for text in texts for name in _CALLED.findall(text)})


async def refused_rights(ask: Inspection, keyspace: Keyspace, tag: str) -> list[str] | Refused:
    """The commands of the scripts that this user may not call, on keys of the partition with *tag*."""
    keys = [f"{keyspace.prefix}doctor:{{{tag}}}:{kind}" for kind in ("text", "fields", "scored", "stream")]
    channel = f"{keyspace.prefix}live:{{{tag}}}:doctor"
    names = commands_of_scripts()
    reply = await ask.ask("EVAL", RIGHTS.source, len(keys) + 1, *keys, channel, *names)
    return reply if isinstance(reply, Refused) else [name.decode() for name in reply]


async def sentinels_of(door: SentinelAddress) -> dict[str, dict[str, Any] | Refused]:
    """What each sentinel says of the primary and its replicas, by the sentinel's name."""

    async def look(host: Host) -> dict[str, Any] | Refused:
        try:
            async with inspecting(door.sentinel(host)) as ask:
                state = await ask.pairs("SENTINEL", "MASTER", door.name)
                if isinstance(state, Refused):
                    return state
                quorum = await ask.ask("SENTINEL", "CKQUORUM", door.name)
                return {
                    **state,
                    "quorum-check": quorum,
                    "replicas": await ask.rows("SENTINEL", "REPLICAS", door.name),
                }
        except StorageUnavailable as error:
            return Refused(error.reason)

    told = await asyncio.gather(*map(look, door.hosts))
    return {str(host): said for host, said in zip(door.hosts, told, strict=True)}


def _pairs(flat: list[Any]) -> dict[str, str]:
    words = [word.decode() if isinstance(word, bytes) else str(word) for word in flat]
    return dict(zip(words[::2], words[1::2], strict=False))

"""State in Redis: the only floor that speaks to it.

Start at ``keys.py`` (every key) and ``state.py`` (what a session's has), then ``lua/``
(every transition), ``loader.py`` and ``scripts.py`` (how they are put together, and run),
then the stores: sessions, listing, log, turns, alarms, replicas, agents, attendance,
signing keys, uses of access keys, limits.
"""

from __future__ import annotations

from sessions_api.domain.ids import PARTITIONS
from sessions_api.errors import SettingsError
from sessions_api.store.agents import Agents
from sessions_api.store.alarms import Alarms
from sessions_api.store.attendance import Attendance
from sessions_api.store.connection import Redis
from sessions_api.store.keys import SCHEMA, Keyspace
from sessions_api.store.keyuses import KeyUses
from sessions_api.store.limits import Limits, WithoutRedis
from sessions_api.store.listing import Listing
from sessions_api.store.log import Log
from sessions_api.store.ready import Ready
from sessions_api.store.replicas import Replicas
from sessions_api.store.scripts import Scripts
from sessions_api.store.sessions import Sessions
from sessions_api.store.signing import SigningKeys
from sessions_api.store.turns import Turns


class Store:
    """Everything kept in one Redis under one prefix."""

    def __init__(
        self, redis: Redis, keyspace: Keyspace, *, limits_without_redis: WithoutRedis = "closed"
    ) -> None:
        self.redis = redis
        self.keyspace = keyspace
        self.scripts = Scripts(redis, keyspace)
        self.sessions = Sessions(self.scripts)
        self.listing = Listing(self.scripts)
        self.log = Log(self.scripts)
        self.ready = Ready(self.scripts)
        self.turns = Turns(self.scripts, self.ready)
        self.alarms = Alarms(self.scripts)
        self.replicas = Replicas(self.scripts)
        self.agents = Agents(self.scripts)
        self.attendance = Attendance(self.scripts, self.ready)
        self.signing = SigningKeys(redis, keyspace)
        self.key_uses = KeyUses(redis, keyspace)
        self.limits = Limits(redis, keyspace, without_redis=limits_without_redis)

    async def open(self) -> None:
        """Check that what is stored is of our schema, or say so in an empty Redis; read the agents.

        Raises:
            SettingsError: another schema or number of partitions is recorded there.
            StorageUnavailable: Redis is away; try again.
        """
        mine = {b"schema": str(SCHEMA).encode(), b"partitions": str(PARTITIONS).encode()}
        for name, value in mine.items():
            await self.redis.command(b"HSETNX", self.keyspace.meta, name, value, safe=True)
        flat = await self.redis.command(b"HGETALL", self.keyspace.meta, safe=True)
        found = dict(zip(flat[::2], flat[1::2], strict=True))
        problems = [
            f"Redis holds sessions of {name.decode()} {found[name].decode()}, not {value.decode()} as we do: "
            "take another Redis, SESSIONS_KEY_PREFIX, or (dev) SESSIONS_DATA_DIR"
            for name, value in mine.items()
            if found.get(name) != value
        ]
        if problems:
            raise SettingsError(problems)
        await self.agents.refresh()
        await self.attendance.refresh()


__all__ = ["Redis", "Store"]

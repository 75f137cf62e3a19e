"""The primary that Redis Sentinels name: found, checked, and left before it is replaced.

Sentinels watch a primary and its replicas, and make a replica the primary when
the old one is dead or an operator says so. What stands between that and "nothing
acknowledged is lost, a failover is a stall":

- *A sentinel may be down, or behind.* They are asked in order, the last good one
  first; an answer of an older configuration than one seen before counts only
  where nobody has a newer.
- *A sentinel may name a server that is no primary any more.* Each new connection
  is asked for its ROLE before anything is sent on it.
- *A planned failover promotes a replica and demotes the old primary 10 s later*,
  which acknowledges writes all the while, without an error: 26,218 of 32,180 were
  lost in one experiment. A client that leaves at ``+switch-master`` still loses
  those of one to two seconds, because that is published when the promotion was
  noticed. But 70 ms *before* the promotion the leading sentinel publishes
  ``+selected-slave``. So every line to the old primary ends then, and none
  goes there again before the sentinels name another, or for ``HOLD_S``.
- *Neither is published to who is not there.* Each sentinel is listened to, and
  asked again whenever listening to it begins anew.
- *A hung primary says nothing*: the reply timeout of a line of commands and the
  probe of a subscriber end theirs (``lines.py``, ``pubsub.py``).

While a failover is under way a try to connect goes on for ``PATIENCE_S``, so that
callers wait for it within their deadline and the circuit stays closed.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode
from weakref import WeakKeyDictionary

import structlog

from sessions_api.errors import SettingsError, StorageUnavailable
from sessions_api.store.address import Address, Host, asked, hand_over, several

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import Connection

    from sessions_api.store.lines import Wire

SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
PORT: Final = 26379
PATIENCE_S: Final = 2.0
AGAIN_S: Final = 0.1
"""Between two tries, and how long an answer of the sentinels is good for: several lines ask at once."""
HOLD_S: Final = 5.0
PING_S: Final = 2.0
"""Of a sentinel that says nothing for so long a sign of life is asked; for twice as long, it is left."""

SWITCHED: Final = b"+switch-master"
SELECTED: Final = b"+selected-slave"
ABORTED: Final = b"-failover-abort-slave-timeout"

log = structlog.get_logger(__name__)


def is_sentinel_url(url: str) -> bool:
    """Whether *url* names sentinels and not a server."""
    return url.partition("://")[0].lower() in SCHEMES


class SentinelAddress:
    """Where the primary is that sentinels know under a name; as :class:`Address` to whoever connects.

    ``redis+sentinel://user:password@host:port,host:port/name/database?arguments``,
    or ``rediss+sentinel://`` for TLS to servers and sentinels. User, password and
    arguments (redis-py's) are for the servers, ``sentinel_username`` and
    ``sentinel_password`` among the arguments for the sentinels.

    1. :meth:`start` begins to listen to the sentinels.
    2. :meth:`connect` puts a wire on the primary of that moment; the wire is
       dropped when that server is to be primary no longer.
    3. :meth:`stop` leaves no task.
    """

    def __init__(self, url: str) -> None:
        parts = several(url, usual_port=PORT)
        self.url = url
        self.hosts = parts.hosts
        self.name, database = _path(parts.path)
        arguments = dict(parse_qsl(parts.query, keep_blank_values=True))
        user, password = (arguments.pop(f"sentinel_{part}", "") for part in ("username", "password"))
        first = parts.hosts[0]
        self._node = Address(parts.one(first, path=f"/{database}", query=urlencode(arguments)))
        self._sentinel = Address(
            parts.one(
                first,
                userinfo=f"{quote(user, '')}:{quote(password, '')}@" if password else "",
                query=urlencode({key: value for key, value in arguments.items() if key.startswith("ssl_")}),
            )
        )
        self.primary: Host | None = None
        """As last named and connected to."""
        self._order = list(parts.hosts)
        self._epoch = -1  # the newest configuration that a sentinel told of
        self._named: tuple[Host, float] | None = None  # who is primary, and when we were told
        self._asking = asyncio.Lock()
        self._leaving: tuple[Host, float] | None = None  # who is being replaced, and how long we believe it
        self._wires: WeakKeyDictionary[Wire, Host] = WeakKeyDictionary()
        self._watching: list[asyncio.Task[None]] = []

    def __str__(self) -> str:
        return f"{self.name!r} of the sentinels {', '.join(map(str, self.hosts))}"

    @property
    def database(self) -> int:
        """The number of the database, as keyspace notifications name it."""
        return self._node.database

    def server(self, host: Host) -> Address:
        """The primary, or a replica of it, at *host*."""
        return self._node.at(host)

    def sentinel(self, host: Host) -> Address:
        return self._sentinel.at(host)

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Begin to listen to the sentinels, those that are there and those that come."""
        self._watching = [
            asyncio.create_task(self._watch(host), name=f"sentinel {host}") for host in self.hosts
        ]

    async def stop(self) -> None:
        watching, self._watching = self._watching, []
        for task in watching:
            task.cancel()
        if watching:
            await asyncio.wait(watching)

    # ------------------------------------------------------------ the primary

    async def connect(self, wire: Wire) -> None:
        """Put *wire* on a socket of its own to the primary: authenticated, ready, and primary by its ROLE.

        Raises:
            StorageUnavailable: no sentinel names one, or it is not to be had; why, in the words of each.
        """
        loop = asyncio.get_running_loop()
        patient_until_s = loop.time() + (PATIENCE_S if self.primary else 0)
        while True:
            try:
                return await self._connect(wire)
            except StorageUnavailable:
                if loop.time() >= patient_until_s:
                    raise
            await asyncio.sleep(AGAIN_S * random.uniform(0.5, 1))  # noqa: S311  jitter

    async def _connect(self, wire: Wire) -> None:
        host = await self.find()
        if self._is_leaving(host):
            raise StorageUnavailable(f"{host} is being replaced as primary {self.name!r}")
        async with self._node.at(host).opened() as connection:
            await asked(connection, "PING")  # LOADING is an answer too, and raises
            role = await asked(connection, "ROLE")
            if role[0] != b"master":
                raise StorageUnavailable(f"{host} is no primary")
            await hand_over(connection, wire)
        if self._is_leaving(host) or self._named is None or self._named[0] != host:
            wire.drop("the primary moved meanwhile")
            raise StorageUnavailable(wire.reason)
        self._wires[wire] = host
        if host != self.primary:
            self.primary = host
            log.info("primary_found", name=self.name, primary=str(host))

    async def find(self) -> Host:
        """Who is primary, by the newest of what the sentinels say.

        Raises:
            StorageUnavailable: none of them knows; what each said.
        """
        loop = asyncio.get_running_loop()
        async with self._asking:
            if self._named is None or loop.time() - self._named[1] > AGAIN_S:
                self._named = (await self._find(), loop.time())
            return self._named[0]

    async def _find(self) -> Host:
        behind: list[tuple[int, Host]] = []
        reasons: list[str] = []
        for sentinel in tuple(self._order):
            try:
                epoch, host = await self._named_by(sentinel)
            except StorageUnavailable as error:
                reasons.append(error.reason)
                continue
            if epoch >= self._epoch:
                self._epoch = epoch
                self._prefer(sentinel)
                return host
            behind.append((epoch, host))
        if behind:  # a sentinel that was set up anew counts from zero
            return max(behind)[1]
        raise StorageUnavailable(f"no sentinel names the primary {self.name!r}: {'; '.join(reasons)}")

    async def _named_by(self, sentinel: Host) -> tuple[int, Host]:
        """The configuration's epoch, then the address: what may change in between is newer than its epoch."""
        try:
            async with self._sentinel.at(sentinel).opened() as connection:
                state = await asked(connection, "SENTINEL", "MASTER", self.name)
                address = await asked(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        except StorageUnavailable as error:
            raise StorageUnavailable(f"sentinel {sentinel}: {error.reason}") from error
        if not address:
            raise StorageUnavailable(f"sentinel {sentinel} knows no such primary")
        epoch = dict(zip(state[::2], state[1::2], strict=True)).get(b"config-epoch", b"0")
        return int(epoch), Host(address[0].decode(), int(address[1]))

    def _prefer(self, sentinel: Host) -> None:
        self._order.remove(sentinel)
        self._order.insert(0, sentinel)

    # ------------------------------------------------------------ its replacement

    def _is_leaving(self, host: Host) -> bool:
        return (
            self._leaving is not None
            and self._leaving[0] == host
            and asyncio.get_running_loop().time() < self._leaving[1]
        )

    async def _watch(self, sentinel: Host) -> None:
        is_lost = False
        # Asked anew each time: a cancellation that arrives during a connect can get lost below us.
        while self._watching:
            try:
                async with self._sentinel.at(sentinel).opened() as connection:
                    await connection.send_command("SUBSCRIBE", SWITCHED, SELECTED, ABORTED)
                    epoch, host = await self._named_by(sentinel)
                    if epoch >= self._epoch:
                        self._moved(host, sentinel)
                    if is_lost:
                        is_lost = False
                        log.info("sentinel_returned", sentinel=str(sentinel))
                    await self._listen(connection, sentinel)
            except StorageUnavailable as error:
                if not is_lost:
                    is_lost = True
                    log.warning("sentinel_lost", sentinel=str(sentinel), reason=error.reason)
            except Exception:  # whatever it says, the next failover must be heard
                log.exception("sentinel_watch_failed", sentinel=str(sentinel))
            await asyncio.sleep(random.uniform(0.5, 1))  # noqa: S311  jitter

    async def _listen(self, connection: Connection, sentinel: Host) -> None:
        silences = 0
        while self._watching:  # as above
            reply = await connection.read_response(timeout=PING_S)
            if reply is None:
                silences += 1
                if silences > 1:
                    raise StorageUnavailable(f"sentinel {sentinel} is silent")
                await connection.send_command("PING", check_health=False)
                continue
            silences = 0
            if reply[0] == b"message":
                self._hear(reply[1], reply[2].decode().split(), sentinel)

    def _hear(self, channel: bytes, words: list[str], sentinel: Host) -> None:
        """Take over what *sentinel* published, if it is about our primary."""
        match channel, words:
            case b"+switch-master", [self.name, _, _, host, port]:
                self._moved(Host(host, int(port)), sentinel)
            case b"+selected-slave", [_, _, _, _, "@", self.name, host, port]:
                self._leave(Host(host, int(port)))
            case b"-failover-abort-slave-timeout", [_, self.name, *_]:
                self._leaving = None
            case _:
                pass

    def _leave(self, host: Host) -> None:
        """*host* is about to be replaced: what it acknowledges from now on would be lost."""
        self._leaving = (host, asyncio.get_running_loop().time() + HOLD_S)
        self._drop(lambda on: on == host, "it is being replaced as primary")
        log.warning("primary_leaving", name=self.name, primary=str(host))

    def _moved(self, host: Host, sentinel: Host) -> None:
        self._prefer(sentinel)
        if self._named is not None and self._named[0] != host:
            self._named = None  # to be asked anew: a sentinel may be behind in this as well
        if self._drop(lambda on: on != host, f"the primary is {host}"):
            log.warning("primary_moved", name=self.name, primary=str(host))

    def _drop(self, is_meant: Callable[[Host], bool], reason: str) -> int:
        """End the wires on servers that *is_meant* is true of; how many there were."""
        wires = [wire for wire, on in self._wires.items() if is_meant(on) and not wire.reason]
        for wire in wires:
            wire.drop(reason)
        return len(wires)


def _path(path: str) -> tuple[str, int]:
    """The primary's name and the database in ``/name/database``.

    Raises:
        SettingsError
    """
    _, _, rest = path.partition("/")
    name, _, database = rest.rstrip("/").partition("/")
    if not name or not (database or "0").isdecimal():
        raise SettingsError(
            ["the Redis URL names no primary: allowed is redis+sentinel://host:port,host:port/name/database"]
        )
    return unquote(name), int(database or "0")

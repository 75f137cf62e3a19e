"""Where a Redis is, and the handshake with it: the one place that knows redis-py.

redis-py gives us addresses, TLS, credentials and the handshake; then its socket
becomes a :class:`~sessions_api.store.lines.Line`. Of what it would do later
nothing is left: its retry is zero, its maintenance notifications are off, and
it speaks RESP2, so that the server never has a reason to send what nobody asked for.

Several servers that share credentials, TLS and database are written in one URL,
``redis+sentinel://user:password@host:port,host:port/path?arguments``, whose parts
:func:`several` tells apart; :meth:`Address.at` names one server of them.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from sessions_api.errors import SettingsError, StorageUnavailable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from sessions_api.store.lines import Wire

CONNECT_TIMEOUT_S: Final = 0.5
HANDSHAKE_TIMEOUT_S: Final = 1.0
_TLS_FILES: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_URL: Final = re.compile(r"([^:/?#]+)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?")
_MEMBER: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:,\s]+)(:(?P<port>[0-9]{1,5}))?")

# Not quoted in any message: with a "/" in a password that is not encoded, this is its first half.
_ENCODED: Final = " (in a user or password, / ? # @ and % are written %2F %3F %23 %40 %25)"


class Host(NamedTuple):
    """One server of several; an IPv6 address stands without its brackets."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class Several(NamedTuple):
    """The parts of a URL that names several servers."""

    scheme: str
    """As it stands before the ``+``: ``redis`` or ``rediss``."""
    userinfo: str
    """With its ``@``; empty where there is none."""
    hosts: tuple[Host, ...]
    path: str
    query: str

    def one(
        self, host: Host, *, path: str = "", query: str | None = None, userinfo: str | None = None
    ) -> str:
        """The URL of a single server with the same credentials and arguments, or those given."""
        netloc = f"{self.userinfo if userinfo is None else userinfo}{host}"
        return urlunsplit((self.scheme, netloc, path, self.query if query is None else query, ""))


def several(url: str, *, usual_port: int) -> Several:
    """Tell the parts of ``redis+…://`` apart.

    Raises:
        SettingsError: a host or port is none. The message shows neither user nor password.
    """
    parts = _split(url)
    userinfo, at, members = parts.netloc.rpartition("@")
    hosts = []
    for number, member in enumerate(members.split(","), start=1):
        found = _MEMBER.fullmatch(member)
        port = int(found["port"] or usual_port) if found else 0
        if found is None or not 0 < port < 65536:
            raise SettingsError([f"the Redis URL's server number {number} is no host:port{_ENCODED}"])
        hosts.append(Host(unquote(found["host"].strip("[]")), port))
    return Several(parts.scheme.partition("+")[0], userinfo + at, tuple(hosts), parts.path, parts.query)


def _split(url: str) -> SplitResult:
    """By the expression of RFC 3986, appendix B; urllib's newer releases refuse ``[::1]`` among other hosts.

    Raises:
        SettingsError
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise SettingsError([f"the Redis URL is none{_ENCODED}"])
    scheme, netloc, path, query = found.groups(default="")
    return SplitResult(scheme.lower(), netloc, path, query, "")


@dataclass(frozen=True, slots=True)
class Address:
    """Where one Redis server is, and who we are to it: everything that redis-py reads from a URL.

    ``redis://``, ``rediss://`` and ``unix://``, with redis-py's query arguments.
    """

    url: str = field(repr=False)  # it may hold a password

    def __post_init__(self) -> None:
        try:
            _ = _split(self.url).port
        except ValueError:
            raise SettingsError([f"the Redis URL's port is none{_ENCODED}"]) from None
        try:
            self._connection()
            named: dict[str, Any] = dict(parse_url(self.url))
            for name in _TLS_FILES & named.keys():
                with Path(named[name]).open("rb"):  # redis-py would say "No such file", and not which
                    pass
        except OSError as error:
            raise SettingsError([f"the Redis URL names {error.filename}: {error.strerror}"]) from error
        except (ValueError, TypeError, RedisError) as error:
            raise SettingsError([f"the Redis URL is unusable: {error}"]) from error

    @property
    def database(self) -> int:
        """The number of the database, as keyspace notifications name it."""
        return parse_url(self.url).get("db", 0)

    def at(self, host: Host) -> Address:
        """Another server, spoken to with the same credentials, TLS and database."""
        parts = urlsplit(self.url)
        userinfo, at, _ = parts.netloc.rpartition("@")
        name = Host(host.name if ":" in host.name else quote(host.name), host.port)
        return Address(urlunsplit(parts._replace(netloc=f"{userinfo}{at}{name}")))

    def __str__(self) -> str:
        """Where it is, without who we are to it: for logs and people."""
        kwargs: dict[str, Any] = dict(parse_url(self.url))
        if "path" in kwargs:
            return str(kwargs["path"])
        return str(Host(kwargs.get("host", "localhost"), kwargs.get("port", 6379)))

    def _connection(self) -> Connection:
        kwargs: dict[str, Any] = dict(parse_url(self.url))
        for of_the_pool in ("max_connections", "timeout", "decode_responses", "legacy_responses"):
            kwargs.pop(of_the_pool, None)
        make = kwargs.pop("connection_class", Connection)
        kwargs |= {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_timeout": HANDSHAKE_TIMEOUT_S,
            "health_check_interval": 0,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            "driver_info": None,
        }
        connection: Connection = make(**kwargs)
        return connection

    async def connect(self, wire: Wire) -> None:
        """Put *wire* on a socket of its own: connected, authenticated, and answering PING.

        Raises:
            StorageUnavailable: no server, no permission, or it is still loading.
        """
        async with self.opened() as connection:
            await asked(connection, "PING")  # LOADING is an answer too, and raises
            await hand_over(connection, wire)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Connection]:
        """A connection of redis-py's, for the questions before a wire takes it over; else closed at the end.

        Raises:
            StorageUnavailable: instead of whatever redis-py raises, inside as well.
        """
        connection = self._connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            yield connection
        except (RedisError, OSError, TimeoutError) as error:
            raise StorageUnavailable(_reason(error) + self._hint(error)) from error
        finally:
            if connection.is_connected:
                await connection.disconnect(nowait=True)

    def _hint(self, error: BaseException) -> str:
        """A server that speaks TLS hangs up on one that does not, and the other way round says nothing."""
        if self.url.startswith("redis://") and "reset by peer" in str(error):
            return " (a server that speaks TLS wants rediss://)"
        if self.url.startswith("rediss://") and "imeout" in str(error):
            return " (a server without TLS wants redis://)"
        return ""


async def asked(connection: Connection, *command: str) -> Any:
    """The reply to one *command*.

    Raises:
        RedisError, OSError: as redis-py does.
    """
    await connection.send_command(*command, check_health=False)
    return await connection.read_response()


async def hand_over(connection: Connection, wire: Wire) -> None:
    """Let *wire* have the socket of *connection*, on which nothing is under way.

    Raises:
        StorageUnavailable: something is.
    """
    if await connection.can_read():
        raise StorageUnavailable("dirty from the start")
    # redis-py lets go of its socket, which would close it when collected: the wire holds both.
    writer, connection._writer = connection._writer, None  # noqa: SLF001
    if writer is None:
        raise StorageUnavailable("closed at once")
    wire.take_over(cast("asyncio.Transport", writer.transport), writer)


def _reason(error: BaseException) -> str:
    """For the log. What redis-py says of a failed login may quote the user, never the password."""
    if isinstance(error, AuthenticationError | ResponseError):
        return f"refused: {error}"
    return f"no connection: {error}"

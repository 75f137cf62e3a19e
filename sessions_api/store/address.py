"""Where a Redis is, and the handshake with it: the one place that knows redis-py.

redis-py gives us addresses, TLS, credentials and the handshake; then its socket
becomes a :class:`~sessions_api.store.lines.Line`. Of what it would do later
nothing is left: its retry is zero, its maintenance notifications are off, and
it speaks RESP2, so that the server never has a reason to send what nobody asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from sessions_api.errors import SettingsError, StorageUnavailable

if TYPE_CHECKING:
    import asyncio

    from sessions_api.store.lines import Wire

CONNECT_TIMEOUT_S: Final = 0.5
HANDSHAKE_TIMEOUT_S: Final = 1.0
_TLS_FILES: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where one Redis server is, and who we are to it: everything that redis-py reads from a URL.

    ``redis://``, ``rediss://`` and ``unix://``, with redis-py's query arguments.
    """

    url: str = field(repr=False)  # it may hold a password

    def __post_init__(self) -> None:
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
        connection = self._connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("PING", check_health=False)
            await connection.read_response()  # LOADING is an answer too, and raises
            if await connection.can_read():
                raise StorageUnavailable("dirty from the start")
            # redis-py lets go of its socket, which would close it when collected: the wire holds both.
            writer, connection._writer = connection._writer, None  # noqa: SLF001
            if writer is None:
                raise StorageUnavailable("closed at once")
            wire.take_over(cast("asyncio.Transport", writer.transport), writer)
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


def _reason(error: BaseException) -> str:
    """For the log. What redis-py says of a failed login may quote the user, never the password."""
    if isinstance(error, AuthenticationError | ResponseError):
        return f"refused: {error}"
    return f"no connection: {error}"

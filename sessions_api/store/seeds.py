"""The URL of a Redis Cluster: some of its servers, from which all others are found."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from sessions_api.errors import SettingsError, StorageUnavailable
from sessions_api.store.address import Address, Host, several

if TYPE_CHECKING:
    from sessions_api.store.lines import Wire

SCHEMES: Final = ("redis+cluster", "rediss+cluster")
PORT: Final = 6379


def is_cluster_url(url: str) -> bool:
    """Whether *url* names servers of a cluster."""
    return url.partition("://")[0].lower() in SCHEMES


class ClusterAddress:
    """``redis+cluster://user:password@host:port,host:port?arguments``, and ``rediss+…``: some servers of one.

    Any may be away. User, password and arguments hold for every server of the cluster.
    """

    database = 0

    def __init__(self, url: str) -> None:
        self.url = url
        self._parts = several(url, usual_port=PORT)
        self.seeds = self._parts.hosts
        self.known: tuple[Host, ...] = ()  # of the map, once there is one
        database = parse_qs(self._parts.query).get("db", [self._parts.path.strip("/")])[0]
        if database not in ("", "0"):
            raise SettingsError(["the Redis URL names a database: a cluster has number 0 only"])
        self.of(self.seeds[0])

    def __repr__(self) -> str:
        return f"ClusterAddress({', '.join(map(str, self.seeds))})"

    def of(self, host: Host) -> Address:
        return Address(self._parts.one(host))

    def anywhere(self) -> list[Host]:
        """Servers to ask, in this order: those of the map in any order, the URL's."""
        known = random.sample(self.known, len(self.known))
        return list(dict.fromkeys((*known, *self.seeds)))

    async def connect(self, wire: Wire) -> None:
        """Put *wire* on a socket to some server: what is published to a cluster arrives at each.

        Raises:
            StorageUnavailable: none can be reached.
        """
        reason = ""
        for host in self.anywhere():
            try:
                await self.of(host).connect(wire)
            except StorageUnavailable as error:
                reason = f"{host}: {error.reason}"
            else:
                return
        raise StorageUnavailable(reason)

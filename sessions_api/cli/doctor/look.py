"""What one server of Redis says of itself, asked on one connection."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from sessions_api.errors import StorageUnavailable
from sessions_api.store.inspection import Refused, Server, inspecting

CALLS: Final = 50
SETTINGS: Final = (
    "appendfsync",
    "maxmemory-policy",
    "notify-keyspace-events",
    "stream-node-max-bytes",
    "timeout",
    "tcp-keepalive",
    "client-output-buffer-limit",
    "min-replicas-to-write",
    "min-replicas-max-lag",
    "cluster-require-full-coverage",
    "cluster-node-timeout",
)
SCRIPT: Final = "return redis.call('TIME')[1]"


class Look(NamedTuple):
    """What one server said; *trouble* is why it said nothing."""

    server: Server
    trouble: str = ""
    info: dict[str, str] = {}  # noqa: RUF012  never changed
    is_info_refused: bool = False
    settings: dict[str, str | None] = {}  # noqa: RUF012
    skew_ms: int = 0
    calls_ms: tuple[float, ...] = ()

    def number(self, name: str) -> float:
        """One of ``INFO``; 0 where it is absent."""
        return float(self.info.get(name) or 0)


async def look(server: Server) -> Look:
    """Ask *server* everything; what it refuses is absent."""
    try:
        async with inspecting(server.address) as ask:
            info = await ask.info("everything")
            settings = {name: await ask.setting(name) for name in SETTINGS}
            packing = await ask.setting("hash-max-listpack-value")
            settings["packing"] = packing or await ask.setting("hash-max-ziplist-value")
            before_s = time.time()
            told = await ask.ask("TIME")
            here_s = (before_s + time.time()) / 2
            skew_ms = 0 if isinstance(told, Refused) else _skew_ms(told, here_s)
            calls_ms = []
            for _ in range(CALLS):
                started_s = time.perf_counter()
                if isinstance(await ask.ask("EVAL", SCRIPT, 0), Refused):
                    break
                calls_ms.append((time.perf_counter() - started_s) * 1000)
    except StorageUnavailable as error:
        return Look(server, error.reason)
    is_refused = isinstance(info, Refused)
    known = {} if isinstance(info, Refused) else info
    return Look(server, "", known, is_refused, settings, skew_ms, tuple(sorted(calls_ms)))


def _skew_ms(told: list[bytes], here_s: float) -> int:
    return round((int(told[0]) + int(told[1]) / 1e6 - here_s) * 1000)

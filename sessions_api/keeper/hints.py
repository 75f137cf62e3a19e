"""The hint: Redis's keyspace notifications say that a session's alarm key has expired.

They are each server's own, so every primary of a cluster is listened to.

Only a hint: notifications may be off, forbidden, lost with a connection, or late
by a second. Then the sweep finds the session all the same, and nothing here is
a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from sessions_api.domain.ids import SessionId
from sessions_api.errors import SessionsError
from sessions_api.store import Store
from sessions_api.store.fleet import Everywhere
from sessions_api.store.topology import Link
from sessions_api.telemetry import metrics

SETTING: Final = b"notify-keyspace-events"

log = structlog.get_logger(__name__)


class Hints:
    """Calls *on_alarm* for each alarm key that expires, of whatever partition."""

    def __init__(self, store: Store, *, on_alarm: Callable[[SessionId], None]) -> None:
        self._redis = store.redis
        self._keyspace = store.keyspace
        self._on_alarm = on_alarm
        self._subscribed: dict[Link, None] = {}
        self._news = asyncio.Event()
        self.subscriber = Everywhere(
            store.redis,
            b"__keyevent@%d__:expired" % store.redis.address.database,
            on_message=self._expired,
            on_subscribed=self._listening,
            key_prefix=store.keyspace.prefix.encode(),
        )

    async def start(self) -> None:
        self._unfollow = metrics.follow_redis(self.subscriber.stats, line="pubsub")
        await self.subscriber.start()

    async def stop(self) -> None:
        await self.subscriber.stop()
        self._unfollow()

    async def step(self) -> None:
        """After each subscription: ask that server for notifications, which a restarted one forgot."""
        await self._news.wait()
        self._news.clear()
        while self._subscribed:
            await self._switch_on(self._subscribed.popitem()[0])

    def _listening(self, server: Link) -> None:
        self._subscribed[server] = None
        self._news.set()

    def _expired(self, _channel: bytes, key: bytes) -> None:
        session_id = self._keyspace.session_of_alarm(key)
        if session_id is not None:
            self._on_alarm(session_id)

    async def _switch_on(self, server: Link) -> None:
        """Add ``Ex`` to the server's setting, once; where that is refused, say what it costs."""
        try:
            reply = await self._redis.command(b"CONFIG", b"GET", SETTING, safe=True, at=server)
            flags = reply[1].decode() if reply else ""
            missing = ("" if "E" in flags else "E") + ("" if "x" in flags or "A" in flags else "x")
            if missing:
                await self._redis.command(b"CONFIG", b"SET", SETTING, flags + missing, safe=True, at=server)
                log.info("notifications_switched_on", flags=flags + missing, server=server.server)
        except SessionsError as error:
            log.warning(
                "notifications_not_switched_on",
                server=server.server,
                reason=getattr(error, "reason", "") or getattr(error, "what", ""),
                costs="warnings and expirations may be up to half a second late",
            )

"""Hints of alarms: they come at their time, and may fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from sessions_api.store import Redis, Store
from sessions_api.store.keys import Keyspace
from tests.support.hints import hinting
from tests.support.servers import RealServer
from tests.support.stores import CONFIG, opened
from tests.support.waiting import eventually, until

REAL = ("valkey", "redis62", "debian")


class TestHints:
    @pytest.mark.servers(*REAL)
    async def test_tell_of_an_alarm_at_its_time(self, store: Store) -> None:
        async with hinting(store) as hints:
            await self.switched_on(store)
            session = await opened(store, config=CONFIG.__class__(60, False, CONFIG.max_duration_ms, 1))

            await until(lambda: hints.heard == [session.session_id])

    @pytest.mark.servers(*REAL)
    async def test_switch_notifications_on_and_keep_what_was_set(
        self, store: Store, server: RealServer
    ) -> None:
        server.config_set("notify-keyspace-events", "Kg")

        async with hinting(store):
            await self.switched_on(store)

        assert set("KgEx") <= set(server.config_get("notify-keyspace-events"))

    @pytest.mark.servers(*REAL)
    async def test_leave_a_setting_that_will_do(self, store: Store, server: RealServer) -> None:
        server.config_set("notify-keyspace-events", "KEA")
        before = server.config_get("notify-keyspace-events")

        async with hinting(store):
            await self.switched_on(store)

        assert server.config_get("notify-keyspace-events") == before

    @pytest.mark.servers(*REAL)
    async def test_a_refusal_is_a_warning_and_no_failure(self, server: RealServer) -> None:
        with forbidden_config(server) as url, capture_logs() as logs:
            async with Redis.from_url(url) as redis, hinting(Store(redis, Keyspace())):
                await until(lambda: any(e["event"] == "notifications_not_switched_on" for e in logs))

        assert not [entry for entry in logs if entry["event"] == "loop_failed"]

    @pytest.mark.servers("valkey")
    async def test_are_asked_for_again_after_a_restart(self, store: Store, server: RealServer) -> None:
        async with hinting(store):
            await self.switched_on(store)
            server.config_set("notify-keyspace-events", "")

            server.restart()
            await until(lambda: store.redis.is_up)

            await until(lambda: set("Ex") <= set(server.config_get("notify-keyspace-events")))

    @staticmethod
    async def switched_on(store: Store) -> None:
        """Wait until the setting was read, and changed if need be."""

        async def is_so() -> bool:
            flags = (await store.redis.command(b"CONFIG", b"GET", b"notify-keyspace-events"))[1].decode()
            return "E" in flags and ("x" in flags or "A" in flags)

        await eventually(is_so)


@contextlib.contextmanager
def forbidden_config(server: RealServer) -> Iterator[str]:
    """The URL of a user who may do anything but CONFIG."""
    server.call("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-config")
    try:
        yield f"redis://limited:secret@127.0.0.1:{server.port}/0"
    finally:
        server.call("ACL", "DELUSER", "limited")

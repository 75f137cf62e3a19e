"""A connection through the fault-injecting proxy, and two scripts to send through it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sessions_api.store.address import Address
from sessions_api.store.connection import Redis, Script
from tests.support.proxy import Proxy
from tests.support.servers import TestServer

ECHO = Script("echo", "return {KEYS[1], ARGV[1]}")
COUNT = Script(
    "count",
    "local n = redis.call('INCR', KEYS[1]) redis.call('PEXPIRE', KEYS[1], 60000) return {n, ARGV[1]}",
)


@asynccontextmanager
async def proxied(server: TestServer, **settings: Any) -> AsyncIterator[tuple[Proxy, Redis]]:
    async with Proxy(server.url) as proxy, Redis(Address(proxy.url), **settings) as redis:
        assert redis.is_up
        yield proxy, redis

"""How full Redis is, as an alert needs it: asked by the service's own user, of every kind of server."""

from __future__ import annotations

import pytest

from sessions_api.store import Redis, Store
from sessions_api.store.keys import Keyspace
from tests.deploy.deployed import DeployedRedis


@pytest.mark.parametrize("limit_mb, least, most", [(1000, 0.0001, 0.1), (20, 0.01, 1.0), (0, 0, 0)])
async def test_is_the_share_of_its_limit(
    deployed: DeployedRedis, limit_mb: int, least: float, most: float
) -> None:
    """None, where there is no limit."""
    deployed.inspect("CONFIG", "SET", "maxmemory", f"{limit_mb}mb")
    try:
        async with Redis.from_url(deployed.url) as redis:
            [server] = await Store(redis, Keyspace()).alarms.memory()
    finally:
        deployed.inspect("CONFIG", "SET", "maxmemory", "0")

    assert least <= server.fullness <= most
    assert not server.may_evict

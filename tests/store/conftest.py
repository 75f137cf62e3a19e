"""Fixtures of the store's contract suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sessions_api.store import Store
from sessions_api.store.connection import Redis
from sessions_api.store.keys import Keyspace
from tests.support.servers import TestServer
from tests.support.stores import Ears, listening


@pytest.fixture
async def store(redis: Redis) -> Store:
    """An opened store on an empty server."""
    store = Store(redis, Keyspace())
    await store.open()
    return store


@pytest.fixture
def ears(server: TestServer) -> Iterator[Ears]:
    """Hears what the scripts publish."""
    with listening(server) as ears:
        yield ears

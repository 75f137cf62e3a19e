"""A Redis for a module's replicas, and the service that hostile input attacks; each module has its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.client import Api
from tests.support.servers import TestServer, launch
from tests.support.service import Service
from tests.support.target import soft_limit


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    server = launch("valkey", tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def target_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    server = launch("valkey", tmp_path_factory.mktemp("target-redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, target_redis: TestServer) -> Iterator[Service]:
    """One worker; every request is logged. It was started with room for 512 descriptors only."""
    with soft_limit(512):
        service = Service(
            tmp_path_factory.mktemp("target"), redis_url=target_redis.url, env={"LOG_LEVEL": "debug"}
        )
        service.start()
    yield service
    assert service.stop() == 0
    service.assert_no_bug_logged()


@pytest.fixture(scope="module")
def target_api(target: Service) -> Iterator[Api]:
    """A client that behaves."""
    api = Api(target.url)
    yield api
    api.close()


@pytest.fixture
def others_are_served(target: Service) -> Iterator[None]:
    """After each test a normal client converses, and no stack stands in the log."""
    yield
    api = Api(target.url)
    try:
        assert api.ask(api.session(), "still there?")["agentResponse"]["text"] == "echo: still there?"
    finally:
        api.close()
    target.assert_no_bug_logged()

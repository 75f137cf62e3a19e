"""A real service for the agents under test, and an app that talks to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from tests.support.app import App
from tests.support.service import Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
async def app(service: Service) -> AsyncIterator[App]:
    async with App(service.url) as app:
        yield app


@pytest.fixture
def agent_id() -> str:
    """Each test's own agent."""
    return str(uuid4())

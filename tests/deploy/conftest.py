"""The deployed Redis, on every kind of server that is here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.deployed import DeployedRedis
from tests.support.servers import binaries


@pytest.fixture(scope="module", params=sorted(binaries()))
def deployed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DeployedRedis]:
    """A running server; it keeps what a module's tests leave there."""
    with DeployedRedis(binaries()[request.param], tmp_path_factory.mktemp("deployed")) as server:
        yield server

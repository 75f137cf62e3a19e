"""The service under test: real processes, spoken to over HTTP alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import ECHO, Api
from tests.support.presence import attend_at
from tests.support.servers import TestServer, launch
from tests.support.service import Service

# Seconds instead of minutes; nobody answers and nobody sweeps, so that the states in between hold still.
STILL = {
    "SESSIONS_ENV": "test",
    "SESSION_MIN_TIMEOUT_MINUTES": "0.005",
    "SESSION_MAX_TIMEOUT_MINUTES": "60",
    "SESSIONS_KEEPER": "off",
    "SESSIONS_DISPATCHER": "off",
}
# Seconds as well, with keeper and agents.
QUICK = {
    "SESSIONS_ENV": "test",
    "SESSION_MIN_TIMEOUT_MINUTES": "0.005",
    "SESSION_RETENTION_MINUTES": "0.05",
    "SESSION_MAX_TIMEOUT_MINUTES": "60",
}
SLOW_ECHO = "5100e000-0000-4000-8000-000000000001"
REJECTING_ECHO = "5100e000-0000-4000-8000-000000000002"
SETTLED_ECHO = "5100e000-0000-4000-8000-000000000003"
AGENTS = f"""
[[agents]]
id = "{SLOW_ECHO}"
name = "Slow"
kind = "echo"
[agents.config]
delayMs = 250

[[agents]]
id = "{REJECTING_ECHO}"
name = "Rejecting"
kind = "echo"
onBusy = "reject"

[[agents]]
id = "{SETTLED_ECHO}"
name = "Settled"
kind = "echo"
[agents.session]
timeoutMinutes = 45
autoRenew = false
warningThresholdMinutes = 7
"""


@pytest.fixture(scope="session")
def agents_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("agents") / "agents.toml"
    path.write_text(AGENTS)
    return str(path)


@pytest.fixture(scope="session")
def contract_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    server = launch("valkey", tmp_path_factory.mktemp("contract-redis"))
    yield server
    server.stop()


def _served(folder: Path, redis_url: str, env: dict[str, str]) -> Iterator[Api]:
    service = Service(folder, redis_url=redis_url, env=env)
    service.start()
    api = Api(service.url)
    yield api
    api.close()
    status = service.stop()
    assert status == 0, service.log[-4000:]
    service.assert_no_bug_logged()


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory, agents_file: str) -> Iterator[Api]:
    """``sessions-api dev`` with nothing set but a few more agents."""
    yield from _served(tmp_path_factory.mktemp("dev"), "", {"SESSIONS_AGENTS_FILE": agents_file})


@pytest.fixture(scope="session")
def still(
    tmp_path_factory: pytest.TempPathFactory, contract_redis: TestServer, agents_file: str
) -> Iterator[Api]:
    """``sessions-api serve``, where agents are there and none answers, and no keeper runs."""
    present = (ECHO, SLOW_ECHO, REJECTING_ECHO, SETTLED_ECHO)
    attend_at(contract_redis.url, *present, key_prefix="still:")
    env = STILL | {"SESSIONS_AGENTS_FILE": agents_file, "SESSIONS_KEY_PREFIX": "still:"}
    yield from _served(tmp_path_factory.mktemp("still"), contract_redis.url, env)


@pytest.fixture(scope="session")
def quick(
    tmp_path_factory: pytest.TempPathFactory, contract_redis: TestServer, agents_file: str
) -> Iterator[Api]:
    """``sessions-api serve``, where timeouts are seconds and ended sessions stay for three."""
    env = QUICK | {"SESSIONS_AGENTS_FILE": agents_file, "SESSIONS_KEY_PREFIX": "quick:"}
    yield from _served(tmp_path_factory.mktemp("quick"), contract_redis.url, env)

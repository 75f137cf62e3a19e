"""Servers to test against, coroutine tests, and three things no test may leave behind.

A test that takes ``server`` runs on every kind of server there is;
``@pytest.mark.servers("valkey", "redis62")`` names the kinds it is for; on a Redis
Cluster too, where that names one, or ``support/cluster.py`` its module, and on the
makes between the newest and the oldest where ``support/servers.py`` names it. A test
that is a coroutine needs no marker; it runs on uvloop, as the service does.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sessions_api.store.connection import Redis
from sessions_api.store.keys import Keyspace
from tests.support.cluster import ClusterServer, cluster_kinds, runs_on_cluster
from tests.support.servers import EVERY_MAKE, TestServer, kinds, launch, makes_between

LEFT_TIMEOUT_S = 3.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "servers(*kinds): the kinds of server this test is for; default: all")
    # uvloop hangs in close() if its own warning of an open transport is an error: a test that
    # leaves one would stop the whole run. ``nothing_left`` finds those.
    config.addinivalue_line("filterwarnings", "default:unclosed resource <:ResourceWarning")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("servers")
        named = marker.args if marker else kinds()
        wanted = [kind for kind in [*kinds(), *cluster_kinds()] if kind in named]
        test = metafunc.definition.originalname
        if "valkey" in wanted and runs_on_cluster(metafunc.module.__name__, test, metafunc.fixturenames):
            wanted.append("cluster")
        if "valkey" in wanted and metafunc.module.__name__.removeprefix("tests.") in EVERY_MAKE:
            wanted += makes_between()
        metafunc.parametrize("server", wanted, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    function = getattr(getattr(obj, "hypothesis", None), "inner_test", obj)
    if collector.istestfunction(obj, name) and inspect.iscoroutinefunction(function):
        pytest.mark.anyio(obj)
        pytest.mark.usefixtures("nothing_left")(obj)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The event loop of coroutine tests; a module that cares redefines it."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def _servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TestServer]]:
    servers: dict[str, TestServer] = {}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
def server(
    request: pytest.FixtureRequest, _servers: dict[str, TestServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestServer]:
    """An empty server with its default settings; afterwards, no key may live for ever.

    Standing keys may (``store/keys.py`` lists them), and those that a test of
    the connection itself makes, under ``test:``.
    """
    kind: str = request.param
    if kind not in _servers:
        folder = tmp_path_factory.mktemp(kind)
        if kind in cluster_kinds():
            _servers[kind] = ClusterServer(kind, folder)
            _servers[kind].start()
        else:
            _servers[kind] = launch(kind, folder)
    server = _servers[kind]
    server.clean()
    yield server
    if getattr(server, "is_running", True):
        if server.is_real:
            server.resume()  # type: ignore[attr-defined]
        keyspace = Keyspace()
        immortal = [
            key
            for key in server.keys_without_ttl()
            if not key.startswith(b"test:") and not keyspace.is_standing(key)
        ]
        assert not immortal, f"keys without TTL: {immortal}"


@pytest.fixture
def redis_url(server: TestServer) -> str:
    return server.url


@pytest.fixture
async def redis(server: TestServer) -> AsyncIterator[Redis]:
    """A started connection to *server*."""
    async with Redis.from_url(server.url) as redis:
        assert redis.is_up
        yield redis


@pytest.fixture
async def nothing_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fail a coroutine test that leaves a task running or a socket open."""
    if "server" in request.fixturenames:
        request.getfixturevalue("server")  # its sockets stay for the next test
    tasks, sockets = _tasks(), _sockets()
    yield
    deadline_s = asyncio.get_running_loop().time() + LEFT_TIMEOUT_S
    # Sockets by number: uvloop makes its two signal sockets anew each time the loop runs.
    while (left := _tasks() - tasks) or len(_sockets()) > len(sockets):
        if asyncio.get_running_loop().time() > deadline_s:
            for task in left:
                task.cancel()  # or the loop would not close
            # No pytest.fail: it is no Exception, and anyio's runner would hang on it.
            raise AssertionError(f"left behind: {left or _sockets() - sockets}")
        await asyncio.sleep(0.005)


def _tasks() -> set[asyncio.Task[Any]]:
    """Every task but this one and those of anyio's own test runner."""
    return {
        task
        for task in asyncio.all_tasks() - {asyncio.current_task()}
        if not getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")
    }


def _sockets() -> set[str]:
    """The open sockets of this process, as Linux names them; elsewhere none are seen."""
    found: set[str] = set()
    if not Path("/proc/self/fd").exists():
        return found
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)  # noqa: PTH115  Path.readlink parses "socket:[1]" for nothing
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found

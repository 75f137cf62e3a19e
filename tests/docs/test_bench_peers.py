"""``make bench-peers`` works and says what it compared; how fast anything is decides no test."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.figures import read
from bench.peers import report
from bench.peers.installing import HERE
from bench.peers.surviving import Left, survivals
from bench.peers.systems import OURS, ours, systems
from bench.peers.wire import Line, storm

ROOT = Path(__file__).parents[2]
WHOLE = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"

Serve = Callable[[StreamReader, StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class TestWire:
    @pytest.mark.parametrize("reply", [WHOLE, CHUNKED])
    @pytest.mark.parametrize("piece", [1, 7, 1000])
    async def test_reads_a_reply_to_its_end_however_it_is_cut(self, reply: bytes, piece: int) -> None:
        """Two replies on one connection are both whole, by length or in chunks."""

        async def serve(reader: StreamReader, writer: StreamWriter) -> None:
            for _ in range(2):
                await reader.readuntil(b"\r\n\r\n")
                for start in range(0, len(reply), piece):
                    writer.write(reply[start : start + piece])
                    await writer.drain()
                    await asyncio.sleep(0)
            writer.close()

        async with serving(serve) as port:
            line = Line(port)
            await line.open()
            bodies = [await line.ask(b"GET / HTTP/1.1\r\n\r\n") for _ in range(2)]
            line.close()

        assert bodies == [b"hello", b"hello"]

    async def test_refuses_an_error(self) -> None:
        """A system that answers with errors is not measured as a fast one."""

        async def serve(reader: StreamReader, writer: StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with serving(serve) as port:
            line = Line(port)
            await line.open()
            with pytest.raises(RuntimeError, match="429"):
                await line.ask(b"GET / HTTP/1.1\r\n\r\n")
            line.close()


class TestStorm:
    async def test_counts_broken_connections_and_goes_on(self) -> None:
        """A broken connection is opened again; its request is not counted as answered."""
        served = itertools.count()

        async def serve(reader: StreamReader, writer: StreamWriter) -> None:
            if next(served) > 0:
                for _ in range(2):
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(WHOLE)
            writer.close()

        async with serving(serve) as port:
            line = Line(port)
            requests = iter([b"GET / HTTP/1.1\r\n\r\n"] * 3)
            seen = await storm([line], [requests], seconds=30, check=lambda _: None)
            line.close()

        assert (len(seen.times_ms), seen.broken) == (2, 1)

    async def test_ends_with_a_reply_that_is_not_what_was_asked_for(self) -> None:
        """What *check* raises reaches whoever measures."""

        async def serve(reader: StreamReader, writer: StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(WHOLE)
            writer.close()

        def check(body: bytes) -> None:
            raise RuntimeError(f"not asked for: {body!r}")

        async with serving(serve) as port:
            line = Line(port)
            with pytest.raises(ExceptionGroup) as errors:
                await storm([line], [iter([b"GET / HTTP/1.1\r\n\r\n"])], seconds=30, check=check)
            line.close()

        assert "not asked for" in str(errors.value.exceptions[0])


class TestOurs:
    def test_is_measured_with_each_kind_of_work(self, tmp_path: Path) -> None:
        """A run with tiny numbers ends well; each round has requests, times and the CPU of both processes."""
        out = tmp_path / "figures.json"
        options = ["--only", "ours", "--rounds", "1", "--seconds", "0.1", "--no-kill", "--out", str(out)]
        run = subprocess.run(
            [sys.executable, "-m", "bench.peers", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr

        rounds = json.loads(out.read_text())["peers"]["details"]["systems"][OURS]["rounds"]
        taken = [one for by_number in rounds.values() for many in by_number.values() for one in many]
        assert len(taken) == 10
        assert all(one["requests"] > 0 and one["cpu_us"] > 0 and one["p50_ms"] > 0 for one in taken)
        assert out.with_suffix(".md").read_text() == report.markdown(read(out)["peers"])

    def test_has_all_it_answered_after_a_kill(self, tmp_path: Path) -> None:
        """Replica and Redis are killed once an answer has come: all of it is there when they are back.

        With an fsync for each write: once a second, up to 2 s of answers are in no file while the disk
        is slow to take an earlier one (docs/operations.md), and here it is.
        """
        found = survivals([ours("always")], tmp_path, settle_s=0)

        everything = Left(session=True, question=True, answer=True)
        assert (found[OURS].settled, found[OURS].last) == (everything, everything)


class TestPages:
    def test_results_are_those_of_the_file(self) -> None:
        """`--publish` writes both."""
        run = read(HERE / "results.json")["peers"]

        assert (HERE / "results.md").read_text() == report.markdown(run)

    def test_readme_names_each_system_and_its_version(self) -> None:
        """What the table says is what the locks install."""
        text = (HERE / "README.md").read_text()
        wanted = [path.read_text().strip() for path in HERE.glob("*/requirements.in")]
        for path in HERE.glob("*/package.json"):
            wanted += [
                f"{name}=={version}" for name, version in json.loads(path.read_text())["dependencies"].items()
            ]

        assert len(wanted) == 5
        for package in wanted:
            name, version = package.split("==")
            assert re.search(
                rf"{re.escape(name.partition('[')[0])} {re.escape(version)}", text, re.IGNORECASE
            ), package
        assert all(f"| `{word}` |" in text for word in systems())

    def test_locks_have_a_hash_for_each_package_and_no_address(self) -> None:
        """They install the same everywhere, from whichever registry a machine is told to use."""
        for path in HERE.glob("*/requirements.lock"):
            pins = re.split(r"^(?=\S+==)", path.read_text(), flags=re.MULTILINE)[1:]
            assert len(pins) > 30
            assert all("--hash=sha256:" in pin for pin in pins)
            assert "://" not in path.read_text()
        for path in HERE.glob("*/package-lock.json"):
            packages = json.loads(path.read_text())["packages"]
            assert all(
                "integrity" in told and "resolved" not in told for name, told in packages.items() if name
            )

"""The systems that are compared: what each is, and how it is started on loopback."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from bench.load import Request
from bench.machine import CORES, cpu_s
from bench.peers.dialects import AGENT_ID, ANSWER, Adk, Dialect, LangGraph, Sessions
from bench.peers.installing import HERE, bun, install
from bench.processes import DEPLOYED, DURABLE, free_port, process, redis_server, service

START_S = 90.0
POLL_S = 0.05
OURS = "Sessions API"
EXPRESS = "Express, in memory"
ADK_IN_MEMORY = "google-adk, in memory"
ELIZAOS = "@elizaos/server"


class Running(NamedTuple):
    """A system that answers, and the processes it consists of."""

    port: int
    pids: Sequence[int]

    def cpu_s(self) -> float:
        return sum(_cpu_s(pid) for pid in self.family())

    def rss_mb(self) -> float:
        page = os.sysconf("SC_PAGE_SIZE")
        sizes = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.family())
        return sum(sizes) * page / 2**20

    def family(self) -> list[int]:
        """The processes and all that they started."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
            children.setdefault(parent, []).append(int(stat.parent.name))
        found = list(self.pids)
        for pid in found:
            found += children.get(pid, [])
        return found


@dataclass(frozen=True)
class System:
    """One of those compared; *start* runs it with its data in a folder, on what is there already."""

    name: str
    version: str
    mode: str
    """How it runs, and where it keeps what it is told."""
    dialect: Dialect
    start: Callable[[Path], AbstractContextManager[Running]]


def systems() -> dict[str, Callable[[], System]]:
    """Word on the command line → the system, which that installs."""
    return {
        "ours": ours,
        "express": _express,
        "adk": lambda: _adk("google-adk", "SQLite file, as by default", []),
        "adk-memory": lambda: _adk(ADK_IN_MEMORY, "in its memory", ["--session_service_uri", "memory://"]),
        "langgraph": _langgraph,
        "elizaos": _elizaos,
    }


# ---------------------------------------------------------------- each of them


def ours(appendfsync: str = "everysec") -> System:
    """This service, with its Redis."""

    @contextmanager
    def start(folder: Path) -> Iterator[Running]:
        core = CORES.service
        with (
            redis_server(
                folder / "redis", {**DEPLOYED, **DURABLE, "appendfsync": appendfsync}, core=core
            ) as redis,
            service(folder, redis.url, core=core) as replica,
        ):
            yield Running(replica.port, [replica.pid, redis.pid])

    mode = "`serve`, one worker, and its Redis: append-only file, fsync every second"
    return System(OURS, version("sessions-api"), mode, Sessions(), start)


def _express() -> System:
    home = install("express")
    node = shutil.which("node") or "node"

    def start(folder: Path) -> AbstractContextManager[Running]:
        del folder  # it keeps nothing
        shutil.copy(HERE / "express/server.mjs", home)
        return _server(home, [node, "server.mjs"], {**_AGENT, "NODE_ENV": "production"})

    mode = "`node server.mjs`; a Map in its memory"
    return System(EXPRESS, _npm_version(home, "express"), mode, Sessions(), start)


def _adk(name: str, kept: str, options: list[str]) -> System:
    home = install("adk")

    def start(folder: Path) -> AbstractContextManager[Running]:
        agents = folder / "agents"
        shutil.copytree(HERE / "adk/echo", agents / "echo", dirs_exist_ok=True)
        command = [str(home / "venv/bin/adk"), "api_server", "--host", "127.0.0.1", "--log_level", "warning"]
        return _server(folder, [*command, *options, "--port", "PORT", str(agents)], {})

    found = _pip_version(home, "google_adk")
    return System(name, found, f"`adk api_server`; {kept}", Adk(), start)


def _langgraph() -> System:
    home = install("langgraph")

    def start(folder: Path) -> AbstractContextManager[Running]:
        for file in ("graph.py", "langgraph.json"):
            shutil.copy(HERE / "langgraph" / file, folder)
        options = "--host 127.0.0.1 --no-browser --no-reload --server-log-level WARNING"
        options += " --n-jobs-per-worker 10"  # its documented default; what it starts with is 1
        command = [str(home / "venv/bin/langgraph"), "dev", *options.split(), "--port", "PORT"]
        settings = {"LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1", "LOG_LEVEL": "WARNING"}
        return _server(folder, command, settings)

    told = f"{_pip_version(home, 'langgraph_cli')} (langgraph-api {_pip_version(home, 'langgraph_api')})"
    mode = "`langgraph dev`, no reload; its memory, written to files every few seconds"
    return System("langgraph-cli", told, mode, LangGraph(), start)


def _elizaos() -> System:
    home = install("elizaos")
    runtime = bun(home)

    def start(folder: Path) -> AbstractContextManager[Running]:
        shutil.copy(HERE / "elizaos/server.mjs", home)
        settings = {"DATA_DIR": str(folder / "data"), "SERVER_HOST": "127.0.0.1", "LOG_LEVEL": "error"}
        # Its errors go to a collector on the internet, also where this is empty; a closed port takes them.
        settings |= {"ELIZA_UI_ENABLE": "false", "SENTRY_DSN": "http://none@127.0.0.1:9/1"}
        return _server(folder, [str(runtime), str(home / "server.mjs")], {**_AGENT, **settings})

    mode = f"`AgentServer` on Bun {_npm_version(home, 'bun')}; sessions in a Map, messages in PGlite's files"
    # What is answered over http is in no history of it: 50 messages are 50 of the user's.
    return System(ELIZAOS, _npm_version(home, "@elizaos/server"), mode, Sessions(sends_per_page=50), start)


_AGENT = {"AGENT_ID": AGENT_ID, "ANSWER": ANSWER}


def _npm_version(home: Path, package: str) -> str:
    told = json.loads((home / "node_modules" / package / "package.json").read_text())
    return str(told["version"])


def _pip_version(home: Path, package: str) -> str:
    (found,) = home.glob(f"venv/lib/python*/site-packages/{package}-*.dist-info")
    return found.name.removesuffix(".dist-info").rpartition("-")[2]


# ---------------------------------------------------------------- starting


@contextmanager
def _server(folder: Path, command: Sequence[str], settings: Mapping[str, str]) -> Iterator[Running]:
    """*command* with the word PORT filled in, in *folder*, with nothing of this process's environment."""
    port = free_port()
    environ = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environ |= {"HOME": str(folder), "PORT": str(port), **settings}
    words = ["env", "-C", str(folder), *(str(port) if word == "PORT" else word for word in command)]
    with process(words, folder / "server.log", core=CORES.service, environ=environ) as pid:
        yield Running(port, [pid])


@contextmanager
def running(system: System, folder: Path) -> Iterator[Running]:
    """*system*, once it creates sessions and answers messages.

    Raises:
        RuntimeError: it does not within 90 s; the end of its log is in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        found = stack.enter_context(system.start(folder))
        until_s = time.monotonic() + START_S
        while not _answers(system.dialect, found.port):
            if time.monotonic() > until_s:
                logs = [log.read_text(errors="replace")[-1500:] for log in folder.glob("*.log")]
                raise RuntimeError(f"waited {START_S:g} s for {system.name}\n" + "\n".join(logs))
            time.sleep(POLL_S)
        yield found


def _answers(dialect: Dialect, port: int) -> bool:
    try:
        key = dialect.key(ask(port, dialect.create()))
        return ANSWER.encode() in ask(port, dialect.send(key))
    except (OSError, http.client.HTTPException, RuntimeError):
        return False


def ask(port: int, request: Request, *, timeout_s: float = 30.0) -> bytes:
    """The body of the reply, by the standard library's client.

    Raises:
        RuntimeError: it is an error.
    """
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        kind = {"Content-Type": "application/json"} if request.method != "GET" else {}
        client.request(request.method, request.target, request.body or None, kind)
        reply = client.getresponse()
        body = reply.read()
        if reply.status >= 400:
            raise RuntimeError(f"{request.method} {request.target}: {reply.status} {body[:500]!r}")
        return body
    finally:
        client.close()


def _cpu_s(pid: int) -> float:
    """With the threads that have ended: some of the peers start one for each request."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the kernel's clock of that process
    except OSError:
        return cpu_s(pid)

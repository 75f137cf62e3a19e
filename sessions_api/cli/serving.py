"""Runs the app in uvicorn: one process, or several that share a socket.

uvicorn waits for open connections before it tells the app to shut down, and a
live stream stays open for ever; so the signal itself has to reach the app. That
is why :func:`drain_on_signal` stands in front of uvicorn's own handlers.
"""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType, MappingProxyType

import uvicorn
from starlette.applications import Starlette

from sessions_api.app import create_app
from sessions_api.cli.connections import Connection
from sessions_api.cli.errors import CommandError
from sessions_api.cli.upgraded import Upgraded
from sessions_api.embedded import ending_with
from sessions_api.settings import Settings
from sessions_api.telemetry import logs

STOPPING = (signal.SIGINT, signal.SIGTERM)
BESIDE_FOLLOWERS = 10_000
"""Connections of one process that need not be live ones: requests, and silence between them."""
TAKES_NOTHING_MS = 60_000
"""How long a client may take nothing of what was sent before the kernel drops its connection.

Nobody else would: a connection that is closed here waits for ever to hand over what it still holds.
"""


def environment(chosen: Mapping[str, str | None] = MappingProxyType({})) -> dict[str, str]:
    """This process's environment as the service reads it, with what the command line *chose*."""
    return dict(os.environ) | {name: value for name, value in chosen.items() if value is not None}


@contextmanager
def bound(settings: Settings) -> Iterator[list[socket.socket]]:
    """The API's socket, not yet listening, and that of the metrics if they have a port of their own.

    Raises:
        CommandError: as :func:`bind`.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(bind(settings.host, settings.port))]
        if settings.sessions_metrics_port:
            own = bind(settings.host, settings.sessions_metrics_port, "SESSIONS_METRICS_PORT=…")
            sockets.append(stack.enter_context(own))
        yield sockets


def bind(host: str, port: int, choice: str = "PORT=… or --port") -> socket.socket:
    """A socket bound to *host* and *port* (0: any free port), not yet listening.

    Raises:
        CommandError: the address is taken, forbidden, or no address of this machine.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise CommandError(f"HOST={host} is no address to listen on: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TAKES_NOTHING_MS
        )  # connections inherit it
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise CommandError(_why_not_bound(error, host, port, choice)) from error
    sock.set_inheritable(True)
    return sock


def _why_not_bound(error: OSError, host: str, port: int, choice: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use: choose another with {choice}"
        case errno.EACCES:
            return f"port {port} needs privileges: choose one above 1023 with {choice}"
        case errno.EADDRNOTAVAIL:
            return f"{host} is no address of this machine: change HOST or --host"
        case _:
            return f"cannot listen on {host}:{port}: {error.strerror}"


def raise_descriptor_limit() -> None:
    """Let this process, and those it starts, have as many file descriptors as the system lets it."""
    _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # no limit at all is more than the kernel grants
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))


def address_of(sock: socket.socket) -> str:
    """``http://host:port`` of a bound socket, as a local client reaches it."""
    host, port = sock.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server, which says when the app answers."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_ready()


class Stop:
    """SIGINT and SIGTERM from the first moment: a flag before there is a server, then its end.

    Python's defaults would kill this process between two steps and leave the
    embedded server behind.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._server: uvicorn.Server | None = None
        for number in STOPPING:
            signal.signal(number, self._on_signal)

    def goes_to(self, server: uvicorn.Server) -> None:
        self._server = server
        server.should_exit = self.is_asked

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.is_asked = True
        if self._server is not None:  # uvicorn raises the signal again at its end: nothing is left to do
            self._server.should_exit = True


async def serve_here(
    settings: Settings, sockets: list[socket.socket], stop: Stop, on_ready: Callable[[], None]
) -> int:
    """Serve in this process until a signal; returns the exit status."""

    def app() -> Starlette:
        return at_home(create_app(settings))

    raise_descriptor_limit()
    server = Server(_config(app, settings), on_ready)
    stop.goes_to(server)
    try:
        await server.serve(sockets)
    except SystemExit:  # uvicorn's word for an app that did not start; the log has the reason
        return 1
    return 0


def run_many(settings: Settings, sockets: list[socket.socket]) -> int:
    """Serve in ``SESSIONS_WORKERS`` processes until a signal; a dead worker is replaced."""
    raise_descriptor_limit()
    logs.configure(settings.log_level, settings.log_format)  # of this process; each worker does its own
    config = _config("sessions_api.cli.serving:app_of_worker", settings)
    config.workers = settings.sessions_workers
    supervisor = uvicorn.supervisors.Multiprocess(config, sockets)
    for sock in sockets:
        sock.listen(config.backlog)
    supervisor.run()
    # uvicorn's worker ends in order, then by the very signal that asked it to.
    in_order = {0, None, *(-number for number in STOPPING)}
    return 0 if all(process.exitcode in in_order for process in supervisor.processes) else 1


def app_of_worker() -> Starlette:
    """The app in a worker process; its settings come through the environment.

    It ends with its supervisor, in order, also with one that was killed: nobody else would stop it.
    """
    supervisor = multiprocessing.parent_process()  # not getppid: it may have ended already
    end_with_it = ending_with(supervisor.pid or 0) if supervisor is not None else None
    if end_with_it is not None:
        end_with_it()
    return at_home(create_app(Settings.from_env(environment())))


def _config(app: Callable[[], Starlette] | str, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=True,
        loop="uvloop",
        http=Connection,
        ws=Upgraded,
        ws_per_message_deflate=False,  # a compressor takes ten times the memory of the rest of a follower
        ws_max_size=1024 * 1024,  # live/websocket.py refuses 256 KiB, in words
        log_config=None,  # telemetry/logs.py writes the log
        access_log=False,
        limit_concurrency=settings.sessions_max_followers + BESIDE_FOLLOWERS,  # cli/connections.py holds it
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_graceful_shutdown=settings.drain_seconds + 5,
    )


def at_home(app: Starlette) -> Starlette:
    """*app* in a process of its own, which is all its.

    What is there now, modules for the most part, stays to the end: the collector need
    not look at it again. Looking stopped the process for 40 ms now and then; so it is 5.
    """
    gc.collect()
    gc.freeze()
    return drain_on_signal(app)


def drain_on_signal(app: Starlette) -> Starlette:
    """Tell *app* of a signal at once, then let uvicorn end as it would."""
    for number in STOPPING:
        uvicorns = signal.getsignal(number)

        def on_signal(number: int, frame: FrameType | None, *, uvicorns: object = uvicorns) -> None:
            app.state.drain()
            if callable(uvicorns):
                uvicorns(number, frame)

        signal.signal(number, on_signal)
    return app

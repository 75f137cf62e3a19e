"""Start the service on a Redis of yours (REDIS_URL or --redis-url).

Everything else comes from the environment; docs/configuration.md lists it.
With --workers N, N processes share the port, and a worker that dies is replaced.
SIGHUP replaces them one by one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import uvloop

from sessions_api.cli import serving
from sessions_api.cli.errors import CommandError
from sessions_api.settings import Settings
from sessions_api.store import Redis

METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--redis-url", help="redis://, rediss:// or unix:// (REDIS_URL)")
    parser.add_argument("--host", help="address to listen on (HOST, 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (PORT, 3000)")
    parser.add_argument("--workers", metavar="N", help="processes that share the port (SESSIONS_WORKERS, 1)")


def run(args: argparse.Namespace) -> int:
    chosen = {
        "REDIS_URL": args.redis_url,
        "HOST": args.host,
        "PORT": args.port,
        "SESSIONS_WORKERS": args.workers,
    }
    environ = serving.environment(chosen)
    os.environ.update(environ)  # the workers read it again
    settings = Settings.from_env(environ)
    if not settings.redis_url:
        raise CommandError(
            "REDIS_URL is not set: name a Redis, or run `sessions-api dev`, which brings one", status=2
        )
    Redis.from_url(settings.redis_url)  # unusable: say so here, not in every worker
    with serving.bound(settings) as sockets:
        print(f"Sessions API at {serving.address_of(sockets[0])}", file=sys.stderr, flush=True)
        if settings.sessions_workers == 1:
            return uvloop.run(serving.serve_here(settings, sockets, serving.Stop(), lambda: None))
        return _serve_with_workers(settings, sockets)


def _serve_with_workers(settings: Settings, sockets: list[socket.socket]) -> int:
    """The workers' metrics meet in one folder: an own one, removed at the end, unless one was given."""
    given = os.environ.get(METRICS_DIR)
    folder = given or tempfile.mkdtemp(prefix="sessions-metrics-")
    os.environ[METRICS_DIR] = folder
    try:
        for stale in Path(folder).glob("*.db"):  # an earlier run's counters would be added to ours
            stale.unlink()
        return serving.run_many(settings, sockets)
    except OSError as error:
        raise CommandError(f"{METRICS_DIR}={folder} is unusable: {error.strerror}") from error
    finally:
        if given is None:
            shutil.rmtree(folder, ignore_errors=True)

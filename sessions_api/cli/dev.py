"""Start the service here, with a server of its own for the sessions.

Nothing needs to be installed or configured. Sessions are kept in the data
folder (SESSIONS_DATA_DIR, ./.data if not set) over restarts, also after a
crash. With REDIS_URL set, that Redis is used and no data folder is touched.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import uvloop

from sessions_api.cli import serving
from sessions_api.domain.agents import ECHO_ID
from sessions_api.embedded import EmbeddedServer
from sessions_api.settings import Settings
from sessions_api.telemetry.loops import cancelled

SOMEBODY = "11111111-1111-4111-8111-111111111111"
"""The user of the printed lines; any UUID does."""
DEFAULTS = {
    "LOG_LEVEL": "warning",  # the printed lines should stay in view
    "SESSIONS_DRAIN_SECONDS": "2",  # there is no other replica for followers to spread over
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (HOST, 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (PORT, 3000); 0 takes a free one")
    parser.add_argument("--data-dir", help="where the sessions are kept (SESSIONS_DATA_DIR, ./.data)")
    parser.add_argument("--redis-url", help="use this Redis instead (REDIS_URL)")


def run(args: argparse.Namespace) -> int:
    stop = serving.Stop()
    chosen = {
        "HOST": args.host,
        "PORT": args.port,
        "SESSIONS_DATA_DIR": args.data_dir,
        "REDIS_URL": args.redis_url,
    }
    environ = DEFAULTS | serving.environment(chosen) | {"SESSIONS_DEV": "on"}
    return uvloop.run(_serve(environ, stop))


async def _serve(environ: dict[str, str], stop: serving.Stop) -> int:
    settings = Settings.from_env(environ)
    if settings.redis_url:
        return await _serve_on(settings, settings.redis_url, stop)
    # The folder before the port: who starts a second time on the same folder learns that, not "port in use".
    embedded = EmbeddedServer(settings.data_dir)
    await embedded.start()
    keeping = asyncio.create_task(embedded.keep(), name="embedded server")
    try:
        return await _serve_on(
            Settings.from_env(environ | {"REDIS_URL": embedded.url}), str(embedded.data_dir), stop
        )
    finally:
        await cancelled(keeping)
        await embedded.stop()


async def _serve_on(settings: Settings, kept_in: str, stop: serving.Stop) -> int:
    with serving.bound(settings) as sockets:
        address = serving.address_of(sockets[0])

        def announce() -> None:
            print(banner(address, kept_in), flush=True)

        status = await serving.serve_here(settings, sockets, stop, announce)
    if stop.is_asked:
        print("stopped; the sessions are kept", file=sys.stderr)
    return status


def banner(address: str, kept_in: str) -> str:
    """What a newcomer needs: lines that work as they stand."""
    sessions = f"{address}/api/messaging/sessions"
    return f"""
Sessions API at {address}   sessions in {kept_in}

  chat page {address}/chat      API reference {address}/docs

  # create a session with the built-in agent Echo
  SESSION=$(curl -s {sessions} -H 'Content-Type: application/json' \\
    -d '{{"agentId":"{ECHO_ID}","userId":"{SOMEBODY}"}}' \\
    | grep -o '"sessionId":"[^"]*' | head -1 | cut -d'"' -f4); echo $SESSION

  # send a message and wait for the answer
  curl -s {sessions}/$SESSION/messages -H 'Content-Type: application/json' \\
    -H 'Prefer: return=minimal' -d '{{"content":"hello there","transport":"http"}}'; echo

  # follow the conversation from its start, then live (Ctrl-C ends it)
  curl -N "{sessions}/$SESSION/events?after=0"

Ctrl-C stops the service.
"""

"""Show one session: its state, its configuration and where each value came from, its newest messages."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sessions_api.cli import service
from sessions_api.cli.errors import CommandError
from sessions_api.cli.terminal import clean, duration, local_time, style


def arguments(parser: argparse.ArgumentParser) -> None:
    service.arguments(parser)
    service.session_argument(parser)
    parser.add_argument(
        "--messages",
        type=int,
        default=10,
        metavar="N",
        help="so many of the newest messages (10, at most 100)",
    )
    parser.add_argument(
        "--json", action="store_true", help="the session as the API sends it, without messages"
    )


def run(args: argparse.Namespace) -> int:
    api = service.Service(args)
    try:
        session = api.ask("GET", f"/{args.session}")
    except service.Gone as gone:
        if args.json or not _print_messages(api, args):
            raise
        raise CommandError(f"{gone}; above is what was said") from gone
    if args.json:
        print(json.dumps(session, ensure_ascii=False, indent=2))
        return 0
    _print_session(session)
    _print_messages(api, args)
    return 0


def _print_session(session: dict[str, Any]) -> None:
    config, sources = session["timeoutConfig"], session["timeoutSources"]
    rows = {
        "session": session["sessionId"],
        "agent": session["agentId"],
        "user": session["userId"],
        "stage": session["stage"],
        "created": f"{session['createdAt']}, last activity {local_time(session['lastActivity'])}",
        "ends": f"{session['expiresAt']}, in {duration(session['timeRemaining'])}",
        "renewed": f"{session['renewalCount']} times; at the latest it ends {session['maxExpiresAt']}",
        "turn": f"{turn['turnId']} {turn['state']}" if (turn := session.get("activeTurn")) else "none",
        "metadata": clean(json.dumps(session["metadata"], ensure_ascii=False)),
    }
    for name, value in config.items():
        rows[name] = f"{json.dumps(value)} (from {_source(sources[name])})"
    for name, value in rows.items():
        print(f"{style(name.ljust(24), '2')}{value}")


def _source(tier: str) -> str:
    return {"session": "the session", "agent": "its agent", "default": "the service"}[tier]


def _print_messages(api: service.Service, args: argparse.Namespace) -> int:
    """Print the newest messages, also of a session that has ended; how many there were."""
    if args.messages < 1:
        return 0
    try:
        params = {"limit": str(args.messages), "ended": "true"}
        messages = api.ask("GET", f"/{args.session}/messages", params=params)["messages"]
    except service.Gone:
        return 0
    if messages:
        print()
    for message in reversed(messages):
        who = style(message["role"].ljust(7), "36" if message["isAgent"] else "32")
        print(f"{style(local_time(message['createdAt']), '2')}  {who}{clean(message['content'])}")
    return len(messages)

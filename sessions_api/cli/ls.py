"""List live sessions, newest first where one agent's or one user's are asked for.

Sessions that have expired are never listed; `sessions-api show ID` still tells of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from sessions_api.cli import service
from sessions_api.cli.terminal import duration, print_table

COLUMNS = ("SESSION", "AGENT", "USER", "STAGE", "ENDS IN", "RENEWED", "LAST MESSAGE")
PAGE = 1000


def arguments(parser: argparse.ArgumentParser) -> None:
    service.arguments(parser)
    parser.add_argument("--agent", type=service.uuid, metavar="ID", help="only this agent's")
    parser.add_argument("--user", type=service.uuid, metavar="ID", help="only this user's")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many (100; 0: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, as the API sends them")


def run(args: argparse.Namespace) -> int:
    shown = 0
    rows: list[tuple[str, ...]] = []
    for session in _sessions(service.Service(args), args):
        shown += 1
        if args.json:
            print(json.dumps(session, ensure_ascii=False))
        else:
            rows.append(_row(session))
    if not args.json:
        print_table(COLUMNS, rows)
    if args.limit and shown == args.limit:
        print(f"the first {shown}; --limit shows more", file=sys.stderr)
    elif not shown:
        print("no live sessions", file=sys.stderr)
    return 0


def _sessions(api: service.Service, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    left = args.limit if args.limit > 0 else None
    params = {name: value for name, value in (("agentId", args.agent), ("userId", args.user)) if value}
    while left is None or left > 0:
        page = api.ask("GET", params={**params, "limit": str(min(PAGE, left or PAGE))})
        yield from page["sessions"]
        left = None if left is None else left - len(page["sessions"])
        if "nextCursor" not in page:
            return
        params["cursor"] = page["nextCursor"]


def _row(session: dict[str, Any]) -> tuple[str, ...]:
    return (
        session["sessionId"],
        session["agentId"][:8],
        session["userId"][:8],
        session["stage"],
        duration(session["timeRemaining"]),
        str(session["renewalCount"]),
        session["lastActivity"][:19].replace("T", " ") if session["cursor"] else "-",
    )

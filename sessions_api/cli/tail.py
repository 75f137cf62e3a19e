"""Follow one session live: every message and event, one line each, until it ends or Ctrl-C.

A broken connection is taken up again where it broke: nothing is lost or shown twice.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from sessions_api.cli import service
from sessions_api.cli.terminal import describe, local_time, style

PAUSE_FIRST_S, PAUSE_LAST_S = 0.5, 8.0


def arguments(parser: argparse.ArgumentParser) -> None:
    service.arguments(parser)
    service.session_argument(parser)
    parser.add_argument(
        "--after", metavar="CURSOR", help="first what came after this cursor; 0: the whole conversation"
    )
    parser.add_argument("--json", action="store_true", help="events as the API sends them, one a line")


def run(args: argparse.Namespace) -> int:
    api = service.Service(args)
    after: str | None = args.after
    api.ask(
        "GET", f"/{args.session}/messages", params={"limit": "1", "ended": "true"}
    )  # unknown: say so at once
    pause_s = PAUSE_FIRST_S
    while True:
        try:
            for frame in api.follow(args.session, after):
                pause_s = PAUSE_FIRST_S
                after = frame.id or after
                _print(frame.event, as_json=args.json)
                if frame.event["type"] == "closing" and not frame.event["data"]["retry"]:
                    return 0
        except service.Over:
            return 0
        except service.Lost as lost:
            print(f"{lost}; trying again", file=sys.stderr)
        time.sleep(pause_s)
        pause_s = min(PAUSE_LAST_S, pause_s * 2)


def _print(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        line = json.dumps(event, ensure_ascii=False)
    else:
        when, what = style(local_time(event["time"]), "2"), style(event["type"].ljust(17), "36")
        line = f"{when}  {what} {describe(event)}"
    print(line, flush=True)

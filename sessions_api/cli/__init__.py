"""``sessions-api …``: one file per command, loaded only when it is the one asked for.

A command's module has a docstring (its help), ``arguments(parser)`` and
``run(args) -> int`` (its exit status). What goes wrong is raised as
:class:`CommandError` and told in one line on stderr.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from sessions_api.cli.errors import CommandError
from sessions_api.errors import SettingsError

COMMANDS = {
    "dev": "start the service here, with its own Redis-compatible server: nothing to install",
    "serve": "start the service on a Redis of yours",
    "doctor": "check that Redis and its settings can hold what the service promises",
    "chat": "talk to an agent in this terminal",
    "agents": "list, show, define and forget agents",
    "keys": "make, list and remove access keys",
    "ls": "list live sessions",
    "show": "show one session",
    "tail": "follow one session's events live",
}

INTERRUPTED = 130
"""Exit status of a command ended by Ctrl-C, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _overview()
    if not words:
        parser.print_help()
        return 2
    if words[0] not in COMMANDS:
        parser.parse_args(words)  # --help, --version, or a usage error
        return 2
    try:
        return _run(words[0], words[1:])
    except CommandError as error:
        print(f"sessions-api {words[0]}: {error}", file=sys.stderr)
        return error.status
    except SettingsError as error:
        for problem in error.problems:
            print(f"sessions-api {words[0]}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `… ls | head`: the reader has gone; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _overview() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {name:<8} {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="sessions-api",
        description="Persistent, stateful conversations with AI agents.",
        usage="sessions-api COMMAND [options]",
        epilog=f"commands:\n{rows}\n\n`sessions-api COMMAND --help` tells more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sessions-api {version('sessions-api')}")
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS, metavar="COMMAND")
    return parser


def _run(name: str, words: list[str]) -> int:
    module = importlib.import_module(f"sessions_api.cli.{name}")
    parser = argparse.ArgumentParser(
        prog=f"sessions-api {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    status: int = module.run(parser.parse_args(words))
    return status

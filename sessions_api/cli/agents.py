"""List agents, show one, define one, forget one.

    sessions-api agents ls
    sessions-api agents show ID
    sessions-api agents put ID --name Support --kind worker --set session.timeoutMinutes=45
    sessions-api agents put --file agents.toml
    sessions-api agents rm ID

`put` replaces the whole definition: what is not named gets its default. A file
is TOML, with [[agents]] or one agent, or JSON as `show --json` prints it;
`apiKeyEnv` and `secretEnv` in it name variables of this environment. A webhook
keeps its signing secret, unless another is given; `--set config.secret=` makes a new one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from sessions_api.cli import service
from sessions_api.cli.errors import CommandError
from sessions_api.cli.terminal import clean, local_time, print_table, style

COLUMNS = ("AGENT", "NAME", "KIND", "STATE", "SINCE")
HIDDEN = "********"


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="ls | show | put | rm", title="verbs")
    ls = verbs.add_parser("ls", help="every agent, and whether it is there", description=_list.__doc__)
    show = verbs.add_parser("show", help="one agent", description=_show.__doc__)
    put = verbs.add_parser("put", help="define agents", description=_put.__doc__)
    rm = verbs.add_parser("rm", help="forget an agent", description=_forget.__doc__)
    for verb, act in ((ls, _list), (show, _show), (put, _put), (rm, _forget)):
        service.arguments(verb)
        verb.set_defaults(act=act)
    for verb in (show, rm):
        verb.add_argument("agent", metavar="ID", type=service.uuid, help="the agent's id")
    for verb in (ls, show):
        verb.add_argument("--json", action="store_true", help="as the API sends it")
    put.add_argument("agent", metavar="ID", nargs="?", type=service.uuid, help="the agent's id")
    put.add_argument("--file", type=Path, metavar="PATH", help="TOML or JSON; - reads JSON from the input")
    put.add_argument("--name", help="what people call it")
    put.add_argument("--kind", help="worker, webhook, openai or echo")
    put.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other member: turnTimeoutMs=60000, onBusy=merge, config.url=https://…",
    )
    rm.add_argument("--force", action="store_true", help="also with live sessions: their turns fail")


def run(args: argparse.Namespace) -> int:
    status: int = args.act(service.Service(args), args)
    return status


def _list(api: service.Service, args: argparse.Namespace) -> int:
    """Every agent that is defined, and whether it is there to answer."""
    agents = api.ask("GET", service.AGENTS)["agents"]
    if args.json:
        for agent in agents:
            print(json.dumps(agent, ensure_ascii=False))
        return 0
    print_table(COLUMNS, [_row(agent) for agent in agents])
    if not agents:
        print("no agents", file=sys.stderr)
    return 0


def _row(agent: dict[str, Any]) -> tuple[str, ...]:
    presence = agent["availability"]
    since = presence.get("since", "-")[:19].replace("T", " ")
    return agent["agentId"], clean(agent["name"]), agent["kind"], presence["state"], since


def _show(api: service.Service, args: argparse.Namespace) -> int:
    """One agent: its definition, and what it has to do."""
    agent = api.ask("GET", f"{service.AGENTS}/{args.agent}")
    if args.json:
        print(json.dumps(agent, ensure_ascii=False, indent=2))
        return 0
    now = api.ask("GET", f"{service.AGENTS}/{args.agent}/availability")
    rows = {"agent": agent.pop("agentId"), "name": agent.pop("name"), "kind": agent.pop("kind")}
    agent.pop("availability")
    since = f" since {local_time(now['since'])}" if "since" in now else ""
    rows["state"] = f"{now['state']}{since}"
    rows["workers"] = f"{now['workers']}, for {now['capacity']} turns at once"
    rows["turns"] = f"{now['running']} running; sessions that wait: {now['waiting']}"
    for name, value in agent.items():
        for key, each in value.items() if isinstance(value, dict) else [("", value)]:
            rows[f"{name}.{key}" if key else name] = json.dumps(each, ensure_ascii=False)
    for name, text in rows.items():
        print(f"{style(name.ljust(32), '2')}{clean(text)}")
    return 0


def _put(api: service.Service, args: argparse.Namespace) -> int:
    """Define agents, from a file or from these options, or from both for one agent.

    What is not named gets its default: a definition is replaced as a whole.
    Only a webhook's signing secret stays, unless it is named.
    """
    for agent_id, definition in _definitions(args):
        if definition.get("kind") == "webhook" and isinstance(
            config := definition.setdefault("config", {}), dict
        ):
            _settle_secret(api, agent_id, config)
        try:
            told = api.ask("PUT", f"{service.AGENTS}/{agent_id}", body=definition)
        except service.Invalid as invalid:
            lines = "".join(f"\n  {problem}" for problem in invalid.problems)
            raise CommandError(f"{agent_id} is not defined:{lines}") from invalid
        print(f"{agent_id} {clean(told['name'])} ({told['kind']}) is defined")
        if (secret := told["config"].get("secret", HIDDEN)) not in {HIDDEN, _given_secret(definition)}:
            print(f"its signing secret, shown this once: {secret}")
    return 0


def _forget(api: service.Service, args: argparse.Namespace) -> int:
    """Forget an agent. With live sessions only by --force, and then their open turns fail."""
    params = {"force": "true"} if args.force else {}
    try:
        told = api.ask("DELETE", f"{service.AGENTS}/{args.agent}", params=params)
    except CommandError as refused:
        if "AGENT_IN_USE" in str(refused):
            raise CommandError(
                f"{refused}; --force forgets it all the same, and fails their turns"
            ) from refused
        raise
    print(f"{args.agent} is forgotten; turns that failed with it: {told['failedTurns']}")
    return 0


# ------------------------------------------------------------ what to put


def _definitions(args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Ids and definitions, as the file and the options have them."""
    found = _of_file(args.file) if args.file is not None else [{}]
    given = {name: value for name in ("name", "kind") if (value := getattr(args, name)) is not None}
    has_options = args.agent or given or args.set
    if len(found) != 1 and has_options:
        raise CommandError(
            f"{args.file} defines {len(found)} agents: an id and options are for one", status=2
        )
    for table in found:
        table.update(given)
        for assignment in args.set:
            _assign(table, assignment)
    pairs = []
    for table in found:
        own = table.pop("id", None) or table.get("agentId")
        agent_id = args.agent or own
        if agent_id is None:
            raise CommandError("which agent? Give its id, here or in the file", status=2)
        if own is not None and str(own).lower() != str(agent_id).lower():
            raise CommandError(f"the file defines {own}, not {agent_id}", status=2)
        pairs.append((str(agent_id), _without_variables(table)))
    return pairs


def _of_file(path: Path) -> list[dict[str, Any]]:
    """The agents of a TOML or JSON file.

    Raises:
        CommandError: it cannot be read, or holds something else.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise CommandError(f"{path} cannot be read: {reason}", status=2) from error
    try:
        document = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise CommandError(f"{path} cannot be read: {error}", status=2) from error
    tables = document.get("agents", [document]) if isinstance(document, dict) else document
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise CommandError(f"{path} holds no agent: it needs [[agents]], or the members of one", status=2)
    return tables


def _assign(table: dict[str, Any], assignment: str) -> None:
    """``config.model=small``: a member of a member; the value is JSON, or else text."""
    path, equals, text = assignment.partition("=")
    if not equals or not all(names := path.split(".")):
        raise CommandError(f"--set {assignment}: write KEY=VALUE", status=2)
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise CommandError(f"--set {assignment}: {name} is a value, and has no members", status=2)
    try:
        table[names[-1]] = json.loads(text)
    except ValueError:
        table[names[-1]] = text


def _without_variables(definition: dict[str, Any]) -> dict[str, Any]:
    """With secrets in the place of their variables' names: the service has another environment."""
    config = definition.get("config")
    if not isinstance(config, dict):
        return definition
    for name in [name for name in config if name.endswith("Env")]:
        variable = str(config.pop(name))
        secret = os.environ.get(variable, "").strip()
        if not secret:
            raise CommandError(f"config.{name}: {variable} is not set in this environment", status=2)
        config[name.removesuffix("Env")] = secret
    return definition


def _settle_secret(api: service.Service, agent_id: str, config: dict[str, Any]) -> None:
    """A receiver knows its secret: it stays what it is, unless *config* has another or none ("")."""
    if config.get("secret") == "":
        del config["secret"]  # the service makes a new one
    elif "secret" not in config and _has_secret(api, agent_id):
        config["secret"] = HIDDEN


def _has_secret(api: service.Service, agent_id: str) -> bool:
    try:
        stored = api.ask("GET", f"{service.AGENTS}/{agent_id}")
    except service.NoAgent:
        return False
    return "secret" in stored["config"]


def _given_secret(definition: dict[str, Any]) -> object:
    config = definition.get("config")
    return config.get("secret") if isinstance(config, dict) else None

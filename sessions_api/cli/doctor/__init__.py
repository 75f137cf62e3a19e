"""Check that Redis, how it is set up, and the replicas can hold what the service promises.

Looks at REDIS_URL (or --redis-url), of whatever topology, else at the server of a
`sessions-api dev` that runs on the data folder. Changes nothing. What it may not
see it says, and goes on. docs/operations.md has a paragraph for each check.

The exit status is 0 if all is well, 1 if something could be better (warn), 2 if
something is wrong (fail) or could not be looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import json

from sessions_api.cli import serving
from sessions_api.cli.doctor import contents, rights, server, service, topology
from sessions_api.cli.doctor.findings import COLOURS, STATUS, Finding, folded, worst
from sessions_api.cli.doctor.look import look
from sessions_api.cli.errors import CommandError
from sessions_api.cli.terminal import style
from sessions_api.embedded import EmbeddedServer
from sessions_api.errors import StorageError, StorageFault
from sessions_api.settings import Settings
from sessions_api.store import Redis, Store
from sessions_api.store.inspection import servers_of
from sessions_api.store.keys import Keyspace
from sessions_api.telemetry import logs

INDENT = " " * 6


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--redis-url", help="look at this Redis (REDIS_URL)")
    parser.add_argument("--data-dir", help="else at the server of `dev` on this folder (SESSIONS_DATA_DIR)")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def run(args: argparse.Namespace) -> int:
    settings = Settings.from_env(
        serving.environment({"REDIS_URL": args.redis_url, "SESSIONS_DATA_DIR": args.data_dir})
    )
    logs.configure("critical", "console")  # the findings are all there is to say
    url = settings.redis_url or EmbeddedServer(settings.data_dir).url
    findings = asyncio.run(examined(url, settings))
    if args.json:
        print(_as_json(findings))
    else:
        _print(findings)
    return STATUS[worst(findings)]


async def examined(url: str, settings: Settings) -> list[Finding]:
    """Everything there is to say of the Redis at *url* and the replicas on it.

    Raises:
        CommandError: it does not answer.
    """
    async with Redis.from_url(url, deadline_ms=settings.sessions_redis_deadline_ms) as redis:
        store = Store(redis, Keyspace(settings.sessions_key_prefix))
        try:
            await redis.ping()
            return await _examine(store, settings)
        except (StorageError, StorageFault) as error:
            where = (
                "REDIS_URL"
                if settings.redis_url
                else f"the server of `sessions-api dev` in {settings.data_dir}"
            )
            raise CommandError(f"{where} does not answer: {error}", status=2) from error


async def _examine(store: Store, settings: Settings) -> list[Finding]:
    servers = await servers_of(store.redis)
    looks = await asyncio.gather(*(look(each) for each in servers))
    findings = await topology.examine(store, looks, settings)
    for each in looks:
        findings += server.examine(each)
    findings += await rights.examine(store, servers)
    findings += await service.examine(store)
    findings += await contents.examine(store, servers)
    return findings


def _as_json(findings: list[Finding]) -> str:
    counts = {verdict: sum(found.verdict == verdict for found in findings) for verdict in COLOURS}
    rows = [{name: value for name, value in found._asdict().items() if value} for found in findings]
    return json.dumps({"verdict": worst(findings), "counts": counts, "findings": rows}, ensure_ascii=False)


def _print(findings: list[Finding]) -> None:
    rows = folded(findings)
    if len({finding.server for finding in findings} - {""}) == 1:
        rows = [finding._replace(server="") for finding in rows]
    width = max(len(finding.check) for finding in rows)
    for finding in rows:
        where = f"  ({finding.server})" if finding.server else ""
        verdict = style(finding.verdict.ljust(4), COLOURS[finding.verdict])
        print(f"{verdict}  {finding.check.ljust(width)}  {finding.found}{where}")
        if finding.costs:
            print(f"{INDENT}costs: {finding.costs}")
        if finding.fix:
            print(f"{INDENT}→ {finding.fix}")
    counts = {verdict: sum(found.verdict == verdict for found in rows) for verdict in COLOURS}
    print(f"\n{counts['fail']} fail, {counts['warn']} warn, {counts['ok']} ok")

"""The service's own replicas: who lives, whether they are alike, and who keeps which partitions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Final

from sessions_api.cli.doctor.findings import Finding
from sessions_api.domain.ids import PARTITIONS
from sessions_api.keeper.membership import differing
from sessions_api.store import Store
from sessions_api.store.keys import SCHEMA
from sessions_api.store.replicas import Replica

TAKEN_OVER_S: Final = 6.0
"""A dead replica's partitions may be nobody's for so long."""
LOOK_S: Final = 0.5
SHOWN_CHARS: Final = 60


async def examine(store: Store) -> list[Finding]:
    replicas = await store.replicas.alive()
    return [
        await _schema(store),
        _replicas(replicas),
        *_versions(replicas),
        *await _settings(store, replicas),
        *await _keepers(store),
    ]


async def _schema(store: Store) -> Finding:
    flat = await store.redis.command(b"HGETALL", store.keyspace.meta, safe=True)
    meta = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
    if not meta:
        prefix = store.keyspace.prefix
        return Finding("ok", "schema", f"none yet under {prefix!r}: the first start writes it")
    found = f"schema {meta.get('schema')}, {meta.get('partitions')} partitions"
    if (meta.get("schema"), meta.get("partitions")) != (str(SCHEMA), str(PARTITIONS)):
        return Finding(
            "fail",
            "schema",
            found,
            costs="this release refuses to start on it",
            fix=f"it reads schema {SCHEMA} with {PARTITIONS} partitions: use another SESSIONS_KEY_PREFIX, "
            "or the release that wrote it",
        )
    return Finding("ok", "schema", found)


def _replicas(replicas: list[Replica]) -> Finding:
    keepers = sum(replica.keeps for replica in replicas)
    if not replicas:
        return Finding("ok", "replicas", "none runs on this Redis under this prefix")
    found = f"{len(replicas)} live, {keepers} of them keep partitions"
    if not keepers:
        return Finding(
            "fail",
            "replicas",
            found,
            costs="no warning, no end and no lapsed turn is told of",
            fix="run one with SESSIONS_KEEPER=on",
        )
    if len(replicas) == 1:
        found = "one lives: while it is away, so is the service"
    return Finding("ok", "replicas", found)


def _versions(replicas: list[Replica]) -> Iterator[Finding]:
    counts = Counter(replica.version for replica in replicas)
    found = ", ".join(f"{count} of {version}" for version, count in sorted(counts.items()))
    if len(counts) > 1:
        yield Finding(
            "warn",
            "releases",
            found,
            costs="none, while an upgrade goes on: each reads what the other writes",
            fix="finish the upgrade, or take it back",
        )
    elif counts:
        yield Finding("ok", "releases", found)


async def _settings(store: Store, replicas: list[Replica]) -> list[Finding]:
    told = {replica.digest for replica in replicas if replica.digest}
    if not told:
        return []
    if len(told) == 1:
        return [Finding("ok", "settings", "all replicas have the same, in what they must share")]
    by_digest = {digest: await store.replicas.settings(digest) for digest in sorted(told)}
    counts = Counter(replica.digest for replica in replicas)
    usual, *others = sorted(by_digest, key=lambda digest: (-counts[digest], digest))
    names = sorted({name for other in others for name in differing(by_digest[usual], by_digest[other])})
    found = "; ".join(
        f"{name}: {' / '.join(_shown(by_digest[digest].get(name, '–')) for digest in (usual, *others))}"
        for name in names
    )
    who = [replica.replica_id for replica in replicas if replica.digest in others]
    return [
        Finding(
            "warn",
            "settings",
            f"not the same everywhere: {found}",
            costs="a session is served by the rules of whichever replica is asked",
            fix=f"give all replicas the same, and restart those that differ from most: {', '.join(who)}",
        )
    ]


def _shown(value: str) -> str:
    return value if len(value) <= SHOWN_CHARS else value[:SHOWN_CHARS] + "…"


async def _keepers(store: Store) -> list[Finding]:
    """Who keeps the partitions; some may be nobody's until others had the time to take them over."""
    until_s = asyncio.get_running_loop().time() + TAKEN_OVER_S
    while True:
        replicas = await store.replicas.alive()
        keepers = [replica.replica_id for replica in replicas if replica.keeps]
        holders = await asyncio.gather(
            *(
                store.redis.command(b"GET", store.keyspace.partition(n).keeper, safe=True)
                for n in range(PARTITIONS)
            )
        )
        kept = Counter(holder.decode() for holder in holders if holder)
        missing = PARTITIONS - sum(kept.values())
        if not keepers or not missing or asyncio.get_running_loop().time() > until_s:
            break
        await asyncio.sleep(LOOK_S)
    if not keepers:
        return []
    least, most = min(kept.values(), default=0), max(kept.values(), default=0)
    found = (
        f"{PARTITIONS - missing} of {PARTITIONS} partitions are kept, "
        f"{least} to {most} each by {len(kept)} replicas"
    )
    if missing:
        return [
            Finding(
                "fail",
                "keepers",
                found,
                costs="of sessions in the others no warning and no end is told",
                fix="look at the replicas' logs for loop_failed; run another replica",
            )
        ]
    return [Finding("ok", "keepers", found)]

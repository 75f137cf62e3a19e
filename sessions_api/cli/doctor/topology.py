"""How the servers stand to each other: one, a primary with Sentinels, or a Cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from sessions_api.cli.doctor.findings import Finding
from sessions_api.cli.doctor.look import Look
from sessions_api.cli.errors import CommandError
from sessions_api.settings import Settings
from sessions_api.store import Store
from sessions_api.store.inspection import Refused, sentinels_of, tags_at, uncovered
from sessions_api.store.keys import TAGS
from sessions_api.store.seeds import ClusterAddress
from sessions_api.store.sentinel import SentinelAddress

MOST_DOWN_AFTER_MS: Final = 10_000
MOST_NODE_TIMEOUT_MS: Final = 15_000
CROWDED: Final = 1.5
"""A primary with so many times the mean of partitions."""
MOST_LAG_S: Final = 10


async def examine(store: Store, looks: list[Look], settings: Settings) -> list[Finding]:
    door = store.redis.address
    if isinstance(door, SentinelAddress):
        found = list(_of_sentinels(door.name, await sentinels_of(door), looks[0]))
    elif isinstance(door, ClusterAddress):
        found = list(_of_cluster(looks))
    else:
        found = list(_of_one(looks[0]))
    found += [each for look in looks for each in _of_replication(look)]
    if settings.awaited_replicas:
        found += _of_durability(looks, settings.awaited_replicas)
    return found


def _of_one(look: Look) -> Iterator[Finding]:
    """One server; of a cluster, or a sentinel, it says that its URL should say so.

    Raises:
        CommandError
    """
    mode = look.info.get("server_mode", look.info.get("redis_mode", "standalone"))  # Valkey's name, Redis's
    if look.info.get("cluster_enabled") == "1":
        mode = "cluster"
    if mode != "standalone":
        raise CommandError(f"REDIS_URL names a {mode}: it begins with redis+{mode}://", status=2)
    replicas = int(look.info.get("connected_slaves", 0))
    if look.info.get("role", "master") != "master":
        yield Finding(
            "fail",
            "topology",
            "the server is a replica",
            costs="every write is refused",
            fix="name its primary in REDIS_URL",
        )
    elif replicas:
        found = (
            f"one server with {replicas} replicas; nobody promotes one (redis+sentinel:// follows who does)"
        )
        yield Finding("ok", "topology", found)
    else:
        yield Finding("ok", "topology", "one server: while it is away the service answers 503")


def _of_sentinels(name: str, told: dict[str, dict[str, Any] | Refused], primary: Look) -> Iterator[Finding]:
    known = {host: state for host, state in told.items() if not isinstance(state, Refused)}
    silent = [f"{host}: {state.reason}" for host, state in told.items() if isinstance(state, Refused)]
    named = {f"{state['ip']}:{state['port']}" for state in known.values()}
    found = f"primary {name!r} at {', '.join(sorted(named))}, {len(known)} of {len(told)} sentinels answer"
    if silent:
        yield Finding(
            "fail" if len(known) <= len(told) // 2 else "warn",
            "topology",
            f"{found} ({'; '.join(silent)})",
            costs="without a majority of them there is no failover",
            fix="start them, or take them out of REDIS_URL",
        )
    elif len(named) > 1:
        yield Finding(
            "fail",
            "topology",
            found,
            costs="replicas of the service may write to different servers",
            fix="look again in a minute; else SENTINEL RESET at who is behind",
        )
    elif len(told) < 3:
        yield Finding(
            "warn",
            "topology",
            found,
            costs="two sentinels cannot outvote the loss of one",
            fix="run three, on machines of their own, and name all in REDIS_URL",
        )
    else:
        yield Finding("ok", "topology", found)
    if not known:
        return
    state = next(iter(known.values()))
    yield _quorum(known)
    yield _down_after(int(state["down-after-milliseconds"]))
    yield _standbys(state)
    least = primary.settings.get("min-replicas-to-write")
    if least == "0":
        yield Finding(
            "warn",
            "lone-primary",
            "min-replicas-to-write 0",
            costs="a primary that is cut off from the others goes on accepting what is then lost",
            fix="CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag 10, on every server",
        )
    elif least is not None:
        lag = primary.settings.get("min-replicas-max-lag")
        yield Finding("ok", "lone-primary", f"min-replicas-to-write {least}, min-replicas-max-lag {lag}")


def _quorum(known: dict[str, dict[str, Any]]) -> Finding:
    state = next(iter(known.values()))
    found = f"quorum {state['quorum']} of {int(state['num-other-sentinels']) + 1} sentinels"
    said = [each["quorum-check"] for each in known.values()]
    refusals = {reply.reason for reply in said if isinstance(reply, Refused)}
    lacking = sorted(reason for reason in refusals if reason.startswith(("NOQUORUM", "NOGOODSLAVE")))
    if lacking:
        return Finding(
            "fail",
            "quorum",
            f"{found}; {'; '.join(lacking)}",
            costs="there is no failover",
            fix="start the sentinels that are missing",
        )
    return Finding("ok", "quorum", found + (" (SENTINEL CKQUORUM is refused)" if refusals else ""))


def _down_after(down_after_ms: int) -> Finding:
    found = f"down-after-milliseconds {down_after_ms}"
    if down_after_ms > MOST_DOWN_AFTER_MS:
        return Finding(
            "warn",
            "failover-time",
            found,
            costs="a dead primary is missed for so long: 503 meanwhile",
            fix=f"SENTINEL SET NAME down-after-milliseconds {MOST_DOWN_AFTER_MS // 2}, at each sentinel",
        )
    return Finding("ok", "failover-time", found)


def _standbys(state: dict[str, Any]) -> Finding:
    rows = state["replicas"]
    if isinstance(rows, Refused):
        count = int(state["num-slaves"])
        found = f"{count} replicas (SENTINEL REPLICAS is refused: how they fare is what they say themselves)"
        rows = [{"master-link-status": "ok"}] * count
        if count:
            return Finding("ok", "standbys", found)
    whole = [
        row for row in rows if row.get("master-link-status") == "ok" and "down" not in row.get("flags", "")
    ]
    found = f"{len(whole)} of {len(rows)} replicas can take over"
    if not whole:
        return Finding(
            "fail",
            "standbys",
            found,
            costs="there is no failover",
            fix="start a replica: REPLICAOF HOST PORT",
        )
    if len(whole) < len(rows):
        return Finding(
            "warn",
            "standbys",
            found,
            costs="the next failure may find none",
            fix="start the others, or SENTINEL RESET if they are gone for good",
        )
    return Finding("ok", "standbys", found)


def _of_cluster(looks: list[Look]) -> Iterator[Finding]:
    primaries = [look for look in looks if not look.server.is_replica]
    missing = uncovered([look.server for look in primaries])
    found = f"cluster of {len(primaries)} primaries and {len(looks) - len(primaries)} replicas"
    if missing:
        yield Finding(
            "fail",
            "topology",
            f"{found}; {missing} of 16384 slots are served by nobody",
            costs="sessions there cannot be used",
            fix="redis-cli --cluster fix, or bring the lost primary back",
        )
    else:
        yield Finding("ok", "topology", f"{found}, every slot is served")
    bare = [look.server.name for look in primaries if look.info.get("connected_slaves") == "0"]
    if bare:
        yield Finding(
            "warn",
            "standbys",
            f"no replica has {', '.join(bare)}",
            costs="its death takes its sessions along until it is back",
            fix="redis-cli --cluster add-node … --cluster-slave",
        )
    else:
        yield Finding("ok", "standbys", "every primary has a replica")
    counts = {look.server.name: len(tags_at(look.server)) for look in primaries}
    most, mean = max(counts.values()), len(TAGS) / len(counts)
    spread = f"{len(TAGS)} partitions over {len(counts)} primaries, {min(counts.values())} to {most} each"
    if most > max(CROWDED * mean, mean + 1):
        yield Finding(
            "warn",
            "spread",
            spread,
            costs="the fullest primary is the limit of all",
            fix="redis-cli --cluster rebalance",
        )
    else:
        yield Finding("ok", "spread", spread)
    covered = _names(look for look in looks if look.settings.get("cluster-require-full-coverage") == "yes")
    if covered:
        yield Finding(
            "warn",
            "coverage",
            f"cluster-require-full-coverage yes: {covered}",
            costs="the loss of one primary stops all the others, too",
            fix="CONFIG SET cluster-require-full-coverage no, on every server",
        )
    slow = _names(
        look for look in looks if int(look.settings.get("cluster-node-timeout") or 0) > MOST_NODE_TIMEOUT_MS
    )
    if slow:
        yield Finding(
            "warn",
            "failover-time",
            f"cluster-node-timeout above {MOST_NODE_TIMEOUT_MS}: {slow}",
            costs="a dead primary is missed for so long: 503 for its sessions meanwhile",
            fix="CONFIG SET cluster-node-timeout 5000, on every server",
        )


def _names(looks: Iterable[Look]) -> str:
    return ", ".join(look.server.name for look in looks)


def _of_replication(look: Look) -> Iterator[Finding]:
    """How far the replicas of Redis are behind, as they and their primary say."""
    if look.info.get("role") != "slave":
        return
    name = look.server.name
    silent_s = int(look.info.get("master_last_io_seconds_ago", -1))
    if look.info.get("master_link_status") != "up":
        yield Finding(
            "fail",
            "replication",
            "its link to the primary is down",
            costs="what is written now is there once only",
            fix="look at its log",
            server=name,
        )
    elif silent_s > MOST_LAG_S:
        yield Finding(
            "warn",
            "replication",
            f"nothing heard of the primary for {silent_s} s",
            costs="a failover would lose what came meanwhile",
            fix="look at the network between them",
            server=name,
        )
    else:
        yield Finding("ok", "replication", "the link to its primary is up", server=name)


def _of_durability(looks: list[Look], awaited: int) -> Iterator[Finding]:
    for look in looks:
        if look.server.is_replica or "connected_slaves" not in look.info:
            continue
        there = int(look.info["connected_slaves"])
        found = f"SESSIONS_DURABILITY=replicated asks for {awaited} replicas, {there} are there"
        if there < awaited:
            yield Finding(
                "fail",
                "durability",
                found,
                costs="every write is answered with 503 NOT_REPLICATED",
                fix="start replicas, or set SESSIONS_REDIS_REPLICAS to what there is",
                server=look.server.name,
            )
        elif there == awaited:
            yield Finding(
                "warn",
                "durability",
                found,
                costs="while one is away, writes are answered with 503",
                fix="run one replica more than are asked for",
                server=look.server.name,
            )
        else:
            yield Finding("ok", "durability", found, server=look.server.name)

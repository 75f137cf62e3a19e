"""What is stored: what is overdue, how it is spread, what it takes; from counts, and from a sample."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from sessions_api.cli.doctor.findings import Finding, bytes_in_words
from sessions_api.domain.ids import PARTITIONS
from sessions_api.errors import StorageUnavailable
from sessions_api.store import Store
from sessions_api.store.inspection import Inspection, Refused, Server, inspecting
from sessions_api.store.state import read_state

OVERDUE_MS: Final = 10_000
CROWDED: Final = 2.0
"""A partition with so many times the mean is worth a word, once there are a thousand sessions in each."""
STALE: Final = 1.2
"""So many alarms for each live session are too many, once there are a thousand."""
LARGE: Final = 1_000
SAMPLE_ROUNDS: Final = 50
SAMPLE_KEYS: Final = 200
BIG_HASH: Final = 10_000
STANDING: Final = ("users", "agents", "due", "near", "ready", "running")


async def examine(store: Store, servers: list[Server]) -> list[Finding]:
    sizes = {kind: await _sizes(store, kind) for kind in STANDING}
    return [
        await _promise(store),
        _balance(sizes["users"]),
        await _standing(store, sizes),
        *await _sampled(store, servers, live=sum(sizes["users"])),
    ]


async def _sizes(store: Store, kind: str) -> list[int]:
    """Members of a partition's index, for each partition."""
    keys = (getattr(store.keyspace.partition(number), kind) for number in range(PARTITIONS))
    return list(await asyncio.gather(*(store.redis.command(b"ZCARD", key, safe=True) for key in keys)))


async def _promise(store: Store) -> Finding:
    """Whether somebody rings the alarms: none may be long overdue."""
    seconds, _ = await store.redis.command(b"TIME", safe=True)
    now_ms = int(seconds) * 1000
    dues = [store.keyspace.partition(number).due for number in range(PARTITIONS)]
    until_ms = now_ms - OVERDUE_MS
    counts = await asyncio.gather(
        *(store.redis.command(b"ZCOUNT", due, b"-inf", until_ms, safe=True) for due in dues)
    )
    if not any(counts):
        return Finding("ok", "alarms", "none is overdue")
    firsts = await asyncio.gather(
        *(
            store.redis.command(
                b"ZRANGEBYSCORE", due, b"-inf", until_ms, b"WITHSCORES", b"LIMIT", 0, 1, safe=True
            )
            for due in dues
        )
    )
    oldest_ms = min(int(float(first[1])) for first in firsts if first)
    late_s = (now_ms - oldest_ms) // 1000
    late = f"{sum(counts)} overdue by more than {OVERDUE_MS // 1000} s, the oldest by {late_s} s"
    return Finding(
        "fail",
        "alarms",
        late,
        costs="followers hear late of warnings and ends, and lapsed turns wait",
        fix="run a replica with SESSIONS_KEEPER=on, and look at its log",
    )


def _balance(users: list[int]) -> Finding:
    total, most = sum(users), max(users)
    found = f"{total:,} live sessions in {PARTITIONS} partitions, the fullest has {most:,}"
    if total >= LARGE * PARTITIONS and most > CROWDED * total / PARTITIONS:
        return Finding(
            "warn",
            "balance",
            found,
            costs="the server of that partition does more than its share",
            fix="a user's sessions share a partition: see SESSION_MAX_OPEN_PER_USER",
        )
    return Finding("ok", "balance", found)


async def _standing(store: Store, sizes: dict[str, list[int]]) -> Finding:
    """The keys without a TTL: nothing but their own upkeep makes them smaller."""
    totals = {kind: sum(counts) for kind, counts in sizes.items()}
    keyspace = store.keyspace
    hashes = {"definitions": keyspace.definitions, "states": keyspace.states, "key-uses": keyspace.key_uses}
    for name, key in hashes.items():
        totals[name] = await store.redis.command(b"HLEN", key, safe=True)
    found = ", ".join(f"{name} {count:,}" for name, count in totals.items() if count) or "empty"
    live = totals["users"]
    ghosts = [kind for kind in ("due", "agents") if totals[kind] > STALE * live + LARGE]
    if ghosts:
        return Finding(
            "warn",
            "standing-keys",
            found,
            costs=f"members of {', '.join(ghosts)} without a session take memory",
            fix="keepers clear them out as they come due; if it stays so, look for ghost_found in the log",
        )
    if totals["states"] > totals["definitions"] + BIG_HASH:
        return Finding(
            "warn",
            "standing-keys",
            found,
            costs="every replica reads the states of agents that are gone",
            fix="DELETE /api/agents/{agentId} of those that nobody defines any more",
        )
    return Finding("ok", "standing-keys", found)


class _Sample(NamedTuple):
    live: int = 0
    live_bytes: int = 0
    ended: int = 0
    ended_bytes: int = 0
    logs: int = 0
    log_bytes: int = 0

    def __add__(self, other: tuple[int, ...]) -> _Sample:  # type: ignore[override]  # sums, not a longer tuple
        return _Sample(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


async def _sampled(store: Store, servers: list[Server], *, live: int) -> list[Finding]:
    """What sessions and tombstones take, from a sample of the keys of every primary."""
    sample, reason = _Sample(), ""
    for server in servers:
        if server.is_replica:
            continue
        try:
            async with inspecting(server.address) as ask:
                sample += await _sample(ask, store.keyspace.prefix)
        except StorageUnavailable as error:
            reason = error.reason
        except _Unseen as unseen:
            reason = unseen.args[0]
    if reason and not any(sample):
        return [
            Finding(
                "warn",
                "contents",
                f"not to be seen: {reason}",
                costs="none",
                fix="let this user call SCAN, HGET and MEMORY USAGE",
            )
        ]
    if not sample.live + sample.ended:
        return [Finding("ok", "contents", "no sessions")]
    return [Finding("ok", "contents", _in_words(sample, live=live))]


def _in_words(sample: _Sample, *, live: int) -> str:
    """*live*: how many sessions there are in all; of those that have ended, nobody keeps count."""
    words = []
    if sample.live:
        words.append(f"{sample.live} live, {sample.live_bytes // sample.live:,} bytes each")
    if sample.ended:
        words.append(f"{sample.ended} ended, {sample.ended_bytes // sample.ended:,} bytes each")
    if sample.logs:
        words.append(f"{sample.logs} with a log of {sample.log_bytes // sample.logs:,} bytes")
    if sample.live and sample.ended:
        of_log = sample.log_bytes / (sample.live + sample.ended)
        all_bytes = live * sample.ended / sample.live * (sample.ended_bytes / sample.ended + of_log)
        words.append(f"all that have ended take about {bytes_in_words(all_bytes)}")
    return f"of {sample.live + sample.ended} sessions looked at: {'; '.join(words)}"


class _Unseen(Exception):
    """A question of the sample is refused."""


async def _sample(ask: Inspection, prefix: str) -> _Sample:
    """The hashes of sessions (and, apart, their logs) among some of the server's keys."""
    sample, cursor = _Sample(), "0"
    for _ in range(SAMPLE_ROUNDS):
        reply = await ask.ask("SCAN", cursor, "MATCH", f"{prefix}session:*", "COUNT", 500)
        if isinstance(reply, Refused):
            raise _Unseen(reply.reason)
        cursor = reply[0].decode()
        for key in reply[1]:
            sample += await _weighed(ask, prefix, key)
        if cursor == "0" or sample.live + sample.ended >= SAMPLE_KEYS:
            break
    return sample


async def _weighed(ask: Inspection, prefix: str, key: bytes) -> _Sample:
    log = f"{prefix}log:".encode() + key.removeprefix(f"{prefix}session:".encode())
    state = await ask.ask("HGET", key, "state")
    weight, of_log = await ask.ask("MEMORY", "USAGE", key), await ask.ask("MEMORY", "USAGE", log)
    for reply in (state, weight, of_log):
        if isinstance(reply, Refused):
            raise _Unseen(reply.reason)
    weight, of_log = weight or 0, of_log or 0
    ended = state is not None and bool(read_state(state).reason)
    return _Sample(
        int(not ended), 0 if ended else weight, int(ended), weight if ended else 0, int(of_log > 0), of_log
    )

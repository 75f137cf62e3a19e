"""Check that Redis, and how it is set up, can hold what the service promises.

Looks at REDIS_URL (or --redis-url), else at the server of a `sessions-api dev`
that runs on the data folder. Changes nothing. The exit status is 1 if something
is wrong, 0 if all is well or could merely be better.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Literal, NamedTuple

from sessions_api.cli import serving
from sessions_api.cli.errors import CommandError
from sessions_api.cli.terminal import style
from sessions_api.domain.ids import PARTITIONS
from sessions_api.embedded import EmbeddedServer
from sessions_api.errors import StorageError, StorageFault
from sessions_api.settings import Settings
from sessions_api.store import Redis
from sessions_api.store.keys import SCHEMA, Keyspace
from sessions_api.telemetry import logs

OLDEST = (6, 2)
LISTPACK_VALUE = 1024
STREAM_NODE_BYTES = 1024
SKEW_MS = 2_000
OVERDUE_MS = 10_000
CROWDED = 2.0
"""A partition with so many times the mean is worth a word, once there are a thousand sessions in each."""
SAMPLE_ROUNDS = 50
SAMPLE_KEYS = 200

Verdict = Literal["ok", "better", "wrong"]
COLOURS: dict[Verdict, str] = {"ok": "32", "better": "33", "wrong": "31;1"}


class Finding(NamedTuple):
    """One thing that was looked at; *fix* is what to do about it, where there is something to do."""

    verdict: Verdict
    subject: str
    found: str
    fix: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--redis-url", help="look at this Redis (REDIS_URL)")
    parser.add_argument("--data-dir", help="else at the server of `dev` on this folder (SESSIONS_DATA_DIR)")


def run(args: argparse.Namespace) -> int:
    settings = Settings.from_env(
        serving.environment({"REDIS_URL": args.redis_url, "SESSIONS_DATA_DIR": args.data_dir})
    )
    logs.configure("critical", "console")  # the findings are all there is to say
    url = settings.redis_url or EmbeddedServer(settings.data_dir).url
    findings = asyncio.run(_examine(url, settings))
    for finding in findings:
        verdict = style(finding.verdict.ljust(7), COLOURS[finding.verdict])
        print(f"{verdict} {finding.subject.ljust(14)} {finding.found}")
        if finding.fix:
            print(f"{' ' * 8}→ {finding.fix}")
    wrong = sum(finding.verdict == "wrong" for finding in findings)
    better = sum(finding.verdict == "better" for finding in findings)
    print(f"\n{wrong} wrong, {better} could be better, {len(findings) - wrong - better} well")
    return 1 if wrong else 0


async def _examine(url: str, settings: Settings) -> list[Finding]:
    async with Redis.from_url(url, deadline_ms=settings.sessions_redis_deadline_ms) as redis:
        try:
            await redis.ping()
            doctor = _Doctor(redis, Keyspace(settings.sessions_key_prefix))
            return await doctor.examine()
        except (StorageError, StorageFault) as error:
            where = (
                "REDIS_URL"
                if settings.redis_url
                else f"the server of `sessions-api dev` in {settings.data_dir}"
            )
            raise CommandError(f"{where} does not answer: {error}") from error


class _Doctor:
    def __init__(self, redis: Redis, keyspace: Keyspace) -> None:
        self._redis = redis
        self._keys = keyspace
        self._info: dict[str, str] = {}

    async def examine(self) -> list[Finding]:
        text = await self._redis.command(b"INFO", safe=True)
        self._info = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
        return [
            self._version(),
            await self._notifications(),
            await self._eviction(),
            await self._persistence(),
            await self._clock(),
            await self._packing(),
            await self._schema(),
            await self._balance(),
            await self._promise(),
            await self._tombstones(),
        ]

    async def _config(self, name: str) -> str | None:
        """A setting of the server, or None where we may not ask or it has no such setting."""
        try:
            reply = await self._redis.command(b"CONFIG", b"GET", name, safe=True)
        except (StorageError, StorageFault):  # managed services forbid CONFIG
            return None
        return reply[1].decode() if reply else None

    def _version(self) -> Finding:
        valkey = self._info.get("valkey_version")
        version = self._info.get("redis_version", "0")
        name = f"Valkey {valkey}" if valkey else f"Redis {version}"
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            return Finding("wrong", "version", name, "use Redis 6.2 or later, or Valkey")
        return Finding("ok", "version", name)

    async def _notifications(self) -> Finding:
        events = await self._config("notify-keyspace-events")
        fix = (
            "CONFIG SET notify-keyspace-events Ex; without it warnings and expirations come up to 0.5 s later"
        )
        if events is None:
            return Finding("better", "notifications", "not to be seen: CONFIG is forbidden here", fix)
        if "E" in events and ("x" in events or "A" in events):
            return Finding("ok", "notifications", f"notify-keyspace-events {events}")
        return Finding("better", "notifications", f"notify-keyspace-events {events or '(off)'}", fix)

    async def _eviction(self) -> Finding:
        policy = self._info.get("maxmemory_policy") or await self._config("maxmemory-policy") or "unknown"
        limit = int(self._info.get("maxmemory", "0"))
        if policy != "noeviction":
            fix = "CONFIG SET maxmemory-policy noeviction: a full Redis must refuse, not forget conversations"
            return Finding("wrong" if limit else "better", "eviction", policy, fix)
        return Finding(
            "ok", "eviction", f"{policy}, {f'limit {_bytes(limit)}' if limit else 'no memory limit'}"
        )

    async def _persistence(self) -> Finding:
        if self._info.get("aof_enabled") != "1":
            fix = "appendonly yes: without it a restart loses the sessions since the last snapshot"
            return Finding("wrong", "persistence", "no append-only file", fix)
        if self._info.get("aof_last_write_status") != "ok":
            return Finding(
                "wrong",
                "persistence",
                "the last write to the append-only file failed",
                "look at Redis's log and its disk",
            )
        sync = await self._config("appendfsync") or "unknown"
        if sync == "no":
            fix = "CONFIG SET appendfsync everysec: a power failure then loses at most one second"
            return Finding("better", "persistence", "append-only file, appendfsync no", fix)
        return Finding("ok", "persistence", f"append-only file, appendfsync {sync}")

    async def _clock(self) -> Finding:
        before = time.time()
        seconds, micros = await self._redis.command(b"TIME", safe=True)
        here = (before + time.time()) / 2
        skew_ms = round((int(seconds) + int(micros) / 1e6 - here) * 1000)
        if abs(skew_ms) > SKEW_MS:
            fix = "run NTP on both: sessions go by Redis's clock alone, but logs will not fit together"
            return Finding("better", "clock", f"Redis is {skew_ms / 1000:+.1f} s from this machine", fix)
        return Finding("ok", "clock", f"{skew_ms:+d} ms from this machine")

    async def _packing(self) -> Finding:
        value = await self._config("hash-max-listpack-value") or await self._config("hash-max-ziplist-value")
        node = await self._config("stream-node-max-bytes")
        if value is None or node is None:
            return Finding("better", "packing", "not to be seen: CONFIG is forbidden here")
        found = f"hash-max-listpack-value {value}, stream-node-max-bytes {node}"
        if int(value) < LISTPACK_VALUE or not 0 < int(node) <= STREAM_NODE_BYTES:
            fix = (
                f"CONFIG SET hash-max-listpack-value {LISTPACK_VALUE}, "
                f"stream-node-max-bytes {STREAM_NODE_BYTES}: "
                "about a third less memory a session"
            )
            return Finding("better", "packing", found, fix)
        return Finding("ok", "packing", found)

    async def _schema(self) -> Finding:
        flat = await self._redis.command(b"HGETALL", self._keys.meta, safe=True)
        meta = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
        if not meta:
            return Finding("ok", "schema", f"none yet under {self._keys.prefix!r}: the first start writes it")
        found = f"schema {meta.get('schema')}, {meta.get('partitions')} partitions"
        if (meta.get("schema"), meta.get("partitions")) != (str(SCHEMA), str(PARTITIONS)):
            fix = (
                f"this release reads schema {SCHEMA} with {PARTITIONS} partitions: "
                "use another SESSIONS_KEY_PREFIX, or the release that wrote it"
            )
            return Finding("wrong", "schema", found, fix)
        return Finding("ok", "schema", found)

    async def _balance(self) -> Finding:
        counts = await asyncio.gather(
            *(
                self._redis.command(b"ZCARD", self._keys.partition(n).users, safe=True)
                for n in range(PARTITIONS)
            )
        )
        total, most = sum(counts), max(counts)
        found = f"{total} sessions in {PARTITIONS} partitions, the fullest has {most}"
        if total >= 1000 * PARTITIONS and most > CROWDED * total / PARTITIONS:
            fix = "a user's sessions share a partition: see SESSION_MAX_OPEN_PER_USER"
            return Finding("better", "balance", found, fix)
        return Finding("ok", "balance", found)

    async def _promise(self) -> Finding:
        """Whether somebody keeps the alarms: none may be long overdue."""
        seconds, _ = await self._redis.command(b"TIME", safe=True)
        until = int(seconds) * 1000 - OVERDUE_MS
        late = sum(
            await asyncio.gather(
                *(
                    self._redis.command(b"ZCOUNT", self._keys.partition(n).due, b"-inf", until, safe=True)
                    for n in range(PARTITIONS)
                )
            )
        )
        if late:
            fix = "run a replica with SESSIONS_KEEPER=on, and look at its log"
            return Finding("wrong", "alarms", f"{late} overdue by more than {OVERDUE_MS // 1000} s", fix)
        return Finding("ok", "alarms", "none is overdue")

    async def _tombstones(self) -> Finding:
        """What ended sessions still take, from a sample of the keys."""
        seen = bytes_ = ended = 0
        cursor, rounds = b"0", 0
        pattern = f"{self._keys.prefix}session:*"
        while rounds < SAMPLE_ROUNDS and seen < SAMPLE_KEYS:
            cursor, keys = await self._redis.command(
                b"SCAN", cursor, b"MATCH", pattern, b"COUNT", 500, safe=True
            )
            rounds += 1
            for key in keys:
                seen += 1
                if await self._redis.command(b"HGET", key, b"reason", safe=True):
                    ended += 1
                    bytes_ += await self._redis.command(b"MEMORY", b"USAGE", key, safe=True) or 0
            if cursor == b"0":
                break
        if not ended:
            return Finding("ok", "tombstones", f"none among {seen} sessions looked at")
        found = f"{ended} of {seen} sessions looked at have ended, {bytes_ // ended} bytes each"
        return Finding("ok", "tombstones", f"{found} without their messages")


def _bytes(number: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number //= 1024
    return f"{number:.0f} GiB"

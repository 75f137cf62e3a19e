"""One server of Redis: what it is and how it is set, by what it says of itself (``look.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from sessions_api.cli.doctor import health
from sessions_api.cli.doctor.findings import Finding
from sessions_api.cli.doctor.look import Look

OLDEST: Final = (6, 2)
LISTPACK_VALUE: Final = 1024
STREAM_NODE_BYTES: Final = 1024
PUBSUB_BYTES: Final = 8 * 1024 * 1024
IDLE_S: Final = 60
NEARLY_ALL: Final = 0.8


def examine(look: Look) -> Iterator[Finding]:
    """Everything that can be said of one server."""
    name = look.server.name
    if look.trouble:
        role = "replica" if look.server.is_replica else "server"
        yield Finding(
            "warn",
            "reachable",
            f"the {role} cannot be looked at from here: {look.trouble}",
            costs="what is said here is not said of it",
            fix="run doctor from where it can be reached",
            server=name,
        )
        return
    unseen = [
        setting for setting, value in look.settings.items() if value is None and _is_asked(setting, look)
    ]
    if look.is_info_refused:
        yield Finding(
            "warn",
            "visible",
            "INFO is refused: most of what this server is cannot be seen",
            costs="a fault of it shows in the alerts first",
            fix="let this user call INFO",
            server=name,
        )
    if unseen:
        yield Finding(
            "warn",
            "visible",
            f"CONFIG GET is refused: not to be seen are {', '.join(unseen)}",
            costs="a wrong one shows in the alerts first",
            fix="compare them with deploy/redis/redis.conf by hand",
            server=name,
        )
    for check in CHECKS:
        found = check(look)
        if found is not None:
            yield found._replace(server=name)


def _is_asked(setting: str, look: Look) -> bool:
    return not setting.startswith("cluster-") or bool(look.server.slots)


def _version(look: Look) -> Finding | None:
    version = look.info.get("redis_version")
    if version is None:
        return None
    valkey = look.info.get("valkey_version")
    name = f"Valkey {valkey}" if valkey else f"Redis {version}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return Finding("fail", "version", name, costs="scripts fail", fix="use Redis 6.2 or later, or Valkey")
    return Finding("ok", "version", name)


def _eviction(look: Look) -> Finding | None:
    policy = look.info.get("maxmemory_policy") or look.settings.get("maxmemory-policy")
    if policy is None:
        return None
    if policy != "noeviction":
        return Finding(
            "fail" if look.number("maxmemory") else "warn",
            "eviction",
            policy,
            costs="a full server forgets conversations in place of refusing new ones",
            fix="CONFIG SET maxmemory-policy noeviction",
        )
    return Finding("ok", "eviction", policy)


def _persistence(look: Look) -> Finding | None:
    if "aof_enabled" not in look.info:
        return None
    if look.info["aof_enabled"] != "1":
        return Finding(
            "fail",
            "persistence",
            "no append-only file",
            costs="a restart loses the sessions since the last snapshot",
            fix="CONFIG SET appendonly yes, and in its file",
        )
    for name, what in (("aof_last_write_status", "write to"), ("aof_last_bgrewrite_status", "rewrite of")):
        if look.info.get(name, "ok") != "ok":
            return Finding(
                "fail",
                "persistence",
                f"the last {what} the append-only file failed",
                costs="writes are refused, or the file grows without an end",
                fix="look at its log and its disk",
            )
    sync = look.settings.get("appendfsync")
    if sync == "no":
        return Finding(
            "warn",
            "persistence",
            "append-only file, appendfsync no",
            costs="a power failure loses what the kernel had not written: up to 30 s",
            fix="CONFIG SET appendfsync everysec: then a second, at most two",
        )
    return Finding("ok", "persistence", f"append-only file, appendfsync {sync or 'not to be seen'}")


def _notifications(look: Look) -> Finding | None:
    events = look.settings.get("notify-keyspace-events")
    if events is None or look.server.is_replica:
        return None
    if "E" in events and ("x" in events or "A" in events):
        return Finding("ok", "notifications", f"notify-keyspace-events {events}")
    return Finding(
        "warn",
        "notifications",
        f"notify-keyspace-events {events or '(off)'}",
        costs="followers hear of warnings and ends up to 0.5 s later",
        fix="CONFIG SET notify-keyspace-events Ex",
    )


def _packing(look: Look) -> Finding | None:
    value, node = look.settings.get("packing"), look.settings.get("stream-node-max-bytes")
    if value is None or node is None:
        return None
    found = f"hash-max-listpack-value {value}, stream-node-max-bytes {node}"
    if int(value) < LISTPACK_VALUE or not 0 < int(node) <= STREAM_NODE_BYTES:
        return Finding(
            "warn",
            "packing",
            found,
            costs="about a fifth more memory for a session and its messages",
            fix=f"CONFIG SET hash-max-listpack-value {LISTPACK_VALUE}, CONFIG SET stream-node-max-bytes "
            f"{STREAM_NODE_BYTES} (before Redis 7 the first is called hash-max-ziplist-value)",
        )
    return Finding("ok", "packing", found)


def _idling(look: Look) -> Finding | None:
    timeout, keepalive = look.settings.get("timeout"), look.settings.get("tcp-keepalive")
    if timeout is None or keepalive is None:
        return None
    found = f"timeout {timeout}, tcp-keepalive {keepalive}"
    if 0 < int(timeout) < IDLE_S:
        return Finding(
            "warn",
            "connections",
            found,
            costs="idle connections of replicas are cut, and made again",
            fix="CONFIG SET timeout 0",
        )
    if keepalive == "0":
        return Finding(
            "warn",
            "connections",
            found,
            costs="connections of dead machines are kept for ever",
            fix="CONFIG SET tcp-keepalive 300",
        )
    used, most = look.number("connected_clients"), look.number("maxclients")
    if most and used > NEARLY_ALL * most:
        return Finding(
            "warn",
            "connections",
            f"{used:.0f} clients of {most:.0f} allowed",
            costs="the next are turned away",
            fix="CONFIG SET maxclients to more, and its file descriptors",
        )
    return Finding("ok", "connections", found)


def _buffers(look: Look) -> Finding | None:
    words = (look.settings.get("client-output-buffer-limit") or "").split()
    if "pubsub" not in words:
        return None
    hard, soft, seconds = words[words.index("pubsub") + 1 :][:3]
    found = f"client-output-buffer-limit pubsub {hard} {soft} {seconds}"
    if 0 < int(hard) < PUBSUB_BYTES or 0 < int(soft) < PUBSUB_BYTES:
        return Finding(
            "warn",
            "buffers",
            found,
            costs="a replica that is busy for a moment loses its subscriptions, and its followers wait",
            fix='CONFIG SET client-output-buffer-limit "pubsub 33554432 8388608 60"',
        )
    return Finding("ok", "buffers", found)


CHECKS: Final[tuple[Callable[[Look], Finding | None], ...]] = (
    _version,
    _eviction,
    _persistence,
    _notifications,
    _packing,
    _idling,
    _buffers,
    *health.CHECKS,
)

"""How one server of Redis fares: memory, what it lost or refused, its clock, and how long it takes."""

from __future__ import annotations

from typing import Final

from sessions_api.cli.doctor.findings import Finding, bytes_in_words
from sessions_api.cli.doctor.look import Look

SKEW_MS: Final = 2_000
FULL, NEARLY_FULL = 0.95, 0.8
SWAPPED, FRAGMENTED = 0.9, 1.5
WORTH_A_WORD: Final = 256 * 1024 * 1024
"""Fragmentation of less memory than this is a matter of counting."""
SCATTERED: Final = 64 * 1024 * 1024
"""With so much in memory, what scripts make for a moment lies far apart, unless it is kept apart from it."""
SLOW_MS, VERY_SLOW_MS = 5.0, 50.0
LONG_FORK_US: Final = 500_000


def memory(look: Look) -> Finding | None:
    if "maxmemory" not in look.info:
        return None
    limit, used = look.number("maxmemory"), look.number("used_memory")
    if not limit:
        return Finding(
            "warn",
            "memory",
            f"{bytes_in_words(used)} used, no limit",
            costs="when the machine is full its kernel ends Redis; with a limit new writes are refused (503)",
            fix="CONFIG SET maxmemory BYTES, at most half of the machine's memory: docs/operations.md#sizing",
        )
    found = f"{bytes_in_words(used)} of {bytes_in_words(limit)} used, {used / limit:.0%}"
    if used < NEARLY_FULL * limit:
        return Finding("ok", "memory", found)
    return Finding(
        "fail" if used >= FULL * limit else "warn",
        "memory",
        found,
        costs="at 100 % new sessions and messages are refused with 503 STORAGE_FULL",
        fix="CONFIG SET maxmemory to more, or shorten SESSION_RETENTION_MINUTES",
    )


def refusals(look: Look) -> Finding | None:
    if "evicted_keys" not in look.info:
        return None
    evicted = int(look.number("evicted_keys"))
    refused = int(look.info.get("errorstat_OOM", "count=0").partition("=")[2] or 0)
    turned_away = int(look.number("rejected_connections"))
    found = f"since its start {evicted} keys evicted, {refused} writes refused as full"
    if evicted:
        return Finding(
            "fail",
            "losses",
            found,
            costs="each may have been a conversation",
            fix="set noeviction and more memory, then CONFIG RESETSTAT",
        )
    if refused or turned_away:
        return Finding(
            "warn",
            "losses",
            f"{found}, {turned_away} connections turned away",
            costs="clients got 503",
            fix="give it more memory, or maxclients; then CONFIG RESETSTAT",
        )
    return Finding("ok", "losses", found)


def fragmentation(look: Look) -> Finding | None:
    ratio = look.number("mem_fragmentation_ratio")
    if not ratio:
        return None
    used, resident = look.number("used_memory"), look.number("used_memory_rss")
    found = f"{ratio:.2f} ({bytes_in_words(resident)} resident)"
    if used < WORTH_A_WORD:
        return Finding("ok", "fragmentation", found)
    if ratio < SWAPPED:
        return Finding(
            "fail",
            "fragmentation",
            found,
            costs="part of it is swapped out: scripts wait for the disk",
            fix="give the machine more memory, or the server less maxmemory; switch swap off",
        )
    if ratio > FRAGMENTED:
        return Finding(
            "warn",
            "fragmentation",
            found,
            costs=f"{bytes_in_words(resident - used)} of the machine are of no use",
            fix="CONFIG SET activedefrag yes, or MEMORY PURGE",
        )
    return Finding("ok", "fragmentation", found)


def allocator(look: Look) -> Finding | None:
    name = look.info.get("mem_allocator")
    if name is None:
        return None
    if name == "libc" and look.number("used_memory") >= SCATTERED:
        return Finding(
            "warn",
            "allocator",
            name,
            costs="with 100,000 sessions scripts take half as long again as with jemalloc",
            fix="use a server as distributions and official images build it",
        )
    return Finding("ok", "allocator", name)


def fork(look: Look) -> Finding | None:
    fork_us = look.number("latest_fork_usec")
    if fork_us < LONG_FORK_US:
        return None
    return Finding(
        "warn",
        "fork",
        f"the last rewrite's fork took {fork_us / 1000:.0f} ms",
        costs="everybody waits that long at each rewrite",
        fix="smaller servers (a Cluster), or a machine that forks faster",
    )


def clock(look: Look) -> Finding | None:
    if abs(look.skew_ms) > SKEW_MS:
        return Finding(
            "warn",
            "clock",
            f"{look.skew_ms / 1000:+.1f} s from this machine",
            costs="none to sessions, which go by Redis's clock alone; logs do not fit together, and after a "
            "failover time jumps by what the servers differ",
            fix="run NTP on both",
        )
    return Finding("ok", "clock", f"{look.skew_ms:+d} ms from this machine")


def latency(look: Look) -> Finding | None:
    if not look.calls_ms:
        return None
    median_ms, slowest_ms = look.calls_ms[len(look.calls_ms) // 2], look.calls_ms[-1]
    found = (
        f"a script takes {median_ms:.2f} ms from here, at most {slowest_ms:.1f} ms of {len(look.calls_ms)}"
    )
    if median_ms < SLOW_MS:
        return Finding("ok", "latency", found)
    return Finding(
        "fail" if median_ms >= VERY_SLOW_MS else "warn",
        "latency",
        found,
        costs="every request waits for at least one",
        fix="run replicas beside Redis; look at SLOWLOG GET, LATENCY DOCTOR",
    )


CHECKS: Final = (memory, refusals, fragmentation, allocator, fork, clock, latency)

"""A hundred thousand sessions that are warned, and that expire, within a minute and within a second.

Lag is by Redis's clock alone: from the instant at which something was due to the
``TIME`` in the script that published it, as one more subscriber hears it
(``wiretap.py``). One worker does everything; with keyspace notifications, and
without them, when only its keeper's sweep finds what is due. Meanwhile, and in
quiet before it, a good client asks at a modest rate, and some sessions are
followed (``bystanders.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.bystanders import Followers, GoodClient
from bench.figures import Figure, percentile, percentiles, progress, shown
from bench.links import unless_failed
from bench.machine import CORES
from bench.processes import DEPLOYED, DURABLE, Server, Service, moved, redis_server, service
from bench.speaking import open_sessions, open_store
from bench.wiretap import Published, Wiretap
from bench.workers import gauge
from sessions_api.domain.ids import PARTITIONS
from sessions_api.domain.timeouts import MINUTE_MS, TimeoutConfig
from sessions_api.store import Store

PART = "Expiry"
P99_MS, LAST_MS, API_MS = 1_000.0, 30_000.0, 250.0
WARNED, EXPIRED = "session.expiring", "session.expired"
WORDS = {WARNED: "warned", EXPIRED: "expired"}
MARK = b"event: session.expir"
"""What both have in common."""
A_BURST_S = 2.0
"""A window no longer than this is held to the budgets of a burst."""
ASKS_PER_S = 50.0
SPEAKERS = 2_000
FOLLOWED = 100
LEAST_QUIET_S = 1.0
LAST_S = 1.0
"""How much longer the good client asks than something is due: what it has asked is answered by then."""
SLACK = 2.5
"""How much longer than the first sessions let expect the others may take to be opened."""
PATIENCE_S = 240.0
POLL_S = 0.05
FLAGS = b"notify-keyspace-events"
NO_WARNING_MS = 1
MODES = (("on", b"Ex"), ("off", b""))


class Plan(msgspec.Struct, frozen=True):
    """What becomes of *sessions*: the first *warned* are warned in *warned_s*, then all end in *ended_s*."""

    sessions: int
    warned: int
    warned_s: float
    pause_s: float
    """Between the last warning's instant and the first end's."""
    ended_s: float
    quiet_s: float = 2.0
    """At least about so long nothing is due yet."""

    def windows_s(self, start_s: float) -> dict[str, tuple[float, float]]:
        """When each kind of event is due, from when to when, if the first one is at *start_s*."""
        ends_s = start_s + self.warned_s + self.pause_s
        return {WARNED: (start_s, start_s + self.warned_s), EXPIRED: (ends_s, ends_s + self.ended_s)}


PLANS = (
    Plan(sessions=100_000, warned=100_000, warned_s=1, pause_s=24, ended_s=60),
    Plan(sessions=100_000, warned=10_000, warned_s=6, pause_s=2, ended_s=1),
)
SMALL = (Plan(sessions=600, warned=300, warned_s=0.5, pause_s=2, ended_s=0.5, quiet_s=2),)


class Told(NamedTuple):
    """An event that was published: when it was due, and how late it was."""

    due_ms: int
    lag_ms: int


async def run(
    folder: Path, *, plans: Iterable[Plan], standing: int = 0
) -> tuple[list[Figure], dict[str, object]]:
    """*standing*: how many sessions are there all the while that nothing is due to."""
    figures: list[Figure] = []
    details: dict[str, object] = {}
    for word, flags in MODES:
        settings = {**DEPLOYED, **DURABLE, FLAGS.decode(): flags.decode()}
        with (
            redis_server(folder / f"redis-{word}", settings) as redis,
            service(folder, redis.url, SESSIONS_DISPATCHER="off") as target,
        ):
            async with open_store(redis.url) as store:
                await _settle(store, target, flags)
                if standing:
                    progress(f"expiry: opening {standing:,} sessions")
                    with moved(redis, CORES.service):
                        await open_sessions(store, standing)
                for plan in plans:
                    progress(f"expiry: {plan.sessions:,} sessions, notifications {word}")
                    among = f"notifications {word}{f', among {standing:,}' if standing else ''}"
                    measured, detail = await _play(redis, target, store, plan, among)
                    figures += measured
                    details |= detail
                if await _flags(store) != flags:
                    raise RuntimeError("notifications were switched meanwhile")
    return figures, details


async def _settle(store: Store, target: Service, flags: bytes) -> None:
    """Wait for the keeper: it takes all partitions, and switches notifications on; then set *flags*."""
    async with asyncio.timeout(PATIENCE_S):
        while (  # noqa: ASYNC110  another process's
            await gauge(target, "sessions_kept_partitions") < PARTITIONS or not await _flags(store)
        ):
            await asyncio.sleep(POLL_S)
    await store.redis.command(b"CONFIG", b"SET", FLAGS, flags, safe=True)


async def _flags(store: Store) -> bytes:
    _, flags = await store.redis.command(b"CONFIG", b"GET", FLAGS, safe=True)
    return b"Ex" if set(flags) == set(b"Ex") else bytes(flags)  # servers order them differently


async def _play(
    redis: Server, target: Service, store: Store, plan: Plan, among: str
) -> tuple[list[Figure], dict[str, object]]:
    """Carry *plan* out; figures and details by what is due, and *among* which circumstances."""
    expected = {WARNED: plan.warned, EXPIRED: plan.sessions}
    over_s: dict[str, float] = {}
    before = await _live(store)  # who spoke while other plans were carried out
    with Wiretap(redis, WARNED, EXPIRED) as wiretap:
        speakers, warning_ms, start_s = await _open(redis, store, plan)
        windows_s = plan.windows_s(start_s)
        followed = [*warning_ms][: plan.warned][:: max(1, plan.warned // FOLLOWED)]
        async with (
            Followers.of(target, followed, mark=MARK) as followers,
            GoodClient.asking(target, speakers, per_s=ASKS_PER_S) as client,
        ):
            quiet_s = time.time()
            if start_s - quiet_s < LEAST_QUIET_S:
                raise RuntimeError("opening the sessions took so long that some were due before the end")
            for kind, count in expected.items():
                last_s = windows_s[EXPIRED][0] if kind == WARNED else windows_s[kind][1] + PATIENCE_S
                until = _published(wiretap, kind, count, windows_s[kind][1], last_s)
                await unless_failed(client.tasks, until)
                over_s[kind] = time.time()
            await asyncio.sleep(LAST_S)
            quiet = client.between(quiet_s, start_s)
            meanwhile = {kind: client.between(windows_s[kind][0], over_s[kind]) for kind in expected}
        told = told_of(wiretap.events(), warning_ms, plan)
    live = await _live(store) - before
    if live != len(speakers):
        raise RuntimeError(f"{live} sessions are listed, and {len(speakers)} live")
    figures: list[Figure] = []
    details: dict[str, object] = {}
    for kind, count in expected.items():
        window_s = windows_s[kind][1] - windows_s[kind][0]
        name = f"{count:,} {WORDS[kind]} within {window_s:g} s, {among}"
        lags_ms = [float(each.lag_ms) for each in told[kind].values()]
        reached_ms = [
            came_ms[-1 if kind == EXPIRED else 0] - told[kind][session].due_ms
            for session, came_ms in followers.came_ms.items()
            if session in told[kind]
        ]
        figures += _figures(f"{PART}: {name}", window_s, lags_ms, reached_ms, meanwhile[kind], quiet)
        if len(lags_ms) < count:
            figures.append(
                Figure(f"{PART}: {name}", "not warned before they ended", count - len(lags_ms), budget=0)
            )
        details[name] = {
            "lag_ms": percentiles(lags_ms),
            "follower_ms": percentiles(reached_ms),
            "api_ms": {
                when: {asked: percentiles(values, (50, 99, 100)) for asked, values in spans.items()}
                for when, spans in (("quiet", quiet), ("meanwhile", meanwhile[kind]))
            },
        }
    return figures, details


async def _live(store: Store) -> int:
    """How many sessions are listed as live."""
    return sum([(await store.alarms.gauges(partition)).live for partition in range(PARTITIONS)])


async def _open(redis: Server, store: Store, plan: Plan) -> tuple[list[str], dict[str, int], float]:
    """Sessions to talk to, and those of *plan* with their warning thresholds; when the first is due.

    Redis has the service's core meanwhile: nothing else happens yet.
    """
    with moved(redis, CORES.service):
        started_s = time.monotonic()
        speakers = [str(each) for each in await open_sessions(store, min(SPEAKERS, plan.sessions))]
        per_s = len(speakers) / (time.monotonic() - started_s)
        start_s = time.time() + SLACK * plan.sessions / per_s + plan.quiet_s
        (warn_s, warned_by_s), (end_s, ended_by_s) = plan.windows_s(start_s).values()
        warning_ms: list[int] = []

        def config(number: int) -> TimeoutConfig:
            ends_s = end_s + (ended_by_s - end_s) * number / plan.sessions
            warns_s = warn_s + (warned_by_s - warn_s) * number / plan.warned
            is_warned = number < plan.warned
            warning_ms.append(round((ends_s - warns_s) * 1000) if is_warned else NO_WARNING_MS)
            timeout_ms = max(1, round((ends_s - time.time()) * 1000))
            return TimeoutConfig(timeout_ms, True, 720 * MINUTE_MS, warning_ms[-1])

        sessions = [str(each) for each in await open_sessions(store, plan.sessions, config=config)]
    return speakers, dict(zip(sessions, warning_ms, strict=True)), start_s


async def _published(wiretap: Wiretap, kind: str, count: int, due_by_s: float, last_s: float) -> None:
    """Return when *count* events of *kind* were published, the last of which was due at *due_by_s*.

    Or at *last_s*: warnings that are not out when the sessions end are not sent any more.

    Raises:
        RuntimeError: sessions that have to end did not, four minutes after the last was due.
    """
    while wiretap.count(kind) < count or time.time() < due_by_s:
        if time.time() > last_s:
            if kind == WARNED:
                return
            raise RuntimeError(f"only {wiretap.count(kind)} of {count} sessions expired in time")
        await asyncio.sleep(POLL_S)


def told_of(
    events: Iterable[Published], warning_ms: dict[str, int], plan: Plan
) -> dict[str, dict[str, Told]]:
    """By kind and session, what was published.

    Raises:
        RuntimeError: a session did not expire; or one was told of twice, or of what was not to be.
    """
    told: dict[str, dict[str, Told]] = {WARNED: {}, EXPIRED: {}}
    for event in events:
        ahead_ms = warning_ms[event.session_id] if event.type == WARNED else 0
        if ahead_ms == NO_WARNING_MS:
            continue
        if event.session_id in told[event.type]:
            raise RuntimeError(f"{event.session_id} {WORDS[event.type]} twice")
        due_ms = int(event.args[0]) - ahead_ms
        told[event.type][event.session_id] = Told(due_ms, event.now_ms - due_ms)
    sessions = [*warning_ms]
    if told[EXPIRED].keys() != set(sessions) or not told[WARNED].keys() <= set(sessions[: plan.warned]):
        raise RuntimeError(f"{len(told[WARNED])} sessions were warned, {len(told[EXPIRED])} expired")
    return told


def _figures(
    part: str,
    window_s: float,
    lags_ms: list[float],
    reached_ms: list[float],
    meanwhile: dict[str, list[float]],
    quiet: dict[str, list[float]],
) -> list[Figure]:
    is_burst = window_s <= A_BURST_S
    within = None if is_burst else P99_MS
    figures = [
        Figure(part, "due → published, p99", percentile(lags_ms, 99), "ms", within, note=_around(lags_ms)),
        Figure(
            part,
            "due → at a follower, p99",
            percentile(reached_ms, 99),
            "ms",
            within,
            note=_around(reached_ms),
        ),
    ]
    if is_burst:
        figures.append(Figure(part, "due → published, the last one", max(lags_ms), "ms", LAST_MS))
    for asked, values in meanwhile.items():
        p50, p99 = (percentile(quiet[asked], percent) for percent in (50, 99))
        note = f"{_around(values)}; in quiet p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        figures.append(
            Figure(part, f"{asked} meanwhile, p99", percentile(values, 99), "ms", API_MS, note=note)
        )
    return figures


def _around(values: list[float]) -> str:
    return f"p50 {shown(percentile(values, 50))} ms, max {shown(max(values))} ms; of {len(values):,}"

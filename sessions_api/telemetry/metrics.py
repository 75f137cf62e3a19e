"""Every metric, in one table; ``docs/metrics.md`` is its contract, and a test compares the two.

Touch them so::

    metrics.WARNINGS.inc()
    metrics.REQUESTS.of(route, method, status).inc()
    metrics.TURNS.of(metrics.agent(agent_id), "completed").inc()

Labels never hold a session, a user or anything else without an end; an agent's
id goes through :func:`agent`. Gauges that are read from Redis are set by the
keeper of a partition alone, so ``sum()`` over all replicas is the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from sessions_api.errors import BacklogFull, LimitReached, RateLimited, SessionsError
from sessions_api.telemetry.instruments import (
    Counter,
    Histogram,
    add_source,
    busiest,
    flush_forever,
    gauge,
    render,
)

__all__ = ["agent", "count_alarm", "count_due", "count_refusal", "flush_forever", "follow_redis", "render"]

REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LAG_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 6.0, 30.0, 120.0)
TURN_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

# Requests
REQUESTS = Counter("sessions_requests_total", "HTTP requests answered.", "route", "method", "status")
REQUEST_SECONDS = Histogram(
    "sessions_request_seconds", "Time to the end of an HTTP reply.", "route", "method", buckets=REQUEST_S
)
LIMITED = Counter("sessions_limited_total", "Requests and frames that a limit refused.", "policy")
ERRORS = Counter("sessions_errors_total", "Requests and frames answered with an error.", "code")

# Sessions and their time
CREATED = Counter("sessions_created_total", "Sessions created.", "agent")
ENDED = Counter("sessions_ended_total", "Sessions that are over.", "reason")
RENEWALS = Counter("sessions_renewals_total", "Times a session's deadline moved.", "by")
WARNINGS = Counter("sessions_warnings_total", "Warnings of a near end sent.")
WARNING_LAG_SECONDS = Histogram(
    "sessions_warning_lag_seconds", "From a warning's instant to its publish.", buckets=LAG_S
)
EXPIRY_LAG_SECONDS = Histogram(
    "sessions_expiry_lag_seconds", "From a session's end to its publish.", buckets=LAG_S
)
ALARMS = Counter("sessions_alarms_total", "Alarms looked after.", "trigger", "outcome")
SWEEP_FAILURES = Counter("sessions_sweep_failures_total", "Alarms that failed and were postponed.")
GHOSTS = Counter("sessions_ghosts_total", "Walks through a partition's indexes in search of ghosts.")
KEPT_PARTITIONS = gauge("sessions_kept_partitions", "Partitions whose alarms this replica keeps.")
LIVE_SESSIONS = gauge("sessions_live_sessions", "Live sessions in the partitions kept here.")
NEAR_SESSIONS = gauge("sessions_near_sessions", "Sessions near their end in the partitions kept here.")
DUE_ALARMS = gauge("sessions_due_alarms", "Due alarms found at the last look and not rung yet.")

# Turns
READY_SESSIONS = gauge("sessions_ready_sessions", "Sessions with a queued turn, in the partitions kept here.")
RUNNING_SESSIONS = gauge(
    "sessions_running_sessions", "Sessions whose turn runs, in the partitions kept here."
)
RUNNING_TURNS = gauge("sessions_running_turns", "Turns that run in this process.")
TURNS = Counter("sessions_turns_total", "Attempts at turns that are over.", "agent", "outcome")
TURN_SECONDS = Histogram(
    "sessions_turn_seconds", "From a turn's claim to its outcome.", "agent", buckets=TURN_S
)
FIRST_DELTA_SECONDS = Histogram(
    "sessions_first_delta_seconds", "From a turn's claim to its first text stored.", "agent", buckets=TURN_S
)
WAITING_WORKERS = gauge("sessions_waiting_workers", "Open claim requests of workers that wait for a turn.")
TOKENS = Counter("sessions_tokens_total", "Tokens that agents said they used.", "agent", "kind")
AGENT_ACTIONS = Counter("sessions_agent_actions_total", "Actions that answers said were taken.", "agent")
CLAIMS = Counter("sessions_claims_total", "Claims sent, by whether they brought a turn.", "outcome")

# Live
FOLLOWERS = gauge("sessions_followers", "Open live connections.", "transport")
EVENTS = Counter("sessions_events_total", "Live events sent to followers.", "transport")
FOLLOWERS_CUT = Counter("sessions_followers_cut_total", "Live connections that we closed.", "code")
RESUMES = Counter("sessions_resumes_total", "Followers that came with a cursor.", "outcome")
RESUBSCRIPTIONS = Counter("sessions_resubscriptions_total", "Times a pub/sub connection had to start over.")

# Redis, as this process sees it
REDIS_ROUND_TRIPS = Counter(
    "sessions_redis_round_trips_total", "Event-loop ticks whose commands went to Redis.", "line"
)
REDIS_COMMANDS = Counter("sessions_redis_commands_total", "Commands sent to Redis.", "line")
REDIS_SCRIPTS = Counter("sessions_redis_scripts_total", "Scripts called.", "script")
REDIS_CONNECTS = Counter("sessions_redis_connects_total", "Connections that came up.", "line")
REDIS_ERRORS = Counter("sessions_redis_errors_total", "What went wrong on the way to Redis.", "line", "kind")
REDIS_CIRCUIT = gauge("sessions_redis_circuit_open", "1 while calls to Redis are refused at once.")
REDIS_MEMORY = gauge(
    "sessions_redis_memory_used_ratio", "Memory used over maxmemory, of the fullest server.", mode="livemax"
)
REDIS_EVICTING = gauge(
    "sessions_redis_evicting_servers", "Servers that forget keys when they are full.", mode="livemax"
)

# The replicas
REPLICAS = gauge("sessions_replicas", "Replicas that live, as this one sees them.", mode="livemax")
REPLICAS_DIFFERING = gauge(
    "sessions_replicas_differing", "Replicas that are not as this one is.", "what", mode="livemax"
)

# The process
LOOP_FAILURES = Counter("sessions_loop_failures_total", "Failures that a background loop got over.", "loop")

# What an alert waits for the first of.
for _code in (
    "INTERNAL_ERROR",
    "STORAGE_UNAVAILABLE",
    "STORAGE_FULL",
    "NOT_REPLICATED",
    "OVERLOADED",
    "AGENT_UNAVAILABLE",
):
    ERRORS.begin(_code)
for _policy in ("backlog", "followers"):
    LIMITED.begin(_policy)
RESUMES.begin("rewound")

REPLICAS_DIFFER_IN = ("version", "settings")
for _what in REPLICAS_DIFFER_IN:
    REPLICAS_DIFFERING.labels(_what).set(0)

agent = busiest("agent", limit=100).of
"""The label of an agent: its id if it is among the 100 busiest, else ``other``."""


def count_alarm(trigger: str, outcome: str, lag_ms: int) -> None:
    """Count one alarm: *trigger* is ``hint``, ``sweep`` or ``request``, *outcome* the script's word."""
    ALARMS.of(trigger, outcome).inc()
    count_due(outcome, lag_ms=lag_ms)


def count_refusal(error: BaseException) -> None:
    """Count an error that is an answer, by its code; what a limit refused, by its policy as well."""
    ERRORS.of(error.code if isinstance(error, SessionsError) else SessionsError.code).inc()
    if isinstance(error, (BacklogFull, LimitReached, RateLimited)):
        LIMITED.of(error.policy).inc()


def count_due(outcome: str, *, lag_ms: int) -> None:
    """Count a warning or an expiration, by an alarm or in the script that brought it about."""
    if outcome == "warned":
        WARNINGS.inc()
        WARNING_LAG_SECONDS.observe(lag_ms / 1000)
    elif outcome == "expired":
        ENDED.of("expired").inc()
        EXPIRY_LAG_SECONDS.observe(lag_ms / 1000)


class RedisStats(Protocol):
    """What a connection counts of itself since its start; see ``store/lines.py``."""

    round_trips: int
    commands: int
    connects: int
    failed_connects: int
    losses: int
    dirty: int
    timeouts: int
    repeats: int

    @property
    def scripts(self) -> Mapping[str, int]: ...


def follow_redis(
    stats: RedisStats, *, line: str, is_open_circuit: Callable[[], bool] | None = None
) -> Callable[[], None]:
    """Export *stats* as the connection called *line*, until the returned function is called."""
    seen: dict[tuple[str, ...], int] = {}

    def rise(metric: Counter, now: int, *labels: str) -> None:
        key = (metric.name, *labels)
        metric.of(*labels).inc(now - seen.get(key, 0))
        seen[key] = now

    kinds = ("failed_connects", "losses", "dirty", "timeouts", "repeats")
    for kind in kinds:
        REDIS_ERRORS.begin(line, kind)

    def fetch() -> None:
        rise(REDIS_ROUND_TRIPS, stats.round_trips, line)
        rise(REDIS_COMMANDS, stats.commands, line)
        rise(REDIS_CONNECTS, stats.connects, line)
        for kind in kinds:
            rise(REDIS_ERRORS, getattr(stats, kind), line, kind)
        for script, calls in stats.scripts.items():
            rise(REDIS_SCRIPTS, calls, script)
        if is_open_circuit is not None:
            REDIS_CIRCUIT.set(1 if is_open_circuit() else 0)

    return add_source(fetch)

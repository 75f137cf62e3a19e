"""Each endpoint under load, beside a bare Starlette route that returns the same number of bytes.

Both are one uvicorn worker on the same core with the same settings, and get the
same requests over the same connections, in alternating rounds. The service runs
as in production but for its dispatcher, since accepting a message is measured,
not answering it. Round trips to Redis are counted on a service of its own, one
request at a time, with nothing running in its background.
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from uuid import uuid4

import msgspec

from bench.bare import BareRoute
from bench.figures import Figure, progress
from bench.load import CONNECTIONS, Load, Request, Round
from bench.machine import CORES, cpu_s
from bench.processes import (
    DEPLOYED,
    DURABLE,
    Server,
    Service,
    free_port,
    listens,
    process,
    redis_server,
    service,
    wait_until,
)
from bench.speaking import QUESTION, Ran, answer, attend, commands, each, open_sessions, open_store, say
from sessions_api.domain.agents import ECHO_ID
from sessions_api.domain.ids import SessionId, UserId
from sessions_api.store import Store

SHARE = "HTTP: share of a bare Starlette route"
TRIPS = "Redis round trips per request"
BASE = "/api/messaging/sessions"
TALKING = 50
EXCHANGES = 30
LISTED = 20
COUNTED = 50
_EVALS = ("evalsha", "eval")

encode = msgspec.json.encode


class Endpoint(msgspec.Struct, frozen=True):
    """What is asked of one route; *share* and *trips* are its budgets."""

    name: str
    route: str
    requests: list[Request]
    share: float | None = None
    trips: float | None = 1.0


async def run(
    folder: Path, *, rounds: int, seconds: int, sessions: int, only: list[str]
) -> tuple[list[Figure], dict[str, object]]:
    """*only*: words of which one begins an endpoint's name; none: all of them."""
    shares: list[Figure] = []
    details: dict[str, object] = {}
    with redis_server(folder / "redis", {**DEPLOYED, **DURABLE}) as redis:
        async with open_store(redis.url) as store:
            await attend(store)
            progress(f"http: preparing {sessions:,} sessions and {TALKING} conversations")
            endpoints = [
                endpoint
                for endpoint in await _endpoints(store, sessions)
                if not only or any(endpoint.name.lower().startswith(word.lower()) for word in only)
            ]
            with service(folder, redis.url, SESSIONS_DISPATCHER="off", SESSIONS_KEEPER="off") as quiet:
                trips = [await _trips(store, quiet, endpoint) for endpoint in endpoints]
        with service(folder, redis.url, SESSIONS_DISPATCHER="off") as ours:
            for endpoint in endpoints:
                progress(f"http: {endpoint.name}, {rounds} rounds")
                measured, detail = _compare(folder, redis, ours, endpoint, rounds=rounds, seconds=seconds)
                shares += measured
                details[endpoint.name] = detail
    return [*shares, *trips], details


async def _endpoints(store: Store, count: int) -> list[Endpoint]:
    """Sessions, conversations, and the requests about them."""
    idle = await open_sessions(store, count)
    talking = await open_sessions(store, min(TALKING, count))
    for _ in range(EXCHANGES):
        await each(talking, lambda sid: say(store, sid))
        await each(talking, lambda sid: answer(store, sid))
    user = UserId(str(uuid4()))
    await open_sessions(store, LISTED, user_id=user)
    one = BASE + "/{session_id}"
    message = encode({"content": QUESTION})

    def about(method: str, tail: str, sids: list[SessionId], body: Callable[[int], bytes]) -> list[Request]:
        return [Request(method, f"{BASE}/{sid}{tail}", body(number)) for number, sid in enumerate(sids)]

    def empty(_number: int) -> bytes:
        return b""

    return [
        Endpoint("GET session", one, about("GET", "", idle, empty), share=0.60),
        Endpoint("heartbeat", f"{one}/heartbeat", about("POST", "/heartbeat", idle, empty), share=0.60),
        Endpoint(
            "POST message (accept)",
            f"{one}/messages",
            about("POST", "/messages", idle, lambda _: message),
            share=0.50,
        ),
        Endpoint("GET 50 messages", f"{one}/messages", about("GET", "/messages", talking, empty), share=0.20),
        Endpoint(
            "create session",
            BASE,
            [
                Request(
                    "POST",
                    BASE,
                    encode({"agentId": ECHO_ID, "userId": str(uuid4()), "metadata": {"plan": "pro"}}),
                )
                for _ in range(count)
            ],
        ),
        Endpoint("renew", f"{one}/renew", about("POST", "/renew", idle, empty)),
        Endpoint(
            "PATCH timeout",
            f"{one}/timeout",
            about("PATCH", "/timeout", idle, lambda number: encode({"timeoutMinutes": 30 + number % 7})),
        ),
        Endpoint(f"list a user's {LISTED}", BASE, [Request("GET", f"{BASE}?userId={user}")], trips=None),
    ]


async def _trips(store: Store, quiet: Service, endpoint: Endpoint) -> Figure:
    """As the service counts them itself (``X-Debug``), and the scripts that Redis counted meanwhile."""
    requests = (endpoint.requests * COUNTED)[:COUNTED]
    _exchange(quiet, requests[-1])  # Redis learns the script
    before = await _evals(store)
    trips = []
    for request in requests:
        reply = _exchange(quiet, request, {"X-Debug": "true"})
        trips.append(msgspec.json.decode(reply.body)["debug"]["redisTrips"])
    scripts = (await _evals(store) - before) / COUNTED
    return Figure(
        TRIPS,
        endpoint.name,
        sum(trips) / COUNTED,
        budget=endpoint.trips,
        note=f"{scripts:g} scripts by commandstats",
    )


async def _evals(store: Store) -> int:
    ran = await commands(store)
    return sum(ran.get(name, Ran()).calls for name in _EVALS)


class Exchanged(msgspec.Struct, frozen=True):
    """A reply; *head_bytes*: of its header lines, apart from those that uvicorn and bare replies have."""

    status: int
    body: bytes
    head_bytes: int


def _exchange(target: Service, request: Request, headers: dict[str, str] | None = None) -> Exchanged:
    """Raises RuntimeError on an answer that is an error."""
    client = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
    try:
        kind = {"Content-Type": "application/json"} if request.method != "GET" else {}
        client.request(request.method, request.target, request.body or None, kind | (headers or {}))
        reply = client.getresponse()
        body = reply.read()
        if reply.status >= 400:
            raise RuntimeError(f"{request.method} {request.target}: {reply.status} {body[:500]!r}")
        own = [
            pair for pair in reply.getheaders() if pair[0] not in {"date", "content-type", "content-length"}
        ]
        return Exchanged(reply.status, body, sum(len(name) + len(value) + 4 for name, value in own))
    finally:
        client.close()


def _compare(
    folder: Path, redis: Server, ours: Service, endpoint: Endpoint, *, rounds: int, seconds: int
) -> tuple[list[Figure], dict[str, object]]:
    sample = _exchange(ours, endpoint.requests[0])
    route = BareRoute(
        endpoint.route,
        endpoint.requests[0].method,
        sample.status,
        sample.body.decode(),
        max(0, sample.head_bytes - len("x-padding: \r\n")),
    )
    spec = folder / "route.json"
    spec.write_bytes(encode(route))
    port = free_port()
    log = folder / "bare.log"
    command = [sys.executable, "-m", "bench.bare", str(spec), str(port)]
    with process(command, log, core=CORES.service) as pid:
        wait_until(lambda: listens(port), "the bare route to listen", log)
        bare = Service(pid, port)
        load = {
            "ours": Load(folder, "ours", ours, endpoint.requests),
            "bare": Load(folder, "bare", bare, endpoint.requests),
        }
        for each_load in load.values():
            each_load.run(1)  # warm: 3.11 specialises what runs often
        taken: dict[str, list[Round]] = {"ours": [], "bare": []}
        redis_us = []
        for _ in range(rounds):
            taken["bare"].append(load["bare"].run(seconds))
            spent_s = cpu_s(redis.pid)
            taken["ours"].append(load["ours"].run(seconds))
            redis_us.append((cpu_s(redis.pid) - spent_s) / taken["ours"][-1].requests * 1e6)
    return _figures(endpoint, taken, median(redis_us)), {"redis_cpu_us": redis_us, **taken}


def _figures(endpoint: Endpoint, taken: dict[str, list[Round]], redis_us: float) -> list[Figure]:
    pairs = list(zip(taken["ours"], taken["bare"], strict=True))
    ours_per_s, bare_per_s = (median(round_.per_s for round_ in taken[side]) for side in ("ours", "bare"))
    ours_us, bare_us = (median(round_.cpu_us for round_ in taken[side]) for side in ("ours", "bare"))
    p50_us, p99_us = (median(getattr(ours, name) for ours, _ in pairs) for name in ("p50_us", "p99_us"))
    size = taken["ours"][0].bytes / taken["ours"][0].requests
    ours_busy, bare_busy = (
        median(round_.cpu_us * round_.per_s / 1e4 for round_ in taken[side]) for side in ("ours", "bare")
    )
    return [
        Figure(
            SHARE,
            f"{endpoint.name}: requests/s",
            median(ours.per_s / bare.per_s for ours, bare in pairs),
            budget=endpoint.share,
            is_floor=True,
            note=f"{ours_per_s:,.0f}/s of {bare_per_s:,.0f}/s, {size:,.0f} bytes;"
            f" {CONNECTIONS} connections: p50 {p50_us / 1000:.1f} ms, p99 {p99_us / 1000:.1f} ms",
        ),
        Figure(
            SHARE,
            f"{endpoint.name}: CPU",
            median(bare.cpu_us / ours.cpu_us for ours, bare in pairs),
            budget=endpoint.share,
            is_floor=True,
            note=f"{bare_us:.0f} µs of {ours_us:.0f} µs a request, and {redis_us:.0f} µs of Redis's;"
            f" its core was {ours_busy:.0f} % busy, the bare route's {bare_busy:.0f} %",
        ),
    ]

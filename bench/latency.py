"""How long a conversation's steps take at a modest rate, over two replicas.

Messages are posted to one replica, whose dispatcher answers them as Echo;
followers listen on the other one. Both share the service's core, Redis and this
program the other one, and the instant a delta was written is known in whole
milliseconds, so these are upper bounds.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from asyncio import StreamReader, StreamWriter
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import quantiles

import msgspec

from bench.figures import Figure, progress
from bench.load import Request
from bench.processes import DEPLOYED, DURABLE, Service, redis_server, service
from bench.speaking import QUESTION, open_sessions, open_store
from sessions_api.domain.ids import SessionId

PART = "Latency"
ROWS = (
    ("accepted", "message posted → 201", False),
    ("started", "message posted → a worker has it, told to a follower on another replica", True),
    ("first delta", "message posted → first words at that follower", False),
    ("delta", "delta written → follower on another replica", True),
    ("answer", "message posted → whole answer at that follower", False),
)
BASE = "/api/messaging/sessions"
P50_MS, P99_MS = 5.0, 50.0
SESSIONS = 200
LAST_ANSWER_S = 10.0


async def run(folder: Path, *, rates: list[int], seconds: int) -> tuple[list[Figure], dict[str, object]]:
    """*rates*: messages per second, one after the other."""
    figures: list[Figure] = []
    details: dict[str, object] = {}
    with (
        redis_server(folder / "redis", {**DEPLOYED, **DURABLE}) as redis,
        service(folder, redis.url) as answering,
        service(folder, redis.url, SESSIONS_DISPATCHER="off") as followed,
    ):
        async with open_store(redis.url) as store:
            sessions = await open_sessions(store, SESSIONS)
        for per_s in rates:
            progress(f"latency: {per_s} messages/s for {seconds} s over {SESSIONS} sessions")
            times_ms: dict[str, list[float]] = defaultdict(list)
            talks = [Talk(sid, answering, followed, times_ms) for sid in sessions]
            await asyncio.gather(*(talk.open() for talk in talks))
            try:
                await post_at_rate(talks, per_s=per_s, count=per_s * seconds)
            finally:
                await asyncio.gather(*(talk.close() for talk in talks))
            figures += figures_of(f"{PART} at {per_s} messages/s", ROWS, times_ms)
            details[f"{per_s}/s"] = {name: len(values) for name, values in times_ms.items()}
    return figures, details


async def post_at_rate(talks: Sequence[Talk], *, per_s: int, count: int) -> None:
    """Post at the rate; a session whose answer is still out is passed over."""
    started_s = time.perf_counter()
    posts: set[asyncio.Task[None]] = set()
    for number in range(count):
        wait_s = started_s + number / per_s - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        talk = next((talk for talk in chain(talks[number % len(talks) :], talks) if talk.is_quiet), None)
        if talk is not None:
            talk.is_quiet = False
            posts.add(asyncio.create_task(talk.post()))
    async with asyncio.timeout(LAST_ANSWER_S):
        await asyncio.gather(*posts)
        await asyncio.gather(*(talk.answered.wait() for talk in talks))


class Talk:
    """One session: a connection that posts, a stream that follows."""

    def __init__(
        self, session_id: SessionId, answering: Service, followed: Service, times_ms: dict[str, list[float]]
    ) -> None:
        self._session_id = session_id
        self._answering = answering
        self._followed = followed
        self._times_ms = times_ms
        self._posted_s = 0.0
        self._following: asyncio.Task[None] | None = None
        self._writers: list[StreamWriter] = []
        self.is_quiet = True
        self.answered = asyncio.Event()
        self.answered.set()

    async def open(self) -> None:
        events = await self._connect(self._followed)
        target = Request("GET", f"{BASE}/{self._session_id}/events")
        self._writers[-1].write(target.encode(self._followed.port))
        self._reader = await self._connect(self._answering)
        await events.readuntil(b"session.snapshot")
        self._following = asyncio.create_task(self._follow(events))

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        for writer in self._writers:
            writer.close()

    async def _connect(self, target: Service) -> StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        self._writers.append(writer)
        return reader

    async def post(self) -> None:
        """Post one message and read the 201."""
        body = msgspec.json.encode({"content": QUESTION})
        if self._reader.at_eof():  # nothing was posted here for the five seconds that a connection is kept
            self._reader = await self._connect(self._answering)
        self.answered.clear()
        self._posted_s = time.time()
        request = Request("POST", f"{BASE}/{self._session_id}/messages", body)
        self._writers[-1].write(request.encode(self._answering.port))
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 201"):
            raise RuntimeError(f"a message was refused: {head[:200]!r}")
        size = next(
            int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        await self._reader.readexactly(size)
        self.note("accepted", self._posted_s)

    async def _follow(self, events: StreamReader) -> None:
        """Read the stream's lines; chunk sizes and blanks are passed over."""
        while line := await events.readline():
            if line.startswith(b"data: "):
                self.take(msgspec.json.decode(line[6:], type=Event))

    def take(self, event: Event) -> None:
        told_s = dt.datetime.fromisoformat(event.time).timestamp()
        match event.type:
            case "turn.started":
                self.note("started", self._posted_s)
            case "turn.delta":
                self.note("delta", told_s)
                if event.data.get("index") == 0:
                    self.note("first delta", self._posted_s)
            case "message.created" if event.data.get("isAgent"):
                self.note("answer", self._posted_s)
                self.is_quiet = True
                self.answered.set()

    def note(self, name: str, since_s: float) -> None:
        self._times_ms[name].append((time.time() - since_s) * 1000)


class Event(msgspec.Struct):
    """What is looked at of an event."""

    type: str
    time: str
    data: dict[str, object]


def figures_of(
    part: str, rows: Sequence[tuple[str, str, bool]], times_ms: dict[str, list[float]]
) -> list[Figure]:
    """p50 and p99 of each row: its name in *times_ms*, what it is, whether it has budgets."""
    figures = []
    for name, what, has_budget in rows:
        values = times_ms[name]
        if len(values) < 2:
            raise RuntimeError(f"{what}: only {len(values)} seen")
        cuts = quantiles(values, n=100, method="inclusive")
        note = f"of {len(values)}"
        for label, value, budget in (("p50", cuts[49], P50_MS), ("p99", cuts[98], P99_MS)):
            bound = budget if has_budget else None
            figures.append(Figure(part, f"{what}, {label}", value, "ms", budget=bound, note=note))
    return figures

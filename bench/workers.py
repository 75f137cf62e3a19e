"""Workers over HTTP: each claims a turn, writes twice, completes it, and claims the next."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from bench.links import Link, closing, unless_failed
from bench.processes import Service
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import AgentId
from sessions_api.store import Store

BASE = "/api/messaging/sessions"
WORKER_ID = AgentId("00000000-0000-4000-8000-00000000be7c")
PIECES = ("For five people the Team plan ", "fits best: 12 euro per person and month, billed yearly.")
WAIT_S = 60
POLL_S = 0.05
START_S = 30


class Said(msgspec.Struct, rename="camel"):
    """What is looked at of a message in a claimed turn."""

    created_at: str


class TurnSession(msgspec.Struct, rename="camel"):
    """Where a claimed turn belongs."""

    session_id: str


class Turn(msgspec.Struct, rename="camel"):
    """What is looked at of a claimed turn."""

    turn_id: str
    fence: str
    session: TurnSession
    messages: list[Said]

    @property
    def path(self) -> str:
        return f"{BASE}/{self.session.session_id}/turns/{self.turn_id}"

    @property
    def accepted_s(self) -> float:
        """When its last message entered the log, in whole milliseconds of Redis's clock."""
        return dt.datetime.fromisoformat(self.messages[-1].created_at).timestamp()


_decode = msgspec.json.Decoder(Turn).decode


async def define(store: Store) -> None:
    """An agent of kind worker, for all replicas."""
    await store.agents.put(AgentDefinition(WORKER_ID, "Bench", "worker"))


async def claim(link: Link, worker: str, *, wait_s: int = WAIT_S) -> Turn | None:
    path = f"/api/agents/{WORKER_ID}/turns/claim?wait={wait_s}"
    status, body = await link.ask("POST", path, {"worker": worker})
    return _decode(body) if status == 200 else None


class Journal:
    """When turns reached their workers, and when those began to write, by this machine's clock."""

    def __init__(self) -> None:
        self.handed_ms: list[float] = []
        """From the message's acceptance to the turn in the worker's hands; up to 1 ms too much."""
        self.written_s: dict[str, float] = {}
        """By turn: when the first delta was about to be sent."""
        self.answered = 0

    def clear(self) -> None:
        self.handed_ms.clear()
        self.written_s.clear()
        self.answered = 0


async def serve(link: Link, worker: str, journal: Journal, pieces: Sequence[str] = PIECES) -> None:
    """One place of a worker: answer turns until cancelled."""
    while True:
        turn = await claim(link, worker)
        if turn is None:
            continue
        journal.handed_ms.append((time.time() - turn.accepted_s) * 1000)
        journal.written_s[turn.turn_id] = time.time()
        offset = 0
        for piece in pieces:
            body = {"fence": turn.fence, "text": piece, "offset": offset}
            await link.ask("POST", f"{turn.path}/delta", body)
            offset += len(piece)
        await link.ask("POST", f"{turn.path}/complete", {"fence": turn.fence})
        journal.answered += 1


@asynccontextmanager
async def at_work(
    targets: Sequence[Service],
    *,
    places: int,
    journal: Journal,
    name: Callable[[int], str] = lambda _: "bench",
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """*places* connections that claim, spread over *targets*; :func:`unless_failed` watches their tasks."""
    links: list[Link] = []
    tasks: list[asyncio.Task[None]] = []
    with closing(links):
        for number in range(places):
            link = await Link.open(targets[number % len(targets)])
            links.append(link)
            tasks.append(asyncio.create_task(serve(link, name(number), journal)))
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)


async def waiting(targets: Sequence[Service], count: int, tasks: list[asyncio.Task[None]]) -> None:
    """Until *count* workers wait for a turn, as the replicas say themselves."""
    async with asyncio.timeout(START_S):
        await unless_failed(tasks, _all_wait(targets, count))


async def _all_wait(targets: Sequence[Service], count: int) -> None:
    while True:
        waits = [await gauge(target, "sessions_waiting_workers") for target in targets]
        if sum(waits) >= count:
            return
        await asyncio.sleep(POLL_S)


async def gauge(target: Service, name: str) -> float:
    """The sum of a metric over its labels, as the replica shows it."""
    link = await Link.open(target)
    with closing([link]):
        _, text = await link.ask("GET", "/metrics")
    lines = [line for line in text.decode().splitlines() if line.partition("{")[0].partition(" ")[0] == name]
    return sum(float(line.rpartition(" ")[2]) for line in lines)

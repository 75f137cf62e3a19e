"""What one turn costs Redis, and what one delta costs everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

from bench.figures import Figure, progress
from bench.links import Ear, Link, closing
from bench.machine import CORES, cpu_s
from bench.processes import DEPLOYED, DURABLE, Server, Service, redis_server, service
from bench.scripts import Meter, quiet, yardstick
from bench.speaking import answer, claim, each, open_sessions, open_store, say, scripts_of
from bench.workers import BASE, PIECES, WORKER_ID, define
from bench.workers import claim as claim_over_http
from sessions_api.domain.ids import SessionId
from sessions_api.store import Store

TURN = "Agents: Redis time of one turn"
DELTA = "Agents: cost of one delta"
DELTAS = len(PIECES)
FOLLOWERS = (0, 1, 100)
PIECE = "hello world "
WARM = 30
MARK = b"event: turn.delta\n"


async def run(folder: Path, *, turns: int, rounds: int) -> tuple[list[Figure], dict[str, object]]:
    """*turns*: as many turns in each of *rounds*, and as many deltas at each number of followers."""
    turn, details = await _turn(folder / "redis-turn", turns=turns, rounds=rounds)
    return [*turn, *await _deltas(folder, count=turns)], details


# ---------------------------------------------------------------- a turn


async def _turn(folder: Path, *, turns: int, rounds: int) -> tuple[list[Figure], dict[str, object]]:
    """Each of a turn's scripts, measured as part ``scripts`` does it, and their sum."""
    with redis_server(folder, {**DEPLOYED, **DURABLE}, core=CORES.service) as server:
        async with open_store(server.url) as store:
            sessions = await open_sessions(store, turns)
            await each(sessions, lambda sid: say(store, sid))
            await each(sessions, lambda sid: answer(store, sid))
            warm = Meter(store)  # Redis learns the scripts
            await yardstick(store, warm, turns)
            await _one_turn(store, warm, sessions)
            meter = Meter(store)
            for number in range(rounds):
                progress(f"agents: Redis time of a turn, round {number + 1} of {rounds}")
                await yardstick(store, meter, turns)
                await _one_turn(store, meter, sessions)
    base = quiet(meter.redis_us["yardstick"])
    parts = {name: quiet(us) for name, us in meter.redis_us.items() if name != "yardstick"}
    parts["delta"] *= DELTAS - 1
    total_us = sum(parts.values())
    steps = ", ".join(f"{name} {us:.0f}" for name, us in parts.items())
    return [
        Figure(
            TURN,
            f"message, claim, {DELTAS} deltas, completion",
            total_us / base,
            "×",
            note=f"the yardstick of {base:.2f} µs; {total_us:.0f} µs in {3 + DELTAS} scripts: {steps}",
        )
    ], {"a turn's scripts, µs": parts}


async def _one_turn(store: Store, meter: Meter, sessions: list[SessionId]) -> None:
    await meter.measure("append", (say(store, sid) for sid in sessions))
    claims = await meter.measure("claim", (claim(store, sid) for sid in sessions))
    taken = [(claimed.turn.session_id, claimed.turn.turn) for claimed in claims]
    offset = 0
    for number, piece in enumerate(PIECES):
        await meter.measure(
            "delta" if number else "first delta",
            (
                store.turns.delta(sid, turn.turn_id, fence=turn.fence, text=piece, offset=offset)
                for sid, turn in taken
            ),
        )
        offset += len(piece)
    around = (b'{"content":', b',"metadata":{}}')
    await meter.measure(
        "complete",
        (store.turns.complete(sid, turn.turn_id, fence=turn.fence, around=around) for sid, turn in taken),
    )


# ---------------------------------------------------------------- a delta


async def _deltas(folder: Path, *, count: int) -> list[Figure]:
    """One at a time, the next when all followers have it: nothing is coalesced, nothing shares a tick."""
    figures = []
    with (
        redis_server(folder / "redis", {**DEPLOYED, **DURABLE}) as redis,
        service(folder, redis.url, SESSIONS_DISPATCHER="off", SESSIONS_KEEPER="off") as written,
        service(folder, redis.url, SESSIONS_DISPATCHER="off", SESSIONS_KEEPER="off") as followed,
    ):
        async with open_store(redis.url) as store:
            await define(store)
            link = await Link.open(written)
            with closing([link]):
                for number in FOLLOWERS:
                    progress(f"agents: a delta with {number} followers")
                    (session,) = await open_sessions(store, 1, agent_id=WORKER_ID)
                    ears: list[Ear] = []
                    heard = _Heard(number)
                    with closing(ears):
                        path = f"{BASE}/{session}/events"
                        ears.extend([await Ear.open(followed, path, MARK, heard.note) for _ in range(number)])
                        await say(store, session)
                        speech = await _Speech.of(link)
                        for _ in range(WARM):
                            await heard.next_after(speech.go_on())
                        before = await _spent(store, redis, written, followed)
                        for _ in range(count):
                            await heard.next_after(speech.go_on())
                        after = await _spent(store, redis, written, followed)
                    await speech.end()
                    spent = [(b - a) / count for a, b in zip(before, after, strict=True)]
                    figures.append(_delta_figure(number, *spent))
    return figures


async def _spent(store: Store, *processes: Server | Service) -> list[float]:
    """Microseconds in scripts, their number, and CPU microseconds of each process."""
    ran = await scripts_of(store)
    return [ran.us, ran.calls, *(cpu_s(each.pid) * 1e6 for each in processes)]


def _delta_figure(
    followers: int, script_us: float, scripts: float, redis_us: float, written_us: float, followed_us: float
) -> Figure:
    return Figure(
        DELTA,
        f"with {followers} followers on another replica" if followers else "with no follower",
        redis_us + written_us + followed_us,
        "µs of CPU",
        note=f"Redis {redis_us:.0f} ({script_us:.0f} in {scripts:.2g} scripts), the worker's replica"
        f" {written_us:.0f}, the followers' {followed_us:.0f}",
    )


class _Heard:
    """Counts what all followers heard."""

    def __init__(self, followers: int) -> None:
        self._followers = followers
        self._count = 0
        self._all = asyncio.Event()

    def note(self, count: int) -> None:
        self._count += count
        if self._count >= self._followers:
            self._all.set()

    async def next_after(self, delta: Awaitable[object]) -> None:
        """Until *delta* is answered and everybody has it."""
        await delta
        async with asyncio.timeout(10):
            if self._followers:
                await self._all.wait()
        self._count -= self._followers
        self._all.clear()


class _Speech:
    """A turn over HTTP that says the same piece again and again."""

    def __init__(self, link: Link, path: str, fence: str) -> None:
        self._link = link
        self._path = path
        self._fence = fence
        self._offset = 0

    @classmethod
    async def of(cls, link: Link) -> _Speech:
        turn = await claim_over_http(link, "bench")
        if turn is None:
            raise RuntimeError("no turn to claim")
        return cls(link, turn.path, turn.fence)

    def go_on(self) -> Awaitable[object]:
        body = {"fence": self._fence, "text": PIECE, "offset": self._offset}
        self._offset += len(PIECE)
        return self._link.ask("POST", f"{self._path}/delta", body)

    async def end(self) -> None:
        await self._link.ask("POST", f"{self._path}/complete", {"fence": self._fence})

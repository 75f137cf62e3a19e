"""What a worker does to a turn, and what a turn became of it."""

from __future__ import annotations

from typing import Any

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import SessionId
from sessions_api.domain.turns import ClaimedTurn, Turn
from sessions_api.store import Store
from sessions_api.store.written import Written
from tests.support.stores import age, answer_body, claimed, opened, say

LEASE_MS = 30_000
FIRST_LEASE_MS = 10_000
BACKOFF_MS = 1_000
ACTS = ("delta", "extend", "complete", "retry", "final", "release")


async def act(store: Store, name: str, taken: ClaimedTurn, fence: str | None = None) -> bool:
    """One of the writes of a worker; whether the turn was cancelled."""
    return (await write(store, name, taken, fence)).is_cancelled


async def write(store: Store, name: str, taken: ClaimedTurn, fence: str | None = None) -> Written:
    sid, turn_id = SessionId(taken.session_id), taken.turn.turn_id
    fence = fence or taken.turn.fence
    match name:
        case "delta":
            return await store.turns.delta(sid, turn_id, fence=fence, text="so", offset=0)
        case "extend":
            return await store.turns.extend(sid, turn_id, fence=fence)
        case "complete":
            return await store.turns.complete(sid, turn_id, fence=fence, body=answer_body("done"))
        case "release":
            return await store.turns.release(sid, turn_id, fence=fence)
        case _:
            pass
    return await store.turns.fail(
        sid, turn_id, fence=fence, code="BROKEN", message="It broke", retry=name == "retry"
    )


async def turn_of(store: Store, taken: ClaimedTurn) -> Turn:
    return await store.turns.read(SessionId(taken.session_id), taken.turn.turn_id, grant=EVERYTHING)


async def kinds(store: Store, session_id: SessionId) -> list[str]:
    """The log, a word for each entry."""
    replay = await store.log.replay(session_id, grant=EVERYTHING, after=0)
    return [entry.status or entry.kind for entry in replay.entries]


async def started(store: Store, **settings: Any) -> ClaimedTurn:
    session = await opened(store, **settings)
    await say(store, session.session_id)
    return await claimed(store, session.session_id)


async def lapsed(store: Store, taken: ClaimedTurn) -> None:
    await age(store, SessionId(taken.session_id), FIRST_LEASE_MS)
    assert (await store.alarms.ring(SessionId(taken.session_id))).outcome == "lapsed"


async def lapsed_in_mid_answer(store: Store) -> ClaimedTurn:
    """It said "so", and no more until its lease was over."""
    taken = await started(store)
    await act(store, "delta", taken)
    await age(store, SessionId(taken.session_id), LEASE_MS)
    await store.alarms.ring(SessionId(taken.session_id))
    return taken


async def reclaimed(store: Store, taken: ClaimedTurn, by_ms: int = BACKOFF_MS) -> ClaimedTurn:
    """The same turn in its next attempt, after the pause."""
    await age(store, SessionId(taken.session_id), by_ms)
    await store.alarms.ring(SessionId(taken.session_id))
    return await claimed(store, SessionId(taken.session_id))

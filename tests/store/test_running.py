"""Whose turn runs: an index of it, and the hint that stops its worker."""

from __future__ import annotations

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, AgentId, SessionId, partition_of_session
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.errors import AnswerTooLarge
from sessions_api.store import Store
from tests.support.servers import TestServer
from tests.support.stores import (
    AGENT,
    CONFIG,
    MINUTE_MS,
    Ears,
    age,
    claimed,
    complete,
    new_session,
    opened,
    say,
)
from tests.support.turns import ACTS, FIRST_LEASE_MS, act, lapsed, reclaimed, started, turn_of

OTHER_AGENT = AgentId("b" + AGENT[1:])


async def too_large(store: Store, taken: ClaimedTurn) -> None:
    turn, sid = taken.turn, SessionId(taken.session_id)
    await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="a" * 100_000, offset=0)
    with pytest.raises(AnswerTooLarge):
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="b", offset=100_000)


async def end(store: Store, how: str, taken: ClaimedTurn) -> None:
    """End the running turn of *taken*, by whatever hand."""
    sid, turn_id = SessionId(taken.session_id), taken.turn.turn_id
    match how:
        case "cancel":
            await store.turns.cancel(sid, turn_id, grant=LOCAL_APP)
        case "interrupt":
            await say(store, sid, on_busy="interrupt")
        case "lapse":
            await lapsed(store, taken)
        case "last lapse":
            for _ in range(2):
                await lapsed(store, taken)
                taken = await reclaimed(store, taken, 5_000)
            await age(store, sid, FIRST_LEASE_MS)
            await store.alarms.ring(sid)
        case "expiry":
            await age(store, sid, CONFIG.timeout_ms)
            await store.alarms.ring(sid)
        case "delete":
            await store.sessions.end(sid, grant=LOCAL_APP)
        case "abandon":
            await store.turns.abandon(sid, code="AGENT_NOT_FOUND", message="It is gone")
        case "too large":
            await too_large(store, taken)
        case _:
            await act(store, how, taken)


async def kept_alive(store: Store) -> ClaimedTurn:
    """The running turn of a session that would be over without it."""
    taken = await started(store, config=TimeoutConfig(20_000, False, 720 * MINUTE_MS, 5_000))
    await age(store, SessionId(taken.session_id), 9_000)
    await act(store, "delta", taken)
    await age(store, SessionId(taken.session_id), 25_000)
    return taken


BY_ANOTHER_HAND = ("cancel", "interrupt", "expiry", "delete", "abandon", "last lapse")
BY_ITS_WORKER = ("complete", "retry", "final", "release", "too large")


class TestTheIndex:
    async def test_names_the_sessions_whose_turn_runs(self, store: Store, server: TestServer) -> None:
        taken = await started(store)
        waiting = await opened(store)
        await say(store, waiting.session_id)

        key = store.keyspace.partition(partition_of_session(waiting.session_id)).running
        assert server.call("ZRANGE", key, 0, -1) == [f"{AGENT}:{taken.session_id}".encode()]
        assert await store.ready.counts(AGENT) == (1, 1)
        assert await store.ready.counts(OTHER_AGENT) == (0, 0)

    @pytest.mark.parametrize("how", [*BY_ANOTHER_HAND, *BY_ITS_WORKER, "lapse"])
    async def test_is_left_however_the_turn_stops(self, store: Store, how: str) -> None:
        taken = await started(store)

        await end(store, how, taken)

        assert (await store.ready.counts(AGENT))[0] == 0

    @pytest.mark.parametrize("name", ACTS)
    async def test_is_entered_again_by_a_lapsed_turn_that_goes_on(self, store: Store, name: str) -> None:
        taken = await started(store)
        await lapsed(store, taken)

        await act(store, name, taken)

        is_running = (await turn_of(store, taken)).state == "running"
        assert is_running is (name in {"delta", "extend"})
        assert (await store.ready.counts(AGENT))[0] == int(is_running)

    async def test_is_left_by_a_turn_that_ends_its_session(self, store: Store) -> None:
        """Without autoRenew, in the script of the worker's own write."""
        taken = await kept_alive(store)

        await complete(store, taken)

        assert await store.ready.counts(AGENT) == (0, 0)

    async def test_counts_over_all_partitions(self, store: Store) -> None:
        for number in range(12):
            user = f"{number:08x}-1111-4111-8111-111111111111"
            session = await opened(store, user)
            await say(store, session.session_id)
            if number % 3 == 0:
                await claimed(store, session.session_id)

        assert await store.ready.counts(AGENT) == (4, 8)


class TestTheStopHint:
    @pytest.mark.parametrize("how", BY_ANOTHER_HAND)
    async def test_names_the_turn_that_another_ended(self, store: Store, ears: Ears, how: str) -> None:
        taken = await started(store)
        ears.heard()

        await end(store, how, taken)

        assert self.stops(ears) == [(taken.session_id, taken.turn.turn_id)]

    @pytest.mark.parametrize("how", [*BY_ITS_WORKER, "lapse"])
    async def test_is_not_sent_where_the_worker_knows_or_may_go_on(
        self, store: Store, ears: Ears, how: str
    ) -> None:
        taken = await started(store)
        ears.heard()

        await end(store, how, taken)

        assert self.stops(ears) == []

    async def test_is_sent_where_its_worker_may_not_go_on(self, store: Store, ears: Ears) -> None:
        """Past the deadline it has nothing left to extend; the turn waits for another attempt."""
        session = await opened(store)
        await say(store, session.session_id)
        taken = await claimed(store, session.session_id, turn_ms=5_000)
        await age(store, session.session_id, 5_000)
        ears.heard()

        assert (await store.alarms.ring(session.session_id)).outcome == "lapsed"

        assert self.stops(ears) == [(taken.session_id, taken.turn.turn_id)]
        assert (await turn_of(store, taken)).state == "queued"

    @pytest.mark.parametrize("how", ["cancel", "interrupt", "expiry", "abandon"])
    async def test_reaches_a_worker_whose_lease_lapsed(self, store: Store, ears: Ears, how: str) -> None:
        """It may be at work still, and would be heard if nobody had claimed the turn again."""
        taken = await started(store)
        await lapsed(store, taken)
        ears.heard()

        await end(store, how, taken)

        assert self.stops(ears) == [(taken.session_id, taken.turn.turn_id)]

    @pytest.mark.parametrize("how", ["cancel", "delete", "abandon"])
    async def test_is_not_sent_for_a_turn_that_nobody_has(self, store: Store, ears: Ears, how: str) -> None:
        session = await opened(store)
        sid = session.session_id
        queued = await say(store, sid)
        ears.heard()

        match how:
            case "cancel":
                await store.turns.cancel(sid, queued.turn_id, grant=LOCAL_APP)
            case "delete":
                await store.sessions.end(sid, grant=LOCAL_APP)
            case _:
                await store.turns.abandon(sid, code="X", message="x")

        assert self.stops(ears) == []

    @staticmethod
    def stops(ears: Ears) -> list[tuple[str, ...]]:
        """The hints of two words; those of one say that there is work."""
        return [
            tuple(words)
            for kind, channel, payload in ears.heard()
            if kind == "wake" and len(words := payload.decode().split(" ")) == 2
            if channel == f"sa:wake:{{{AGENT}}}"
        ]


class TestAbandon:
    async def test_fails_every_open_turn_for_good(self, store: Store, ears: Ears) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        behind = [await say(store, sid) for _ in range(3)]
        ears.heard()

        assert await store.turns.abandon(sid, code="AGENT_NOT_FOUND", message="It is gone") == 4

        for turn_id in (taken.turn.turn_id, *(each.turn_id for each in behind)):
            turn = await store.turns.read(sid, turn_id, grant=EVERYTHING)
            assert turn.error is not None
            assert (turn.state, turn.error.code, turn.error.message) == (
                "failed", "AGENT_NOT_FOUND", "It is gone",
            )  # fmt: skip
        session = await store.sessions.read(sid, grant=EVERYTHING)
        assert (session.turn_id, session.queued, session.held_until_ms) == (None, 0, 0)
        assert ears.types()[:4] == ["turn.failed"] * 4
        assert await store.ready.open_of(AGENT) == []

    async def test_repeated_it_finds_nothing(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await store.turns.abandon(sid, code="X", message="x")

        assert await store.turns.abandon(sid, code="X", message="x") == 0

    async def test_a_session_that_is_over_or_gone_has_none(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await age(store, sid, CONFIG.timeout_ms)

        assert await store.turns.abandon(sid, code="X", message="x") == 0
        assert await store.turns.abandon(new_session().session_id, code="X", message="x") == 0

    async def test_a_turn_that_pauses_is_open_too(self, store: Store) -> None:
        taken = await started(store)
        await act(store, "retry", taken)

        assert await store.turns.abandon(SessionId(taken.session_id), code="X", message="x") == 1

    async def test_a_session_that_only_the_turn_kept_alive_ends_with_it(
        self, store: Store, ears: Ears
    ) -> None:
        taken = await kept_alive(store)
        ears.heard()

        assert await store.turns.abandon(SessionId(taken.session_id), code="X", message="x") == 1

        assert ears.types() == ["turn.failed", "session.expired"]


class TestOpenOf:
    async def test_names_what_runs_and_what_waits(self, store: Store) -> None:
        taken = await started(store)
        waiting = await opened(store)
        await say(store, waiting.session_id)
        await opened(store)
        other = await opened(store, agent=OTHER_AGENT)
        await say(store, other.session_id)

        assert sorted(await store.ready.open_of(AGENT)) == sorted([taken.session_id, waiting.session_id])
        assert await store.ready.open_of(OTHER_AGENT) == [other.session_id]

    async def test_names_a_session_once_though_more_waits_behind_what_runs(self, store: Store) -> None:
        taken = await started(store)
        await say(store, SessionId(taken.session_id))

        assert await store.ready.open_of(AGENT) == [taken.session_id]

    async def test_all_of_it_can_be_abandoned(self, store: Store, server: TestServer) -> None:
        """More than one call names of a partition; and a ghost that nobody can abandon ends nothing."""
        sids = [(await opened(store)).session_id for _ in range(103)]
        for sid in sids:
            await say(store, sid)
        ghost = sids.pop()
        server.call("DEL", *store.keyspace.of(ghost).all()[:4])
        await claimed(store, sids[0])
        assert len(await store.ready.open_of(AGENT)) == 101

        assert await store.turns.abandon_all(AGENT, code="X", message="x") == 102

        assert await store.ready.open_of(AGENT) == [ghost]

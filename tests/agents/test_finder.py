"""Leads: followed when there is a place, remembered up to a bound, dropped when they are old news."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sessions_api.agents.finder import MISSES, REMEMBERED, Finder, Lead, Trail
from sessions_api.domain.ids import PARTITIONS, AgentId, SessionId, TurnId, new_turn_id
from sessions_api.store import Store
from tests.support.replicas import stores
from tests.support.stores import AGENT, opened, say
from tests.support.waiters import worker_agent
from tests.support.waiting import until


class Places:
    """Takes leads while it has places, and follows none."""

    def __init__(self, places: int = 0) -> None:
        self.places = places
        self.taken: list[Lead] = []

    def has_place(self, agent_id: AgentId) -> bool:
        return self.places > len(self.taken)

    def take(self, lead: Lead) -> None:
        self.taken.append(lead)


def sid(number: int, partition: int = 0) -> SessionId:
    return SessionId(f"{number:08x}-0000-4000-8000-0000000000{partition:02x}")


class Looks:
    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> None:
        self.asked += 1


def trail(places: Places) -> tuple[Trail, Looks]:
    looks = Looks()
    found = Trail(AGENT, places, looks)
    found.must_look = False
    found.caught_up.set()
    return found, looks


class TestATrail:
    def test_follows_a_lead_at_once_where_there_is_a_place(self) -> None:
        places = Places(1)
        leads, _ = trail(places)
        leads.note(Lead(AGENT, sid(1), 0, 0))
        leads.note(Lead(AGENT, sid(2), 0, 1))

        assert [lead.session_id for lead in places.taken] == [sid(1)]

    def test_follows_the_rest_in_order_as_places_come(self) -> None:
        places = Places()
        leads, looks = trail(places)
        for number in range(5):
            leads.note(Lead(AGENT, sid(number), 0, number))
            leads.note(Lead(AGENT, sid(number), 0, number))  # heard twice, followed once
        places.places = 10
        leads.fill()

        assert [lead.session_id for lead in places.taken] == [sid(number) for number in range(5)]
        assert not looks.asked

    def test_looks_again_when_it_had_to_forget(self) -> None:
        places = Places()
        leads, looks = trail(places)
        for number in range(REMEMBERED + 1):
            leads.note(Lead(AGENT, sid(number), 0, number))
        assert not leads.caught_up.is_set()
        places.places = REMEMBERED + 1
        leads.fill()

        assert len(places.taken) == REMEMBERED
        assert looks.asked == 1

    def test_drops_what_a_claim_showed_to_be_old_news(self) -> None:
        places = Places()
        leads, _ = trail(places)
        leads.note(Lead(AGENT, sid(1, partition=7), 0, 1))
        leads.note(Lead(AGENT, sid(2, partition=8), 0, 2))
        leads.note(Lead(AGENT, sid(3, partition=7), 0, 9))
        leads.drop(7, before=5)
        places.places = 10
        leads.fill()

        assert [lead.session_id for lead in places.taken] == [sid(2, partition=8), sid(3, partition=7)]

    def test_gives_up_where_claims_lead_on_and_bring_nothing(self) -> None:
        places = Places(100)
        leads, _ = trail(places)
        leads.note(Lead(AGENT, sid(1), MISSES + 1, 0))

        assert not places.taken


@asynccontextmanager
async def finding(store: Store) -> AsyncIterator[Finder]:
    finder = Finder(store)
    await finder.start()
    try:
        yield finder
    finally:
        await finder.stop()


class TestTheFinder:
    async def test_looks_once_for_each_that_joins(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), finding(store) as finder:
            session = await opened(store)
            await say(store, session.session_id)
            first, second = Places(1), Places(1)
            for places in (first, second):
                found = finder.join(AGENT, places)
                await until(found.caught_up.is_set)
                assert [lead.session_id for lead in places.taken] == [session.session_id]

    async def test_looks_only_when_there_is_a_place(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), finding(store) as finder:
            session = await opened(store)
            await say(store, session.session_id)
            places = Places()
            found = finder.join(AGENT, places)
            await until(found.heard.is_set)
            before = store.redis.stats.commands
            assert found.must_look
            places.places = 1
            found.fill()
            await until(lambda: places.taken)

            assert store.redis.stats.commands - before >= PARTITIONS

    async def test_tells_all_who_joined(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), finding(store) as finder:
            both = [Places(1), Places(1)]
            for places in both:
                await until(finder.join(AGENT, places).caught_up.is_set)
            session = await opened(store)
            await say(store, session.session_id)

            await until(lambda: all(places.taken for places in both))

    async def test_hears_nothing_for_who_left(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), finding(store) as finder:
            gone, stays = Places(1), Places(1)
            trails = [finder.join(AGENT, places) for places in (gone, stays)]
            for each in trails:
                await until(each.caught_up.is_set)
            finder.leave(trails[0])
            session = await opened(store)
            await say(store, session.session_id)
            await until(lambda: stays.taken)

            assert not gone.taken
            finder.leave(trails[1])
            finder.leave(trails[1])
            assert not finder._trails

    async def test_makes_a_lead_of_what_a_claim_says_is_next(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), finding(store) as finder:
            definition = worker_agent()
            await store.agents.put(definition)
            sessions = [(await opened(store)).session_id for _ in range(3)]
            for session_id in sessions:
                await say(store, session_id)
            places = Places(1)
            found = finder.join(AGENT, places)
            seen = set()
            for number in range(3):
                await until(lambda number=number: len(places.taken) > number)  # type: ignore[misc]
                places.places += 1
                turn = await finder.claim(found, places.taken[number], definition, worker="w")
                assert turn is not None
                seen.add(turn.session_id)

            assert seen == set(sessions)

    async def test_follows_no_lead_to_where_a_claim_is_on_its_way(self, redis_url: str) -> None:
        """That claim finds what there is, and its own reply names the next: nothing is left behind."""
        async with stores(redis_url, 1) as (store,), finding(store) as finder:
            sessions = [(await opened(store)).session_id for _ in range(4)]
            for session_id in sessions:
                await say(store, session_id)
            places = Places(10)
            found = finder.join(AGENT, places)
            found.must_look = False
            leads = [Lead(AGENT, session_id, 0, 0) for session_id in sessions[:3]]

            turns = await asyncio.gather(
                *(finder.claim(found, lead, worker_agent(), worker="w") for lead in leads)
            )

            assert [turn and turn.session_id for turn in turns] == sessions[:3]
            assert {lead.session_id for lead in places.taken} == {sessions[3]}
            assert not found.claiming

    async def test_that_cannot_claim_says_so_and_goes_on(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), finding(store) as finder:
            found = finder.join(AGENT, Places())
            lead = Lead(AGENT, SessionId("no session"), 0, 0)

            assert await finder.claim(found, lead, worker_agent(), worker="w") is None


class TestAStopHint:
    async def test_reaches_who_watches_the_turn(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), finding(store) as finder:
            await until(finder.join(AGENT, Places()).heard.is_set)
            turn_id, stopped = new_turn_id(), asyncio.Event()
            with finder.watch(turn_id, stopped.set):
                self.hint(store, turn_id)
                await asyncio.wait_for(stopped.wait(), 10)

            assert not finder._watched

    async def test_that_came_before_the_watching_is_not_missed(self, redis_url: str) -> None:
        """The hint may overtake the reply that brings the turn."""
        async with stores(redis_url, 1) as (store,), finding(store) as finder:
            await until(finder.join(AGENT, Places()).heard.is_set)
            turn_id, stopped = new_turn_id(), asyncio.Event()
            self.hint(store, turn_id)
            await until(lambda: turn_id in finder._stopped)
            with finder.watch(turn_id, stopped.set):
                assert stopped.is_set()

    async def test_is_no_lead(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), finding(store) as finder:
            places = Places(1)
            await until(finder.join(AGENT, places).caught_up.is_set)
            turn_id = new_turn_id()
            self.hint(store, turn_id)
            await until(lambda: turn_id in finder._stopped)

            assert not places.taken

    @staticmethod
    def hint(store: Store, turn_id: TurnId) -> None:
        store.redis.post(b"PUBLISH", store.keyspace.wake(AGENT), f"{sid(1)} {turn_id}".encode())

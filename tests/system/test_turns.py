"""Turns that are dispatched in this process: each answered once and in order, whatever happens on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sessions_api.agents.connectors import CONNECTORS, Connector
from sessions_api.agents.dispatcher import Dispatcher
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import ECHO_ID, AgentDefinition
from sessions_api.domain.ids import SessionId, TurnId, UserId, new_message_id, new_op_id, new_turn_id
from sessions_api.domain.messages import LogEntry, NewMessage
from sessions_api.domain.sessions import OnBusy
from sessions_api.domain.turns import ClaimedTurn, Turn
from sessions_api.keeper.keeper import Keeper
from sessions_api.store import Store
from sessions_api.store.log import Appended
from sessions_api.wire.messages import read_body, user_body
from tests.support.dispatching import dispatching_by
from tests.support.replicas import echo, facts, stores
from tests.support.servers import RealServer, TestServer
from tests.support.stores import USER, age, opened
from tests.support.waiting import eventually, until


class Script:
    """A connector that says what it is told to say, when it is told."""

    def __init__(self) -> None:
        self.turns: list[ClaimedTurn] = []
        self.pieces: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.closed = 0

    async def answer(self, turn: ClaimedTurn, definition: AgentDefinition) -> AsyncGenerator[str, None]:
        self.turns.append(turn)
        try:
            while (piece := await self.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.closed += 1

    def say(self, *pieces: str | Exception | None) -> None:
        for piece in pieces:
            self.pieces.put_nowait(piece)


@asynccontextmanager
async def dispatching(
    store: Store, connector: Connector | None = None, *, turns: int = 256, **settings: object
) -> AsyncIterator[Dispatcher]:
    """A dispatcher for the built-in agent, which may answer by *connector*."""
    await store.agents.put(echo(**settings))
    connectors = {"echo": connector} if connector else CONNECTORS
    async with dispatching_by(connectors, store, turns=turns) as dispatcher:
        yield dispatcher


@asynccontextmanager
async def kept(store: Store) -> AsyncIterator[Keeper]:
    keeper = Keeper(store, replica_id="test")
    await keeper.start()
    try:
        await until(lambda: len(keeper.kept) == 64)
        yield keeper
    finally:
        await keeper.stop()


async def session_of(store: Store, user: UserId = USER) -> SessionId:
    return (await opened(store, user, agent=ECHO_ID)).session_id


async def say(
    store: Store, session_id: SessionId, content: str, *, on_busy: OnBusy | None = None
) -> Appended:
    message_id = new_message_id()
    return await store.log.append(
        session_id,
        grant=EVERYTHING,
        message=NewMessage(message_id, user_body(message_id, content, USER)),
        turn_id=new_turn_id(),
        on_busy=on_busy,
    )


async def log_of(store: Store, session_id: SessionId) -> list[LogEntry]:
    return (await store.log.replay(session_id, grant=EVERYTHING, after=0)).entries


async def answers(store: Store, session_id: SessionId) -> list[str]:
    bodies = [read_body(entry.body) for entry in await log_of(store, session_id) if entry.kind == "message"]
    return [body.content for body in bodies if body.is_agent]


async def turn_is(
    store: Store, session_id: SessionId, turn_id: TurnId, state: str, attempt: int | None = None
) -> Turn:
    found: list[Turn] = []

    async def is_so() -> bool:
        found.append(await store.turns.read(session_id, turn_id, grant=EVERYTHING))
        return found[-1].state == state and attempt in {None, found[-1].attempt}

    await eventually(is_so)
    return found[-1]


async def answered(store: Store, session_id: SessionId, *expected: str) -> None:
    async def is_so() -> bool:
        return len(await answers(store, session_id)) >= len(expected)

    await eventually(is_so)
    assert await answers(store, session_id) == list(expected)


class TestEcho:
    async def test_answers_every_message_once_and_in_order_with_two_replicas(self, redis_url: str) -> None:
        users = [UserId(f"{number:08x}-0000-4000-8000-000000000000") for number in range(20)]
        async with stores(redis_url, 2) as replicas, dispatching(replicas[0]), dispatching(replicas[1]):
            sids = [await session_of(replicas[0], user) for user in users]
            for number in range(3):
                await asyncio.gather(*(say(replicas[number % 2], sid, f"number {number}") for sid in sids))

            for sid in sids:
                await answered(replicas[0], sid, "echo: number 0", "echo: number 1", "echo: number 2")

    async def test_streams_its_answer_before_it_is_complete(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), facts(store) as heard, dispatching(store):
            sid = await session_of(store)
            await say(store, sid, "one two three")
            await until(lambda: heard.count(sid)["turn.completed"])

        seen = [kind for kind in heard.types[sid] if kind.startswith(("turn", "message"))]
        assert seen[:4] == ["message.created", "turn.queued", "turn.started", "turn.delta"]
        assert seen[-2:] == ["message.created", "turn.completed"]

    async def test_finds_what_was_asked_while_nobody_listened(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,):
            sid = await session_of(store)
            await say(store, sid, "early")
            async with dispatching(store):
                await answered(store, sid, "echo: early")

    async def test_answers_merged_messages_together(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,):
            sid = await session_of(store)
            await say(store, sid, "one")
            await say(store, sid, "two", on_busy="merge")
            async with dispatching(store):
                await answered(store, sid, "echo: one\ntwo")

    async def test_works_off_more_sessions_than_it_has_places(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,):
            sids = [await session_of(store) for _ in range(10)]
            for sid in sids:
                await say(store, sid, "hello")

            async with dispatching(store, turns=2):
                for sid in sids:
                    await answered(store, sid, "echo: hello")


class TestAnAttempt:
    async def test_sends_the_first_piece_at_once_and_the_rest_before_the_answer(self, redis_url: str) -> None:
        script = Script()
        async with stores(redis_url, 1) as (store,), dispatching(store, script):
            sid = await session_of(store)
            appended = await say(store, sid, "hello")
            script.say("Hel")
            await self.draft_is(store, sid, "Hel")
            script.say("lo ", "🌍")
            await self.draft_is(store, sid, "Hello 🌍")
            script.say("!", None)

            await answered(store, sid, "Hello 🌍!")
            turn = await turn_is(store, sid, appended.turn_id, "completed")
            assert turn.units == len("Hello 🌍!") + 1

    @staticmethod
    async def draft_is(store: Store, session_id: SessionId, text: str) -> None:
        async def is_so() -> bool:
            draft = (await store.log.replay(session_id, grant=EVERYTHING, after=None)).draft
            return draft is not None and draft.text == text

        await eventually(is_so)

    async def test_that_says_nothing_completes_without_a_message(self, redis_url: str) -> None:
        script = Script()
        async with stores(redis_url, 1) as (store,), dispatching(store, script):
            sid = await session_of(store)
            appended = await say(store, sid, "hello")
            script.say("", None)

            turn = await turn_is(store, sid, appended.turn_id, "completed")
            assert turn.answer == 0
            assert await answers(store, sid) == []

    async def test_that_breaks_is_followed_by_another(self, redis_url: str) -> None:
        script = Script()
        async with stores(redis_url, 1) as (store,), kept(store), dispatching(store, script):
            sid = await session_of(store)
            appended = await say(store, sid, "hello")
            script.say("half an ans", ValueError("secret"))
            await turn_is(store, sid, appended.turn_id, "queued", attempt=1)
            await age(store, sid, 1_000)
            script.say("whole", None)

            await answered(store, sid, "whole")
            assert (await turn_is(store, sid, appended.turn_id, "completed")).attempt == 2

    async def test_that_breaks_once_too_often_is_a_failed_turn_in_the_log(self, redis_url: str) -> None:
        script = Script()
        async with stores(redis_url, 1) as (store,), kept(store), dispatching(store, script, max_attempts=2):
            sid = await session_of(store)
            appended = await say(store, sid, "hello")
            script.say(ValueError("secret"))
            await turn_is(store, sid, appended.turn_id, "queued", attempt=1)
            await age(store, sid, 1_000)
            script.say(ValueError("secret"))
            await turn_is(store, sid, appended.turn_id, "failed")
            entries = await log_of(store, sid)

        assert [entry.kind for entry in entries] == ["message", "turn.failed"]
        assert b'"AGENT_ERROR"' in entries[1].body
        assert b"secret" not in entries[1].body

    async def test_of_a_dead_worker_is_followed_by_another(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), kept(store):
            sid = await session_of(store)
            appended = await say(store, sid, "hello")
            claim = await store.turns.claim(
                sid,
                agent_id=ECHO_ID,
                worker="dead",
                fence_bits=new_op_id(),
                message_id=new_message_id(),
                turn_ms=300_000,
                max_attempts=3,
            )
            assert claim.turn is not None
            async with dispatching(store):
                await age(store, sid, 10_000)
                await turn_is(store, sid, appended.turn_id, "queued", attempt=1)
                await age(store, sid, 1_000)

                await answered(store, sid, "echo: hello")
                assert (await turn_is(store, sid, appended.turn_id, "completed")).attempt == 2

    async def test_ends_when_its_turn_is_cancelled(self, redis_url: str) -> None:
        script = Script()
        async with stores(redis_url, 1) as (store,), dispatching(store, script):
            sid = await session_of(store)
            appended = await say(store, sid, "hello")
            script.say("begun")
            await self.draft_is(store, sid, "begun")
            await store.turns.cancel(sid, appended.turn_id, grant=EVERYTHING)
            script.say(" and going on")
            await until(lambda: script.closed == 1)

            assert await answers(store, sid) == ["begun"]

    async def test_ends_when_its_session_is_deleted(self, redis_url: str) -> None:
        script = Script()
        async with stores(redis_url, 1) as (store,), dispatching(store, script):
            sid = await session_of(store)
            await say(store, sid, "hello")
            await until(lambda: script.turns)
            await store.sessions.end(sid, grant=EVERYTHING)
            script.say("too late")

            await until(lambda: script.closed == 1)

    @pytest.mark.servers("valkey", "redis62")
    async def test_outlives_a_restart_of_redis(self, server: RealServer) -> None:
        script = Script()
        async with stores(server.url, 1) as (store,), dispatching(store, script):
            sid = await session_of(store)
            await say(store, sid, "hello")
            script.say("before, ")
            await self.draft_is(store, sid, "before, ")
            server.stop()
            script.say("meanwhile, ")
            await until(lambda: not store.redis.is_up)
            server.start()
            script.say("after", None)

            await answered(store, sid, "before, meanwhile, after")


class TestAStop:
    async def test_hands_a_running_turn_back_uncounted(self, redis_url: str) -> None:
        script = Script()
        async with stores(redis_url, 2) as (leaving, staying):
            sid = await session_of(leaving)
            async with dispatching(leaving, script) as dispatcher:
                appended = await say(leaving, sid, "hello")
                script.say("half")
                await until(lambda: script.turns)
                await dispatcher.drain(0.01)
                await dispatcher.stop()
                assert script.closed == 1

                async with dispatching(staying):
                    await answered(staying, sid, "echo: hello")
                assert (await turn_is(staying, sid, appended.turn_id, "completed")).attempt == 1

    async def test_lets_a_turn_end_that_ends_in_time(self, redis_url: str) -> None:
        script = Script()
        async with stores(redis_url, 1) as (store,), dispatching(store, script) as dispatcher:
            sid = await session_of(store)
            await say(store, sid, "hello")
            await until(lambda: script.turns)
            draining = asyncio.create_task(dispatcher.drain(30))
            script.say("in time", None)
            await draining

            assert await answers(store, sid) == ["in time"]

    async def test_takes_no_turn_while_draining(self, redis_url: str) -> None:
        script = Script()
        async with (
            stores(redis_url, 1) as (store,),
            dispatching(store, script) as dispatcher,
            facts(store) as heard,
        ):
            await dispatcher.drain(0)
            sid = await session_of(store)
            appended = await say(store, sid, "hello")
            await until(lambda: heard.count(sid)["turn.queued"])

            assert (await store.turns.read(sid, appended.turn_id, grant=EVERYTHING)).state == "queued"
            assert not script.turns


class TestALostHint:
    async def test_costs_a_moment(self, server: TestServer) -> None:
        """The dispatcher misses the wake; the keeper's sweep repeats it."""
        async with stores(server.url, 1) as (store,), dispatching(store) as dispatcher:
            await until(lambda: any(trail.caught_up.is_set() for trail in dispatcher._trails.values()))
            dispatcher._is_draining = True  # deaf
            sid = await session_of(store)
            await say(store, sid, "hello")
            await until(lambda: server.call("ZCARD", self.ready(store, sid)) == 1)
            dispatcher._is_draining = False
            await store.attendance.refresh()  # as the application does; hints are for agents that are there
            async with kept(store):
                await answered(store, sid, "echo: hello")

    @staticmethod
    def ready(store: Store, session_id: SessionId) -> bytes:
        return store.keyspace.of(session_id).partition.ready

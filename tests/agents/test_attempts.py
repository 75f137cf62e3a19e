"""One attempt at a turn: what the connector says is the answer, how it fails, and that a stop closes it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from structlog.testing import capture_logs

from sessions_api.agents import attempt
from sessions_api.agents.connectors.failure import AttemptFailed
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import SessionId
from sessions_api.domain.turns import Answer, ClaimedTurn
from sessions_api.errors import StorageUnavailable
from sessions_api.store import Store
from sessions_api.store.connection import Reply, Script
from sessions_api.wire.messages import read_body
from tests.support.dispatching import AGENT, Hangs, Says, asked, dispatching, is_now
from tests.support.replicas import facts, stores
from tests.support.stores import age, say, state_of
from tests.support.waiters import metric
from tests.support.waiting import eventually, until

# What scripts do on the other servers is the store's to test.
pytestmark = pytest.mark.servers("valkey", "fakeredis")


class SaysSlowly:
    """Says a piece for each time that :meth:`go_on` is called; then it ends."""

    def __init__(self, *pieces: str) -> None:
        self.calls = 0
        self._pieces = pieces
        self._said = asyncio.Semaphore(0)

    def go_on(self) -> None:
        self._said.release()

    async def answer(self, turn: ClaimedTurn, definition: AgentDefinition) -> AsyncGenerator[str, None]:
        self.calls += 1
        for piece in self._pieces:
            await self._said.acquire()
            yield piece


async def answer_of(store: Store, sid: SessionId, turn_id: Any) -> Any:
    entry = await store.turns.answer(sid, turn_id, grant=EVERYTHING)
    return entry and read_body(entry.body)


class TestAnAnswer:
    async def test_has_what_was_streamed_and_what_comes_with_it(self, redis_url: str) -> None:
        ending = Answer(
            metadata=b'{"thought":"hm"}', usage=b'{"inputTokens":3}', attachments=b'[{"url":"u"}]'
        )
        async with stores(redis_url, 1) as (store,), dispatching(store, Says("so ", "it is", ending)):
            tokens = metric("sessions_tokens_total", agent=AGENT, kind="input")
            sid, turn_id = await asked(store)
            await is_now(store, sid, turn_id, "completed")
            body = await answer_of(store, sid, turn_id)

        assert body.content == "so it is"
        assert json.loads(bytes(body.metadata)) == {"thought": "hm", "usage": {"inputTokens": 3}}
        assert json.loads(bytes(body.attachments)) == [{"url": "u"}]
        assert metric("sessions_tokens_total", agent=AGENT, kind="input") == tokens + 3

    async def test_that_is_there_at_once_is_one_write(self, redis_url: str) -> None:
        """Its text is heard all the same."""
        async with (
            stores(redis_url, 1) as (store,),
            dispatching(store, Says("so ", "it is")),
            facts(store) as heard,
        ):
            before = Counter(store.redis.stats.scripts)
            sid, turn_id = await asked(store)
            await is_now(store, sid, turn_id, "completed")
            written = store.redis.stats.scripts - before
            await until(lambda: "turn.completed" in heard.types.get(sid, []))

        assert (written["delta"], written["complete"]) == (0, 1)
        assert heard.count(sid)["turn.delta"] == 1

    async def test_that_is_long_follows_its_text(self, redis_url: str) -> None:
        """Both in one message might be more than a follower's queue has room for."""
        async with stores(redis_url, 1) as (store,), dispatching(store, Says("x" * 5_000)):
            before = Counter(store.redis.stats.scripts)
            sid, turn_id = await asked(store)
            await is_now(store, sid, turn_id, "completed")
            written = store.redis.stats.scripts - before

        assert (written["delta"], written["complete"]) == (1, 1)

    async def test_is_counted_also_if_its_reply_is_lost_for_good(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The next call finds it done, and is the first to know."""
        async with stores(redis_url, 1) as (store,), dispatching(store, Says("so")):
            scripts = store.turns._scripts
            run = scripts.run_noting_repeats
            lost: list[Reply] = []

            async def losing(script: Script, *args: Any) -> Reply:
                reply = await run(script, *args)
                if script.name == "complete" and not lost:
                    lost.append(reply)
                    raise StorageUnavailable("no answer within the deadline")
                return reply

            monkeypatch.setattr(scripts, "run_noting_repeats", losing)
            before = metric("sessions_turns_total", agent=AGENT, outcome="completed")
            await asked(store)
            await until(
                lambda: metric("sessions_turns_total", agent=AGENT, outcome="completed") == before + 1
            )
            assert lost

    async def test_may_be_another_than_what_was_streamed(self, redis_url: str) -> None:
        async with (
            stores(redis_url, 1) as (store,),
            dispatching(store, Says("draft", Answer(content="the whole answer"))),
        ):
            sid, turn_id = await asked(store)
            await is_now(store, sid, turn_id, "completed")
            assert (await answer_of(store, sid, turn_id)).content == "the whole answer"

    async def test_without_text_is_a_message_if_there_is_more_to_it(self, redis_url: str) -> None:
        """What a model answers with tool calls alone."""
        ending = Answer(metadata=b'{"actions":["LOOK"]}', usage=b'{"outputTokens":3}')
        async with stores(redis_url, 1) as (store,), dispatching(store, Says(ending)):
            sid, turn_id = await asked(store)
            await is_now(store, sid, turn_id, "completed")
            body = await answer_of(store, sid, turn_id)

        assert body.content == ""
        assert json.loads(bytes(body.metadata)) == {"actions": ["LOOK"], "usage": {"outputTokens": 3}}

    async def test_of_nothing_is_no_message(self, redis_url: str) -> None:
        async with stores(redis_url, 1) as (store,), dispatching(store, Says(Answer(content=""))):
            sid, turn_id = await asked(store)
            assert (await is_now(store, sid, turn_id, "completed")).answer == 0

    async def test_ends_the_connector(self, redis_url: str) -> None:
        """What would come behind it is never asked for."""
        async with (
            stores(redis_url, 1) as (store,),
            dispatching(store, Says(Answer(content="done"), ValueError("behind the end"))),
        ):
            sid, turn_id = await asked(store)
            await is_now(store, sid, turn_id, "completed")

    @pytest.mark.parametrize("rest", [[], [" so"]])
    async def test_of_which_a_failover_lost_the_end_is_sent_on_from_there(
        self, redis_url: str, rest: list[str]
    ) -> None:
        """Nothing is missing, and the agent is not asked again: with the answer, or before it."""
        connector = SaysSlowly("so \U0001f600", "it ", "is", *rest)
        async with stores(redis_url, 1) as (store,), dispatching(store, connector):
            sid, turn_id = await asked(store)
            redis = store.redis
            record, _, _, draft, *_ = store.keyspace.of(sid).all()

            async def has_arrived(text: str) -> bool:
                return bool(await redis.command(b"GET", draft) == text.encode())

            connector.go_on()
            await eventually(lambda: has_arrived("so \U0001f600"))
            before = await redis.command(b"HGET", record, turn_id), await redis.command(b"GET", draft)
            connector.go_on()
            await eventually(lambda: has_arrived("so \U0001f600it "))
            await redis.command(b"HSET", record, turn_id, before[0])
            await redis.command(b"SET", draft, before[1])
            connector.go_on()
            for _ in rest:
                await eventually(lambda: has_arrived("so \U0001f600it is"))
                connector.go_on()
            turn = await is_now(store, sid, turn_id, "completed")
            body = await answer_of(store, sid, turn_id)

        assert body.content == "so \U0001f600it is" + "".join(rest)
        assert (turn.attempt, connector.calls) == (1, 1)

    @pytest.mark.parametrize("pieces", [("x" * 60_000, "y" * 60_000), (Answer(content="🌍" * 50_001),)])
    async def test_that_is_too_large_is_a_failed_turn(
        self, redis_url: str, pieces: tuple[str | Answer, ...]
    ) -> None:
        async with stores(redis_url, 1) as (store,), dispatching(store, Says(*pieces)):
            sid, turn_id = await asked(store)
            turn = await is_now(store, sid, turn_id, "failed")

        assert turn.error is not None
        assert turn.error.code == "ANSWER_TOO_LARGE"


class TestAFailure:
    async def test_is_told_in_the_connectors_words(self, redis_url: str) -> None:
        failure = AttemptFailed("AGENT_REFUSED", "The agent refused: 403", retry=False)
        async with stores(redis_url, 1) as (store,), dispatching(store, Says("half", failure)):
            sid, turn_id = await asked(store)
            turn = await is_now(store, sid, turn_id, "failed")

        assert turn.error is not None
        assert (turn.error.code, turn.error.message) == ("AGENT_REFUSED", "The agent refused: 403")

    async def test_may_be_followed_by_another_attempt_after_a_pause(self, redis_url: str) -> None:
        failure = AttemptFailed("AGENT_RATE_LIMITED", "Later", pause_s=20)
        async with stores(redis_url, 1) as (store,), dispatching(store, Says(failure)):
            sid, turn_id = await asked(store)
            turn = await is_now(store, sid, turn_id, "queued")
            until_ms = (await state_of(store, sid)).retry_ms

        assert turn.attempt == 1
        assert until_ms - turn.started_ms >= 20_000

    def test_asks_for_a_pause_of_a_minute_at_most(self) -> None:
        assert AttemptFailed("AGENT_RATE_LIMITED", "Later", pause_s=3600).pause_s == 60
        assert AttemptFailed("AGENT_RATE_LIMITED", "Later", pause_s=-1).pause_s == 0

    async def test_of_another_kind_says_no_more_than_its_name(self, redis_url: str) -> None:
        async with (
            stores(redis_url, 1) as (store,),
            dispatching(store, Says(ValueError("sk-secret")), max_attempts=1),
        ):
            sid, turn_id = await asked(store)
            turn = await is_now(store, sid, turn_id, "failed")

        assert turn.error is not None
        assert (turn.error.code, turn.error.message) == ("AGENT_ERROR", "The agent failed with ValueError")

    async def test_is_told_though_redis_was_away_and_the_agent_is_not_asked_again(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It was final. The outage is one line in the log, however many tries it took."""
        monkeypatch.setattr(attempt, "RETRY_S", 0.01)
        failure = AttemptFailed("AGENT_REFUSED", "The agent refused: 403", retry=False)
        async with stores(redis_url, 1) as (store,):
            with capture_logs() as logs:
                async with dispatching(store, Says(failure)):
                    away = failing(store, monkeypatch, "fail", times=5)
                    sid, turn_id = await asked(store)
                    turn = await is_now(store, sid, turn_id, "failed")

        assert len(away) == 5
        assert turn.error is not None
        assert (turn.error.code, turn.attempt) == ("AGENT_REFUSED", 1)
        assert [entry["code"] for entry in logs if entry["event"] == "turn_write_repeated"] == [
            "STORAGE_UNAVAILABLE"
        ]

    async def test_of_patience_is_a_timeout(self, redis_url: str) -> None:
        async with (
            stores(redis_url, 1) as (store,),
            dispatching(store, Hangs(), max_attempts=1, turn_timeout_ms=200),
        ):
            sid, turn_id = await asked(store)
            turn = await is_now(store, sid, turn_id, "failed")

        assert turn.error is not None
        assert turn.error.code == "AGENT_TIMEOUT"

    async def test_of_patience_is_a_timeout_also_by_the_clock_of_redis(self, redis_url: str) -> None:
        """Who hears from Redis that the deadline has passed gives up for the same reason."""
        connector = Hangs()
        async with stores(redis_url, 1) as (store,):
            with capture_logs() as logs:
                async with dispatching(store, connector, turn_timeout_ms=60_000):
                    sid, turn_id = await asked(store)
                    await until(lambda: connector.open == 1)
                    await age(store, sid, 60_000)
                    await store.alarms.ring(sid)
                    await until(lambda: connector.closed == 1, within_s=2.5)  # an extension is due after 3 s
                    turn = await is_now(store, sid, turn_id, "queued")

        assert turn.attempt == 1
        failed = [entry for entry in logs if entry["event"] == "turn_attempt_failed"]
        assert [entry["code"] for entry in failed] == ["AGENT_TIMEOUT"]


def failing(store: Store, monkeypatch: pytest.MonkeyPatch, name: str, *, times: int) -> list[str]:
    """The next calls of the script *name* find Redis away; those that did."""
    scripts = store.turns._scripts
    run = scripts.run_noting_repeats
    failed: list[str] = []

    async def away(script: Script, *args: Any) -> Reply:
        if script.name == name and len(failed) < times:
            failed.append(name)
            raise StorageUnavailable("away")
        return await run(script, *args)

    monkeypatch.setattr(scripts, "run_noting_repeats", away)
    return failed


class TestACancel:
    @pytest.mark.parametrize("piece", ["", "begun"])
    async def test_reaches_a_silent_connector_by_its_hint(self, redis_url: str, piece: str) -> None:
        """Without it the attempt would ask again seconds later: the hint is what closes it here."""
        connector = Hangs(piece=piece)
        async with stores(redis_url, 2) as (here, there), dispatching(here, connector):
            sid, turn_id = await asked(here)
            await until(lambda: connector.open == 1)
            if piece:
                await eventually(lambda: self.has_draft(here, sid))
            extends = here.redis.stats.scripts["extend"]
            await there.turns.cancel(sid, turn_id, grant=EVERYTHING)
            await until(lambda: connector.closed == 1, within_s=2.5)  # an extension is due after 3 s

            assert here.redis.stats.scripts["extend"] == extends + 1

    @staticmethod
    async def has_draft(store: Store, sid: SessionId) -> bool:
        return (await store.log.replay(sid, grant=EVERYTHING, after=None)).draft is not None

    @pytest.mark.parametrize("how", ["delete", "interrupt", "abandon"])
    async def test_of_every_kind_reaches_it(self, redis_url: str, how: str) -> None:
        connector = Hangs()
        async with stores(redis_url, 1) as (store,), dispatching(store, connector):
            sid, _ = await asked(store)
            await until(lambda: connector.open == 1)
            match how:
                case "delete":
                    await store.sessions.end(sid, grant=EVERYTHING)
                case "interrupt":
                    await say(store, sid, on_busy="interrupt")
                case _:
                    await store.turns.abandon(sid, code="AGENT_NOT_FOUND", message="Gone")
            await until(lambda: connector.closed == 1, within_s=2.5)

    async def test_hint_that_is_not_true_stops_nothing(self, redis_url: str) -> None:
        connector = Hangs()
        async with stores(redis_url, 1) as (store,), dispatching(store, connector):
            sid, turn_id = await asked(store)
            await until(lambda: connector.open == 1)
            before = store.redis.stats.scripts["extend"]
            store.redis.post(b"PUBLISH", store.keyspace.wake(AGENT), f"{sid} {turn_id}".encode())
            await until(lambda: store.redis.stats.scripts["extend"] > before)

            assert (connector.open, connector.closed) == (1, 0)

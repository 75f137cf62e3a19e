"""Work is found and claimed: by one worker, under a fence, for a lease."""

from __future__ import annotations

import asyncio
import json

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import AgentId, SessionId, new_message_id, new_turn_id, partition_of_session
from sessions_api.store import Store
from tests.support.servers import TestServer
from tests.support.stores import AGENT, CONFIG, age, claimed, complete, opened, say, written
from tests.support.turns import FIRST_LEASE_MS, act, started
from tests.support.waiting import eventually


class TestClaim:
    async def test_takes_the_oldest_turn_with_its_messages_and_what_was_said_before(
        self, store: Store
    ) -> None:
        session = await opened(store, metadata=b'{"a":1}')
        first = await say(store, session.session_id, "one")
        await complete(store, await claimed(store, session.session_id), "uno")
        second = await say(store, session.session_id, "two")
        await say(store, session.session_id, "three")

        taken = await claimed(store, session.session_id)

        assert (taken.session_id, taken.agent_id, taken.metadata) == (session.session_id, AGENT, b'{"a":1}')
        assert taken.turn.turn_id == second.turn_id
        assert [json.loads(entry.body)["content"] for entry in taken.messages] == ["two"]
        assert [json.loads(entry.body)["content"] for entry in taken.history] == ["one", "uno"]
        assert taken.history[0].cursor == first.cursor
        assert (taken.turn.state, taken.turn.attempt, taken.more) == ("running", 1, False)

    async def test_one_turn_of_a_session_runs_at_a_time(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        await say(store, session.session_id)
        first = await claimed(store, session.session_id)

        with pytest.raises(AssertionError):
            await claimed(store, session.session_id)
        await complete(store, first)

        assert (await claimed(store, session.session_id)).turn.turn_id != first.turn.turn_id

    async def test_racing_workers_get_one_turn_between_them(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)

        claims = await asyncio.gather(
            *(
                store.turns.claim(
                    session.session_id,
                    agent_id=AGENT,
                    worker=f"w{n}",
                    fence_bits=f"{n:016x}",
                    message_id=new_message_id(),
                    turn_ms=300_000,
                    max_attempts=3,
                )
                for n in range(20)
            )
        )

        assert sum(claim.turn is not None for claim in claims) == 1

    async def test_a_repeat_with_its_fence_gets_the_same_turn(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        first = await claimed(store, session.session_id, fence_bits="f" * 16)

        again = await claimed(store, session.session_id, fence_bits="f" * 16)

        assert again.turn == first.turn
        assert again.turn.attempt == 1

    async def test_is_for_the_sessions_own_agent(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)

        claim = await store.turns.claim(
            session.session_id, agent_id=AgentId("b" + AGENT[1:]), worker="w", fence_bits="0" * 16,
            message_id=new_message_id(), turn_ms=1_000, max_attempts=3,
        )  # fmt: skip

        assert claim.turn is None

    async def test_names_another_session_with_work(self, store: Store) -> None:
        sessions = [await opened(store) for _ in range(2)]
        for session in sessions:
            await say(store, session.session_id)

        claim = await store.turns.claim(
            sessions[0].session_id, agent_id=AGENT, worker="w", fence_bits="0" * 16,
            message_id=new_message_id(), turn_ms=1_000, max_attempts=3,
        )  # fmt: skip

        assert claim.next == sessions[1].session_id
        assert (await store.ready.next_ready(AGENT)).session_ids == [sessions[1].session_id]

    @pytest.mark.parametrize("size", [0, 1, 3])
    async def test_history_counts_messages_and_says_if_there_is_more(self, store: Store, size: int) -> None:
        """Failed and cancelled turns lie between the messages of the log and are no history."""
        session = await opened(store)
        for number in range(3):
            await say(store, session.session_id, f"{number}")
            await act(store, "final", await claimed(store, session.session_id))
        await say(store, session.session_id, "now")

        taken = await claimed(store, session.session_id, history=size)

        assert [json.loads(entry.body)["content"] for entry in taken.history] == ["0", "1", "2"][3 - size :]
        if size:
            assert taken.more is (size < 3)

    async def test_history_is_found_behind_any_number_of_failures(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id, "first")
        await complete(store, await claimed(store, session.session_id), "answer")
        await say(store, session.session_id, "merged", turn_id=new_turn_id())
        for _ in range(4):
            await say(store, session.session_id, "x", on_busy="interrupt")

        taken = await claimed(store, session.session_id, history=1)

        assert [json.loads(entry.body)["content"] for entry in taken.history] == ["answer"]
        assert taken.more

    async def test_history_ends_where_the_turn_begins(self, store: Store) -> None:
        """What was said after its message is no history, however much of it there is."""
        session = await opened(store)
        await say(store, session.session_id, "first")
        await complete(store, await claimed(store, session.session_id), "answer")
        for number in range(12):
            await say(store, session.session_id, f"{number}")

        taken = await claimed(store, session.session_id, history=2)

        assert [json.loads(entry.body)["content"] for entry in taken.messages] == ["0"]
        assert [json.loads(entry.body)["content"] for entry in taken.history] == ["first", "answer"]
        assert not taken.more

    @pytest.mark.servers("valkey", "redis62")  # fakeredis does not take megabytes over TCP
    @pytest.mark.parametrize("chars", [20_000, 60_000])
    async def test_history_has_a_bounded_size(self, store: Store, chars: int) -> None:
        """The newest that fit into a quarter of a mebibyte, also out of megabytes."""
        session = await opened(store)
        for number in range(20):
            await say(store, session.session_id, f"{number:02}" + "x" * chars)
            await complete(store, await claimed(store, session.session_id, history=0), "ok")
        await say(store, session.session_id, "now")

        taken = await claimed(store, session.session_id)

        whole = [entry for entry in await written(store, session.session_id) if entry.kind == "message"][:-1]
        size_bytes = sum(len(entry.body) for entry in taken.history)
        (left_out,) = whole[-len(taken.history) - 1 : -len(taken.history)]
        assert [entry.cursor for entry in taken.history] == [
            entry.cursor for entry in whole[-len(taken.history) :]
        ]
        assert taken.more
        assert size_bytes <= 256 * 1024 < size_bytes + len(left_out.body)

    @pytest.mark.parametrize("is_said_before", [False, True])
    async def test_a_turn_is_claimed_without_a_history_that_is_gone(
        self, store: Store, server: TestServer, is_said_before: bool
    ) -> None:
        """Trimmed by now: nothing more is to be had, and nothing fails."""
        session = await opened(store)
        if is_said_before:
            await say(store, session.session_id, "first")
            await complete(store, await claimed(store, session.session_id), "answer")
        asked = await say(store, session.session_id, "now")
        server.call("XTRIM", store.keyspace.of(session.session_id).log, "MINID", asked.cursor)

        taken = await claimed(store, session.session_id)

        assert [json.loads(entry.body)["content"] for entry in taken.messages] == ["now"]
        assert (taken.history, taken.more) == ([], False)

    async def test_holds_the_session_for_the_first_lease(self, store: Store) -> None:
        taken = await started(store)

        session = await store.sessions.read(SessionId(taken.session_id), grant=EVERYTHING)

        assert session.held_until_ms == taken.turn.started_ms + FIRST_LEASE_MS
        assert (session.stage, session.turn_state) == ("waiting", "running")

    async def test_an_expired_or_absent_session_has_nothing_to_take(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        for _ in range(2):
            await age(store, session.session_id, 2 * CONFIG.timeout_ms)
            with pytest.raises(AssertionError):
                await claimed(store, session.session_id)


class TestStaleReady:
    async def test_finds_work_that_nobody_came_for(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        partition = partition_of_session(session.session_id)

        async def is_found() -> bool:
            return await store.ready.stale_ready(partition) == [(AGENT, session.session_id)]

        await eventually(is_found, within_s=5)

"""Where a message's request stood in a trace goes with its turn to whoever claims it, and no further."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import SessionId, new_message_id, new_turn_id
from sessions_api.domain.messages import NewMessage
from sessions_api.domain.sessions import OnBusy
from sessions_api.domain.traces import NO_TRACE, Trace
from sessions_api.store import Store
from sessions_api.store.log import Appended
from tests.support.servers import TestServer
from tests.support.stores import claimed, opened, user_body
from tests.support.turns import act, lapsed, reclaimed


def trace(number: int, state: str = "") -> Trace:
    return Trace(f"00-{number:032x}-{number:016x}-01{state and ' ' + state}")


async def say(
    store: Store, session_id: SessionId, trace: Trace = NO_TRACE, *, on_busy: OnBusy | None = None
) -> Appended:
    message_id = new_message_id()
    return await store.log.append(
        session_id,
        grant=EVERYTHING,
        message=NewMessage(message_id, user_body(message_id, "hello"), trace),
        turn_id=new_turn_id(),
        on_busy=on_busy,
    )


def record(server: TestServer, session_id: SessionId, turn_id: str) -> dict[str, Any]:
    """The turn as it is stored."""
    keys = server.keys()
    [turns] = [key for key in keys if b"session:" in key and session_id.encode() in key]
    found: dict[str, Any] = msgspec.msgpack.decode(server.call("HGET", turns, turn_id))
    return found


class TestATrace:
    async def test_comes_with_the_claim(self, store: Store) -> None:
        session_id = (await opened(store)).session_id
        await say(store, session_id, trace(1, "a=b c,d=e"))

        taken = await claimed(store, session_id)

        assert taken.trace == trace(1, "a=b c,d=e")
        assert taken.turn.traces == (taken.trace,)

    async def test_that_is_not_there_leaves_the_record_as_it_was(
        self, store: Store, server: TestServer
    ) -> None:
        session_id = (await opened(store)).session_id
        said = await say(store, session_id)

        assert "traces" not in record(server, session_id, said.turn_id)
        assert (await claimed(store, session_id)).trace == NO_TRACE

    @pytest.mark.parametrize("how", ["retry", "release", "lapse"])
    async def test_stays_for_the_next_attempt(self, store: Store, how: str) -> None:
        session_id = (await opened(store)).session_id
        await say(store, session_id, trace(1))
        first = await claimed(store, session_id)

        if how == "lapse":
            await lapsed(store, first)
        else:
            await act(store, how, first)
        second = await reclaimed(store, first)

        assert second.turn.turn_id == first.turn.turn_id
        assert second.trace == trace(1)

    @pytest.mark.parametrize("how", ["complete", "final", "cancel"])
    async def test_is_forgotten_with_the_end(self, store: Store, server: TestServer, how: str) -> None:
        """Ended turns are kept for a while, fifty of them; what they were traced by is not."""
        session_id = (await opened(store)).session_id
        said = await say(store, session_id, trace(1))
        taken = await claimed(store, session_id)
        assert record(server, session_id, said.turn_id)["traces"] == [trace(1)]

        if how == "cancel":
            await store.turns.cancel(session_id, said.turn_id, grant=EVERYTHING)
        else:
            await act(store, how, taken)

        assert "traces" not in record(server, session_id, said.turn_id)

    async def test_of_a_repeat_is_not_added(self, store: Store) -> None:
        """The append whose reply was lost comes again under the same turn id."""
        session_id = (await opened(store)).session_id
        message_id, turn_id = new_message_id(), new_turn_id()
        for _ in range(2):
            message = NewMessage(message_id, user_body(message_id, "hello"), trace(1))
            await store.log.append(session_id, grant=EVERYTHING, message=message, turn_id=turn_id)

        assert (await claimed(store, session_id)).turn.traces == (trace(1),)


class TestSeveral:
    async def test_merged_messages_keep_the_first_and_name_the_others(self, store: Store) -> None:
        session_id = (await opened(store)).session_id
        await say(store, session_id)
        await claimed(store, session_id)
        for number in (1, 0, 2):
            await say(store, session_id, trace(number) if number else NO_TRACE, on_busy="merge")
        running = await store.sessions.read(session_id, grant=EVERYTHING)
        assert running.turn_id is not None
        await store.turns.cancel(session_id, running.turn_id, grant=EVERYTHING)

        taken = await claimed(store, session_id)

        assert len(taken.messages) == 3
        assert taken.turn.traces == (trace(1), trace(2))

    async def test_an_interruption_goes_before_what_it_takes_along(self, store: Store) -> None:
        session_id = (await opened(store)).session_id
        await say(store, session_id, trace(1))
        await claimed(store, session_id)
        await say(store, session_id, trace(2))
        await say(store, session_id, trace(3), on_busy="interrupt")

        taken = await claimed(store, session_id)

        assert len(taken.messages) == 2
        assert taken.turn.traces == (trace(3), trace(2))

    async def test_are_eight_at_most(self, store: Store) -> None:
        """A turn takes a hundred messages; its record must not grow with each."""
        session_id = (await opened(store)).session_id
        for number in range(1, 12):
            await say(store, session_id, trace(number), on_busy="merge")

        taken = await claimed(store, session_id)

        assert len(taken.messages) == 11
        assert taken.turn.traces == tuple(trace(number) for number in range(1, 9))

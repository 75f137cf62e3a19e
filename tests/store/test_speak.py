"""A message that nobody asked for: by the agent or the system, without a turn."""

from __future__ import annotations

import json

import pytest

from sessions_api.domain.access import EVERYTHING, Grant
from sessions_api.domain.ids import LOCAL_APP, MessageId, SessionId, new_message_id
from sessions_api.domain.messages import NewMessage
from sessions_api.errors import IdempotencyMismatch, SessionExpired, SessionNotFound
from sessions_api.store import Store
from sessions_api.store.log import Appended
from sessions_api.store.sessions import Once
from tests.support.servers import TestServer
from tests.support.stores import (
    AGENT,
    CONFIG,
    MINUTE_MS,
    OTHER_APP,
    Ears,
    age,
    agent_body,
    claimed,
    complete,
    once,
    opened,
    say,
)
from tests.support.turns import kinds, started


async def speak(
    store: Store,
    session_id: SessionId,
    text: str = "By the way",
    *,
    grant: Grant = EVERYTHING,
    message_id: MessageId | None = None,
    once: Once | None = None,
) -> Appended:
    message_id = message_id or new_message_id()
    message = NewMessage(message_id, agent_body(message_id, text))
    return await store.log.speak(session_id, grant=grant, message=message, once=once)


class TestSpeak:
    async def test_enters_the_log_and_is_heard(self, store: Store, ears: Ears) -> None:
        session = await opened(store, agent=AGENT.upper())
        ears.heard()

        said = await speak(store, session.session_id)

        assert (said.turn_id, said.was_renewed, said.is_repeat) == ("", False, False)
        [entry] = (await store.log.replay(session.session_id, grant=EVERYTHING, after=0)).entries
        assert (entry.kind, entry.status, entry.turn_id, entry.cursor) == ("message", None, None, said.cursor)
        body = json.loads(entry.body)
        assert body == {
            "authorId": AGENT.upper(), "id": said.message_id, "content": "By the way", "isAgent": True,
        }  # fmt: skip
        assert [(kind, args) for kind, args, _ in ears.heard()] == [("message.created", "- -")]

    async def test_keeps_the_author_it_names(self, store: Store) -> None:
        session = await opened(store)
        body = b'{"authorId":"system","content":"Maintenance at noon"}'

        await store.log.speak(
            session.session_id, grant=EVERYTHING, message=NewMessage(new_message_id(), body)
        )

        [entry] = (await store.log.replay(session.session_id, grant=EVERYTHING, after=0)).entries
        assert entry.body == body

    async def test_is_no_activity_and_renews_nothing(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, MINUTE_MS)
        before = await store.sessions.read(session.session_id, grant=EVERYTHING)

        said = await speak(store, session.session_id)

        after = said.session
        assert after.cursor == said.cursor
        for name in ("expires_ms", "last_activity_ms", "last_renewal_ms", "renewals", "turn_id", "queued"):
            assert getattr(after, name) == getattr(before, name), name
        assert await store.ready.open_of(AGENT) == []

    async def test_leaves_an_open_turn_alone(self, store: Store) -> None:
        taken = await started(store)
        sid = SessionId(taken.session_id)
        await speak(store, sid)

        assert await complete(store, taken) is False

        assert await kinds(store, sid) == ["message", "message", "complete"]

    async def test_is_part_of_the_history_of_later_turns(self, store: Store) -> None:
        session = await opened(store)
        await speak(store, session.session_id, "Welcome")
        await say(store, session.session_id)

        taken = await claimed(store, session.session_id)

        assert [json.loads(entry.body)["content"] for entry in taken.history] == ["Welcome"]

    async def test_is_for_the_sessions_own_agent_and_app(self, store: Store) -> None:
        session = await opened(store)
        for stranger in (f"agent:b{AGENT[1:]}", OTHER_APP):
            with pytest.raises(SessionNotFound):
                await speak(store, session.session_id, grant=stranger)

        for own in (f"agent:{AGENT}", LOCAL_APP):
            await speak(store, session.session_id, grant=own)

        assert await kinds(store, session.session_id) == ["message", "message"]

    async def test_an_expired_session_is_not_spoken_in(self, store: Store) -> None:
        session = await opened(store)
        await age(store, session.session_id, CONFIG.timeout_ms)

        with pytest.raises(SessionExpired):
            await speak(store, session.session_id)

    async def test_the_log_is_trimmed_whoever_speaks(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        half = "x" * (3 * 1024 * 1024)
        for _ in range(4):
            await speak(store, session.session_id, half)

        assert server.call("XLEN", store.keyspace.of(session.session_id).all()[2]) == 2


class TestRepeats:
    async def test_the_same_message_again_is_the_same_success(self, store: Store) -> None:
        session = await opened(store)
        message_id = new_message_id()
        first = await speak(store, session.session_id, message_id=message_id)

        again = await speak(store, session.session_id, message_id=message_id)

        assert (again.cursor, again.message_id, again.is_repeat) == (first.cursor, message_id, False)
        assert await kinds(store, session.session_id) == ["message"]

    async def test_a_key_is_honoured_once_also_after_expiry(self, store: Store) -> None:
        session = await opened(store)
        first = await speak(store, session.session_id, once=once())
        await age(store, session.session_id, CONFIG.timeout_ms)

        again = await speak(store, session.session_id, once=once())

        assert (again.cursor, again.message_id, again.is_repeat) == (first.cursor, first.message_id, True)

    async def test_a_key_with_other_content_is_refused(self, store: Store) -> None:
        session = await opened(store)
        await speak(store, session.session_id, once=once())

        with pytest.raises(IdempotencyMismatch):
            await speak(store, session.session_id, once=once(content=b"other"))

    async def test_a_key_is_found_in_its_app_only(self, store: Store) -> None:
        session = await opened(store)
        await speak(store, session.session_id, once=once())

        with pytest.raises(SessionNotFound):
            await store.log.speak(
                session.session_id, grant=OTHER_APP, once=once(),
                message=NewMessage(new_message_id(), b"{}"),
            )  # fmt: skip
        assert (await store.sessions.read(session.session_id, grant=LOCAL_APP)).cursor > 0

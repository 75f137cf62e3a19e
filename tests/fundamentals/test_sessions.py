"""The service in sixteen short conversations: read it top to bottom instead of a tutorial.

First over HTTP, as an app and its user meet it; then at the store, where time can
be made to pass and an agent can be played by hand.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from sessions_api.app import create_app
from sessions_api.domain.agents import ECHO_ID
from sessions_api.domain.ids import LOCAL_APP, new_op_id
from sessions_api.errors import SessionExpired, SessionNotFound, TurnLost
from sessions_api.settings import Settings
from sessions_api.store import Redis, Store
from sessions_api.store.keys import Keyspace
from tests.support.servers import TestServer
from tests.support.stores import MINUTE_MS, age, answer_body, claimed, complete, once, opened, say

pytestmark = pytest.mark.servers("valkey")

SESSIONS = "/api/messaging/sessions"
ME = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
async def http(server: TestServer) -> AsyncIterator[httpx2.AsyncClient]:
    """The whole service in this process, with its built-in agent Echo, and a client of it."""
    app = create_app(
        Settings.from_env({"REDIS_URL": server.url, "SESSIONS_DEV": "on", "SESSIONS_ENV": "test"})
    )
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://127.0.0.1:3000"
        ) as client,
    ):
        yield client


@pytest.fixture
async def store(redis: Redis) -> Store:
    store = Store(redis, Keyspace())
    await store.open()
    return store


async def create(http: httpx2.AsyncClient, **body: Any) -> str:
    reply = await http.post(SESSIONS, json={"agentId": ECHO_ID, "userId": ME} | body)
    assert reply.status_code == 201
    return f"{SESSIONS}/{reply.json()['sessionId']}"


class TestOverHttp:
    async def test_a_session_is_made_of_an_agent_and_a_user(self, http: httpx2.AsyncClient) -> None:
        """Nothing else is needed: no channel, no setup."""
        reply = await http.post(
            SESSIONS, json={"agentId": ECHO_ID, "userId": ME, "metadata": {"plan": "pro"}}
        )

        session = reply.json()
        assert reply.status_code == 201
        assert reply.headers["location"] == f"{SESSIONS}/{session['sessionId']}"
        assert session["stage"] == "created"
        assert session["metadata"] == {"plan": "pro"}

    async def test_a_message_is_answered(self, http: httpx2.AsyncClient) -> None:
        """``transport: http`` waits for the answer; the others do not."""
        session = await create(http)

        reply = await http.post(f"{session}/messages", json={"content": "Hello", "transport": "http"})

        assert reply.status_code == 201
        assert reply.json()["userMessage"]["content"] == "Hello"
        assert "Hello" in reply.json()["agentResponse"]["text"]

    async def test_the_conversation_stays(self, http: httpx2.AsyncClient) -> None:
        """Newest first, each message under its cursor, which is also the time it was said."""
        session = await create(http)
        await http.post(f"{session}/messages", json={"content": "Hello", "transport": "http"})

        history = (await http.get(f"{session}/messages")).json()

        answer, question = history["messages"]
        assert (question["role"], answer["role"]) == ("user", "agent")
        assert question["cursor"] < answer["cursor"]
        assert history["hasMore"] is False

    async def test_what_is_said_renews_the_session(self, http: httpx2.AsyncClient) -> None:
        session = await create(http)
        before = (await http.get(session)).json()["expiresAt"]
        await asyncio.sleep(0.002)  # so that there is something to renew

        reply = await http.post(f"{session}/messages", json={"content": "Still here", "transport": "http"})

        assert reply.json()["sessionStatus"]["expiresAt"] > before

    async def test_a_retry_with_its_key_is_one_message(self, http: httpx2.AsyncClient) -> None:
        session = await create(http)
        message = {"content": "Once, please", "transport": "http"}
        key = {"Idempotency-Key": "7f3a"}

        first = await http.post(f"{session}/messages", json=message, headers=key)
        again = await http.post(f"{session}/messages", json=message, headers=key)

        assert again.headers["idempotency-replayed"] == "true"
        assert again.json()["id"] == first.json()["id"]
        assert len((await http.get(f"{session}/messages")).json()["messages"]) == 2

    async def test_every_error_is_told_in_one_shape(self, http: httpx2.AsyncClient) -> None:
        reply = await http.post(SESSIONS, json={"agentId": "nobody", "userId": ME})

        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, "VALIDATION_ERROR")
        assert error["requestId"] == reply.headers["x-request-id"]

    async def test_deleted_is_deleted(self, http: httpx2.AsyncClient) -> None:
        session = await create(http)

        assert (await http.delete(session)).status_code == 200

        assert (await http.get(session)).status_code == 404


class TestTime:
    async def test_an_idle_session_expires(self, store: Store) -> None:
        """To the millisecond of Redis's clock, on every replica, whoever notices first."""
        session = await opened(store)

        await age(store, session.session_id, 30 * MINUTE_MS)

        with pytest.raises(SessionExpired) as expired:
            await store.sessions.read(session.session_id, grant=LOCAL_APP)
        assert expired.value.reason == "timeout"

    async def test_a_heartbeat_keeps_it(self, store: Store) -> None:
        session = await opened(store)
        for _ in range(4):
            await age(store, session.session_id, 20 * MINUTE_MS)
            await store.sessions.heartbeat(session.session_id, grant=LOCAL_APP, op=new_op_id())

        alive = await store.sessions.read(session.session_id, grant=LOCAL_APP)

        assert alive.renewals == 4

    async def test_but_not_beyond_its_maximum_duration(self, store: Store) -> None:
        session = await opened(store)
        for _ in range(36):
            await age(store, session.session_id, 20 * MINUTE_MS - 1_000)
            await store.sessions.heartbeat(session.session_id, grant=LOCAL_APP, op=new_op_id())

        await age(store, session.session_id, 36_000)

        with pytest.raises(SessionExpired) as expired:
            await store.sessions.read(session.session_id, grant=LOCAL_APP)
        assert expired.value.reason == "max_duration"

    async def test_a_warning_comes_before_the_end(self, store: Store) -> None:
        """Once, five minutes before; a renewal takes it back."""
        session = await opened(store)
        await age(store, session.session_id, 25 * MINUTE_MS)

        warned = await store.alarms.ring(session.session_id)
        again = await store.alarms.ring(session.session_id)
        renewed, _ = await store.sessions.renew(session.session_id, grant=LOCAL_APP, op=new_op_id())

        assert (warned.outcome, again.outcome) == ("warned", "idle")
        assert not renewed.is_near_expiration

    async def test_an_expired_session_is_no_dead_end(self, store: Store) -> None:
        """Its log stays readable for the retention; then Redis forgets it."""
        session = await opened(store)
        await say(store, session.session_id, "Remember me")
        await age(store, session.session_id, 30 * MINUTE_MS)
        await store.alarms.ring(session.session_id)

        page = await store.log.history(session.session_id, grant=LOCAL_APP, limit=10, ended=True)
        assert json.loads(page.entries[0].body)["content"] == "Remember me"

        await age(store, session.session_id, 60 * MINUTE_MS)
        with pytest.raises(SessionNotFound):
            await store.sessions.read(session.session_id, grant=LOCAL_APP)


class TestTurns:
    async def test_a_message_is_a_turn_that_an_agent_takes(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id, "What is six times seven?")

        taken = await claimed(store, session.session_id)
        turn = taken.turn
        await store.turns.delta(session.session_id, turn.turn_id, fence=turn.fence, text="Forty-", offset=0)
        await store.turns.delta(session.session_id, turn.turn_id, fence=turn.fence, text="two", offset=6)
        body = answer_body("Forty-two")
        await store.turns.complete(session.session_id, turn.turn_id, fence=turn.fence, body=body)

        answer = await store.turns.answer(session.session_id, turn.turn_id, grant=LOCAL_APP)
        assert answer is not None
        assert json.loads(answer.body)["content"] == "Forty-two"

    async def test_work_in_progress_holds_the_idle_clock(self, store: Store) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        await age(store, session.session_id, 30 * MINUTE_MS - 5_000)
        taken = await claimed(store, session.session_id)

        await age(store, session.session_id, 8_000)

        assert (await store.sessions.read(session.session_id, grant=LOCAL_APP)).stage == "waiting"
        await complete(store, taken)
        assert (await store.sessions.read(session.session_id, grant=LOCAL_APP)).remaining_ms > 29 * MINUTE_MS

    async def test_an_agent_that_dies_is_replaced_and_comes_too_late(self, store: Store) -> None:
        """Its lease lapses, another worker gets the turn, and the dead one's writes are refused."""
        session = await opened(store)
        await say(store, session.session_id)
        dead = await claimed(store, session.session_id)

        await age(store, session.session_id, 10_000)
        await store.alarms.ring(session.session_id)
        await age(store, session.session_id, 1_000)
        living = await claimed(store, session.session_id)

        assert living.turn.attempt == 2
        with pytest.raises(TurnLost):
            await complete(store, dead, "too late")
        await complete(store, living, "in time")

    async def test_a_follower_gets_everything_after_its_cursor_once_and_in_order(self, store: Store) -> None:
        """Each entry names the one before it, so that a gap cannot hide."""
        session = await opened(store)
        first = await say(store, session.session_id, "one", once=once("1"))
        await complete(store, await claimed(store, session.session_id), "uno")
        await say(store, session.session_id, "two", once=once("2"))

        replay = await store.log.replay(session.session_id, grant=LOCAL_APP, after=first.cursor)

        assert [json.loads(entry.body)["content"] for entry in replay.entries] == ["uno", "two"]
        assert replay.entries[0].prev == first.cursor
        assert replay.entries[1].prev == replay.entries[0].cursor
        assert replay.complete

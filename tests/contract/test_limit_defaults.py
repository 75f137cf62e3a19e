"""What holds where an operator set no limit: 10 creations and 100 messages a minute, more for app keys."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest

from sessions_api.access.keyring import mint
from tests.support.client import Api, closed, eventually, problem, received_until
from tests.support.limits import SILENT, Caller, Stands, limited, serving, some_address, some_agent, standings
from tests.support.presence import attend_at
from tests.support.servers import TestServer

(LINE, KEY), (FRESH_LINE, FRESH_KEY) = mint("shop", ["admin"]), mint("shop", ["app"])
FOLLOWERS, FOLLOWERS_PER_SESSION = 5, 2


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory, contract_redis: TestServer) -> Iterator[list[Api]]:
    """Two replicas of ``serve`` without keys; a proxy of theirs on this machine tells addresses apart."""
    folder = tmp_path_factory.mktemp("keyless")
    env = {"SESSIONS_KEY_PREFIX": "keyless:", "SESSIONS_TRUSTED_PROXIES": "127.0.0.1"}
    with serving(folder, contract_redis.url, **env) as replicas:
        yield replicas


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, contract_redis: TestServer) -> Iterator[Caller]:
    """An application with a key, at the one replica that there is; no proxy is believed."""
    attend_at(contract_redis.url, SILENT, key_prefix="keyed:")
    with serving(
        tmp_path_factory.mktemp("keyed"),
        contract_redis.url,
        1,
        SESSIONS_KEY_PREFIX="keyed:",
        SESSIONS_KEYS=f"{LINE};{FRESH_LINE}",
        SESSIONS_MAX_FOLLOWERS=str(FOLLOWERS),
        SESSIONS_MAX_FOLLOWERS_PER_SESSION=str(FOLLOWERS_PER_SESSION),
    ) as replicas:
        yield Caller(replicas, x_api_key=KEY)


def until_refused(ask: Callable[[], httpx2.Response], quota: int, window_s: int) -> httpx2.Response:
    """The refusal that comes after the quota, and after what came back of it meanwhile, and not later."""
    admitted, started_s = 0, time.monotonic()
    while (reply := ask()).status_code == 201:
        admitted += 1
    passed_s = time.monotonic() - started_s
    assert quota <= admitted <= quota + passed_s * quota / window_s
    return reply


class TestWithoutAnAppKey:
    def test_ten_creations_a_minute_from_one_address(self, keyless: list[Api]) -> None:
        """Over both replicas; a refused one costs nobody else anything."""
        one = Caller(keyless, x_forwarded_for=some_address())
        agent = some_agent()

        refused = until_refused(lambda: one.create(agent), 10, 60)

        limited(refused, "creates-ip", 10, 60)
        assert standings(one.moved().create(agent)) == {"creates-ip": Stands(10, 60, 9, 6)}

    def test_a_hundred_messages_a_minute_to_one_session_from_one_address(self, keyless: list[Api]) -> None:
        """And whoever waits as long as told is let in again."""
        one = Caller(keyless, x_forwarded_for=some_address())
        session_id = one.session(some_agent())

        refused = until_refused(lambda: one.post(session_id, transport="http"), 100, 60)
        told_s = time.monotonic()
        wait_s = limited(refused, "messages-session-ip", 100, 60)
        assert one.moved().post(session_id).status_code == 201

        def is_let_in() -> bool:
            asked_s = time.monotonic()
            status = one.post(session_id).status_code
            assert status == 201 or asked_s < told_s + wait_s
            return status == 201

        eventually(is_let_in)


class TestWithAnAppKey:
    def test_a_hundred_creations_and_a_thousand_messages_a_second(self, app: Caller) -> None:
        """And none by address."""
        fresh = Caller(app.replicas, x_api_key=FRESH_KEY)
        created = fresh.create(some_agent())
        posted = fresh.post(created.json()["sessionId"])

        assert standings(created) == {"creates-key": Stands(100, 1, 99, 1)}
        assert standings(posted) == {"messages-key": Stands(1000, 1, 999, 1)}

    def test_a_token_of_its_session_has_a_hundred_messages_a_minute(self, app: Caller) -> None:
        """By the address of the peer: what a stranger forwards is not believed."""
        session_id = app.session(some_agent())
        user, started_s = app.token(session_id), time.monotonic()

        for number in range(5):
            stands = standings(user.moved().post(session_id))
            passed_s = time.monotonic() - started_s

            assert stands.keys() == {"messages-session-ip"}
            assert stands["messages-session-ip"][:2] == (100, 60)
            assert stands["messages-session-ip"].left <= 99 - number + passed_s * 100 / 60

    def test_a_hundred_messages_of_a_session_may_wait_for_an_answer(self, app: Caller) -> None:
        session_id = app.session(SILENT)
        for _ in range(100):
            assert app.post(session_id).status_code == 201

        late = app.post(session_id)

        details = problem(late, 429, "RATE_LIMIT_EXCEEDED")["details"]
        assert details == {"policy": "backlog", "queued": 100, "retryAfterSeconds": 5}
        assert late.headers["ratelimit-policy"] == '"backlog";q=100'
        assert late.headers["ratelimit"] == f'"backlog";r=0;t={late.headers["retry-after"]}'


class TestFollowers:
    def test_of_one_session_and_of_the_process(self, app: Caller) -> None:
        sessions = [app.session(some_agent()) for _ in range(3)]
        eventually(lambda: not following(app))

        with app.websocket(sessions[0]), app.websocket(sessions[0]):
            refuses(app, sessions[0], FOLLOWERS_PER_SESSION)
            with app.websocket(sessions[1]), app.websocket(sessions[1]), app.websocket(sessions[2]):
                refuses(app, sessions[2], FOLLOWERS)

        eventually(lambda: not following(app))
        with app.websocket(sessions[2]) as socket:
            assert received_until(socket, "session.snapshot")


def following(app: Caller) -> int:
    """How many follow now, by the metrics."""
    metrics = app.replicas[0].http.get("/metrics", headers=app.headers).text
    return sum(
        int(float(each)) for each in re.findall(r"^sessions_followers{.*} (\S+)$", metrics, re.MULTILINE)
    )


def refuses(app: Caller, session_id: str, limit: int) -> None:
    """Another follower is one too many, over SSE and over WebSocket."""
    reply = app.replicas[0].call("GET", f"/{session_id}/events", headers=app.headers)
    with app.websocket(session_id) as socket:
        code, frames = closed(socket)

    assert problem(reply, 429, "RATE_LIMIT_EXCEEDED")["details"] == {
        "policy": "followers",
        "limit": limit,
        "retryAfterSeconds": 5,
    }
    assert reply.headers["ratelimit-policy"] == f'"followers";q={limit}'
    assert int(reply.headers["retry-after"]) >= 1
    assert code == 4429
    assert frames[-1]["error"]["details"] == {
        "policy": "followers",
        "limit": limit,
        "retryAfterSeconds": 5,
    }

"""Limits: exactly the quota over both replicas, then 429 that says which one it is, and for how long."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import httpx2
import pytest

from sessions_api.access.keyring import mint
from tests.support.client import BASE, Api, Stream, meanwhile, problem, received_until, some_id
from tests.support.limits import SILENT, Caller, left, limited, serving, some_agent, standings
from tests.support.presence import attend_at
from tests.support.servers import TestServer

HOUR_S = 3_600
QUOTAS = {
    "creates-key": 8,
    "messages-session-ip": 3,
    "messages-session": 5,
    "messages-user": 7,
    "messages-agent": 9,
    "messages-key": 11,
}
"""Of an hour, in which no test sees one come back; small ones inside larger ones, so that each is met."""
MAX_OPEN = 6
KEYS = [mint("shop", ["app"]) for _ in range(30)]
BANK_LINE, BANK_KEY = mint("bank", ["app"])


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, contract_redis: TestServer) -> Iterator[list[Api]]:
    """Two, with keys and every limit, on one Redis and behind a proxy on this machine."""
    attend_at(contract_redis.url, SILENT, key_prefix="limits:")
    limits = {
        f"SESSIONS_LIMIT_{policy.upper().replace('-', '_')}": f"{quota}/{HOUR_S}"
        for policy, quota in QUOTAS.items()
    }
    with serving(
        tmp_path_factory.mktemp("limits"),
        contract_redis.url,
        SESSIONS_KEY_PREFIX="limits:",
        SESSIONS_KEYS=";".join([BANK_LINE, *(line for line, _ in KEYS)]),
        SESSIONS_TRUSTED_PROXIES="127.0.0.1",
        SESSION_MAX_OPEN_PER_USER=str(MAX_OPEN),
        **limits,
    ) as replicas:
        yield replicas


@pytest.fixture
def app(replicas: list[Api]) -> Caller:
    """An application with a key that has asked for nothing yet."""
    return Caller(replicas, x_api_key=KEYS.pop()[1])


@pytest.fixture
def agent() -> str:
    return some_agent()


def refused(reply: httpx2.Response, policy: str) -> None:
    limited(reply, policy, QUOTAS[policy], HOUR_S)


def exhaust(ask: Callable[[], httpx2.Response], policy: str, times: int | None = None) -> None:
    """Ask as often as is allowed, told each time how often still; then once more, and be refused."""
    for number in range(times or QUOTAS[policy], 0, -1):
        assert left(ask(), policy) == number - 1
    for _ in range(2):
        refused(ask(), policy)


class TestMessages:
    """Each policy counts over both replicas, whichever is asked."""

    def test_by_session(self, app: Caller, agent: str) -> None:
        session_id = app.session(agent)

        exhaust(lambda: app.post(session_id), "messages-session")

        assert left(app.post(app.session(agent)), "messages-session") == 4

    def test_by_session_and_address_without_an_app_key(self, app: Caller, agent: str) -> None:
        """Somebody elsewhere with the same token has their own; an app key is not counted by it."""
        session_id = app.session(agent)
        user = app.token(session_id)

        exhaust(lambda: user.post(session_id), "messages-session-ip")

        assert left(user.moved().post(session_id), "messages-session-ip") == 2
        assert "messages-session-ip" not in standings(app.post(session_id))

    def test_by_user_over_all_sessions_of_theirs(self, app: Caller, agent: str) -> None:
        user = some_id()
        first, second = app.session(agent, user), app.session(agent, user.upper())
        for _ in range(4):
            assert app.post(first).status_code == 201

        exhaust(lambda: app.post(second), "messages-user", 3)

        refused(app.post(first), "messages-user")
        assert left(app.post(app.session(agent)), "messages-user") == 6

    def test_by_agent_over_all_users_and_applications(
        self, replicas: list[Api], app: Caller, agent: str
    ) -> None:
        bank = Caller(replicas, x_api_key=BANK_KEY)
        first, second = app.session(agent), bank.session(agent)
        for _ in range(5):
            assert app.post(first).status_code == 201

        exhaust(lambda: bank.post(second), "messages-agent", 4)

        refused(app.post(app.session(agent)), "messages-agent")

    def test_by_key_exactly_at_one_replica(self, app: Caller, agent: str, replicas: list[Api]) -> None:
        """Counted without waiting for it; another key of the same application has its own."""
        only = Caller(replicas[:1], **app.headers)
        others = cycle([only.session(some_agent()) for _ in range(3)])

        exhaust(lambda: only.post(next(others)), "messages-key")

        rotated = Caller(replicas[:1], x_api_key=KEYS.pop()[1])
        assert left(rotated.post(rotated.session(agent)), "messages-key") == 10

    def test_by_key_over_both_replicas_at_most_one_more_at_each(self, app: Caller) -> None:
        """What a replica does not know of yet is what came to the others since it last asked."""
        sessions = cycle([app.session(some_agent()) for _ in range(4)])
        admitted = 0
        while (reply := app.post(next(sessions))).status_code == 201:
            admitted += 1

        refused(reply, "messages-key")
        assert 11 <= admitted <= 11 + 1

    def test_asked_at_once(self, replicas: list[Api], app: Caller, agent: str) -> None:
        """However many ask, and wherever: as many as the quota get through."""
        session_id = app.session(agent)

        def post(api: Api) -> int:
            return api.post(session_id, headers=app.headers).status_code

        one, two = (replica.url for replica in replicas)
        with meanwhile(one, *[post] * 8) as at_one, meanwhile(two, *[post] * 8) as at_two:
            statuses = Counter(posting.result(20) for posting in (*at_one, *at_two))

        assert statuses == {201: 5, 429: 11}

    def test_in_any_transport(self, app: Caller, agent: str, replicas: list[Api]) -> None:
        """One message counts once, also if its poster waits for the answer or follows it; so does a frame."""
        session_id = app.session(agent)
        path = f"{BASE}/{session_id}/messages"

        with app.websocket(session_id, at=1) as socket:

            def frame() -> dict[str, Any]:
                socket.send(json.dumps({"type": "message", "ref": "m", "content": "framed"}))
                while (answer := received_until(socket, "ack" if is_open else "error")[-1])["ref"] != "m":
                    pass
                return answer

            is_open = True
            assert left(app.post(session_id, transport="http"), "messages-session") == 4
            with replicas[0].http.stream(
                "POST", path, json={"content": "s", "transport": "sse"}, headers=app.headers
            ) as reply:
                assert standings(reply)["messages-session"].left == 3
                assert Stream(reply).rest()[-1].name == "done"
            assert frame()["status"] == 201
            assert left(app.post(session_id), "messages-session") == 1
            assert left(app.post(session_id, transport="http"), "messages-session") == 0

            is_open = False
            for transport in ("websocket", "http", "sse"):
                refused(app.post(session_id, transport=transport), "messages-session")
            late = frame()

        assert (late["status"], late["error"]["code"]) == (429, "RATE_LIMIT_EXCEEDED")
        assert late["error"]["details"]["policy"] == "messages-session"

    def test_a_frame_counts_by_the_address_of_its_handshake(self, app: Caller, agent: str) -> None:
        session_id = app.session(agent)
        user = app.token(session_id)
        for _ in range(3):
            assert user.post(session_id).status_code == 201

        with user.websocket(session_id) as socket, user.moved().websocket(session_id) as elsewhere:
            for each in (socket, elsewhere):
                each.send(json.dumps({"type": "message", "ref": "m", "content": "framed"}))
            late = received_until(socket, "error")[-1]
            taken = received_until(elsewhere, "ack")[-1]

        assert late["error"]["details"]["policy"] == "messages-session-ip"
        assert taken["status"] == 201


class TestWhatIsNotCharged:
    def test_a_repeat(self, app: Caller, agent: str) -> None:
        """In whatever transport; also when the quota is used up: it was accepted once."""
        session_id = app.session(agent)
        assert left(app.post(session_id, key="k"), "messages-session") == 4

        for transport in ("websocket", "http", "sse"):
            repeat = app.post(session_id, key="k", transport=transport)
            assert repeat.headers["idempotency-replayed"] == "true"
            assert standings(repeat) == {}

        for number in range(4, 0, -1):
            stands = standings(app.post(session_id))
            assert (stands["messages-session"].left, stands["messages-agent"].left) == (
                number - 1,
                number + 3,
            )
        refused(app.post(session_id), "messages-session")
        assert app.post(session_id, key="k").status_code == 201

    def test_a_message_that_is_refused(self, app: Caller) -> None:
        session_id = app.session(SILENT)
        assert left(app.post(session_id, key="k"), "messages-session") == 4

        assert app.post(session_id, "").status_code == 400
        assert app.post(session_id, "other", key="k").status_code == 422
        assert app.post(session_id, onBusy="reject").status_code == 409
        assert app.call("POST", f"/{session_id}/messages", content=b"{").status_code in {400, 415}

        stands = standings(app.post(session_id))
        assert stands["messages-session"].left == 3
        assert stands["messages-user"].left == 5

    def test_a_refusal_by_one_limit_uses_up_no_other(self, app: Caller, agent: str) -> None:
        """Somebody who is refused cannot use up what is their agent's, their user's or their session's."""
        session_id = app.session(agent)
        user = app.token(session_id)
        exhaust(lambda: user.post(session_id), "messages-session-ip")
        for _ in range(10):
            refused(user.post(session_id), "messages-session-ip")

        stands = standings(app.post(session_id))

        assert {policy: each.left for policy, each in stands.items()} == {
            "messages-session": 1,
            "messages-user": 3,
            "messages-agent": 5,
            "messages-key": 10,
        }


class TestSessions:
    def test_created_by_key(self, app: Caller, agent: str) -> None:
        exhaust(lambda: app.create(agent), "creates-key")

    def test_open_of_one_user(self, app: Caller, agent: str) -> None:
        user = some_id()
        opened = [app.session(agent, user) for _ in range(MAX_OPEN)]

        late = app.create(agent, user)

        assert problem(late, 429, "RATE_LIMIT_EXCEEDED")["details"] == {
            "policy": "open-sessions",
            "limit": MAX_OPEN,
            "retryAfterSeconds": int(late.headers["retry-after"]),
        }
        assert late.headers["ratelimit-policy"] == f'"open-sessions";q={MAX_OPEN}'
        assert late.headers["ratelimit"] == f'"open-sessions";r=0;t={late.headers["retry-after"]}'
        app.call("DELETE", f"/{opened[0]}")
        assert app.create(agent, user).status_code == 201

"""Limits at the gate: which of them count for whom, what a subject is, what it costs, and without Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from sessions_api.access.keyring import mint
from sessions_api.api import gate as gate_module
from sessions_api.api.gate import MAX_BUCKETS, MAX_OWNERS, Flood, Gate, Policies
from sessions_api.domain.access import NOTHING, Caller, key_caller, local_caller, token_grant
from sessions_api.domain.ids import LOCAL_APP, AgentId, AppName, new_session_id
from sessions_api.domain.limits import Limit
from sessions_api.errors import RateLimited, Unauthenticated
from sessions_api.store import Redis, Store
from sessions_api.store.keys import Keyspace
from tests.api.conftest import BASE, USER, Api
from tests.api.test_sessions import error_of
from tests.support.servers import RealServer, TestServer
from tests.support.stores import AGENT, OTHER_APP, opened
from tests.support.stores import USER as OWNER
from tests.support.waiting import eventually, until

HOUR = Limit(3, 3_600)
EVERY = Policies(**dict.fromkeys(Policies.__struct_fields__, HOUR))
ADDRESS, ELSEWHERE = "192.0.2.1", "192.0.2.2"

LOCAL = local_caller(LOCAL_APP)
APP_KEY = key_caller(LOCAL_APP, frozenset({"app"}), "appkey")
ADMIN_KEY = key_caller(LOCAL_APP, frozenset({"admin"}), "adminkey")
AGENT_KEY = key_caller(LOCAL_APP, frozenset({f"agent:{AGENT}"}), "agentkey")
TOKEN = Caller(app=LOCAL_APP, grant=token_grant(0, 2**52), rights=frozenset({"send"}))
NOBODY = Caller(app=AppName(""), grant=NOTHING)

fast = pytest.mark.servers("valkey", "fakeredis")


class From(NamedTuple):
    """A request, as far as the gate sees it."""

    caller: Caller
    address: str = ADDRESS


@pytest.fixture
async def store(redis: Redis) -> AsyncIterator[Store]:
    store = Store(redis, Keyspace())
    await store.open()
    yield store
    await store.limits.stop()


@contextmanager
def refused(policy: str) -> Iterator[None]:
    with pytest.raises(RateLimited) as refusal:
        yield
    assert refusal.value.policy == policy
    assert refusal.value.retry_after_s >= 1


def passed(flood: Flood, whose: From) -> int:
    """How many pass at once."""
    number = 0
    while True:
        try:
            flood.admit(whose)
        except RateLimited:
            return number
        number += 1


class TestTable:
    def test_names_every_policy(self) -> None:
        """The docstring's table is what a newcomer reads first."""
        rows = [line.split()[0] for line in (gate_module.__doc__ or "").splitlines() if "-" in line[:20]]

        assert [row.replace("-", "_") for row in rows] == list(Policies.__struct_fields__)


@fast
class TestCreations:
    @pytest.mark.parametrize(
        "caller, policy",
        [
            (LOCAL, "creates-ip"),
            (TOKEN, "creates-ip"),
            (NOBODY, "creates-ip"),
            (APP_KEY, "creates-key"),
            (ADMIN_KEY, "creates-key"),
        ],
    )
    async def test_count_by_key_or_else_by_address(self, store: Store, caller: Caller, policy: str) -> None:
        gate = Gate(EVERY, store)

        stood = [await gate.create(caller, ADDRESS) for _ in range(3)]

        assert [(each.policy, each.left) for (each,) in stood] == [(policy, 2), (policy, 1), (policy, 0)]
        with refused(policy):
            await gate.create(caller, ADDRESS)
        if policy == "creates-ip":
            await gate.create(caller, ELSEWHERE)
        else:
            with refused(policy):
                await gate.create(caller, ELSEWHERE)

    async def test_of_an_app_key_are_not_counted_by_its_address(self, store: Store) -> None:
        """An application's server creates the sessions of all of its users."""
        gate = Gate(Policies(creates_ip=HOUR), store)

        for _ in range(5):
            assert await gate.create(APP_KEY, ADDRESS) == ()


@fast
class TestMessages:
    @pytest.mark.parametrize(
        "caller, counted, asked",
        [
            (LOCAL, ["agent"], ["session", "session-ip", "user"]),
            (TOKEN, ["agent"], ["session", "session-ip", "user"]),
            (APP_KEY, ["key", "agent"], ["session", "user"]),
            (ADMIN_KEY, ["key", "agent"], ["session", "user"]),
        ],
    )
    async def test_which_count_for_whom(
        self, store: Store, caller: Caller, counted: list[str], asked: list[str]
    ) -> None:
        session = await opened(store)

        admission = await Gate(EVERY, store).message(caller, ADDRESS, session.session_id)

        assert [each.policy for each in admission.standings] == [f"messages-{name}" for name in counted]
        assert [policy for policy, *_ in admission.asked] == [f"messages-{name}" for name in asked]
        assert [policy for policy, *_ in admission.taken] == ["messages-agent"]

    async def test_a_user_is_one_of_an_application(self, store: Store) -> None:
        """Two applications may call different people the same."""
        gate = Gate(Policies(messages_user=HOUR), store)
        sessions = [
            await opened(store),
            await opened(store, app=OTHER_APP),
            await opened(store, OWNER.upper()),
        ]

        subjects = [
            (await gate.message(LOCAL, ADDRESS, session.session_id)).asked[0][1] for session in sessions
        ]

        assert subjects == [f"{LOCAL_APP}:{OWNER}", f"{OTHER_APP}:{OWNER}", f"{LOCAL_APP}:{OWNER}"]

    async def test_an_address_is_one_of_a_session(self, store: Store) -> None:
        """Many people may share one, and one may be in many sessions."""
        gate, session = Gate(Policies(messages_session_ip=HOUR), store), await opened(store)

        (one,) = (await gate.message(TOKEN, ADDRESS, session.session_id)).asked
        (two,) = (await gate.message(TOKEN, ELSEWHERE, session.session_id)).asked

        assert one[1] == f"{session.session_id}:{ADDRESS}"
        assert two[1] == f"{session.session_id}:{ELSEWHERE}"

    async def test_a_stranger_counts_against_nobody(self, store: Store) -> None:
        """Who may not know of a session cannot use up what is its agent's; its script says 404."""
        session, gate = await opened(store), Gate(EVERY, store)
        stranger = key_caller(AppName("shop"), frozenset({"app"}), "shopkey")
        revoked = Caller(app=LOCAL_APP, grant=token_grant(1, 2**52), rights=frozenset({"send"}))

        for session_id in (session.session_id, new_session_id(OWNER)):
            assert (await gate.message(stranger, ADDRESS, session_id)).taken == ()
        with pytest.raises(Unauthenticated):
            await gate.message(revoked, ADDRESS, session.session_id)

        (agents,) = (await gate.message(LOCAL, ADDRESS, session.session_id)).standings
        assert (agents.policy, agents.left) == ("messages-agent", 2)

    async def test_what_came_to_nothing_is_given_back(self, store: Store) -> None:
        session, gate = await opened(store), Gate(Policies(messages_agent=HOUR), store)
        for _ in range(10):
            await gate.give_back(await gate.message(LOCAL, ADDRESS, session.session_id))

        for _ in range(3):
            await gate.message(LOCAL, ADDRESS, session.session_id)

        with refused("messages-agent"):
            await gate.message(LOCAL, ADDRESS, session.session_id)

    async def test_whose_a_session_is_is_read_once(self, store: Store) -> None:
        """It never changes; of the sessions used last as many are known as a bound allows."""
        session, gate = await opened(store), Gate(Policies(messages_user=HOUR), store)
        await gate.message(LOCAL, ADDRESS, session.session_id)
        before = store.redis.stats.round_trips

        await gate.message(LOCAL, ADDRESS, session.session_id)
        assert store.redis.stats.round_trips == before

        for number in range(MAX_OWNERS - 1):
            gate._owners[str(number), session.session_id] = ("", AgentId(""))
        await gate.message(LOCAL, ADDRESS, session.session_id)
        await gate.message(APP_KEY, ADDRESS, session.session_id)
        assert len(gate._owners) == MAX_OWNERS
        assert (LOCAL.grant, session.session_id) in gate._owners


class TestFloods:
    """In this process, without Redis: what costs nothing to refuse."""

    @pytest.mark.parametrize("caller", [LOCAL, TOKEN, NOBODY])
    def test_count_by_address_whoever_shows_no_key(self, caller: Caller) -> None:
        flood = Flood(None, HOUR)

        assert passed(flood, From(caller)) == 3
        with refused("requests-ip"):
            flood.admit(From(NOBODY))
        assert passed(flood, From(caller, ELSEWHERE)) == 3
        flood.admit(From(APP_KEY))

    @pytest.mark.parametrize("caller", [APP_KEY, ADMIN_KEY, AGENT_KEY])
    def test_count_by_key_wherever_it_is_used(self, caller: Caller) -> None:
        flood = Flood(HOUR, None)

        assert passed(flood, From(caller)) == 3
        with refused("requests-key"):
            flood.admit(From(caller, ELSEWHERE))
        assert passed(flood, From(key_caller(LOCAL_APP, frozenset({"app"}), "other"))) == 3
        flood.admit(From(LOCAL))

    def test_remember_as_many_as_a_bound_allows(self) -> None:
        """The ones used last: an address that floods is not forgotten for the many that do not."""
        flood, flooded = Flood(None, HOUR), 0
        for number in range(MAX_BUCKETS + 1_001):
            flood.admit(From(NOBODY, str(number)))
            if number % 1_000 == 0:
                flooded += passed(flood, From(NOBODY))

        assert len(flood._buckets) == MAX_BUCKETS
        assert flooded == 3

    async def test_end_with_the_time_that_is_told(self) -> None:
        flood = Flood(None, Limit(20, 1))
        assert passed(flood, From(NOBODY)) >= 20

        await until(lambda: passed(flood, From(NOBODY)))


@pytest.mark.servers("valkey")
class TestWithoutRedis:
    """``closed`` lets nobody through uncounted; ``local`` leaves it to the endpoint to say what it can."""

    async def test_closed_refuses_what_cannot_be_counted(self, server: RealServer) -> None:
        """It is no 429, however often one asks, and no creation is charged for it."""
        line, key = mint("shop", ["app"])
        async with Api(
            server.url,
            SESSIONS_KEYS=line,
            SESSIONS_LIMIT_CREATES_KEY="3/3600",
            SESSIONS_REDIS_DEADLINE_MS="200",
        ) as api:
            api.http.headers["x-api-key"] = key
            session = await api.create()
            server.stop()

            for _ in range(5):
                for path, body in (
                    (BASE, {"agentId": session["agentId"], "userId": USER}),
                    (api.url(session, "/messages"), {"content": "hi"}),
                ):
                    reply = await api.http.post(path, json=body)
                    assert error_of(reply, 503, "STORAGE_UNAVAILABLE")["retryable"] is True
                    assert int(reply.headers["retry-after"]) >= 1

            server.start()
            await eventually(lambda: is_posted(api, session), within_s=20)
            reply = await api.http.post(BASE, json={"agentId": session["agentId"], "userId": USER})
            assert reply.headers["ratelimit"].startswith('"creates-key";r=1;')

    async def test_local_goes_on_counting_in_each_process(self, server: RealServer) -> None:
        """Nothing is created without Redis, but who asks too often still hears that."""
        async with Api(
            server.url,
            SESSIONS_LIMITS_WITHOUT_REDIS="local",
            SESSIONS_LIMIT_CREATES_IP="3/3600",
            SESSIONS_REDIS_DEADLINE_MS="200",
        ) as api:
            session = await api.create()
            server.stop()
            body = {"agentId": session["agentId"], "userId": USER}

            for _ in range(3):
                error_of(await api.http.post(BASE, json=body), 503, "STORAGE_UNAVAILABLE")
            reply = await api.http.post(BASE, json=body)

            assert error_of(reply, 429, "RATE_LIMIT_EXCEEDED")["details"]["policy"] == "creates-ip"
            server.start()
            await eventually(lambda: is_posted(api, session), within_s=20)

    async def test_a_flood_is_refused_all_the_same(self, server: TestServer) -> None:
        """By the process alone: a flood must not find the service open because Redis is away."""
        async with Api(server.url, SESSIONS_LIMIT_REQUESTS_IP="2/3600") as api:
            server.stop()
            for _ in range(2):
                error_of(await api.http.get(BASE), 503, "STORAGE_UNAVAILABLE")

            reply = await api.http.get(BASE)

            assert error_of(reply, 429, "RATE_LIMIT_EXCEEDED")["details"]["policy"] == "requests-ip"
            server.start()


async def is_posted(api: Api, session: dict[str, str]) -> bool:
    return (await api.http.post(api.url(session, "/messages"), json={"content": "hi"})).status_code == 201

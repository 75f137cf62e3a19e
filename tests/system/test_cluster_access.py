"""Access keys, tokens and limits of two replicas on a Redis Cluster: as on one server.

Where a session lies, where its key's account and where the keys that sign tokens
is three primaries' business here; one that is lost takes only its own along.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle

import httpx2
import pytest

from sessions_api.domain.ids import UserId, partition_of_user
from sessions_api.store.keys import Keyspace
from tests.contract.test_tokens import is_refused, opens, refreshed
from tests.support.access import Keys
from tests.support.client import ECHO, Api, eventually, meanwhile, problem, some_id
from tests.support.cluster import ClusterNode, ClusterServer
from tests.support.limits import Caller, left, limited
from tests.support.servers import running
from tests.support.service import Service
from tests.support.tokens import Replicas

pytestmark = pytest.mark.timeout(120)

HOUR_S = 3_600
QUOTAS = {"creates-key": 8, "messages-session": 10, "messages-key": 25}
"""Of an hour, in which no test sees one come back."""
NAMES = [f"spare{number}" for number in range(60)]
KEYS = Keys(shop=("shop", ["app"]), admin=("ops", ["admin"]), **{name: ("shop", ["app"]) for name in NAMES})
ENV = KEYS.env | {
    f"SESSIONS_LIMIT_{policy.upper().replace('-', '_')}": f"{quota}/{HOUR_S}"
    for policy, quota in QUOTAS.items()
}
AWAY = frozenset({"redis_circuit_opened"})
PACE_S = 0.3
"""Between messages by one key: its quota outlasts the deadline of a count."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    """Three primaries, and nobody to take over from one."""
    with running(ClusterServer("cluster", tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def services(cluster: ClusterServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    folder = tmp_path_factory.mktemp("replicas")
    with ExitStack() as stack:
        services = [
            stack.enter_context(Service(folder, redis_url=cluster.url, env=ENV, name=name))
            for name in ("near", "far")
        ]
        yield services
        for service in services:
            assert service.stop() == 0, service.log[-3000:]
            service.assert_no_bug_logged(allowed=AWAY)


@pytest.fixture
def both(services: list[Service]) -> Iterator[Replicas]:
    near, far = services
    both = Replicas(near, far, KEYS)
    yield both
    both.close()


@pytest.fixture
def apis(services: list[Service]) -> Iterator[list[Api]]:
    apis = [Api(service.url) for service in services]
    yield apis
    for api in apis:
        api.close()


@pytest.fixture
def app(apis: list[Api]) -> Caller:
    """An application with a key that has asked for nothing yet."""
    return Caller(apis, x_api_key=a_key())


def a_key() -> str:
    """One that nobody has shown yet."""
    return KEYS[NAMES.pop()]


def key_at(cluster: ClusterServer, node: ClusterNode) -> str:
    """The same, of those whose messages *node* counts."""

    def is_there(name: str) -> bool:
        key_id = KEYS[name].partition(".")[0]
        return cluster.serving(Keyspace().limit("messages-key", key_id)) is node

    name = next(filter(is_there, NAMES))
    NAMES.remove(name)
    return KEYS[name]


def user_at(cluster: ClusterServer, node: ClusterNode) -> str:
    """Somebody whose sessions *node* serves."""

    def is_there(user: str) -> bool:
        return cluster.serving(Keyspace().partition(partition_of_user(UserId(user))).due) is node

    return next(user for user in iter(some_id, "") if is_there(user))


class TestTokens:
    def test_of_one_session_end_on_both_replicas_at_once(
        self, cluster: ClusterServer, both: Replicas
    ) -> None:
        """Wherever the session lies; those of others, and those that come after, are good."""
        sessions = [both.near.session(userId=user_at(cluster, node)) for node in cluster.primaries]
        bearers = {
            session_id: [both.bearer(both.near.token(session_id), far=far) for far in (False, True)]
            for session_id in sessions
        }

        for session_id in sessions:
            near, far = ended = bearers.pop(session_id)
            again = both.bearer(refreshed(near, session_id), far=True)
            assert opens(again, session_id)
            with near.events(session_id) as stream, far.events(session_id) as far_stream:
                streams = stream, far_stream
                assert [each.next().name for each in streams] == ["session.snapshot"] * 2
                assert both.near.call("DELETE", f"/{session_id}/tokens").status_code == 200
                assert all(is_refused(bearer, session_id, saying="revoked") for bearer in (*ended, again))
                ends = [each.rest()[-1].data["data"] for each in streams]

            assert ends == [{"code": 4401, "retry": False}] * 2
            assert all(opens(bearer, other) for other, those in bearers.items() for bearer in those)
            assert opens(both.bearer(both.near.token(session_id), far=True), session_id)

    def test_of_all_sessions_end_on_both_replicas(self, cluster: ClusterServer, both: Replicas) -> None:
        """At once where it was asked for; the far replica hears of it with its next look at the keys."""
        sessions = [both.near.session(userId=user_at(cluster, node)) for node in cluster.primaries]
        tokens = [both.near.token(session_id) for session_id in sessions]
        far = [both.bearer(token, far=True) for token in tokens]

        with ExitStack() as stack:
            streams = [
                stack.enter_context(bearer.events(session_id))
                for bearer, session_id in zip(far, sessions, strict=True)
            ]
            assert [stream.next().name for stream in streams] == ["session.snapshot"] * 3
            assert both.admin.http.delete("/api/tokens").status_code == 200
            for session_id, token in zip(sessions, tokens, strict=True):
                assert is_refused(both.bearer(token), session_id, saying="not valid")
            ends = [stream.rest()[-1].data["data"] for stream in streams]

        assert ends == [{"code": 4401, "retry": False}] * 3
        for session_id, bearer in zip(sessions, far, strict=True):
            assert is_refused(bearer, session_id, saying="not valid")
            fresh = both.near.token(session_id)
            assert all(opens(both.bearer(fresh, far=is_far), session_id) for is_far in (False, True))


def refused(reply: httpx2.Response, policy: str) -> None:
    limited(reply, policy, QUOTAS[policy], HOUR_S)


def exhaust(ask: Callable[[], httpx2.Response], policy: str) -> None:
    """Ask as often as is allowed, told each time how often still; then be refused at each replica."""
    for number in reversed(range(QUOTAS[policy])):
        assert left(ask(), policy) == number
    for _ in range(2):
        refused(ask(), policy)


class TestLimits:
    """Over both replicas, which are asked by turns."""

    def test_of_creations_by_a_key_are_exact(self, app: Caller) -> None:
        exhaust(partial(app.create, ECHO), "creates-key")

    def test_of_messages_by_a_key_let_one_more_through_at_each(self, app: Caller, apis: list[Api]) -> None:
        """What a replica does not know of yet is what came to the other since it last asked."""
        sessions = cycle([app.session(ECHO) for _ in range(7)])
        admitted = 0
        while (reply := app.post(next(sessions))).status_code == 201:
            admitted += 1

        refused(reply, "messages-key")
        assert QUOTAS["messages-key"] <= admitted <= QUOTAS["messages-key"] + len(apis)
        rotated = Caller(apis, x_api_key=a_key())
        assert left(rotated.post(rotated.session(ECHO)), "messages-key") == QUOTAS["messages-key"] - 1

    def test_of_messages_to_a_session_are_exact(self, cluster: ClusterServer, apis: list[Api]) -> None:
        """Wherever it lies."""
        for node in cluster.primaries:
            app = Caller(apis, x_api_key=a_key())
            session_id = app.session(ECHO, user_at(cluster, node))

            exhaust(partial(app.post, session_id), "messages-session")

    def test_of_messages_to_a_session_are_exact_when_asked_at_once(
        self, app: Caller, apis: list[Api]
    ) -> None:
        session_id = app.session(ECHO)

        def post(api: Api) -> int:
            return api.post(session_id, headers=app.headers).status_code

        with ExitStack() as stack:
            posted = [stack.enter_context(meanwhile(api.url, *[post] * 8)) for api in apis]
            statuses = Counter(posting.result(20) for posts in posted for posting in posts)

        assert statuses == {201: QUOTAS["messages-session"], 429: 16 - QUOTAS["messages-session"]}


class TestALostPrimary:
    def test_has_messages_refused_of_the_keys_alone_that_it_counts(
        self, cluster: ClusterServer, apis: list[Api]
    ) -> None:
        """Nobody takes over from it. Each replica finds out by the first message that was to be counted
        there; the keys of other primaries go on throughout, also those that are shown for the first time.
        """
        lost, *living = cluster.primaries
        its_key = key_at(cluster, lost)
        known, new = (
            [Caller(apis, x_api_key=key_at(cluster, node)) for node in living * 2] for _ in range(2)
        )
        made = [caller.session(ECHO, user_at(cluster, node)) for node in living for caller in known * 2]
        sessions = iter(made * QUOTAS["messages-session"])

        def go_on(callers: list[Caller]) -> None:
            for caller in callers:
                assert caller.post(next(sessions)).status_code == 201

        def status(api: Api) -> int:
            """What the key of the lost primary gets at one replica."""
            reply = api.post(next(sessions), headers={"x-api-key": its_key})
            if reply.status_code != 201:
                assert problem(reply, 503, "STORAGE_UNAVAILABLE")["retryable"] is True
                assert int(reply.headers["retry-after"]) >= 1
            return reply.status_code

        def is_admitted(api: Api) -> bool:
            return status(api) == 201

        def is_found() -> bool:
            go_on(known)
            time.sleep(PACE_S)
            return [status(api) for api in apis] == [503, 503]

        assert [status(api) for api in apis] == [201, 201]
        lost.kill()
        try:
            eventually(is_found, within_s=20)
            for _ in range(2):
                go_on([*known, *new])
                assert [status(api) for api in apis] == [503, 503]
        finally:
            cluster.mend()

        for api in apis:
            eventually(partial(is_admitted, api))
        go_on([*known, *new])

"""A primary of a cluster dies and nobody takes its place: the sessions of the others do not notice."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx2
import pytest

from sessions_api.domain.ids import PARTITIONS, SessionId, partition_of_session
from sessions_api.store.keys import Keyspace
from tests.support.client import ECHO, Api, eventually, some_id
from tests.support.cluster import ClusterNode, ClusterServer
from tests.support.servers import running
from tests.support.service import Service

pytestmark = pytest.mark.timeout(120)

ENV = {"SESSIONS_ENV": "test", "SESSION_MIN_TIMEOUT_MINUTES": "0.005", "SESSION_RETENTION_MINUTES": "0.2"}
BRIEF = {"timeoutMinutes": 0.1, "warningThresholdMinutes": 0.05, "autoRenew": False}
KEYS = Keyspace()


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    """Three primaries, and no replica."""
    with running(ClusterServer("cluster", tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@pytest.fixture
def services(cluster: ClusterServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    names = ("one", "two")
    services = [
        Service(tmp_path_factory.mktemp(name), redis_url=cluster.url, env=ENV, name=name) for name in names
    ]
    for service in services:
        service.start()
    yield services
    cluster.mend()
    for service in services:
        if service.is_running:
            assert service.stop() == 0, service.log[-3000:]
        service.assert_no_bug_logged(allowed=frozenset({"redis_circuit_opened"}))


def opened(api: Api, cluster: ClusterServer, *, beside: ClusterNode, **fields: object) -> str:
    """A session that another primary than *beside* has."""
    while True:
        session_id: str = api.create(agentId=ECHO, userId=some_id(), **fields)["sessionId"]
        if cluster.serving(KEYS.of(SessionId(session_id)).session) is not beside:
            return session_id


def is_settled(cluster: ClusterServer, session_id: str) -> bool:
    """Its end is written, and it stands among what is due no more."""
    due = KEYS.partition(partition_of_session(SessionId(session_id))).due
    return cluster.serving(due).call("ZSCORE", due, session_id) is None


def kept(service: Service) -> float:
    """How many partitions it keeps."""
    text = httpx2.get(f"{service.url}/metrics").text
    return float(re.search(r"^sessions_kept_partitions (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


@pytest.mark.parametrize("knows_who_lives", [True, False])
def test_of_the_others_ends_are_written_and_turns_answered(
    cluster: ClusterServer, services: list[Service], knows_who_lives: bool
) -> None:
    """Also when the dead one is the one at which replicas say that they live, and a replica dies, too."""
    at_signs = cluster.serving(KEYS.replicas)
    lost = at_signs if knows_who_lives else next(node for node in cluster.primaries if node is not at_signs)
    has_states = cluster.serving(KEYS.states) is not lost
    one, two = (Api(service.url) for service in services)
    assert eventually(lambda: kept(services[1]) >= PARTITIONS / 2)
    brief = [opened(one, cluster, beside=lost, timeoutConfig=BRIEF) for _ in range(8)]
    talking = [opened(one, cluster, beside=lost) for _ in range(4)]

    lost.kill()
    services[0].kill()

    assert eventually(lambda: all(is_settled(cluster, sid) for sid in brief), within_s=25)
    for session_id in talking:
        two.post(session_id, "hello", transport="websocket")
    for session_id in talking:
        assert eventually(lambda sid=session_id: len(two.history(sid)["messages"]) == 2)  # type: ignore[misc]
    with two.events(talking[0]) as stream:
        stream.next()
        two.say(talking[0], "and now?")
        assert [event.name for event in stream.until("turn.completed")].count("message.created") == 2
    user_id = two.get(talking[0])["userId"]
    listed = two.call("GET", "", params={"userId": user_id}).json()["sessions"]
    assert [each["sessionId"] for each in listed] == [talking[0]]
    answer = two.http.get(f"/api/agents/{ECHO}/availability")
    assert answer.status_code == (200 if has_states else 503), answer.text
    for api in (one, two):
        api.close()

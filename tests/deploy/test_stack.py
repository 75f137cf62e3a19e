"""deploy/ at work: both balancers before three replicas, Prometheus beside them, from the deployed files.

One bring-up for all tests of this file. A test that stops a replica brings it back.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.deploy.deployed import DEPLOY
from tests.deploy.programs import Prometheus, missing, until
from tests.deploy.stack import REPLICAS, SLOW_ECHO, Stack, a_user, client_from
from tests.deploy.traffic import Traffic
from tests.support.client import BASE, Api, problem, received, received_until
from tests.support.load import Chat, Follower, chatting, check, followed
from tests.support.streams import EventStream

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        bool(missing("haproxy", "nginx", "prometheus")), reason=missing("haproxy", "nginx", "prometheus")
    ),
]
BALANCERS = ("haproxy", "nginx")
# What a client may be told while a replica goes, if it comes back by itself: nothing was done, or
# the connection broke, and its Idempotency-Key makes the repeat safe.
PASSING = {(503, "DRAINING"), (502, "BAD_GATEWAY"), (503, "UNAVAILABLE")}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack
        for replica in stack.replicas:
            replica.assert_no_bug_logged()


@pytest.fixture(params=BALANCERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(stack: Stack, name: str) -> str:
    return stack.balancer(name).url


@pytest.fixture
def api(url: str) -> Iterator[Api]:
    with closing(Api(url)) as api:
        yield api


class TestAStream:
    def test_is_passed_on_as_it_comes(self, api: Api) -> None:
        """Each event is there while the stream is open: what was said by another request, and each word."""
        session_id = api.session(agentId=SLOW_ECHO)

        with api.events(session_id) as stream:
            assert stream.response.headers["content-type"] == "text/event-stream"
            assert stream.next().name == "session.snapshot"
            api.say(session_id, "a b c")
            names = [event.name for event in stream.until("turn.completed")]

        assert names.count("turn.delta") > 1

    def test_of_an_answer_comes_word_by_word(self, api: Api) -> None:
        """The first word is there while the agent, who pauses after each, has not said the last."""
        session_id = api.session(agentId=SLOW_ECHO)

        with api.stream_post(session_id, "a b c d e") as stream:
            stream.until("chunk")
            assert api.get(session_id)["stage"] == "waiting"
            stream.until("done")

    def test_may_be_a_websocket(self, api: Api) -> None:
        session_id = api.session()

        with api.websocket(session_id) as socket:
            assert received(socket)["type"] == "session.snapshot"
            socket.send(json.dumps({"type": "message", "ref": "1", "content": "hello"}))
            kinds = [frame["type"] for frame in received_until(socket, "turn.completed")]

        assert "ack" in kinds
        assert kinds.count("message.created") == 2


class TestARequest:
    @pytest.mark.parametrize(
        "path", ["/metrics", "/metrics?x=1", "/metrics/", "/%6detrics", "/%6Detric%73", "//metrics"]
    )
    def test_for_metrics_is_refused(self, url: str, path: str) -> None:
        reply = httpx2.get(url + path, timeout=5)

        assert reply.status_code == 404
        assert "sessions_" not in reply.text

    def test_is_counted_as_its_clients(self, name: str, url: str) -> None:
        """By the address that the balancer saw; what a client claims of itself counts for nothing."""
        lefts: dict[str, list[str]] = {}
        network = BALANCERS.index(name) + 1
        for address in (f"127.0.{network}.2", f"127.0.{network}.3"):
            with client_from(address, url) as client:
                for claimed in ("", "9.9.9.9", "127.0.0.1"):
                    headers = {"X-Forwarded-For": claimed} if claimed else {}
                    reply = client.post(BASE, json=a_user(), headers=headers)
                    assert reply.status_code == 201, reply.text
                    assert reply.headers["ratelimit-policy"] == '"creates-ip";q=1000;w=86400'
                    left = re.match(r'"creates-ip";r=(\d+);', reply.headers["ratelimit"])
                    assert left is not None, reply.headers["ratelimit"]
                    lefts.setdefault(address, []).append(left[1])

        assert list(lefts.values()) == [["999", "998", "997"]] * 2

    def test_that_is_too_large_is_refused_in_the_services_words(self, api: Api) -> None:
        session_id = api.session()

        problem(api.post(session_id, "x" * 300_000), 413, "PAYLOAD_TOO_LARGE")
        assert api.post(session_id, "x" * 3_000_000).status_code == 413

    async def test_that_leaves_is_let_go_at_once(self, stack: Stack, url: str) -> None:
        """Its replica counts it no longer; HAProxy by itself would keep it for as long as client-fin."""
        with closing(Api(url)) as api:
            path = f"{BASE}/{api.session()}/events"
        await asyncio.to_thread(until, lambda: not everybodys(stack), "those of the test before are gone")
        async with EventStream(int(url.rpartition(":")[2]), path, {}) as stream:
            assert (await stream.next()) is not None
            assert everybodys(stack) == 1

        await asyncio.to_thread(until, lambda: not everybodys(stack), "nobody follows", within_s=10)

    def test_of_a_worker_may_have_its_mebibyte(self, api: Api) -> None:
        """Past the balancer it is the service that judges: so long a delta is none too large."""
        path = f"/{api.session()}/turns/{a_user()['userId']}/delta"

        reply = api.call("POST", path, json={"fence": "1.x", "text": "é" * 300_000, "offset": 0})

        assert reply.status_code in {400, 404, 413}, reply.text
        assert reply.json()["error"]["code"] != "PAYLOAD_TOO_LARGE"


async def reading(url: str, session_id: str, seen: Counter[str], enough: asyncio.Event) -> None:
    """GETs, one after the other, as a client that repeats nothing; *seen* counts what came of them."""
    async with httpx2.AsyncClient(base_url=url, timeout=10) as http:
        while not enough.is_set():
            try:
                reply = await http.get(f"{BASE}/{session_id}")
                seen[str(reply.status_code)] += 1
            except httpx2.TransportError as error:
                seen[type(error).__name__] += 1
            await asyncio.sleep(0.002)


async def posting(chat: Chat, enough: asyncio.Event) -> None:
    """Not so fast that a session has a full backlog before a killed replica's turn is handed out again."""
    number = 0
    while not enough.is_set():
        await chat.post(f"m{number}")
        number += 1
        await asyncio.sleep(0.15)


class Load:
    """Readers, posters and followers through one balancer, until they are told that it is enough."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.reads: Counter[str] = Counter()
        self.enough = asyncio.Event()

    async def run(self, chats: list[Chat], followers: list[Follower], fault: Any) -> None:
        """*fault* happens meanwhile; afterwards nothing is missing, doubled or out of order."""
        async with asyncio.TaskGroup() as group:
            for chat in chats:
                group.create_task(posting(chat, self.enough))
                group.create_task(reading(self.url, chat.session_id, self.reads, self.enough))
            try:
                await self.more(chats)
                await fault
                await self.more(chats)
            finally:
                self.enough.set()
        await check(chats, followers)

    @staticmethod
    async def more(chats: list[Chat], count: int = 8) -> None:
        """Until each chat has so many more messages acknowledged."""
        wanted = [len(chat.acknowledged) + count for chat in chats]
        deadline_s = asyncio.get_running_loop().time() + 45
        while any(len(chat.acknowledged) < least for chat, least in zip(chats, wanted, strict=True)):
            assert asyncio.get_running_loop().time() < deadline_s, [chat.refusals[-5:] for chat in chats]
            await asyncio.sleep(0.02)

    def refusals(self, chats: list[Chat]) -> Counter[tuple[int, str]]:
        return Counter(refusal for chat in chats for refusal in chat.refusals)


def everybodys(stack: Stack) -> int:
    """How many follow a session, through whichever replica."""
    return sum(map(stack.followers, range(REPLICAS)))


def most_followed(stack: Stack) -> int:
    """The number of the replica through which most sessions are followed."""
    return max(range(REPLICAS), key=stack.followers)


class TestAReplicaThatGoes:
    async def test_in_order_is_not_noticed(self, stack: Stack, name: str, url: str) -> None:
        """SIGTERM under load: reads do not fail, posts go on by their key, followers miss nothing."""
        load = Load(url)
        async with chatting([url], sessions=4) as chats, followed(chats) as followers:

            async def drain() -> None:
                gone = await asyncio.to_thread(most_followed, stack)
                assert await asyncio.to_thread(stack.followers, gone) > 0
                stack.replicas[gone].ask_to_stop()
                assert await asyncio.to_thread(stack.replicas[gone].wait) == 0
                await load.more(chats)
                await asyncio.to_thread(stack.bring_back, gone)

            await load.run(chats, followers, drain())

        print(name, dict(load.reads), dict(load.refusals(chats)))
        assert load.reads.keys() == {"200"}
        assert load.refusals(chats).keys() <= (PASSING if name == "nginx" else set())
        codes = {told["data"]["code"] for follower in followers for told in follower.closings}
        assert codes == {1012}
        assert max(follower.connections for follower in followers) > 1

    async def test_by_sigkill_is_routed_around(self, stack: Stack, name: str, url: str) -> None:
        """What was under way in it breaks; clients that repeat by their key lose nothing."""
        load = Load(url)
        async with chatting([url], sessions=4) as chats, followed(chats) as followers:

            async def kill() -> None:
                gone = await asyncio.to_thread(most_followed, stack)
                stack.replicas[gone].kill()
                await load.more(chats)
                await asyncio.to_thread(stack.bring_back, gone)

            await load.run(chats, followers, kill())

        print(name, dict(load.reads), dict(load.refusals(chats)))
        assert load.reads.keys() == {"200"}
        assert {status for status, _ in load.refusals(chats)} <= {0, 502, 503}
        assert max(follower.connections for follower in followers) > 1


def queries() -> list[tuple[str, str]]:
    """Panel and query of the dashboard, with an interval in place of Grafana's variable."""
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "sessions.json").read_text())
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "30s"))
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]


def shows(prometheus: Prometheus, query: str, since_s: float) -> bool:
    """Whether there was a number to see at any time since then."""
    told: Any = prometheus.ask("query_range", query=query, start=since_s, end=now_s(prometheus), step=1)
    return any(value != "NaN" for series in told["result"] for _, value in series["values"])


def alerts(prometheus: Prometheus, name: str) -> list[dict[str, Any]]:
    """The firing alerts of this name."""
    told: Any = prometheus.ask("alerts")
    return [
        alert
        for alert in told["alerts"]
        if alert["labels"]["alertname"] == name and alert["state"] == "firing"
    ]


def now_s(prometheus: Prometheus) -> float:
    told: Any = prometheus.ask("query", query="time()")
    return float(told["result"][1])


class TestPrometheus:
    def test_has_something_for_every_panel(self, stack: Stack) -> None:
        """Each query of the dashboard, after a little of all that clients do."""
        since_s = now_s(stack.prometheus)
        empty = queries()
        with closing(Traffic(stack.haproxy.url)) as traffic:
            deadline_s = time.monotonic() + 75
            while empty and time.monotonic() < deadline_s:
                traffic.round()  # a rate is seen between two samples
                empty = [each for each in empty if not shows(stack.prometheus, each[1], since_s)]

        assert empty == []

    def test_scrapes_every_target(self, stack: Stack) -> None:
        def states() -> Counter[str]:
            told: Any = stack.prometheus.ask("targets", state="active")
            return Counter(f"{each['labels']['job']}: {each['health']}" for each in told["activeTargets"])

        until(lambda: states() == {"sessions-api: up": REPLICAS, "balancer: up": 1}, "all targets are up")

    def test_has_no_rule_that_fails(self, stack: Stack) -> None:
        def health() -> Counter[str]:
            told: Any = stack.prometheus.ask("rules")
            return Counter(rule["health"] for group in told["groups"] for rule in group["rules"])

        until(lambda: health().keys() == {"ok"}, "every rule was evaluated, and well")

    def test_tells_of_a_dead_replica_until_it_is_back(self, stack: Stack) -> None:
        """A real death: the alert names who it is and where to read on."""

        def told() -> Any:
            return alerts(stack.prometheus, "SessionsReplicaDown")

        # The test before may have ended one; and the times of the rules are shortened to less than
        # a busy machine takes for a scrape.
        until(lambda: not told(), "every replica is seen")
        stack.replicas[0].kill()

        instance = f"127.0.0.1:{stack.metrics_ports[0]}"
        until(lambda: [each["labels"]["instance"] for each in told()] == [instance], "the alert fires")

        [alert] = told()
        assert alert["labels"] == {
            "alertname": "SessionsReplicaDown",
            "job": "sessions-api",
            "instance": instance,
            "severity": "warning",
        }
        assert alert["annotations"]["summary"] == f"The replica {instance} does not answer"
        assert alert["annotations"]["runbook_url"] == "docs/operations.md#sessionsreplicadown"
        stack.bring_back(0)
        until(lambda: not told(), "the alert ends")


def test_the_stack_is_that_of_the_compose_file(tmp_path: Path) -> None:
    """As many replicas, under the names that the balancers' and Prometheus' files have."""
    names = [f"api-{number}" for number in range(1, REPLICAS + 1)]

    haproxy = (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
    assert re.findall(r"presetenv API_\d (api-\d):3000", haproxy) == names
    assert re.findall(r"^ +server (api-\d) ", haproxy, re.MULTILINE) == names
    nginx = (DEPLOY / "nginx" / "replicas.conf").read_text()
    assert re.findall(r"^server (api-\d):3000 max_fails=[1-9]", nginx, re.MULTILINE) == names
    assert re.findall(r"^server (api-\d):3000 max_fails=0 backup;$", nginx, re.MULTILINE) == names
    prometheus = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert re.findall(r"- (api-\d):9100", prometheus) == names

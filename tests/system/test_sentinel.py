"""Replicas of the service on a primary, two replicas, three sentinels; the primary dies, hangs or moves.

Two pairs of the service share them: one answers when the primary has a write, the
other (``SESSIONS_DURABILITY=replicated``) when a replica has it too. A failover is a
stall; what the first may lose its followers are told, and the second loses nothing.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.client import Api, eventually, problem
from tests.support.sentinel import NAME, Sentinels
from tests.support.servers import running
from tests.support.service import Service
from tests.support.talk import AWAY, STALL_S, assert_told, on_thread, talking

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with running(Sentinels("valkey", tmp_path_factory.mktemp("group"))) as group:
        yield group


def started(
    names: str, group: Sentinels, tmp_path_factory: pytest.TempPathFactory, **env: str
) -> list[Service]:
    services = [
        Service(tmp_path_factory.mktemp(name), redis_url=group.url, env=env) for name in names.split()
    ]
    with ThreadPoolExecutor(len(services)) as pool:
        list(pool.map(Service.start, services))
    return services


def stopped(services: list[Service]) -> None:
    for service in services:
        assert service.stop() == 0, service.log[-3000:]
        service.assert_no_bug_logged(allowed=AWAY)


@pytest.fixture(scope="module")
def plain(group: Sentinels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    services = started("one two", group, tmp_path_factory)
    yield services
    group.heal()
    stopped(services)


@pytest.fixture(scope="module")
def safe(group: Sentinels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    services = started("three four", group, tmp_path_factory, SESSIONS_DURABILITY="replicated")
    yield services
    group.heal()
    stopped(services)


@pytest.fixture
def sentinels(group: Sentinels) -> Sentinels:
    """A whole group, whatever the test before did to it; its keys stay."""
    group.heal()
    return group


class TestFailover:
    async def test_of_a_killed_primary_is_a_stall(
        self, sentinels: Sentinels, plain: list[Service], safe: list[Service]
    ) -> None:
        """No error but 503 with Retry-After; followers go on; with replicas' word nothing is lost."""
        async with talking(plain) as told, talking(safe) as sure:
            before = sentinels.primary
            started_s = time.monotonic()
            before.kill()
            await asyncio.gather(told.go_on(), sure.go_on())
            assert time.monotonic() - started_s < STALL_S
            await on_thread(sentinels.until_moved, before.port)

        assert sure.lost == 0
        assert_told(told)
        for service in (*plain, *safe):
            assert any(record["event"] == "primary_found" for record in service.records())

    async def test_planned_loses_less_than_a_second(self, sentinels: Sentinels, plain: list[Service]) -> None:
        """Where a client that stays loses ten: the old primary is left before the new one is promoted."""
        async with talking(plain) as talk:
            started_s, acknowledged = time.monotonic(), talk.acknowledged
            await talk.go_on()
            per_s = (talk.acknowledged - acknowledged) / (time.monotonic() - started_s)

            await on_thread(sentinels.failover)
            await talk.go_on()

        assert talk.lost <= per_s
        assert_told(talk)
        for service in plain:
            assert any(record["event"] == "primary_leaving" for record in service.records())

    async def test_coordinated_loses_nothing(self, sentinels: Sentinels, plain: list[Service]) -> None:
        """Valkey 9: the primary itself hands over, and takes no write meanwhile."""
        async with talking(plain) as talk:
            await on_thread(sentinels.failover, "COORDINATED")
            await talk.go_on()

        assert talk.lost == 0

    async def test_of_a_hung_primary_that_comes_back_is_a_stall_too(
        self, sentinels: Sentinels, plain: list[Service]
    ) -> None:
        """It wakes up as one who is no primary any more: nobody is there to hear what it says."""
        async with talking(plain) as talk:
            before = sentinels.primary
            before.pause()
            await talk.go_on()
            await on_thread(sentinels.until_moved, before.port)
            before.resume()
            await talk.go_on()
            await on_thread(sentinels.heal)  # which makes it a replica, as the sentinels would in 10 s
            await talk.go_on()

        assert talk.lost <= len(talk.chats)  # what it had answered, and was stopped before it passed on
        assert_told(talk)


class TestLag:
    def test_loses_what_was_acknowledged_and_says_so_or_does_not_acknowledge(
        self, sentinels: Sentinels, plain: list[Service], safe: list[Service]
    ) -> None:
        """The replicas get nothing for a moment, then the primary dies, with what it alone had."""
        apis = [Api(plain[0].url), Api(safe[0].url)]
        try:
            told, sure = (api.session() for api in apis)
            for api, session_id in zip(apis, (told, sure), strict=True):
                assert api.ask(session_id, "kept")["agentResponse"]["text"] == "echo: kept"
            with apis[0].events(told) as stream:
                assert stream.next().name == "session.snapshot"
                primary = sentinels.primary
                eventually(lambda: all(node.is_following(primary) for node in sentinels.replicas))
                primary.cut_replication()

                lost = apis[0].say(told, "lost")
                assert stream.until("message.created")[-1].data["cursor"] == lost["cursor"]
                key = {"Idempotency-Key": "once"}
                refused = apis[1].post(sure, "repeated", headers=key)
                error = problem(refused, 503, "NOT_REPLICATED")
                assert error["retryable"] is True
                assert int(refused.headers["retry-after"]) >= 1

                primary.kill()
                accepted = eventually(
                    lambda: (
                        reply
                        if (reply := apis[1].post(sure, "repeated", headers=key)).status_code == 201
                        else None
                    ),
                    within_s=STALL_S,
                )
                gap = stream.until("gap")[-1]

            assert gap.data["data"]["reason"] == "rewound"
            assert gap.data["data"]["newest"] < lost["cursor"]
            contents = [message["content"] for message in apis[0].history(told)["messages"]]
            assert contents == ["echo: kept", "kept"]

            messages = apis[1].history(sure)["messages"]
            said = [message["content"] for message in messages if not message["isAgent"]]
            assert said == ["repeated", "kept"]
            assert (
                next(m["cursor"] for m in messages if m["content"] == "repeated") == accepted.json()["cursor"]
            )
        finally:
            for api in apis:
                api.close()


class TestStart:
    def test_needs_one_sentinel_of_three(
        self, sentinels: Sentinels, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        for sentinel in sentinels.sentinels[:2]:
            sentinel.kill()
        with Service(tmp_path_factory.mktemp("early"), redis_url=sentinels.url) as service:
            api = Api(service.url)
            assert api.ask(api.session())["agentResponse"]["text"] == "echo: hello"
            api.close()
            lost = [record for record in service.records() if record["event"] == "sentinel_lost"]
            assert {record["sentinel"] for record in lost} == {
                f"127.0.0.1:{sentinel.port}" for sentinel in sentinels.sentinels[:2]
            }
            assert service.stop() == 0
            service.assert_no_bug_logged(allowed=AWAY)

    def test_with_a_wrong_name_says_which_and_waits(
        self, sentinels: Sentinels, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """As without Redis: not ready, and it says why; the password stays out of it."""
        url = sentinels.url_of("nosuch", userinfo="sessions:geheim@")
        service = Service(tmp_path_factory.mktemp("wrong"), redis_url=url)
        service.start(until_ready=False)
        try:
            not_opened = eventually(
                lambda: [record for record in service.records() if record["event"] == "store_not_opened"]
            )
            assert "no sentinel names the primary 'nosuch'" in not_opened[0]["reason"]
            assert service.readiness() == 503
        finally:
            assert service.stop() == 0
        assert "geheim" not in service.log

    def test_with_a_url_that_names_no_primary_is_refused(self) -> None:
        refused = serve("--redis-url", "redis+sentinel://:geheim@127.0.0.1:26379")

        assert refused.returncode != 0
        assert "the Redis URL names no primary" in refused.stderr
        assert "geheim" not in refused.stderr + refused.stdout


class TestDoctor:
    def test_names_the_topology_and_the_primary(self, sentinels: Sentinels) -> None:
        examined = run("doctor", "--redis-url", sentinels.url)

        found = f"primary '{NAME}' at 127.0.0.1:{sentinels.primary.port}, 3 of 3 sentinels answer"
        assert found in examined.stdout


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("serve", "--port", "0", *arguments)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sessions_api", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

"""The network parts: a primary and two replicas of the service on one side, everybody else on the other.

Who can reach the primary is decided by its users: every process has one of its own, and
whoever is on the other side has none there any more. What the lone replicas of the
service hear of the sentinels goes through proxies that refuse it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import redis

from tests.support.load import Chat
from tests.support.proxy import Proxy
from tests.support.sentinel import NAME, Node, Sentinels
from tests.support.servers import running
from tests.support.service import Service
from tests.support.talk import AWAY, NOT_REPLICATED, STORAGE_UNAVAILABLE, assert_told, on_thread, talking

pytestmark = pytest.mark.timeout(150)

MAX_LAG_S = 2
ON_THE_WAY_S = 0.3
NEAR, FAR = "near", "far"


class Divided(Sentinels):
    """A group whose primary can be left alone with those who are its user ``near``."""

    def start(self) -> None:
        super().start()
        for node in self.nodes:
            for user in (NEAR, FAR):
                node.call("ACL", "SETUSER", user, "on", ">secret", "~*", "&*", "+@all")
            node.config_set("min-replicas-to-write", "1")
            node.config_set("min-replicas-max-lag", str(MAX_LAG_S))

    def cut(self, primary: Node) -> None:
        primary.call("ACL", "DELUSER", FAR)
        with contextlib.suppress(redis.ConnectionError):  # this connection is ended with the others
            primary.call("ACL", "SETUSER", "default", "off")
        with redis.Redis.from_url(f"redis://{NEAR}:secret@127.0.0.1:{primary.port}") as near:
            near.execute_command("CLIENT", "KILL", "USER", "default")

    def join(self, primary: Node) -> None:
        with redis.Redis.from_url(f"redis://{NEAR}:secret@127.0.0.1:{primary.port}") as near:
            near.execute_command("ACL", "SETUSER", "default", "on")
            near.execute_command("ACL", "SETUSER", FAR, "on", ">secret", "~*", "&*", "+@all")


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Divided]:
    with running(Divided("valkey", tmp_path_factory.mktemp("group"))) as group:
        yield group


class TestALonePrimary:
    async def test_takes_nothing_soon_and_what_it_took_is_not_kept_in_silence(
        self, group: Divided, tmp_path: Path
    ) -> None:
        """With replicas' word nothing is lost; else what was taken until it missed them (here: soon, as
        their connections end; where packets just vanish, after ``min-replicas-max-lag``).
        """
        async with AsyncExitStack() as proxies:
            links = [await proxies.enter_async_context(Proxy(sentinel.url)) for sentinel in group.sentinels]
            hosts = ",".join(urlsplit(link.url).netloc for link in links)
            alone = f"redis+sentinel://{NEAR}:secret@{hosts}/{NAME}/0"
            lone = Service(tmp_path / "lone", redis_url=alone)
            safe = Service(tmp_path / "safe", redis_url=alone, env={"SESSIONS_DURABILITY": "replicated"})
            far = Service(tmp_path / "far", redis_url=group.url_of(NAME, userinfo=f"{FAR}:secret@"))
            services = (lone, safe, far)
            await asyncio.gather(*(on_thread(service.start) for service in services))
            try:
                async with talking([lone]) as told, talking([safe]) as sure, talking([far]) as others:
                    primary = group.primary
                    for link in links:
                        await link.refuse()
                    for replica in group.replicas:
                        replica.pause()  # what is written now is on its way to them when they are gone
                    await asyncio.sleep(ON_THE_WAY_S)
                    await on_thread(group.cut, primary)
                    for node in group.nodes:
                        node.resume()

                    await told.refused({STORAGE_UNAVAILABLE})
                    # What was on its way is there already: each repeat waits for the replicas anew.
                    await sure.refused({STORAGE_UNAVAILABLE, NOT_REPLICATED})
                    taken = told.acknowledged, sure.acknowledged
                    await others.go_on()
                    assert (told.acknowledged, sure.acknowledged) == taken

                    await on_thread(group.join, primary)
                    for link in links:
                        await link.accept()
                    await asyncio.gather(told.go_on(), sure.go_on(), others.go_on())
                    await on_thread(group.heal)

                assert sure.lost == 0
                for talk in (told, others):
                    assert_told(talk)
                for chat in (*told.chats, *sure.chats, *others.chats):
                    await assert_same_everywhere(chat.session_id, [service.url for service in services])
            finally:
                for service in services:
                    assert await on_thread(service.stop) == 0, service.log[-3000:]
                    service.assert_no_bug_logged(allowed=AWAY)


async def assert_same_everywhere(session_id: str, urls: list[str]) -> None:
    async with httpx2.AsyncClient(timeout=10) as http:
        first, *more = [await Chat([url], session_id, http).history() for url in urls]
    assert all(history == first for history in more)

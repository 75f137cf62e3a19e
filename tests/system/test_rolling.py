"""An upgrade of one replica after the other, under load: clients notice nothing, operators begin and end.

The old release is this code under another version: a folder with the package's
metadata, which is where a release says what it is, comes first on its path.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import httpx2
import pytest

from sessions_api.cli.doctor import examined
from sessions_api.settings import Settings
from tests.support.load import Chat, chatting, check, followed
from tests.support.servers import RealServer, launch
from tests.support.service import Service
from tests.support.waiting import eventually, until

pytestmark = pytest.mark.timeout(120)
OLD, NEW = "0.0.9", version("sessions-api")
REPLICAS = 3
PAUSE_S = 0.03
MEANT = {(0, "ConnectError"), (0, "RemoteProtocolError"), (0, "ReadError"), (503, "DRAINING")}
"""What a client repeats at another replica without a word: the reply never began, or said so."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    server = launch("valkey", tmp_path_factory.mktemp("redis"))
    assert isinstance(server, RealServer)
    yield server
    server.stop()


def of_release(number: str, folder: Path) -> dict[str, str]:
    """The environment in which the package says that it is of release *number*."""
    told = folder / f"sessions_api-{number}.dist-info"
    told.mkdir(parents=True, exist_ok=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sessions-api\nVersion: {number}\n")
    return {"PYTHONPATH": str(folder)}


@asynccontextmanager
async def replicas(shared: RealServer, folder: Path, **env: str) -> AsyncIterator[list[Service]]:
    """Of the old release, all of them."""
    old = of_release(OLD, folder / "old") | {"SESSIONS_DRAIN_SECONDS": "5"} | env
    services = [Service(folder / str(n), redis_url=shared.url, env=dict(old)) for n in range(REPLICAS)]
    async with AsyncExitStack() as stack:
        for service in services:
            stack.callback(service.stop)
        await asyncio.gather(*(asyncio.to_thread(service.start) for service in services))
        yield services
        for service in services:
            service.assert_no_bug_logged()


def differing(service: Service) -> dict[str, float]:
    """The gauge of one replica: how many of the others differ, by what."""
    lines = httpx2.get(f"{service.url}/metrics", timeout=5).text.splitlines()
    rows = [line for line in lines if line.startswith("sessions_replicas_differing{")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in rows}


async def releases(url: str, prefix: str) -> str:
    """What doctor says of them."""
    findings = await examined(url, Settings.from_env({"SESSIONS_KEY_PREFIX": prefix}))
    return next(finding.found for finding in findings if finding.check == "releases")


async def talk(chats: list[Chat], enough: asyncio.Event) -> None:
    """In each chat one message after the other, each at the next replica."""

    async def in_one(chat: Chat) -> None:
        number = 0
        while not enough.is_set():
            await chat.post(f"m{number}", at=number)
            number += 1
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*map(in_one, chats))


async def some_more(chats: list[Chat]) -> None:
    """Until a few more messages than now are acknowledged in each chat."""
    counts = [len(chat.acknowledged) + 5 for chat in chats]
    await until(
        lambda: all(len(chat.acknowledged) >= count for chat, count in zip(chats, counts, strict=True)),
        within_s=45,
    )


async def test_an_upgrade_one_by_one_is_noticed_by_operators_alone(
    shared: RealServer, tmp_path: Path
) -> None:
    """Clients that repeat as documented lose nothing; gauge, log and doctor tell of the mixture."""
    prefix = "roll:"
    async with replicas(shared, tmp_path, SESSIONS_KEY_PREFIX=prefix) as services:
        assert await releases(shared.url, prefix) == f"{REPLICAS} of {OLD}"
        async with (
            chatting([service.url for service in services], sessions=4) as chats,
            followed(chats[:2]) as followers,
        ):
            enough = asyncio.Event()
            talking = asyncio.create_task(talk(chats, enough))
            for number, service in enumerate(services, start=1):
                await some_more(chats)
                assert await asyncio.to_thread(service.stop) == 0
                del service._env["PYTHONPATH"]
                await asyncio.to_thread(service.start)

                if number == 1:
                    await eventually(lambda: is_seen(services[0], 2.0), within_s=20)
                    assert await releases(shared.url, prefix) == f"{REPLICAS - 1} of {OLD}, 1 of {NEW}"
            for service in services:
                await eventually(lambda service=service: is_seen(service, 0.0), within_s=20)  # type: ignore[misc]
            await some_more(chats)
            enough.set()
            await talking
            await check(chats, followers)

        assert await releases(shared.url, prefix) == f"{REPLICAS} of {NEW}"
        noticed = {refusal for chat in chats for refusal in chat.refusals}
        assert noticed <= MEANT, Counter(refusal for chat in chats for refusal in chat.refusals)
        told = [record for record in services[0].records() if record["event"] == "replicas_of_other_versions"]
        assert [record["there"] for record in told] == [[OLD]]
        assert [r["event"] for r in services[0].records() if r["event"] == "replicas_agree"]


async def is_seen(service: Service, others: float) -> bool:
    """*service* knows of so many of another release, and of no other difference."""
    return await asyncio.to_thread(differing, service) == {"version": others, "settings": 0.0}


async def test_a_release_that_says_nothing_of_itself_shares_the_work(
    shared: RealServer, tmp_path: Path
) -> None:
    """Older ones say that they live, and no more: the partitions are shared out with them."""
    prefix = "mute:"
    shared.call("ZADD", f"{prefix}replicas", 99_999_999_999_999, "of-an-older-release")
    with Service(tmp_path, redis_url=shared.url, env={"SESSIONS_KEY_PREFIX": prefix}) as service:

        async def keeps_half() -> bool:
            text = (await asyncio.to_thread(httpx2.get, f"{service.url}/metrics")).text
            return "\nsessions_kept_partitions 32.0" in text

        await eventually(keeps_half, within_s=20)
        assert differing(service) == {"version": 1.0, "settings": 0.0}
        assert await releases(shared.url, prefix) == f"1 of {NEW}, 1 of unknown"
    shared.call("DEL", f"{prefix}replicas")


async def test_another_schema_met_after_the_start_is_said_and_nothing_is_touched(tmp_path: Path) -> None:
    """Redis was away when the replica started, and came with what it cannot read (else: test_serve.py)."""
    server = launch("valkey", tmp_path / "redis")
    assert isinstance(server, RealServer)
    server.call("HSET", "sa:meta", "schema", "3", "partitions", "64")
    server.stop()
    service = Service(tmp_path / "service", redis_url=server.url)
    try:
        await asyncio.to_thread(service.start, until_ready=False)
        await until(lambda: "service_started" in service.log, within_s=30)
        server.start()
        await until(lambda: "store_refused" in service.log, within_s=30)

        [refused] = [record for record in service.records() if record["event"] == "store_refused"]
        assert refused["level"] == "critical"
        assert "schema 3, not 2 as we do" in json.dumps(refused["problems"])
        assert server.keys() == [b"sa:meta"], "no keeper has touched it"
        assert service.readiness() == 503
        assert "Traceback" not in service.log
    finally:
        service.stop()
        server.stop()

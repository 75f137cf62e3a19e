"""A replica ends, killed under load or told to stop: what it had goes on at another, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.client import Api, closed, eventually, meanwhile, problem, received_until
from tests.support.load import chatting, check, followed, talk, until_more_are_acknowledged
from tests.support.servers import TestServer
from tests.support.service import Service

pytestmark = pytest.mark.timeout(120)

SLOW_ECHO = "5100e000-0000-4000-8000-000000000001"
SLOW = f'[[agents]]\nid = "{SLOW_ECHO}"\nname = "Slow"\nkind = "echo"\n[agents.config]\ndelayMs = 200\n'


class TestDeathOfAReplica:
    async def test_killed_under_load_loses_nothing(self, shared: TestServer, tmp_path: Path) -> None:
        services = [Service(tmp_path / str(number), redis_url=shared.url) for number in range(2)]
        for service in services:
            service.start()
        try:
            async with (
                chatting([service.url for service in services], sessions=4) as chats,
                followed(chats) as followers,
            ):
                enough = asyncio.Event()
                talking = asyncio.create_task(talk(chats, "m", 2000, pause_s=0.02, enough=enough))
                for _ in range(2):
                    await until_more_are_acknowledged(chats, 8)
                    services[1].kill()
                    await until_more_are_acknowledged(chats, 8)
                    await asyncio.to_thread(services[1].start)
                enough.set()
                await talking
                await check(chats, followers)
                assert max(follower.connections for follower in followers) > 1
        finally:
            for service in services:
                assert service.stop() == 0
                service.assert_no_bug_logged()

    async def test_another_keeps_its_partitions(self, shared: TestServer, tmp_path: Path) -> None:
        """Sessions expire, and followers hear of it, although the only keeper so far is gone."""
        env = {"SESSIONS_ENV": "test", "SESSION_MIN_TIMEOUT_MINUTES": "0.005", "SESSIONS_KEY_PREFIX": "take:"}
        services = [Service(tmp_path / str(number), redis_url=shared.url, env=env) for number in range(2)]
        services[0].start()
        services[1].start()
        api = Api(services[1].url)
        try:
            session_ids = [api.session(timeoutConfig={"timeoutMinutes": 0.03}) for _ in range(10)]
            services[0].kill()
            for session_id in session_ids:
                with api.events(session_id) as stream:
                    assert "session.expired" in [event.name for event in stream.rest()]
        finally:
            api.close()
            assert services[1].stop() == 0


class TestDrain:
    @pytest.fixture
    def draining(self, shared: TestServer, tmp_path: Path) -> Iterator[Service]:
        (tmp_path / "agents.toml").write_text(SLOW)
        env = {"SESSIONS_AGENTS_FILE": str(tmp_path / "agents.toml"), "SESSIONS_DRAIN_SECONDS": "5"}
        service = Service(tmp_path, redis_url=shared.url, env=env)
        service.start()
        yield service
        if service.is_running:
            service.stop()

    def test_sends_followers_elsewhere_and_ends_well(self, draining: Service) -> None:
        api = Api(draining.url)
        session_id = api.session()
        with api.events(session_id) as stream, api.websocket(session_id) as socket:
            stream.until("agent.availability")
            received_until(socket, "agent.availability")
            draining.ask_to_stop()
            events = stream.rest()
            code, frames = closed(socket)
        api.close()

        assert draining.wait() == 0, draining.log[-3000:]
        assert [event.name for event in events] == ["reconnect", "closing"]
        assert 0 <= events[0].data["data"]["afterMs"] <= 60_000
        assert events[1].data.get("data", events[1].data)["code"] == 1012
        assert code == 1012
        assert frames[-1]["type"] in {"reconnect", "closing"}
        draining.assert_no_bug_logged()

    def test_a_waiting_poster_gets_its_answer_or_is_told(self, draining: Service) -> None:
        api = Api(draining.url)
        session_id = api.session(agentId=SLOW_ECHO)
        with meanwhile(draining.url, lambda api: api.post(session_id, "a b c d", transport="http")) as [
            poster
        ]:
            eventually(lambda: api.get(session_id)["stage"] == "waiting")
            draining.ask_to_stop()
            response = poster.result(15)
        api.close()

        assert draining.wait() == 0, draining.log[-3000:]
        if response.status_code == 201:
            assert response.json()["agentResponse"]["text"] == "echo: a b c d"
        else:
            assert problem(response, 503, "DRAINING")["details"]["turnId"]
        draining.assert_no_bug_logged()

    def test_readiness_fails_first_and_new_work_is_refused(self, draining: Service) -> None:
        api = Api(draining.url)
        session_id = api.session(agentId=SLOW_ECHO)
        with meanwhile(
            draining.url, lambda api: api.post(session_id, "a b c d e f g h", transport="http")
        ) as [poster]:
            eventually(lambda: api.get(session_id)["stage"] == "waiting")
            draining.ask_to_stop()
            seen = set()
            while draining.is_running:
                try:
                    seen.add(api.http.get("/readyz").status_code)
                    refused = api.call("GET", f"/{session_id}")
                    if refused.status_code != 200:
                        problem(refused, 503, "DRAINING")
                except httpx2.TransportError:
                    break
            poster.result(15)
        api.close()

        assert draining.wait() == 0
        assert seen <= {200, 503}
        draining.assert_no_bug_logged()

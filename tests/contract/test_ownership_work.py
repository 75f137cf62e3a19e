"""What is another's costs Redis exactly what is nobody's costs: its reply cannot come sooner or later.

Not measured but counted: round trips, scripts, commands, subscriptions, and the
bytes that Redis sends. Before a key has proven to open a session, nothing is
done for it that no script guards (``Log.check_opens``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import SessionId
from sessions_api.store.asked import counted_trips, named_scripts
from tests.api.conftest import BASE, Api
from tests.support.access import OTHER_AGENT, WORKER_AGENT, Keys, Row, cast_keys, rows
from tests.support.presence import attend
from tests.support.servers import RealServer
from tests.support.world import SETTINGS, Target, absent, agents_file, options

pytestmark = pytest.mark.servers("valkey")
ROWS = [row for row in rows() if "{sessionId}" in row.path and not row.path.endswith("/ws")]
PAGE_BYTES = 100_000


class Work(NamedTuple):
    """What one request had Redis do."""

    status: int
    trips: int
    scripts: list[str]
    subscriptions: int
    is_much_sent: bool


class Watched(Api):
    """The service in this process, and what each of its requests costs."""

    def __init__(self, server: RealServer, keys: Keys, **environ: str) -> None:
        super().__init__(server.url, **SETTINGS, **keys.env, **environ)
        self._server = server
        self._keys = keys

    async def ask(self, name: str, method: str, path: str, **more: Any) -> httpx2.Response:
        return await self.http.request(method, path, headers={"X-API-KEY": self._keys[name]}, **more)

    async def work(self, name: str, row: Row, at: Target) -> Work:
        path, more = options(row, at)
        before, sent = self._subscribed(), self._sent()
        with counted_trips() as trips, named_scripts() as scripts:
            reply = await self.ask(name, row.method, path, **more)
        is_much_sent = self._sent() - sent > PAGE_BYTES
        return Work(reply.status_code, len(trips), scripts, self._subscribed() - before, is_much_sent)

    def _subscribed(self) -> int:
        return self._server.calls().get("subscribe", 0)

    def _sent(self) -> int:
        return int(self._server.info("stats")["total_net_output_bytes"])


@pytest.fixture
async def api(server: RealServer, tmp_path: Path) -> AsyncIterator[Watched]:
    path = str(agents_file(tmp_path))
    async with Watched(server, cast_keys(), SESSIONS_AGENTS_FILE=path, LOG_LEVEL="error") as api:
        await attend(api.state.store, WORKER_AGENT, OTHER_AGENT)
        yield api


async def opened(api: Watched, name: str, agent_id: str, *, messages: int) -> Target:
    """A session whose first turn is being answered, with a history of as many messages."""
    body = {"agentId": agent_id, "userId": "11111111-1111-4111-8111-111111111111", "onBusy": "merge"}
    session_id = (await api.ask(name, "POST", BASE, json=body)).json()["sessionId"]
    for _ in range(messages):
        said = {"content": "x" * 4000, "onBusy": "merge"}
        assert (await api.ask(name, "POST", f"{BASE}/{session_id}/messages", json=said)).status_code == 201
    path = f"/api/agents/{agent_id}/turns/claim"
    turn = (await api.ask("admin", "POST", path, json={"worker": "w"}, params={"wait": 5})).json()
    assert turn["session"]["sessionId"] == session_id
    return Target(session_id, agent_id, turn["turnId"], turn["fence"])


class TestAnothers:
    @pytest.mark.parametrize("name", ["shop", "worker", "both"])
    async def test_costs_what_nobodys_costs(self, api: Watched, name: str) -> None:
        """A long history, a running turn and a follower on this very replica make no difference."""
        owner = "shop" if name == "both" else "rival"
        foreign = await opened(api, owner, OTHER_AGENT, messages=40)
        following = await api.state.hub.follow(SessionId(foreign.session_id), grant=EVERYTHING, after=None)

        for row in ROWS:
            nothing = absent()._replace(turn_id=foreign.turn_id, fence=foreign.fence)
            await api.work(name, row, nothing)  # from here on Redis knows the scripts
            works = [await api.work(name, row, at) for at in (foreign, nothing, foreign)]

            assert works[0] == works[1] == works[2], str(row)
            assert works[0].status in {403, 404}, str(row)
            assert works[0].subscriptions == 0
            assert not works[0].is_much_sent
        following.close()

    async def test_is_read_only_by_who_may(self, api: Watched) -> None:
        """The counterpart: the owner's page is what would be much to send."""
        theirs = await opened(api, "rival", OTHER_AGENT, messages=40)
        (history,) = (row for row in ROWS if str(row) == "GET …/messages")

        works = [await api.work("rival", history, theirs) for _ in range(2)]

        assert [work.is_much_sent for work in works] == [True, True]
        assert works[1].trips == 1, "asked once whether the key opens the session"

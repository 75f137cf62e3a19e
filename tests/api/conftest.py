from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Self

import httpx2
import pytest
from starlette.applications import Starlette

from sessions_api.api.state import State
from sessions_api.app import create_app
from sessions_api.domain.agents import ECHO_ID
from sessions_api.domain.ids import AgentId
from sessions_api.settings import Settings
from tests.support.presence import attend
from tests.support.servers import TestServer

BASE = "/api/messaging/sessions"
USER = "11111111-1111-4111-8111-111111111111"
AGENTS = "/api/agents"
AGENT = AgentId("7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11")
ONE = f"{AGENTS}/{AGENT}"
WORKER = {"name": "Support", "kind": "worker"}
"""A definition that leaves out what it may."""


class Api:
    """The whole service in this process, and a client that speaks to it.

    Where it runs no dispatcher, Echo is there all the same, and answers nothing.
    """

    def __init__(self, redis_url: str, **environ: str) -> None:
        self._environ = {"REDIS_URL": redis_url, "SESSIONS_DEV": "on", "SESSIONS_ENV": "test", **environ}
        self.app: Starlette
        self.http: httpx2.AsyncClient

    async def __aenter__(self) -> Self:
        self.app = create_app(Settings.from_env(self._environ))
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=self.app, raise_app_exceptions=True),
            base_url="http://127.0.0.1:3000",
        )
        if self._environ.get("SESSIONS_DISPATCHER") == "off":
            await attend(self.state.store, ECHO_ID)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.http.aclose()
        await self._lifespan.__aexit__(None, None, None)

    @property
    def state(self) -> State:
        state: State = self.app.state.service
        return state

    async def create(self, **body: Any) -> dict[str, Any]:
        reply = await self.http.post(BASE, json={"agentId": ECHO_ID, "userId": USER} | body)
        assert reply.status_code == 201, reply.text
        return dict(reply.json())

    def url(self, session: dict[str, Any], tail: str = "") -> str:
        return f"{BASE}/{session['sessionId']}{tail}"


@pytest.fixture
async def api(server: TestServer) -> AsyncIterator[Api]:
    """The service on the server, with Echo."""
    async with Api(server.url) as api:
        yield api


async def put(api: Api, body: dict[str, Any], agent_id: str = AGENT) -> dict[str, Any]:
    """Define an agent, new or not; what is shown of it."""
    reply = await api.http.put(f"{AGENTS}/{agent_id}", json=body)
    assert reply.status_code in {200, 201}, reply.text
    return dict(reply.json())


def fields(error: dict[str, Any]) -> set[str]:
    """Those that a ``VALIDATION_ERROR`` names."""
    return {bad["field"] for bad in error["details"]["errors"]}

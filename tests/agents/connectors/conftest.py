"""What the connectors' tests share: guarded HTTP and a site to ask, a model's server and who asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network
from typing import Self

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sessions_api.agents.connectors.failure import AttemptFailed
from sessions_api.agents.connectors.openai import OpenAIChat
from sessions_api.agents.connectors.outgoing import Outgoing, whole
from sessions_api.domain.agents import AgentDefinition
from tests.support import asked
from tests.support.openai_server import MODEL, ChatServer
from tests.support.streams import Served

KEY = "sk-test-4f9d02"
"""What :func:`upstream` asks for."""


@pytest.fixture
async def outgoing() -> AsyncIterator[Outgoing]:
    """Allowed to reach 127.0.0.0/8."""
    outgoing = Outgoing([ip_network("127.0.0.0/8")])
    yield outgoing
    await outgoing.aclose()


class Site:
    """A web server that remembers who asked; *answer* replies."""

    def __init__(self, answer: Callable[[Request], Response] = lambda _request: Response("fine")) -> None:
        self.answer = answer
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self._served = Served(Starlette(routes=[Route("/{path:path}", self._reply, methods=["POST", "GET"])]))

    @property
    def port(self) -> int:
        return self._served.port

    def url(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/asked"

    async def _reply(self, request: Request) -> Response:
        self.seen.append((request.method, dict(request.headers), await request.body()))
        return self.answer(request)

    async def __aenter__(self) -> Self:
        await self._served.__aenter__()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._served.__aexit__()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site() as site:
        yield site


async def ask(outgoing: Outgoing, url: str, **headers: str) -> bytes:
    async with outgoing.post(url, b"{}", agent_id=asked.AGENT, headers={}, secrets=headers) as reply:
        return await whole(reply)


async def failing(outgoing: Outgoing, url: str, **headers: str) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as failed:
        await ask(outgoing, url, **headers)
    return failed.value


@pytest.fixture
async def upstream() -> AsyncIterator[ChatServer]:
    async with ChatServer(key=KEY) as upstream:
        yield upstream


@pytest.fixture
async def chat(outgoing: Outgoing) -> OpenAIChat:
    return OpenAIChat(outgoing)


def defined(upstream: ChatServer, **config: object) -> AgentDefinition:
    known: dict[str, object] = {"baseUrl": upstream.base_url, "model": MODEL, "apiKey": KEY}
    return asked.definition("openai", known | config)

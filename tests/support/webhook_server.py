"""A receiver of webhooks: it verifies each with the Standard Webhooks library and answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Self

from standardwebhooks.webhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.streams import Served

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Received(NamedTuple):
    """One verified request."""

    path: str
    headers: dict[str, str]
    event: dict[str, Any]


class Receiver:
    """On a free port. *answer* makes the reply; what is not signed rightly gets 401."""

    def __init__(self, answer: Callable[[Received], Response | Awaitable[Response]]) -> None:
        self._answer = answer
        self.received: list[Received] = []
        self.hung_up = asyncio.Event()
        self._served = Served(
            Starlette(routes=[Route("/{path:path}", self._receive, methods=["POST", "GET"])])
        )

    @property
    def port(self) -> int:
        return self._served.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/turns"

    async def __aenter__(self) -> Self:
        await self._served.__aenter__()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._served.__aexit__()

    async def _receive(self, request: Request) -> Response:
        headers = dict(request.headers)
        try:
            event = Webhook(SECRET).verify(await request.body(), headers)
        except Exception:  # noqa: BLE001  its own errors, and those of what is no base64
            return Response(status_code=401)
        received = Received(request.url.path, headers, event)
        self.received.append(received)
        reply = self._answer(received)
        return reply if isinstance(reply, Response) else await reply

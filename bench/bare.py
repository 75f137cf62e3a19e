"""The yardstick of the HTTP part: Starlette with one route that returns fixed bytes.

``python -m bench.bare ROUTE.json PORT``; run by uvicorn with the service's settings.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class BareRoute(msgspec.Struct, frozen=True):
    """What the route answers; *padding* makes its head as long as the service's."""

    path: str
    method: str
    status: int
    body: str
    padding: int


def app_of(route: BareRoute) -> Starlette:
    body = route.body.encode()
    headers = {"x-padding": "x" * route.padding}

    async def get(_request: Request) -> Response:
        return Response(body, route.status, headers, "application/json")

    async def post(request: Request) -> Response:
        await request.body()
        return Response(body, route.status, headers, "application/json")

    endpoint = get if route.method == "GET" else post
    return Starlette(routes=[Route(route.path, endpoint, methods=[route.method])])


def main() -> None:
    route = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=BareRoute)
    uvicorn.run(
        app_of(route),
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )


if __name__ == "__main__":
    main()

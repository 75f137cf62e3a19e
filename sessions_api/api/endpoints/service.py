"""The service itself: health, readiness, metrics, documents, the example page."""

from __future__ import annotations

import time
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from sessions_api.api import openapi
from sessions_api.api.replies import Header, Reply, reply
from sessions_api.api.requests import Request
from sessions_api.api.state import Rules
from sessions_api.errors import RouteNotFound, StorageError, StorageUnavailable
from sessions_api.telemetry import metrics
from sessions_api.wire.instants import iso_now
from sessions_api.wire.service import Alive, Ready
from sessions_api.wire.sessions import Health

HTML: Final = b"text/html; charset=utf-8"
# Own scripts and styles only: the pages are whole, nothing comes from elsewhere.
_POLICY: Final = (
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)
PAGE_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-security-policy", _POLICY),
    (b"referrer-policy", b"no-referrer"),
)


async def health(request: Request) -> Reply:
    """How the service is; 503 when it cannot serve."""
    state = request.state
    uptime_s = round(time.monotonic() - state.started_s, 3)
    try:
        if not state.is_open:
            raise StorageUnavailable("not opened yet")
        await state.store.redis.ping()  # the counts may be a second old, this may not
        live, near = await state.counts.health()
    except StorageError:
        return reply(Health("unhealthy", 0, 0, iso_now(), uptime_s), status=503)
    status = "healthy" if state.hub.subscriber.is_up else "degraded"
    return reply(Health(status, live, near, iso_now(), uptime_s))  # type: ignore[arg-type]


async def livez(request: Request) -> Reply:  # noqa: ARG001  every endpoint takes one
    """The process runs and its event loop turns."""
    return reply(Alive("alive"))


async def readyz(request: Request) -> Reply:
    """This replica can serve: Redis answers, and it is not shutting down."""
    state = request.state
    state.check_serves()
    await state.store.redis.ping()
    return reply(Ready("ready"))


async def show_metrics(request: Request) -> Reply:  # noqa: ARG001
    """Metrics for Prometheus."""
    body, content_type = metrics.render()
    return Reply(200, body, (), content_type.encode())


async def show_openapi(request: Request) -> Reply:
    """This interface, described."""
    return Reply(200, _document(request.state.rules))


async def docs(request: Request) -> Reply:  # noqa: ARG001
    """The description, for people; every asset is served from here."""
    return Reply(200, _page("docs.html"), PAGE_HEADERS, HTML)


async def chat(request: Request) -> Reply:
    """The example page; only with ``sessions-api dev``."""
    if not request.state.rules.is_dev:
        raise RouteNotFound
    page = example("chat.html")
    if page is None:
        raise RouteNotFound
    return Reply(200, page.read_bytes(), PAGE_HEADERS, HTML)


@cache
def _document(rules: Rules) -> bytes:
    return openapi.document_json(rules)


@cache
def _page(name: str) -> bytes:
    return (files("sessions_api.api") / "pages" / name).read_bytes()


def example(name: str) -> Traversable | None:
    """A file of ``examples/``: inside the package where it was installed, else beside it."""
    package = files("sessions_api")
    inside = package / "examples" / name
    if inside.is_file():
        return inside
    beside = Path(str(package)).parent / "examples" / name
    return beside if beside.is_file() else None

"""The service itself: health, readiness, metrics, documents, the example page."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from sessions_api.api import openapi
from sessions_api.api.replies import Header, Reply, reply
from sessions_api.api.requests import Request
from sessions_api.api.state import Rules
from sessions_api.domain.access import NOTHING
from sessions_api.errors import RouteNotFound, StorageError
from sessions_api.telemetry import metrics
from sessions_api.wire.instants import iso_now
from sessions_api.wire.service import Alive, Ready
from sessions_api.wire.sessions import Health, HealthStatus

HTML: Final = b"text/html; charset=utf-8"
_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
# Nothing comes from elsewhere, and of scripts only those that stand in the page: what a message
# smuggled into it would not run.
_POLICY: Final = (
    "default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_OPENER: Final[Header] = (b"cross-origin-opener-policy", b"same-origin")


async def health(request: Request) -> Reply:
    """How the service is; 503 when it cannot serve. Numbers are not for everybody."""
    state = request.state
    if request.caller.read_grant == NOTHING or request.caller.rights is not None:
        return await _health_in_a_word(request)
    uptime_s = round(time.monotonic() - state.started_s, 3)
    try:
        state.check_open()
        await state.store.redis.ping()  # the counts may be a second old, this may not
        live, near = await state.counts.health()
    except StorageError:
        return reply(Health("unhealthy", 0, 0, iso_now(), uptime_s), status=503)
    status = "healthy" if state.hub.subscriber.is_up else "degraded"
    return reply(Health(status, live, near, iso_now(), uptime_s))  # type: ignore[arg-type]


async def _health_in_a_word(request: Request) -> Reply:
    state = request.state
    try:
        state.check_open()
        await state.store.redis.ping()
    except StorageError:
        return reply(HealthStatus("unhealthy"), status=503)
    return reply(HealthStatus("healthy" if state.hub.subscriber.is_up else "degraded"))


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
    return Reply(200, _document(request.state.rules, request.state.access.has_keys))


async def docs(request: Request) -> Reply:  # noqa: ARG001
    """The description, for people; every asset is served from here."""
    return _page_reply(_page("docs.html"))


async def chat(request: Request) -> Reply:
    """The example page; only with ``sessions-api dev``."""
    if not request.state.rules.is_dev:
        raise RouteNotFound
    page = example("chat.html")
    if page is None:
        raise RouteNotFound
    return _page_reply(page.read_bytes())


def _page_reply(page: bytes) -> Reply:
    hashes = [b64encode(sha256(script).digest()).decode() for script in _SCRIPT.findall(page)]
    policy = _POLICY.format(scripts=" ".join(f"'sha256-{each}'" for each in hashes))
    return Reply(200, page, (_OPENER,), HTML, (b"content-security-policy", policy.encode()))


@cache
def _document(rules: Rules, has_keys: bool) -> bytes:
    from sessions_api.api.routes import ALLOWS  # noqa: PLC0415  its table has this endpoint in it

    return openapi.document_json(rules, ALLOWS, has_keys=has_keys)


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

"""The whole HTTP surface, one line a route, and the look-up of a request's route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from operator import itemgetter
from typing import Final, NamedTuple, Protocol

from starlette.types import Receive, Send

from sessions_api.api.endpoints import (
    agents,
    keys,
    live,
    messages,
    service,
    sessions,
    tokens,
    turns,
    workers,
)
from sessions_api.api.replies import Header, Reply
from sessions_api.api.requests import Request


class Stream(Protocol):
    """A reply that writes itself; until it has begun, its errors are ordinary ones."""

    async def run(self, receive: Receive, send: Send, headers: tuple[Header, ...]) -> None: ...


Endpoint = Callable[[Request], Awaitable[Reply | Stream]]


class Route(NamedTuple):
    """One method of one path, who answers it, and whom.

    *allows*, beside ``admin``, whose everything is: ``app``, ``agent`` (keys of these
    scopes), a right of a session token, ``token`` (any of them), ``open`` (everybody).
    """

    method: str
    path: str
    endpoint: Endpoint
    allows: frozenset[str]
    needs_store: bool = True
    """Refused while Redis was never reached, and while this replica drains."""


def _route(method: str, path: str, endpoint: Endpoint, allows: str, *, needs_store: bool = True) -> Route:
    return Route(method, path, endpoint, frozenset(allows.split()), needs_store)


BASE: Final = sessions.BASE
_ONE: Final = BASE + "/{sessionId}"

_TURN: Final = _ONE + "/turns/{turnId}"
_AGENT: Final = agents.BASE + "/{agentId}"
METRICS: Final = "/metrics"
PROBES: Final = frozenset({"/livez", "/readyz", METRICS})
"""What an operator's machines ask, over and over: neither traced nor refused by a full process."""

ROUTES: Final = (
    _route("POST", BASE, sessions.create, "app"),
    _route("GET", BASE, sessions.list_, "app"),
    _route("GET", BASE + "/health", service.health, "open", needs_store=False),
    _route("GET", _ONE, sessions.read, "app agent read"),
    _route("DELETE", _ONE, sessions.end, "app end"),
    _route("POST", _ONE + "/messages", messages.send, "app agent send"),
    _route("GET", _ONE + "/messages", messages.history, "app agent read"),
    _route("POST", _ONE + "/renew", sessions.renew, "app renew"),
    _route("POST", _ONE + "/heartbeat", sessions.heartbeat, "app renew"),
    _route("PATCH", _ONE + "/timeout", sessions.configure, "app"),
    _route("POST", _ONE + "/tokens", tokens.issue, "app"),
    _route("POST", _ONE + "/tokens/refresh", tokens.refresh, "token"),
    _route("DELETE", _ONE + "/tokens", tokens.revoke, "app"),
    _route("GET", _TURN, turns.read, "app agent read"),
    _route("POST", _TURN + "/cancel", turns.cancel, "app cancel"),
    _route("GET", _ONE + "/events", live.events, "app agent read"),
    _route("GET", agents.BASE, agents.list_, "admin"),
    _route("PUT", _AGENT, agents.put, "agent"),
    _route("GET", _AGENT, agents.read, "agent"),
    _route("DELETE", _AGENT, agents.forget, "admin"),
    _route("GET", _AGENT + "/availability", agents.availability, "app agent"),
    _route("POST", _AGENT + "/turns/claim", workers.claim, "agent"),
    _route("POST", _TURN + "/delta", workers.delta, "agent"),
    _route("POST", _TURN + "/extend", workers.extend, "agent"),
    _route("POST", _TURN + "/complete", workers.complete, "agent"),
    _route("POST", _TURN + "/fail", workers.fail, "agent"),
    _route("POST", _TURN + "/release", workers.release, "agent"),
    _route("GET", "/api/keys", keys.list_, "admin"),
    _route("DELETE", "/api/tokens", tokens.revoke_all, "admin"),
    _route("GET", "/livez", service.livez, "open", needs_store=False),
    _route("GET", "/readyz", service.readyz, "open", needs_store=False),
    _route("GET", METRICS, service.show_metrics, "admin", needs_store=False),
    _route("GET", "/openapi.json", service.show_openapi, "open", needs_store=False),
    _route("GET", "/docs", service.docs, "open", needs_store=False),
    _route("GET", "/chat", service.chat, "open", needs_store=False),
)
ALLOWS: Final = {(route.method, route.path): route.allows for route in ROUTES}
WEBSOCKET: Final = _ONE + "/ws"
STREAMS: Final = frozenset({_ONE + "/events"})
"""A HEAD there would say nothing."""


class Place(NamedTuple):
    """One path: its template, and what each method does there."""

    path: str
    methods: dict[str, Route]

    @property
    def allowed(self) -> tuple[str, ...]:
        return (*sorted(self.methods), "OPTIONS")


class _Shape(NamedTuple):
    """Templates whose parameters stand at the same segments: what is left of a path finds its place."""

    names: tuple[tuple[int, str], ...]
    literals: Callable[[list[str]], tuple[str, ...]]
    places: dict[tuple[str, ...], Place]


class Lookup:
    """Finds a path's place: whole paths in one dict, templates by their number of segments."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        places: dict[str, Place] = {}
        for route in routes:
            place = places.setdefault(route.path, Place(route.path, {}))
            place.methods[route.method] = route
            if route.method == "GET" and route.path not in STREAMS:
                place.methods["HEAD"] = route
        self._whole = {path: place for path, place in places.items() if "{" not in path}
        self._templates: dict[int, list[_Shape]] = {}
        for path, place in places.items():
            if path in self._whole:
                continue
            parts = path.split("/")
            names = tuple((number, part[1:-1]) for number, part in enumerate(parts) if part.startswith("{"))
            literals = itemgetter(*(number for number, part in enumerate(parts) if not part.startswith("{")))
            shapes = self._templates.setdefault(len(parts), [])
            shape = next((shape for shape in shapes if shape.names == names), None)
            if shape is None:
                shape = _Shape(names, literals, {})
                shapes.append(shape)
            shape.places[literals(parts)] = place

    def find(self, path: str) -> tuple[Place, dict[str, str]] | None:
        """The place of *path* and its parameters; one slash at the end does not matter."""
        path = path.removesuffix("/")
        place = self._whole.get(path)
        if place is not None:
            return place, {}
        parts = path.split("/")
        for shape in self._templates.get(len(parts), ()):
            place = shape.places.get(shape.literals(parts))
            if place is not None:
                params = {name: parts[number] for number, name in shape.names}
                return (place, params) if all(params.values()) else None
        return None

    def find_websocket(self, path: str) -> dict[str, str] | None:
        """The parameters of a WebSocket's path, or None if it is none."""
        front, _, rest = path.partition(BASE + "/")
        session_id, slash, tail = rest.partition("/")
        if front or not slash or tail.rstrip("/") != "ws" or not session_id:
            return None
        return {"sessionId": session_id}

"""The whole HTTP surface, one line a route, and the look-up of a request's route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from operator import itemgetter
from typing import Final, NamedTuple, Protocol

from starlette.types import Receive, Send

from sessions_api.api.endpoints import agents, live, messages, service, sessions, turns, workers
from sessions_api.api.replies import Header, Reply
from sessions_api.api.requests import Request


class Stream(Protocol):
    """A reply that writes itself; until it has begun, its errors are ordinary ones."""

    async def run(self, receive: Receive, send: Send, headers: tuple[Header, ...]) -> None: ...


Endpoint = Callable[[Request], Awaitable[Reply | Stream]]


class Route(NamedTuple):
    """One method of one path, and who answers it."""

    method: str
    path: str
    endpoint: Endpoint
    needs_store: bool = True
    """Refused while Redis was never reached, and while this replica drains."""


BASE: Final = sessions.BASE
_ONE: Final = BASE + "/{sessionId}"

_TURN: Final = _ONE + "/turns/{turnId}"
_AGENT: Final = agents.BASE + "/{agentId}"
METRICS: Final = "/metrics"

ROUTES: Final = (
    Route("POST", BASE, sessions.create),
    Route("GET", BASE, sessions.list_),
    Route("GET", BASE + "/health", service.health, needs_store=False),
    Route("GET", _ONE, sessions.read),
    Route("DELETE", _ONE, sessions.end),
    Route("POST", _ONE + "/messages", messages.send),
    Route("GET", _ONE + "/messages", messages.history),
    Route("POST", _ONE + "/renew", sessions.renew),
    Route("POST", _ONE + "/heartbeat", sessions.heartbeat),
    Route("PATCH", _ONE + "/timeout", sessions.configure),
    Route("GET", _TURN, turns.read),
    Route("POST", _TURN + "/cancel", turns.cancel),
    Route("GET", _ONE + "/events", live.events),
    Route("GET", agents.BASE, agents.list_),
    Route("PUT", _AGENT, agents.put),
    Route("GET", _AGENT, agents.read),
    Route("DELETE", _AGENT, agents.forget),
    Route("GET", _AGENT + "/availability", agents.availability),
    Route("POST", _AGENT + "/turns/claim", workers.claim),
    Route("POST", _TURN + "/delta", workers.delta),
    Route("POST", _TURN + "/extend", workers.extend),
    Route("POST", _TURN + "/complete", workers.complete),
    Route("POST", _TURN + "/fail", workers.fail),
    Route("POST", _TURN + "/release", workers.release),
    Route("GET", "/livez", service.livez, needs_store=False),
    Route("GET", "/readyz", service.readyz, needs_store=False),
    Route("GET", METRICS, service.show_metrics, needs_store=False),
    Route("GET", "/openapi.json", service.show_openapi, needs_store=False),
    Route("GET", "/docs", service.docs, needs_store=False),
    Route("GET", "/chat", service.chat, needs_store=False),
)
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

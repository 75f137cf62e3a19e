"""Around every request: who calls, which route, what came of it, and the one error envelope.

Pure ASGI, in one layer. Starlette keeps the application object and the
lifespan; between uvicorn and an endpoint of ours stands only this, because its
own stack of middleware, router and request objects costs as much again as a
whole session read (bench/).
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import ExitStack, suppress
from typing import Any, Final

import msgspec
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sessions_api.api import cors
from sessions_api.api.auth import NOBODY, check_route
from sessions_api.api.endpoints.live import converse
from sessions_api.api.gate import FLOODS
from sessions_api.api.replies import Header, Reply, problem_reply
from sessions_api.api.requests import ClientGone, Request
from sessions_api.api.routes import METRICS, ROUTES, Lookup, Place, Route, Stream
from sessions_api.api.state import State
from sessions_api.domain.ids import is_uuid, partition_of_session
from sessions_api.errors import (
    Draining,
    MethodNotAllowed,
    RateLimited,
    RouteNotFound,
    SessionsError,
    StorageFault,
    StorageUnavailable,
    Unauthenticated,
)
from sessions_api.live.framing import BadFrame
from sessions_api.live.handshake import ClientLeft, Handshake
from sessions_api.store.asked import counted_trips, named_scripts
from sessions_api.telemetry import metrics
from sessions_api.wire.problems import problem_of

log = structlog.get_logger(__name__)

UNMATCHED: Final = "unmatched"
HELD_S: Final = (0.5, 2.0)
CLIENT_GONE: Final = 499
"""As nginx counts it: nobody was there any more to be answered."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STATUS: Final = {status: str(status) for status in range(100, 600)}
_CLOSE: Final[Header] = (b"connection", b"close")
_encode = msgspec.json.Encoder().encode


class Surface:
    """The ASGI application in front of all endpoints."""

    def __init__(
        self, state: State, lifespan: ASGIApp, *, metrics_port: int = 0, logs_requests: bool = False
    ) -> None:
        """*metrics_port*: where ``/metrics`` answers, and nothing else does; 0: with everything else."""
        self._state = state
        self._lifespan = lifespan
        self._metrics_port = metrics_port
        self._metrics_lookup = Lookup(tuple(route for route in ROUTES if route.path == METRICS))
        self._lookup = Lookup(tuple(route for route in ROUTES if not metrics_port or route.path != METRICS))
        self._logs_requests = logs_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(Request(scope, receive, self._state), send)
        elif scope["type"] == "websocket":
            await self._converse(Request(scope, receive, self._state), send)
        else:
            await self._lifespan(scope, receive, send)

    def _is_for_metrics(self, scope: Scope) -> bool:
        return self._metrics_port != 0 and scope["server"][1] == self._metrics_port

    async def _serve(self, request: Request, send: Send) -> None:
        """Answer one request, whatever happens."""
        started_s = time.perf_counter()
        scope = request.scope
        method: str = scope["method"]
        lookup = self._metrics_lookup if self._is_for_metrics(scope) else self._lookup
        found = lookup.find(scope["path"])
        label = UNMATCHED if found is None else found[0].path
        answer: Reply | Stream
        status = CLIENT_GONE
        watched = _Watched(send)
        is_stream = False
        try:
            try:
                if b"x-debug" in request.headers:
                    answer = await self._debugged(request, found, method)
                else:
                    answer = await self._answer(request, found, method)
                if not isinstance(answer, Reply):
                    is_stream = True
                    await answer.run(request.receive, watched, request.common)
                    status = 200
            except ClientGone:
                return
            except Exception as error:  # the envelope is for everything
                if watched.has_begun:
                    log.exception("stream_failed", **request.ids, route=label)
                    status = 500
                    return
                is_stream = False
                answer = self._refusal(request, error, label)
                await self._hold_back(error)
            if isinstance(answer, Reply) and not is_stream:
                status = answer.status
                await answer.send(scope, send, request.common)
        finally:
            seconds = time.perf_counter() - started_s
            known = method if method in _METHODS else "other"
            metrics.REQUESTS.of(label, known, _STATUS[status]).inc()
            if not is_stream:
                metrics.REQUEST_SECONDS.of(label, known).observe(seconds)
            if self._logs_requests:
                log.debug(
                    "request_answered",
                    **request.ids,
                    method=known,
                    route=label,
                    status=status,
                    ms=round(seconds * 1000, 3),
                )

    async def _answer(
        self, request: Request, found: tuple[Place, dict[str, str]] | None, method: str
    ) -> Reply | Stream:
        state = self._state
        access = state.access
        if access.origins:
            request.common += cors.reply_headers(request.headers.get(b"origin"), access.origins)
        access.check_page(request.headers)
        if found is None:
            raise RouteNotFound
        place, request.params = found
        route: Route | None = place.methods.get(method)
        if route is None:
            if method == "OPTIONS":
                return Reply(204, b"", self._options(place, request), b"")
            raise MethodNotAllowed(place.allowed)
        self._identify(request, route)
        if route.needs_store:
            state.check_serves()
        return await route.endpoint(request)

    def _options(self, place: Place, request: Request) -> tuple[Header, ...]:
        headers = request.headers
        allow: Header = (b"allow", ", ".join(place.allowed).encode())
        if (
            b"access-control-request-method" in headers
            and headers.get(b"origin") in self._state.access.origins
        ):
            return (allow, *cors.preflight_headers(place.allowed))
        return (allow,)

    def _identify(self, request: Request, route: Route) -> None:
        """Who calls, and whether the route is theirs to ask for."""
        if "open" in route.allows:
            with suppress(Unauthenticated):  # a wrong key opens no less than none
                request.caller = self._state.access.caller(request.headers) or NOBODY
            return
        if self._is_for_metrics(request.scope):
            return  # a port of its own, which the operator keeps closed
        try:
            request.caller = self._state.access.caller(request.headers) or NOBODY
        finally:
            self._state.gate.admit(request)  # who shows a wrong key is nobody, and counted too
        check_route(request.caller, route.allows, request.params.get("sessionId"))

    def _refusal(self, request: Request, error: Exception, label: str) -> Reply:
        """The envelope; what is our own fault goes to the log whole."""
        request_id = request.id.decode()
        metrics.count_refusal(error)
        if not isinstance(error, SessionsError) or isinstance(error, StorageFault):
            log.error("request_crashed", **request.ids, route=label, exc_info=error)
        elif isinstance(error, StorageUnavailable):
            log.warning("storage_unavailable", **request.ids, route=label, reason=error.reason)
        problem = problem_of(
            error,
            request_id=request_id,
            instance=request.instance,
            turn_id=request.turn_id,
            as_sent=request.params,
        )
        reply = problem_reply(problem, wants_problem=request.wants_problem)
        if isinstance(error, Draining):
            return reply._replace(headers=(*reply.headers, _CLOSE))
        return reply

    async def _hold_back(self, error: Exception) -> None:
        """Let a flood wait for its refusals.

        A client that is refused at once asks again at once, and refusing it takes
        most of what serving it would. So each of its connections asks about once a second.
        """
        if isinstance(error, RateLimited) and error.policy in FLOODS and not self._state.is_draining:
            # Jittered: together again, they would take what has come free meanwhile at one go.
            await asyncio.sleep(random.uniform(*HELD_S))  # noqa: S311  no secret

    # ------------------------------------------------------------ WebSocket

    async def _converse(self, request: Request, send: Send) -> None:
        state = self._state
        handshake = Handshake(
            request.receive,
            send,
            request_id=request.id.decode(),
            instance=request.instance,
            offered=list(request.scope.get("subprotocols", ())),
        )
        try:
            state.access.check_page(request.headers)
            params = self._lookup.find_websocket(request.scope["path"])
            if params is None or self._is_for_metrics(request.scope):
                raise RouteNotFound
            request.params = params
            try:
                request.caller = state.access.caller(request.headers) or NOBODY
            finally:
                state.gate.admit(request)
            state.check_serves()
            await converse(request, handshake)
        except (SessionsError, BadFrame) as error:
            await self._hold_back(error)
            await handshake.refuse(error)
        except ClientLeft:
            pass

    # ------------------------------------------------------------ X-Debug

    async def _debugged(
        self, request: Request, found: tuple[Place, dict[str, str]] | None, method: str
    ) -> Reply | Stream:
        """As :meth:`_answer`; JSON replies to those who may ask tell what they cost."""
        started_s = time.perf_counter()
        with ExitStack() as stack:
            trips = stack.enter_context(counted_trips())
            scripts = stack.enter_context(named_scripts())
            try:
                answer = await self._answer(request, found, method)
            except SessionsError as error:
                answer = self._refusal(request, error, UNMATCHED)
        may_ask = request.headers[b"x-debug"].lower() == b"true" and request.caller.is_admin
        if not may_ask or not isinstance(answer, Reply) or not answer.body.startswith(b"{"):
            return answer
        session_id = request.params.get("sessionId", "")
        debug: dict[str, Any] = {
            "redisTrips": len(trips),
            "ms": round((time.perf_counter() - started_s) * 1000, 3),
            "partition": partition_of_session(session_id.lower()) if is_uuid(session_id) else None,  # type: ignore[arg-type]
            "scripts": scripts,
        }
        rest = b"," if len(answer.body) > 2 else b""
        return answer._replace(body=answer.body[:-1] + rest + b'"debug":' + _encode(debug) + b"}")


class _Watched:
    """A stream's way out, which knows whether the reply has begun."""

    __slots__ = ("_send", "has_begun")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        self.has_begun = True
        await self._send(message)

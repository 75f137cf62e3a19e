"""What the OpenAPI document says of each route, in one table; of parameters, parameters.py says it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from sessions_api import errors as e
from sessions_api.wire import agents, claims, inputs, messages, posted, service, sessions, tokens

BASE: Final = "/api/messaging/sessions"
_ONE: Final = BASE + "/{sessionId}"
_TURN: Final = _ONE + "/turns/{turnId}"
_AGENTS: Final = "/api/agents"
_AGENT: Final = _AGENTS + "/{agentId}"
EVENTS: Final = "text/event-stream"


class Operation(NamedTuple):
    """What the document says of one route beside its path."""

    name: str
    tag: str
    summary: str
    replies: dict[int, Any]
    """Status → Struct, several of them, media type, or None for no content."""
    errors: tuple[type[e.SessionsError], ...] = ()
    body: type[msgspec.Struct] | None = None
    parameters: tuple[str, ...] = ()
    needs_body: bool = True
    """Whether *body* may not be left out."""


_ANY: Final = (e.Unauthenticated, e.Forbidden, e.InvalidInput, e.StorageFault)
_STORED: Final = (*_ANY, e.StorageUnavailable, e.Draining)
_LIVE: Final = (*_STORED, e.SessionNotFound, e.SessionExpired)
_KEPT: Final = (e.StorageFull, e.NotReplicated)
_WRITE: Final = (*_LIVE, e.TurnNotFound, e.TurnLost, *_KEPT)
_BODY: Final = (e.MalformedBody, e.BodyTooLarge, e.UnsupportedMediaType)

OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("POST", BASE): Operation(
        "createSession",
        "sessions",
        "Open a session between a user and an agent",
        {201: sessions.SessionInfo},
        (
            *_STORED,
            *_BODY,
            e.AgentNotFound,
            e.AgentUnavailable,
            e.SessionNotFound,
            e.TooManyOpenSessions,
            e.IdempotencyMismatch,
            *_KEPT,
        ),
        inputs.CreateSession,
        ("Idempotency-Key",),
    ),
    ("GET", BASE): Operation(
        "listSessions",
        "sessions",
        "List live sessions",
        {200: sessions.SessionList},
        _STORED,
        parameters=(
            "app",
            "agentIdFilter",
            "userIdFilter",
            "stage",
            "createdAfter",
            "createdBefore",
            "pageLimit",
            "cursor",
        ),
    ),
    ("GET", BASE + "/health"): Operation(
        "health",
        "service",
        "How the service is; 503 when it cannot serve. Without a key only the status",
        {200: (sessions.Health, sessions.HealthStatus), 503: (sessions.Health, sessions.HealthStatus)},
        _ANY,
    ),
    ("GET", _ONE): Operation(
        "readSession",
        "sessions",
        "The session as it stands; renews nothing",
        {200: sessions.SessionInfo},
        _LIVE,
    ),
    ("DELETE", _ONE): Operation(
        "deleteSession",
        "sessions",
        "Erase the session and everything it holds, also an expired one",
        {200: sessions.Deleted},
        (*_STORED, e.SessionNotFound, e.BodyTooLarge),
    ),
    ("POST", _ONE + "/messages"): Operation(
        "sendMessage",
        "messages",
        "Send a message; wait for the answer, stream it, or neither",
        {201: (posted.Posted, posted.PostedMinimal, posted.Spoken, posted.SpokenMinimal), 200: EVENTS},
        (
            *_LIVE,
            *_BODY,
            e.SessionBusy,
            e.BacklogFull,
            e.IdempotencyMismatch,
            e.AgentFailed,
            e.AgentUnavailable,
            e.AgentTimedOut,
            *_KEPT,
        ),
        inputs.SendMessage,
        ("Idempotency-Key", "Prefer", "traceparent", "tracestate"),
    ),
    ("GET", _ONE + "/messages"): Operation(
        "readMessages",
        "messages",
        "A page of the history, newest first",
        {200: messages.History},
        _LIVE,
        parameters=("limit", "before", "after", "ended"),
    ),
    ("POST", _ONE + "/renew"): Operation(
        "renewSession",
        "sessions",
        "Restart the idle clock by hand",
        {200: sessions.SessionInfo},
        (*_LIVE, e.BodyTooLarge, e.MaxDurationReached, e.IdempotencyMismatch, *_KEPT),
        parameters=("Idempotency-Key",),
    ),
    ("POST", _ONE + "/heartbeat"): Operation(
        "heartbeat",
        "sessions",
        "The user is there",
        {200: sessions.SessionInfo},
        (*_LIVE, e.BodyTooLarge, *_KEPT),
    ),
    ("PATCH", _ONE + "/timeout"): Operation(
        "configureTimeout",
        "sessions",
        "Change the session's timeouts; what is not named keeps its value",
        {200: sessions.SessionInfo},
        (*_LIVE, *_BODY, e.ConfigChanged, *_KEPT),
        inputs.TimeoutInput,
        ("If-Match",),
    ),
    ("POST", _ONE + "/tokens"): Operation(
        "issueToken",
        "tokens",
        "Make a token that opens this session, for a browser",
        {201: tokens.TokenInfo},
        (*_LIVE, *_BODY),
        tokens.TokenInput,
        needs_body=False,
    ),
    ("POST", _ONE + "/tokens/refresh"): Operation(
        "refreshToken",
        "tokens",
        "Another token like the one that asks, with as long a life",
        {201: tokens.TokenInfo},
        (*_LIVE, e.BodyTooLarge),
    ),
    ("DELETE", _ONE + "/tokens"): Operation(
        "revokeTokens",
        "tokens",
        "End every token of the session at once",
        {200: tokens.TokensRevoked},
        (*_LIVE, e.BodyTooLarge, *_KEPT),
    ),
    ("GET", _ONE + "/turns/{turnId}"): Operation(
        "readTurn",
        "turns",
        "How an answer is coming along, also of an expired session",
        {200: messages.TurnInfo},
        (*_STORED, e.SessionNotFound, e.TurnNotFound),
    ),
    ("POST", _ONE + "/turns/{turnId}/cancel"): Operation(
        "cancelTurn",
        "turns",
        "Stop a turn; one that has ended is left as it is",
        {200: messages.TurnInfo},
        (*_LIVE, e.BodyTooLarge, e.TurnNotFound, *_KEPT),
    ),
    ("GET", _ONE + "/events"): Operation(
        "followEvents",
        "live",
        "Follow the session: a snapshot, what was missed, then everything as it happens",
        {200: EVENTS, 204: None},
        (*_STORED, e.SessionNotFound, e.TooManyFollowers),
        parameters=("position", "Last-Event-ID"),
    ),
    ("GET", _AGENTS): Operation(
        "listAgents", "agents", "Every agent that is defined", {200: agents.AgentList}, _STORED
    ),
    ("PUT", _AGENT): Operation(
        "defineAgent",
        "agents",
        "Define an agent, or put another definition in the place of its own",
        {201: agents.AgentInfo, 200: agents.AgentInfo},
        (*_STORED, *_BODY, *_KEPT),
        inputs.PutAgent,
    ),
    ("GET", _AGENT): Operation(
        "readAgent",
        "agents",
        "The agent's definition, its secrets hidden",
        {200: agents.AgentInfo},
        (*_STORED, e.AgentNotFound),
    ),
    ("DELETE", _AGENT): Operation(
        "deleteAgent",
        "agents",
        "Forget an agent; with live sessions only by force, and then their open turns fail",
        {200: agents.AgentDeleted},
        (*_STORED, e.AgentNotFound, e.AgentInUse, e.BodyTooLarge),
        parameters=("force",),
    ),
    ("GET", _AGENT + "/availability"): Operation(
        "readAvailability",
        "agents",
        "Whether the agent is there to answer, and what it has to do",
        {200: agents.AvailabilityInfo},
        (*_STORED, e.AgentNotFound),
    ),
    ("POST", _AGENT + "/turns/claim"): Operation(
        "claimTurn",
        "workers",
        "Wait for a turn to answer; 204 if none came",
        {200: claims.Claimed, 204: None},
        (*_STORED, *_BODY, e.AgentNotFound, e.TooManyClaims, e.StorageFull),
        claims.ClaimInput,
        ("claimWait",),
    ),
    ("POST", _TURN + "/delta"): Operation(
        "streamAnswer",
        "workers",
        "More of the running answer",
        {200: claims.Written},
        (*_WRITE, *_BODY, e.DeltaGap, e.AnswerTooLarge),
        claims.DeltaInput,
    ),
    ("POST", _TURN + "/extend"): Operation(
        "extendTurn",
        "workers",
        "Hold the turn for another lease; stay to hear of its end",
        {200: claims.Written},
        (*_WRITE, *_BODY),
        claims.FenceInput,
        ("extendWait",),
    ),
    ("POST", _TURN + "/complete"): Operation(
        "completeTurn",
        "workers",
        "End the turn with its answer",
        {200: claims.Written},
        (*_WRITE, *_BODY, e.AnswerTooLarge),
        claims.CompleteInput,
    ),
    ("POST", _TURN + "/fail"): Operation(
        "failTurn",
        "workers",
        "Give this attempt up",
        {200: claims.Written},
        (*_WRITE, *_BODY),
        claims.FailInput,
    ),
    ("POST", _TURN + "/release"): Operation(
        "releaseTurn",
        "workers",
        "Hand the turn to another worker, its attempt uncounted",
        {200: claims.Written},
        (*_WRITE, *_BODY),
        claims.FenceInput,
    ),
    ("GET", "/api/keys"): Operation(
        "listKeys", "service", "The access keys, and when each was used last", {200: tokens.KeyList}, _STORED
    ),
    ("DELETE", "/api/tokens"): Operation(
        "revokeAllTokens",
        "tokens",
        "End every token of every session: on the other replicas within seconds",
        {200: tokens.TokensRevoked},
        (*_STORED, e.BodyTooLarge, *_KEPT),
    ),
    ("GET", "/livez"): Operation("livez", "service", "The process runs", {200: service.Alive}, _ANY),
    ("GET", "/readyz"): Operation(
        "readyz",
        "service",
        "This replica can serve",
        {200: service.Ready},
        (*_ANY, e.StorageUnavailable, e.Draining),
    ),
    ("GET", "/metrics"): Operation("metrics", "service", "Metrics for Prometheus", {200: "text/plain"}, _ANY),
    ("GET", "/openapi.json"): Operation(
        "openapi", "service", "This document", {200: "application/json"}, _ANY
    ),
    ("GET", "/docs"): Operation("docs", "service", "This document, for people", {200: "text/html"}, _ANY),
    ("GET", "/chat"): Operation(
        "chat",
        "service",
        "The example page, where the service runs in dev mode",
        {200: "text/html"},
        (*_ANY, e.RouteNotFound),
    ),
}

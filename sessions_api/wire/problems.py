"""From an error to its status, headers and body: the one table of both.

The envelope is the reference's ``error`` object with the members of RFC 9457
beside it. HTTP, SSE and WebSocket send the same. No body holds a stack, a path,
what Redis said, or the payload it refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from sessions_api import errors as e
from sessions_api.wire.instants import iso, iso_now
from sessions_api.wire.timeouts import minutes

URN: Final = "urn:sessions-api:problem:"
Details = dict[str, object]


class ErrorObject(msgspec.Struct, rename="camel"):
    """What went wrong; ``code`` is stable, ``message`` is for people."""

    code: str
    message: str
    timestamp: str
    request_id: str
    retryable: bool
    details: dict[str, Any] | UnsetType = UNSET


class ErrorEnvelope(msgspec.Struct):
    """Every error of this service; beside ``error`` stand the members of RFC 9457."""

    error: ErrorObject
    type: str
    title: str
    status: int
    detail: str
    instance: str


class Problem(NamedTuple):
    """An error, ready to be sent."""

    status: int
    code: str
    headers: list[tuple[str, str]]
    body: bytes


class Row(NamedTuple):
    """How one class of error is told."""

    status: int
    title: str
    message: Callable[[Any], str]
    details: Callable[[Any], Details] = lambda _: {}
    headers: Callable[[Any], list[tuple[str, str]]] = lambda _: []


MOST_FIELDS: Final = 100
"""Bad fields that a reply names; it must not be many times what was sent."""


def _fields(error: e.InvalidInput) -> Details:
    details = dict(error.details)
    if error.errors:
        named = [
            {
                key: abbreviated(value) if key == "field" else value
                for key in ("field", "reason", "provided", "allowed")
                if (value := getattr(bad, key)) is not None
            }
            for bad in error.errors[:MOST_FIELDS]
        ]
        if len(error.errors) > MOST_FIELDS:
            named.append({"field": "…", "reason": f"and {len(error.errors) - MOST_FIELDS} more"})
        details["errors"] = named
    return details


def _retry_after(error: Any) -> list[tuple[str, str]]:
    return [("Retry-After", str(error.retry_after_s))]


def _limited(error: Any, policy: str) -> list[tuple[str, str]]:
    """The fields of a refusal by a limit; *policy*: its quota and window."""
    return [
        ("Retry-After", str(error.retry_after_s)),
        ("RateLimit-Policy", f'"{error.policy}";{policy}'),
        ("RateLimit", f'"{error.policy}";r=0;t={error.retry_after_s}'),
    ]


def abbreviated(text: str) -> str:
    """What may be shown of a value that a caller sent: an id's length, not a payload."""
    return text if len(text) <= 64 else text[:64] + "…"


def _lost(error: e.TurnLost) -> str:
    turn = f"Turn '{abbreviated(error.turn_id)}'"
    match error.why, error.state:
        case "late", _:
            return f"{turn} cannot be extended: the deadline of this attempt has passed"
        case _, "failed":
            return f"{turn} has failed for good"
        case "ended", "completed":
            return f"{turn} has already been completed by this attempt"
        case "ended", _:
            return f"{turn} has already been given up by this attempt"
        case _, "completed":
            return f"{turn} has been completed by another attempt"
        case _:
            return f"{turn} belongs to another attempt"


BACKLOG: Final = 100
_RATE_LIMITED: Final = "Too many requests"


def _limit(title: str, said: str) -> Row:
    """The row of a LimitReached; *said* has a place for the limit."""
    return Row(
        429,
        title,
        lambda x: f"{_RATE_LIMITED}: {said.format(x.limit)}",
        lambda x: {"policy": x.policy, "limit": x.limit, "retryAfterSeconds": x.retry_after_s},
        lambda x: _limited(x, f"q={x.limit}"),
    )


TABLE: Final[dict[type[e.SessionsError], Row]] = {
    e.InvalidInput: Row(400, "Invalid input", str, _fields),
    e.MalformedBody: Row(
        400,
        "Malformed body",
        lambda x: f"Malformed request body: {x.reason}",
        lambda x: {"errors": [{"field": "body", "reason": x.reason}]},
    ),
    e.Unauthenticated: Row(
        401,
        "Authentication required",
        lambda x: x.reason,
        headers=lambda _: [("WWW-Authenticate", 'Bearer realm="sessions-api"')],
    ),
    e.Forbidden: Row(403, "Forbidden", lambda x: x.reason),
    e.RouteNotFound: Row(404, "Not found", lambda _: "API endpoint not found"),
    e.MethodNotAllowed: Row(
        405,
        "Method not allowed",
        lambda x: f"Method not allowed; this path answers {', '.join(x.allowed)}",
        lambda x: {"allowed": list(x.allowed)},
        lambda x: [("Allow", ", ".join(x.allowed))],
    ),
    e.BodyTooLarge: Row(
        413,
        "Payload too large",
        lambda x: f"The request body exceeds {x.limit_bytes} bytes",
        lambda x: {"limitBytes": x.limit_bytes},
    ),
    e.UnsupportedMediaType: Row(
        415,
        "Unsupported media type",
        lambda x: f"Invalid or missing Content-Type header; send {' or '.join(x.allowed)}",
        lambda x: {"provided": abbreviated(x.provided), "allowed": list(x.allowed)},
    ),
    e.MalformedRequest: Row(400, "Malformed request", lambda _: "The request is no valid HTTP"),
    e.HeadTooLarge: Row(
        431,
        "Headers too large",
        lambda x: f"Request line and headers exceed {x.limit_bytes} bytes",
        lambda x: {"limitBytes": x.limit_bytes},
    ),
    e.RequestTooSlow: Row(
        408,
        "Request too slow",
        lambda x: f"The request did not arrive whole within {x.within_s:g} s",
        lambda x: {"withinSeconds": x.within_s},
    ),
    e.SessionNotFound: Row(
        404, "Session not found", lambda x: f"Session with ID '{abbreviated(x.session_id)}' not found"
    ),
    e.AgentNotFound: Row(
        404, "Agent not found", lambda x: f"Agent with ID '{abbreviated(x.agent_id)}' not found"
    ),
    e.TurnNotFound: Row(
        404,
        "Turn not found",
        lambda x: f"Turn with ID '{abbreviated(x.turn_id)}' not found",
        lambda x: {"turnId": x.turn_id},
    ),
    e.SessionExpired: Row(
        410,
        "Session expired",
        lambda x: f"Session '{abbreviated(x.session_id)}' expired at {iso(x.expires_ms)}",
        lambda x: {
            "sessionId": x.session_id,
            "expiresAt": iso(x.expires_ms),
            "retainedUntil": iso(x.retained_until_ms),
            "reason": x.reason,
        },
    ),
    e.SessionBusy: Row(
        409,
        "Session busy",
        lambda x: f"Session '{abbreviated(x.session_id)}' has a turn that is {x.state}",
        lambda x: {"activeTurn": {"turnId": x.turn_id, "state": x.state}},
        _retry_after,
    ),
    e.BacklogFull: Row(
        429,
        "Backlog full",
        lambda x: f"{_RATE_LIMITED}: {x.queued} messages of this session wait for an answer",
        lambda x: {"policy": x.policy, "queued": x.queued, "retryAfterSeconds": x.retry_after_s},
        lambda x: _limited(x, f"q={BACKLOG}"),
    ),
    e.TooManyOpenSessions: _limit("Too many open sessions", "the user has {} open sessions"),
    e.TooManyFollowers: _limit("Too many followers", "there are {} followers already"),
    e.TooManyClaims: _limit("Too many claims", "{} workers wait for turns already"),
    e.RateLimited: Row(
        429,
        "Rate limit exceeded",
        lambda x: f"{_RATE_LIMITED}: {x.quota} in {x.window_s} s are allowed ({x.policy})",
        lambda x: {
            "policy": x.policy,
            "limit": x.quota,
            "windowSeconds": x.window_s,
            "retryAfterSeconds": x.retry_after_s,
        },
        lambda x: _limited(x, f"q={x.quota};w={x.window_s}"),
    ),
    e.AgentInUse: Row(
        409,
        "Agent in use",
        lambda x: f"Agent '{abbreviated(x.agent_id)}' has {x.sessions} live session{'s' * (x.sessions != 1)}",
        lambda x: {"agentId": x.agent_id, "sessions": x.sessions},
    ),
    e.MaxDurationReached: Row(
        422,
        "Renewal failed",
        lambda x: f"Cannot renew session '{abbreviated(x.session_id)}': Maximum duration reached",
        lambda x: {
            "maxDuration": minutes(x.max_duration_ms),
            "createdAt": iso(x.created_ms),
            "timeSinceCreation": x.now_ms - x.created_ms,
            "expiresAt": iso(x.expires_ms),
        },
    ),
    e.ConfigChanged: Row(
        412,
        "Precondition failed",
        lambda x: f"The configuration of session '{abbreviated(x.session_id)}' has changed",
        lambda x: {"current": f'"{x.current}"'},
        lambda x: [("ETag", f'"{x.current}"')],
    ),
    e.IdempotencyMismatch: Row(
        422,
        "Idempotency key reused",
        lambda _: "This Idempotency-Key was used before with other content",
    ),
    e.TurnLost: Row(
        409,
        "Turn lost",
        _lost,
        lambda x: {"turnId": x.turn_id, "state": x.state},
    ),
    e.DeltaGap: Row(
        409,
        "Gap in the answer",
        lambda x: f"The next delta of turn '{abbreviated(x.turn_id)}' belongs at offset {x.expected}",
        lambda x: {"turnId": x.turn_id, "expected": x.expected},
    ),
    e.AnswerTooLarge: Row(
        413,
        "Answer too large",
        lambda x: f"An answer has at most {x.limit_chars} characters",
        lambda x: {"turnId": x.turn_id, "limitChars": x.limit_chars},
    ),
    e.AgentUnavailable: Row(
        503,
        "Agent unavailable",
        lambda x: f"Agent '{abbreviated(x.agent_id)}' is not running",
        lambda x: {"agentId": x.agent_id},
        _retry_after,
    ),
    e.AgentFailed: Row(
        502,
        "Agent failed",
        lambda x: x.reason or "The agent failed to answer",
        lambda x: {"turnId": x.turn_id, "attempts": x.attempts, "agentCode": x.agent_code},
    ),
    e.AgentTimedOut: Row(
        504,
        "Agent timed out",
        lambda x: f"The agent did not answer within {x.waited_ms} ms; the turn goes on",
        lambda x: {"turnId": x.turn_id},
    ),
    e.StorageUnavailable: Row(
        503,
        "Storage unavailable",
        lambda _: "The storage cannot be reached now; try again",
        headers=_retry_after,
    ),
    e.NotReplicated: Row(
        503,
        "Not replicated",
        lambda _: "This is done, but not yet safe from the loss of a server; repeat it under the same key",
        headers=_retry_after,
    ),
    e.StorageFull: Row(
        503,
        "Storage full",
        lambda _: "The storage is full; nothing was written",
        headers=_retry_after,
    ),
    e.Draining: Row(
        503, "Draining", lambda _: "This replica is shutting down; try again", headers=_retry_after
    ),
    e.TooManyConnections: Row(
        503,
        "Too many connections",
        lambda x: f"This replica has {x.limit} connections, as many as it may; try again",
        lambda x: {"limit": x.limit},
        _retry_after,
    ),
    e.SettingsError: Row(500, "Internal error", lambda _: "The service is not set up"),
    e.StorageFault: Row(500, "Internal error", lambda _: "An unexpected error occurred"),
}

NOTHING: Final[Mapping[str, str]] = {}
_INTERNAL: Final = Row(500, "Internal error", lambda _: "An unexpected error occurred")

_encode = msgspec.json.Encoder().encode


def problem_of(
    error: BaseException,
    *,
    request_id: str,
    instance: str = "",
    turn_id: str | None = None,
    as_sent: Mapping[str, str] = NOTHING,
) -> Problem:
    """*error* as status, headers and body; one that is not ours becomes 500.

    *turn_id* is added to the details: a poster that waits for a turn is always
    told which. *as_sent* are the ids ``sessionId``, ``turnId`` and ``agentId`` as the caller
    wrote them, which is how messages and details name them.
    """
    row = TABLE.get(type(error), _INTERNAL) if isinstance(error, e.SessionsError) else _INTERNAL
    is_ours = row.status != 500
    code = error.code if is_ours and isinstance(error, e.SessionsError) else "INTERNAL_ERROR"
    message = row.message(error) if is_ours else f"{row.message(error)} (request {request_id})"
    details = row.details(error)
    for name, attribute in (("sessionId", "session_id"), ("turnId", "turn_id"), ("agentId", "agent_id")):
        ours = getattr(error, attribute, None)
        if ours is not None and name in as_sent:
            sent = abbreviated(as_sent[name])
            message = message.replace(f"'{abbreviated(ours)}'", f"'{sent}'")
            if details.get(name) == ours:
                details[name] = sent
    if turn_id is not None:
        details = {"turnId": turn_id, **details}
    is_retryable = is_ours and isinstance(error, e.SessionsError) and error.retryable
    envelope = ErrorEnvelope(
        ErrorObject(code, message, iso_now(), request_id, is_retryable, details or UNSET),
        URN + code.lower().replace("_", "-"),
        row.title,
        row.status,
        message,
        instance,
    )
    return Problem(row.status, code, row.headers(error), _encode(envelope))

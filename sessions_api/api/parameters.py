"""What the OpenAPI document says of each parameter, in one table."""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]
_UUID: Final[Json] = {
    "type": "string",
    "format": "uuid",
    "pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
}
_INSTANT: Final[Json] = {"type": "string", "format": "date-time"}
_MS: Final[Json] = {"type": "integer", "minimum": -8_640_000_000_000_000, "maximum": 8_640_000_000_000_000}
_POSITION: Final[Json] = {"anyOf": [_MS, _INSTANT, {"type": "string", "maxLength": 0}]}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _header(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _path(name: str, description: str) -> Json:
    # No pattern: an id that is no UUID is an unknown id, not a malformed request.
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "description": description,
    }


PARAMETERS: Final[dict[str, Json]] = {
    "sessionId": _path("sessionId", "The session's UUID."),
    "turnId": _path("turnId", "The turn's UUID."),
    "agentId": {
        "name": "agentId",
        "in": "path",
        "required": True,
        "schema": _UUID,
        "description": "The agent's UUID.",
    },
    "claimWait": _query(
        "wait", {"type": "number", "minimum": 0, "maximum": 60}, "Seconds to wait for one; 25."
    ),
    "extendWait": _query(
        "wait", {"type": "number", "minimum": 0, "maximum": 20}, "Seconds to stay for the turn's end; 0."
    ),
    "force": _query("force", {"type": "boolean"}, "Also with live sessions: their open turns fail."),
    "Idempotency-Key": _header(
        "Idempotency-Key",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!#-~]([ -~]*[!-~])?$"},
        "A repeat with the same key within 24 h finds what the first request did. "
        "A quoted String of RFC 8941, or bare; up to 255 printable ASCII characters.",
    ),
    "Prefer": _header("Prefer", {"type": "string"}, "`return=minimal` leaves the copies out of the reply."),
    "traceparent": _header(
        "traceparent",
        {"type": "string"},
        "Where the caller stands in a trace (W3C Trace Context). The turn that answers the message "
        "belongs to it, and the agent is told. What is malformed counts as not sent.",
    ),
    "tracestate": _header(
        "tracestate",
        {"type": "string"},
        "Goes with `traceparent`; one that is malformed or of more than 512 characters is dropped.",
    ),
    "If-Match": _header(
        "If-Match",
        {"type": "string", "pattern": r'^(\*|[0-9]+|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$'},
        "The ETag that the change is meant for, a list of them, or `*`.",
    ),
    "Last-Event-ID": _header(
        "Last-Event-ID",
        {"type": "string", "pattern": "^[0-9]{1,15}(\\.end)?$"},
        "Where an EventSource left off.",
    ),
    "position": _query(
        "after",
        {"type": "integer", "minimum": 0, "maximum": 8_640_000_000_000_000},
        "The cursor to go on from; 0 replays all.",
    ),
    "limit": _query("limit", {"type": "number"}, "Messages on the page, clamped to 1..100; 50."),
    "before": _query("before", _POSITION, "Only what is older than this cursor or instant."),
    "after": _query("after", _POSITION, "Only what is newer than this cursor or instant."),
    "ended": _query("ended", {"type": "boolean"}, "Also the history of an expired session."),
    "app": _query("app", {"type": "string", "pattern": "^[a-z0-9-]{1,32}$"}, "The application."),
    "agentIdFilter": _query("agentId", _UUID, "Only this agent's."),
    "userIdFilter": _query("userId", _UUID, "Only this user's."),
    "stage": _query(
        "stage",
        {"type": "string", "enum": ["created", "active", "waiting", "expiring"]},
        "Only of this stage.",
    ),
    "createdAfter": _query(
        "createdAfter", {"anyOf": [_MS, _INSTANT]}, "Only what was created after this instant."
    ),
    "createdBefore": _query(
        "createdBefore", {"anyOf": [_MS, _INSTANT]}, "Only what was created before this instant."
    ),
    "pageLimit": _query("limit", {"type": "number"}, "Sessions on the page, clamped to 1..1000; 1000."),
    "cursor": _query("cursor", {"type": "string"}, "The nextCursor of the page before."),
}

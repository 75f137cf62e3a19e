"""``/openapi.json``: the interface described, generated from the Structs and the routes.

Replies come from the Structs that are sent, errors from the table in
``wire/problems.py``; a test drives the live service from the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib.metadata import version
from typing import Final

import msgspec

from sessions_api.api.bodies import MAX_SPOKEN_CHARS
from sessions_api.api.parameters import PARAMETERS, Json
from sessions_api.api.reference import EVENTS, OPERATIONS, Operation
from sessions_api.api.state import Rules
from sessions_api.domain.access import RIGHTS
from sessions_api.domain.agents import ECHO_ID
from sessions_api.wire import inputs, sessions
from sessions_api.wire.problems import TABLE, ErrorEnvelope
from sessions_api.wire.timeouts import minutes

Allows = Mapping[tuple[str, str], frozenset[str]]
"""Method and path → whom the route allows (api/routes.py)."""
_COMPONENTS: Final = "#/components/schemas/"
_SCHEMAS: Final[dict[str, Json]] = {
    "application/json": {"type": "object"},
    "text/plain": {"type": "string"},
    "text/html": {"type": "string"},
}
_SOMEBODY: Final = "11111111-1111-4111-8111-111111111111"

_SCHEMES: Final[Json] = {
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-KEY",
        "description": "An access key, `id.secret`.",
    },
    "bearer": {"type": "http", "scheme": "bearer", "description": "An access key, or a session token."},
}
_ETAG: Final[Json] = {"ETag": {"schema": {"type": "string"}, "description": "The configuration's version."}}
_RETRY: Final[Json] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}


def document(rules: Rules, allows: Allows, *, has_keys: bool) -> Json:
    """The document of this very service.

    The ranges that its operator chose are in it, whom each route *allows*, and
    whether a key has to be shown at all.
    """
    paths: Json = {}
    for (method, path), operation in OPERATIONS.items():
        if path == "/chat" and not rules.is_dev:
            continue
        described = _operation(path, operation) | _security(allows[method, path], has_keys=has_keys)
        paths.setdefault(path, {})[method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sessions API",
            "version": version("sessions-api"),
            "description": "Persistent, stateful conversations with AI agents.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [
            {"name": name}
            for name in ("sessions", "messages", "tokens", "turns", "live", "agents", "workers", "service")
        ],
        "paths": paths,
        "components": {"schemas": _schemas(rules), "securitySchemes": _SCHEMES},
    }


def _security(allows: frozenset[str], *, has_keys: bool) -> Json:
    """Whose key or token a route takes."""
    if "open" in allows or not has_keys:
        return {"security": [{}]}
    tokens = sorted(allows & {*RIGHTS, "token"})
    keys = sorted({"admin", *(allows & {"app", "agent"})})
    told = f"Scope {' or '.join(keys)}"
    if tokens:
        told += "; a session token" + (f" with the right {tokens[0]}" if tokens != ["token"] else "")
    return {"security": [{"key": []}, {"bearer": []}], "description": f"{told}."}


def _operation(path: str, operation: Operation) -> Json:
    names = [name for name in ("agentId", "sessionId", "turnId") if f"{{{name}}}" in path]
    described: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [PARAMETERS[name] for name in (*names, *operation.parameters)],
        "responses": _responses(operation),
    }
    if operation.body is not None:
        content = {"application/json": {"schema": _ref(operation.body)}}
        if operation.body is inputs.TimeoutInput:
            content["application/merge-patch+json"] = {"schema": _ref(inputs.TimeoutPatch)}
        described["requestBody"] = {"required": operation.needs_body, "content": content}
    return described


def _responses(operation: Operation) -> Json:
    responses: Json = {}
    for status, content in operation.replies.items():
        reply: Json = {"description": HTTPStatus(status).phrase}
        if isinstance(content, str):
            reply["content"] = {content: {} if content == EVENTS else {"schema": _SCHEMAS[content]}}
        elif isinstance(content, tuple):
            alternatives = [_ref(kind) for kind in content]
            reply["content"] = {"application/json": {"schema": {"anyOf": alternatives}}}
        elif content is not None:
            reply["content"] = {"application/json": {"schema": _ref(content)}}
        if content is sessions.SessionInfo:
            reply["headers"] = dict(_ETAG)
        responses[str(status)] = reply
    titles: dict[int, list[str]] = {}
    for error in operation.errors:
        row = TABLE[error]
        titles.setdefault(row.status, []).append(f"{row.title} ({error.code})")
    for status, names in sorted(titles.items()):
        if str(status) in responses:
            alternatives = [
                responses[str(status)]["content"]["application/json"]["schema"],
                _ref(ErrorEnvelope),
            ]
            responses[str(status)]["content"]["application/json"]["schema"] = {"anyOf": alternatives}
            continue
        refused: Json = {
            "description": "; ".join(dict.fromkeys(names)),
            "content": {
                "application/json": {"schema": _ref(ErrorEnvelope)},
                "application/problem+json": {"schema": _ref(ErrorEnvelope)},
            },
        }
        if status in {429, 503}:
            refused["headers"] = dict(_RETRY)
        responses[str(status)] = refused
    return responses


def _ref(struct: type[msgspec.Struct]) -> Json:
    return {"$ref": _COMPONENTS + struct.__name__}


def _structs() -> Iterable[type[msgspec.Struct]]:
    yield ErrorEnvelope
    yield inputs.TimeoutPatch
    for operation in OPERATIONS.values():
        if operation.body is not None:
            yield operation.body
        for content in operation.replies.values():
            if isinstance(content, tuple):
                yield from content
            elif isinstance(content, type):
                yield content


def _schemas(rules: Rules) -> Json:
    _, schemas = msgspec.json.schema_components(
        list(dict.fromkeys(_structs())), ref_template=_COMPONENTS + "{name}"
    )
    schemas["SessionInfo"]["properties"]["metadata"] = {"type": "object", "additionalProperties": True}
    for name, struct in schemas.items():
        for key, field in struct.get("properties", {}).items():
            if key.endswith(("At", "Until", "expiresAt", "lastActivity")) and field == {"type": "string"}:
                field["format"] = "date-time"
        struct["title"] = name
    _write_ranges(schemas, rules)
    create = schemas["CreateSession"]["properties"]
    create["agentId"]["examples"] = [str(ECHO_ID)]
    create["userId"]["examples"] = [_SOMEBODY]
    content = schemas["SendMessage"]["properties"]["content"]
    content |= {
        "minLength": 1,
        "maxLength": max(rules.max_content_chars, MAX_SPOKEN_CHARS),
        "description": f"As role user at most {rules.max_content_chars:,} UTF-16 units.",
        "examples": ["hello there"],
    }
    schemas["PutAgent"]["properties"]["name"]["examples"] = ["Support"]
    schemas["Attachment"]["anyOf"] = [{"required": ["url"]}, {"required": ["data"]}]
    return schemas


def _write_ranges(schemas: Json, rules: Rules) -> None:
    low, high = minutes(rules.bounds.min_ms), minutes(rules.bounds.max_ms)
    ranges: dict[str, Json] = {
        "timeoutMinutes": {"minimum": low, "maximum": high},
        "maxDurationMinutes": {"minimum": low, "maximum": 2 * high},
        "warningThresholdMinutes": {"minimum": 0.001, "maximum": 2 * high},
    }
    for name in ("TimeoutInput", "TimeoutPatch"):
        for key, bounds in ranges.items():
            field = schemas[name]["properties"][key]
            for kind in field.get("anyOf", [field]):
                if kind.get("type") == "number":
                    kind.update(bounds)


def document_json(rules: Rules, allows: Allows, *, has_keys: bool) -> bytes:
    return msgspec.json.encode(document(rules, allows, has_keys=has_keys))

"""The bodies of requests, read strictly: every bad field is named, all at once.

Where the reference has a message of its own for a fault, ours is the same, and
the first fault in the reference's order gives the message.
"""

from __future__ import annotations

import re
from typing import Any, Final, get_args

import msgspec

from sessions_api.domain.ids import is_uuid
from sessions_api.domain.messages import utf16_units
from sessions_api.domain.sessions import ON_BUSY, OnBusy
from sessions_api.domain.timeouts import TimeoutChoice
from sessions_api.errors import FieldError, InvalidInput
from sessions_api.wire.messages import Role
from sessions_api.wire.problems import abbreviated
from sessions_api.wire.timeouts import ChoiceReader, TimeoutBounds, wrong_shape

MAX_METADATA_BYTES: Final = 10_240
MAX_DEPTH: Final = 16
MAX_ATTACHMENTS: Final = 16
DEFAULT_WAIT_MS: Final = 25_000
MAX_WAIT_MS: Final = 300_000
TRANSPORTS: Final = {
    "http": "http",
    "sse": "sse",
    "websocket": "websocket",
    "sync": "http",  # the old names, of `mode`
    "stream": "sse",
}
ROLES: Final[tuple[str, ...]] = get_args(Role)
MAX_SPOKEN_CHARS: Final = 100_000
"""Of what an agent or the system says: as long as an answer may be."""
# As browsers read a URL: blanks and controls before it do not count, nor tabs and line breaks within.
_SCRIPT: Final = re.compile(
    r"[\x00-\x20]*(" + "|".join(r"[\t\r\n]*".join(name) for name in ("javascript:", "vbscript:")) + ")",
    re.IGNORECASE,
)
_TRANSPORT_NAMES: Final = ", ".join(TRANSPORTS)
_encode = msgspec.json.Encoder().encode


class CreateBody(msgspec.Struct, frozen=True):
    """A request to create a session; *metadata* is compact JSON."""

    agent_id: str
    user_id: str
    metadata: bytes
    choice: TimeoutChoice
    on_busy: OnBusy | None
    reader: ChoiceReader
    given: dict[str, object]
    faults: list[InvalidInput]
    """What is wrong besides the ids; raised once the agent is known to exist."""


class SendBody(msgspec.Struct, frozen=True):
    """A message to send; *metadata* and *attachments* are compact JSON."""

    content: str
    metadata: bytes
    attachments: bytes | None
    on_busy: OnBusy | None
    transport: str
    wait_ms: int
    role: Role
    fault: InvalidInput | None
    """What is wrong with it; it must not hide that the session is unknown or over."""


def read_create(body: Any, bounds: TimeoutBounds) -> CreateBody:
    """A creation's body.

    Raises:
        InvalidInput: an id is missing or is no UUID; the rest is in ``faults``.
    """
    given = body if isinstance(body, dict) else {}
    faults: list[InvalidInput] = []
    metadata = read_metadata(given, faults)
    reader = ChoiceReader(bounds, prefix="timeoutConfig.")
    config = given.get("timeoutConfig")
    choice = TimeoutChoice()
    if isinstance(config, dict):
        choice = reader.read(config)
        if reader.errors:
            faults.append(reader.error(config))
    elif config is not None:
        faults.append(wrong_shape("timeoutConfig"))
    on_busy = _on_busy(given, faults)
    _check_ids(given, faults)
    return CreateBody(
        given["agentId"],
        given["userId"],
        metadata,
        choice,
        on_busy,
        reader,
        config if isinstance(config, dict) else {},
        faults,
    )


def _check_ids(given: dict[str, Any], faults: list[InvalidInput]) -> None:
    absent = [name for name in ("agentId", "userId") if not isinstance(given.get(name), str)]
    bad = [name for name in ("agentId", "userId") if name not in absent and not is_uuid(given[name])]
    if not absent and not bad:
        return
    errors = [FieldError(name, "must be a string", None, "a UUID") for name in absent]
    errors += [
        FieldError(name, "is no UUID", abbreviated(given[name]), "8-4-4-4-12 hex digits") for name in bad
    ]
    if absent:
        first = InvalidInput(
            "Missing required fields: agentId, userId",
            errors,
            {"missingFields": ["agentId", "userId"]},
        )
    else:
        first = InvalidInput(
            f"Invalid UUID format for field '{bad[0]}'",
            errors,
            {"providedValue": abbreviated(given[bad[0]]), "expectedFormat": "UUID v4"},
        )
    raise joined([first, *faults])


def read_message(body: Any, *, max_chars: int, wants_stream: bool = False) -> SendBody:
    """A message's body.

    Raises:
        InvalidInput: the transport or the content's type, which the reference
            checks before it looks for the session, and all else that is bad;
            without those the rest is in ``fault``.
    """
    given = body if isinstance(body, dict) else {}
    first: list[InvalidInput] = []
    faults: list[InvalidInput] = []
    role = _role(given, faults)
    transport = _transport(given, first, wants_stream=wants_stream and role == "user")
    if role != "user":
        max_chars = MAX_SPOKEN_CHARS
        _check_nobody_waits(transport, role, faults)
    content = given.get("content")
    allowed = f"1..{max_chars} characters"
    if not isinstance(content, str):
        first.append(_bad_content("Invalid message request format", "content", "must be a string", allowed))
        content = ""
    elif not content:
        faults.append(_bad_content("Content cannot be empty", "content", "is empty", allowed))
    elif len(content) > max_chars or utf16_units(content) > max_chars:
        reason = f"Content exceeds maximum length of {max_chars} characters"
        faults.append(_bad_content(reason, "content", "is too long", allowed))
    metadata = read_metadata(given, faults)
    attachments = read_attachments(given, faults)
    on_busy = _on_busy(given, faults)
    wait_ms = _wait_ms(given, faults)
    if first:
        raise joined([*first, *faults])
    return SendBody(
        content,
        metadata,
        attachments,
        on_busy,
        transport,
        wait_ms,
        role,
        joined(faults) if faults else None,
    )


def read_patch(body: Any, bounds: TimeoutBounds, *, is_merge: bool) -> tuple[TimeoutChoice, frozenset[str]]:
    """A PATCH's choice, and the fields it returns to the tier below (merge patch only).

    Raises:
        InvalidInput: a field of a wrong type or out of range; null in plain JSON.
    """
    if not isinstance(body, dict):
        raise wrong_shape("body")
    reader = ChoiceReader(bounds)
    returned = frozenset(key for key, value in body.items() if value is None) if is_merge else frozenset()
    choice = reader.read({key: value for key, value in body.items() if key not in returned})
    if reader.errors:
        raise reader.error(body)
    return choice, returned


def joined(faults: list[InvalidInput]) -> InvalidInput:
    """One error of several: the first one's message and details, everybody's fields."""
    first = faults[0]
    return InvalidInput(first.message, [bad for fault in faults for bad in fault.errors], first.details)


def depth_of(value: Any, limit: int) -> int:
    """How deep containers are nested in *value*, counted up to *limit* + 1."""
    depth = 0
    level = [value]
    while depth <= limit and (containers := [item for item in level if isinstance(item, dict | list)]):
        level = [
            item
            for container in containers
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        depth += 1
    return depth


def _bad_content(
    reason: str, name: str, fault: str, allowed: str, provided: str | None = None
) -> InvalidInput:
    return InvalidInput(
        f"Invalid content: {reason}", [FieldError(name, fault, provided, allowed)], {"reason": reason}
    )


def _transport(given: dict[str, Any], faults: list[InvalidInput], *, wants_stream: bool) -> str:
    name = "transport" if given.get("transport") is not None else "mode"
    value = given.get(name)
    if value is None:
        return "sse" if wants_stream else "websocket"
    if isinstance(value, str) and value in TRANSPORTS:
        return TRANSPORTS[value]
    if isinstance(value, str):
        shown = abbreviated(value)
        reason = f'Invalid transport "{shown}". Must be one of: {_TRANSPORT_NAMES}'
        faults.append(_bad_content(reason, name, "is unknown", _TRANSPORT_NAMES, shown))
    else:
        reason = f'Invalid transport type "{_type_of(value)}". Transport must be a string.'
        faults.append(_bad_content(reason, name, "must be a string", _TRANSPORT_NAMES))
    return "websocket"


def _type_of(value: Any) -> str:
    """What JavaScript calls the type of *value*."""
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else "object"


def read_metadata(given: dict[str, Any], faults: list[InvalidInput]) -> bytes:
    """Compact JSON of ``metadata``, an empty object where there is none."""
    value = given.get("metadata")
    if value is None:
        return b"{}"
    if not isinstance(value, dict):
        faults.append(_bad_metadata("Metadata must be an object", "must be an object", "an object"))
        return b"{}"
    if depth_of(value, MAX_DEPTH) > MAX_DEPTH:
        faults.append(
            _bad_metadata(
                f"Metadata is nested deeper than {MAX_DEPTH} levels",
                "is nested too deep",
                f"{MAX_DEPTH} levels",
            )
        )
        return b"{}"
    encoded = _encode(value)
    if len(encoded) > MAX_METADATA_BYTES:
        faults.append(
            _bad_metadata(
                f"Metadata exceeds maximum size of {MAX_METADATA_BYTES} bytes",
                "is too large",
                f"{MAX_METADATA_BYTES} bytes of compact JSON",
            )
        )
    return encoded


def _bad_metadata(reason: str, fault: str, allowed: str) -> InvalidInput:
    return InvalidInput(
        f"Invalid metadata: {reason}", [FieldError("metadata", fault, None, allowed)], {"reason": reason}
    )


def read_attachments(given: dict[str, Any], faults: list[InvalidInput]) -> bytes | None:
    """Compact JSON of ``attachments``, if there are any."""
    value = given.get("attachments")
    if value is None:
        return None
    bad: list[FieldError] = []
    if not isinstance(value, list):
        bad.append(
            FieldError("attachments", "must be an array", None, f"up to {MAX_ATTACHMENTS} attachments")
        )
    elif len(value) > MAX_ATTACHMENTS:
        bad.append(FieldError("attachments", "has too many items", len(value), f"up to {MAX_ATTACHMENTS}"))
    elif depth_of(value, MAX_DEPTH) > MAX_DEPTH:
        bad.append(FieldError("attachments", "is nested too deep", None, f"{MAX_DEPTH} levels"))
    else:
        for number, item in enumerate(value):
            bad += _attachment(item, f"attachments[{number}]")
    if bad:
        faults.append(InvalidInput(f"Invalid attachments: {bad[0].field} {bad[0].reason}", bad))
        return None
    return _encode(value)


def _attachment(item: Any, where: str) -> list[FieldError]:
    if not isinstance(item, dict):
        return [FieldError(where, "must be an object", None, "{url | data, contentType, name?, size?}")]
    bad = [
        FieldError(f"{where}.{name}", "must be a string", None, "a string")
        for name in ("url", "data", "contentType", "name")
        if item.get(name) is not None and not isinstance(item[name], str)
    ]
    url = item.get("url")
    if isinstance(url, str) and _SCRIPT.match(url):
        bad.append(FieldError(f"{where}.url", "is a script", None, "a URL that shows something"))
    size = item.get("size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int | float) or size < 0):
        bad.append(FieldError(f"{where}.size", "must be a number", None, "0 or more"))
    if item.get("url") is None and item.get("data") is None:
        bad.append(FieldError(where, "needs a url or data", None, "{url | data, contentType, name?, size?}"))
    return bad


def _on_busy(given: dict[str, Any], faults: list[InvalidInput]) -> OnBusy | None:
    value = given.get("onBusy")
    if value is None:
        return None
    if not isinstance(value, str) or value not in ON_BUSY:
        allowed = ", ".join(ON_BUSY)
        bad = FieldError(
            "onBusy", "is unknown", abbreviated(value) if isinstance(value, str) else None, allowed
        )
        faults.append(InvalidInput(f"Invalid onBusy: must be one of {allowed}", [bad]))
        return None
    return value


def _role(given: dict[str, Any], faults: list[InvalidInput]) -> Role:
    """Who says it; taking another's word for the user's would hide the caller's mistake."""
    value = given.get("role")
    if value is None:
        return "user"
    if isinstance(value, str) and value in ROLES:
        return value  # type: ignore[return-value]  # one of ROLES
    allowed = ", ".join(ROLES)
    bad = FieldError("role", "is unknown", abbreviated(value) if isinstance(value, str) else None, allowed)
    faults.append(InvalidInput(f"Invalid role: must be one of {allowed}", [bad]))
    return "user"


def _check_nobody_waits(transport: str, role: Role, faults: list[InvalidInput]) -> None:
    if transport != "websocket":
        bad = FieldError(
            "transport", f"waits for an answer, and role {role} gets none", transport, "websocket"
        )
        faults.append(InvalidInput(f"Invalid transport: a message of role {role} is not answered", [bad]))


def _wait_ms(given: dict[str, Any], faults: list[InvalidInput]) -> int:
    value = given.get("timeoutMs")
    if value is None:
        return DEFAULT_WAIT_MS
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MAX_WAIT_MS:
        provided = (
            value
            if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63)
            else None
        )
        bad = FieldError("timeoutMs", "is no number in range", provided, f"1..{MAX_WAIT_MS}")
        faults.append(InvalidInput(f"Invalid timeoutMs: must be between 1 and {MAX_WAIT_MS}", [bad]))
        return DEFAULT_WAIT_MS
    return int(value)

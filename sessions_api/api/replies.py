"""What endpoints answer with: a reply, or a stream that writes itself."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import msgspec
from starlette.types import Scope, Send

from sessions_api.domain.limits import Standing
from sessions_api.domain.sessions import Session
from sessions_api.wire.problems import Problem
from sessions_api.wire.sessions import session_json

Header = tuple[bytes, bytes]

JSON: Final = b"application/json"
PROBLEM_JSON: Final = b"application/problem+json"
_JSON_HEADER: Final[Header] = (b"content-type", JSON)
NO_STORE: Final[Header] = (b"cache-control", b"no-store")
SAFE: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""What every reply and stream tells a browser: it is what it says it is, and no part of a stranger's page."""
CLOSED: Final[Header] = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
"""What is no page loads nothing, should a browser be made to show it."""
_COMMON: Final[tuple[Header, ...]] = (NO_STORE, *SAFE)
WHOLE_REPLY: Final = "sessions_api.whole_reply"
"""The ASGI extension by which our own server takes a reply in one piece (``cli/outward.py``)."""
_JSON_HEAD: Final = b"".join(b"%b: %b\r\n" % header for header in (*_COMMON, CLOSED, _JSON_HEADER))
_is_unsafe: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search

_encode = msgspec.json.Encoder().encode


class Reply(NamedTuple):
    """A whole reply; *headers* come on top of the content's own. *policy*: of a page, what it may load."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()
    content_type: bytes = JSON
    policy: Header = CLOSED

    async def send(self, scope: Scope, send: Send, common: tuple[Header, ...]) -> None:
        """*common*: what every reply to this request carries."""
        only_head = scope["method"] == "HEAD"
        write_whole = scope.get("extensions", {}).get(WHOLE_REPLY)
        if write_whole is not None and self._is_plain and not only_head:
            head = _JSON_HEAD
            for name, value in (*common, *self.headers):
                if name == b"connection" or _is_unsafe(value):
                    break  # uvicorn closes, or refuses it
                head += b"%b: %b\r\n" % (name, value)
            else:
                if write_whole(scope, self.status, head, self.body):
                    return
        headers = [*common, *_COMMON, self.policy, *self.headers]
        if self.status != 204:  # RFC 9110: no Content-Length where there can be no content
            headers.append((b"content-length", b"%d" % len(self.body)))
        if self.content_type:
            headers.append(
                _JSON_HEADER if self.content_type is JSON else (b"content-type", self.content_type)
            )
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if only_head else self.body})

    @property
    def _is_plain(self) -> bool:
        return self.content_type is JSON and self.policy is CLOSED and self.status != 204


def reply(content: Any, *, status: int = 200, headers: tuple[Header, ...] = ()) -> Reply:
    """*content*, a Struct or plain data, as JSON."""
    return Reply(status, _encode(content), headers)


def session_reply(
    session: Session,
    *,
    status: int = 200,
    renewed: bool | None = None,
    headers: tuple[Header, ...] = (),
) -> Reply:
    """SessionInfo with its ETag, which only a PATCH moves."""
    etag = (b"etag", b'"%d"' % session.config_version)
    return Reply(status, session_json(session, renewed=renewed), (etag, *headers))


def problem_reply(problem: Problem, *, wants_problem: bool = False) -> Reply:
    """An error's envelope, under the name that the caller asked for."""
    headers = tuple(
        (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in problem.headers
    )
    return Reply(problem.status, problem.body, headers, PROBLEM_JSON if wants_problem else JSON)


def limit_headers(standings: tuple[Standing, ...]) -> tuple[Header, ...]:
    """How the caller stands with each limit that counted the request.

    The fields of draft-ietf-httpapi-ratelimit-headers-10.
    """
    if not standings:
        return ()
    policies = ", ".join(
        f'"{each.policy}";q={each.limit.quota};w={each.limit.window_s}' for each in standings
    )
    left = ", ".join(f'"{each.policy}";r={each.left};t={each.reset_s}' for each in standings)
    return ((b"ratelimit-policy", policies.encode()), (b"ratelimit", left.encode()))


REPLAYED: Final[Header] = (b"idempotency-replayed", b"true")
EMPTY: Final = Reply(204, b"", (), b"")

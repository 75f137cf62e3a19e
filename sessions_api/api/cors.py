"""CORS: which pages may call from a browser, and what it lets them send and read.

Only listed origins are named, never ``*``; and since callers are known by a
header that pages set themselves, never by a cookie, credentials are not allowed.
"""

from __future__ import annotations

from typing import Final

from sessions_api.api.replies import Header

_ALLOWED: Final = (
    b"Authorization, X-API-KEY, Content-Type, Idempotency-Key, If-Match, Last-Event-ID, Prefer, "
    b"X-Request-Id, traceparent, tracestate"
)
_EXPOSED: Final = (
    b"X-Request-Id, ETag, Location, Link, Retry-After, RateLimit, RateLimit-Policy, Idempotency-Replayed, "
    b"WWW-Authenticate"
)
_MAX_AGE_S: Final = b"600"
VARY: Final[Header] = (b"vary", b"origin")


def reply_headers(origin: bytes | None, allowed: frozenset[bytes]) -> tuple[Header, ...]:
    """What every reply says to a page of *origin*; nothing where no origin is listed."""
    if not allowed:
        return ()
    if origin not in allowed or origin is None:
        return (VARY,)
    return (
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _EXPOSED),
        VARY,
    )


def preflight_headers(methods: tuple[str, ...]) -> tuple[Header, ...]:
    """What a browser asks for before a page's request: which *methods* and headers it may have."""
    return (
        (b"access-control-allow-methods", ", ".join(methods).encode()),
        (b"access-control-allow-headers", _ALLOWED),
        (b"access-control-max-age", _MAX_AGE_S),
    )

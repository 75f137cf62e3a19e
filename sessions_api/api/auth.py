"""Who calls: the one place where a request becomes a Caller, and where a route is closed to some.

Where access keys are configured, a caller shows one, or a session token, in
``X-API-KEY`` or ``Authorization: Bearer``: headers that no page of another origin
can set, and that no browser sends by itself. So there is nothing a forged
cross-site request could ride on.

While no key is configured there is one caller, ``local``, and the service must
be reachable by nobody else: it listens on loopback only, answers only under
loopback names (so that a stranger's name that resolves to 127.0.0.1 opens
nothing), and refuses a browser's request from any page but its own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from sessions_api.access.keyring import Keyring
from sessions_api.access.tokens import Tokens
from sessions_api.domain.access import NOTHING, RIGHTS, Caller, local_caller
from sessions_api.domain.ids import AppName
from sessions_api.errors import Forbidden, SessionNotFound, Unauthenticated

Headers = Mapping[bytes, bytes]

NOBODY: Final = Caller(app=AppName(""), grant=NOTHING)
"""Who did not say who they are."""
MAX_HOST_BYTES: Final = 261
"""A name of 255 bytes and a port; a longer one is not worth remembering."""
MISSING: Final = "Missing or invalid X-API-KEY header"
"""Also for a key that is unknown or wrong: which of the three it was is nobody's to learn."""


class Access:
    """The rules of who is let in."""

    def __init__(
        self, app: AppName, keyring: Keyring, tokens: Tokens, *, origins: frozenset[bytes] = frozenset()
    ) -> None:
        """*app*: whose everybody is without keys. *origins*: the pages that may call, beside our own."""
        self._local = local_caller(app)
        self._keyring = keyring
        self._tokens = tokens
        self.origins = origins

    @property
    def has_keys(self) -> bool:
        return self._keyring.is_configured

    def check_page(self, headers: Headers) -> None:
        """Whether a request or handshake may come from where it says it does.

        Raises:
            Forbidden: the page is neither ours nor listed; without keys also, if
                the name that we are called by is not a loopback one.
        """
        host, origin = headers.get(b"host"), headers.get(b"origin")
        if not self.has_keys and (host is None or len(host) > MAX_HOST_BYTES or not _is_loopback_name(host)):
            raise Forbidden("Without access keys this service answers only under a loopback name")
        if origin is None or (host is not None and origin.partition(b"://")[2].lower() == host.lower()):
            return
        if not self.has_keys:
            raise Forbidden("Without access keys this service answers only pages of its own origin")
        if origin not in self.origins:
            raise Forbidden("Pages of this origin may not call; SESSIONS_CORS_ORIGINS lists those that may")

    def caller(self, headers: Headers) -> Caller | None:
        """The caller that these headers show; None if they show nobody.

        Raises:
            Unauthenticated: what they show is not valid.
        """
        if not self.has_keys:
            return self._local
        shown = headers.get(b"x-api-key")
        if shown is None:
            scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer":
                return None
        return self.bearer(shown.strip().decode("latin-1"))

    def bearer(self, credential: str) -> Caller:
        """Who may say this: an access key, ``id.secret``, or a session token, which has two dots.

        Raises:
            Unauthenticated: nobody.
        """
        if credential.count(".") == 2:
            return self._tokens.caller(credential)
        key = self._keyring.find(credential)
        if key is None:
            raise Unauthenticated(MISSING)
        return key.caller


def check_route(caller: Caller, allows: frozenset[str], session_id: str | None) -> None:
    """Whether the caller may ask for a route that *allows* these, and names this session.

    Raises:
        Unauthenticated: nobody is known.
        SessionNotFound: a token's session is another one.
        Forbidden: the route is not for this caller.
    """
    if caller.is_admin:
        return
    if caller is NOBODY:
        raise Unauthenticated(MISSING)
    if caller.rights is not None:
        if session_id is not None and session_id.lower() != caller.session_id:
            raise SessionNotFound(session_id)
        if not caller.rights & allows and "token" not in allows:
            needed = " or ".join(sorted(allows & frozenset(RIGHTS)))
            raise Forbidden(
                f"This takes a session token with the right {needed}"
                if needed
                else "No session token may do this"
            )
    elif not (caller.is_app and "app" in allows) and not (caller.agents and "agent" in allows):
        scopes = " or ".join(sorted({"admin", *(allows & {"app", "agent"})}))
        raise Forbidden(f"This takes a key of the scope {scopes}")


@lru_cache(maxsize=256)
def _is_loopback_name(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

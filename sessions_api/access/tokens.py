"""Session tokens: what a browser shows instead of an access key; each opens one session, for minutes.

A token is a JWT (RFC 7519), signed with HS256 by a key of ``store/signing.py``::

    {"sub": <session id>, "app": <application>, "rights": "read send", "epoch": 0, "iat": …, "exp": …}

Its signature is checked here. Whether it has ended is not: that depends on
Redis's clock and on the session, whose *epoch* a revocation raises, so the
script that serves the request decides it (``store/lua/lib/session.lua``). A
token is thus dead with its session, at its second, and at once on every replica.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, cast

import jwt
import msgspec

from sessions_api.domain.access import RIGHTS, Caller, Right, token_grant
from sessions_api.domain.ids import AppName, SessionId
from sessions_api.domain.sessions import Session
from sessions_api.errors import StorageUnavailable, Unauthenticated
from sessions_api.store.signing import LONGEST_LIFE_S, SigningKeys

ALGORITHM: Final = "HS256"
DEFAULT_LIFE_S: Final = 900
MAX_TOKEN_CHARS: Final = 2048
MAX_REMEMBERED: Final = 10_000
UNUSABLE: Final = "The session token is not valid"

_OPTIONS: Final = {
    "require": ["sub", "app", "rights", "epoch", "iat", "exp"],
    "verify_exp": False,  # by Redis's clock, see above
    "verify_iat": False,
    "verify_nbf": False,
    "verify_aud": False,
}


class Issued(msgspec.Struct, frozen=True):
    """A new token, and when it ends by Redis's clock."""

    token: str
    rights: frozenset[Right]
    expires_ms: int


class Tokens:
    """Signs and reads session tokens."""

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys
        self._known: OrderedDict[str, tuple[str, Caller]] = OrderedDict()
        """Tokens whose signature was checked, with its key's id; the longest unused one is dropped."""

    async def issue(self, session: Session, rights: frozenset[Right], life_s: int) -> Issued:
        """A token for *session*, which was read just now: its life counts from that read.

        Raises:
            StorageError: there is no signing key yet, and none can be made now.
        """
        if self._keys.current is None:
            await self._keys.refresh()
        key = self._keys.current
        if key is None:
            raise StorageUnavailable("no signing key was read")
        issued_s = session.now_ms // 1000
        expires_s = issued_s + min(life_s, LONGEST_LIFE_S)
        claims = {
            "sub": session.session_id,
            "app": session.app,
            "rights": " ".join(right for right in RIGHTS if right in rights),
            "epoch": session.token_epoch,
            "iat": issued_s,
            "exp": expires_s,
        }
        token = jwt.encode(claims, key.secret, algorithm=ALGORITHM, headers={"kid": key.id})
        return Issued(token, rights, expires_s * 1000)

    def caller(self, token: str) -> Caller:
        """Whom *token* makes its bearer.

        Raises:
            Unauthenticated: it is none of ours, or was changed. One that has ended
                is refused by the script that it is used for.
        """
        known = self._known.get(token)
        if known is not None and self._keys.get(known[0]) is not None:
            self._known.move_to_end(token)
            return known[1]
        key_id, caller = self._read(token)
        self._known[token] = (key_id, caller)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return caller

    def _read(self, token: str) -> tuple[str, Caller]:
        if len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated(UNUSABLE)
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(key_id) if isinstance(key_id, str) else None
            if key is None:
                raise Unauthenticated(UNUSABLE)
            claims = jwt.decode(token, key.secret, algorithms=[ALGORITHM], options=cast("Any", _OPTIONS))
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
            raise Unauthenticated(UNUSABLE) from error
        return key.id, _caller(claims, key.id)


def _caller(claims: dict[str, Any], key_id: str) -> Caller:
    """The bearer of a token of ours: its signature proves that the claims have our form."""
    issued_s, expires_s = claims["iat"], claims["exp"]
    grant = token_grant(claims["epoch"], expires_s * 1000)
    rights = frozenset(claims["rights"].split()) & frozenset(RIGHTS)
    return Caller(
        app=AppName(claims["app"]),
        grant=grant,
        read_grant=grant,
        rights=cast("frozenset[Right]", rights),
        session_id=SessionId(claims["sub"]),
        life_s=expires_s - issued_s,
        signed_by=key_id,
    )

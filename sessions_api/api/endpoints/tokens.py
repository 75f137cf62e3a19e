"""Session tokens: made by an application for one of its sessions, renewed by their bearer, ended at once."""

from __future__ import annotations

from typing import Any, Final, cast

from sessions_api.access.tokens import DEFAULT_LIFE_S, Issued
from sessions_api.api.replies import Reply, reply
from sessions_api.api.requests import Request
from sessions_api.domain.access import RIGHTS, Right
from sessions_api.domain.ids import new_op_id
from sessions_api.errors import FieldError, Forbidden, InvalidInput
from sessions_api.wire.instants import iso
from sessions_api.wire.problems import abbreviated
from sessions_api.wire.tokens import LIFE_S, TokenInfo, TokensRevoked

DEFAULT_RIGHTS: Final[frozenset[Right]] = frozenset({"read", "send", "renew", "cancel"})
_RIGHTS_ALLOWED: Final = f"one or more of {', '.join(RIGHTS)}"


async def issue(request: Request) -> Reply:
    """Make a token that opens this session, for whoever the application gives it to."""
    body = await request.json()
    rights, life_s = _read_body(body if await request.body() else {})
    session = await request.state.store.sessions.read(request.session_id, grant=request.caller.grant)
    return _token(request, await request.state.tokens.issue(session, rights, life_s))


async def refresh(request: Request) -> Reply:
    """Another token like the one that asks, with as long a life, counted from now."""
    await request.body()
    caller = request.caller
    if caller.rights is None:
        raise Forbidden("Only a session token can be refreshed; a key makes new ones")
    session = await request.state.store.sessions.read(request.session_id, grant=caller.grant)
    return _token(request, await request.state.tokens.issue(session, caller.rights, caller.life_s))


async def revoke(request: Request) -> Reply:
    """End every token of the session, on every replica, at once; those that follow with one are cut."""
    await request.body()
    await request.state.store.sessions.revoke(request.session_id, grant=request.caller.grant, op=new_op_id())
    return reply(TokensRevoked(True, f"The tokens of session {request.params['sessionId']} are revoked"))


async def revoke_all(request: Request) -> Reply:
    """End every token of every session, and its streams: no key that signed one is trusted any more."""
    await request.body()
    state = request.state
    await state.store.signing.replace()
    state.hub.keys_changed(state.key_ids)
    return reply(TokensRevoked(True, "Every session token is revoked"))


def _token(request: Request, issued: Issued) -> Reply:
    info = TokenInfo(
        issued.token,
        request.params["sessionId"],
        [right for right in RIGHTS if right in issued.rights],
        iso(issued.expires_ms),
    )
    return reply(info, status=201)


def _read_body(body: Any) -> tuple[frozenset[Right], int]:
    """Rights and seconds of life.

    Raises:
        InvalidInput: names every bad field.
    """
    if not isinstance(body, dict):
        raise InvalidInput("Invalid token request: the body must be an object")
    faults: list[FieldError] = []
    scopes, life_s = body.get("scopes"), body.get("ttlSeconds", DEFAULT_LIFE_S)
    rights = DEFAULT_RIGHTS
    if scopes is not None:
        if isinstance(scopes, list) and scopes and all(isinstance(scope, str) for scope in scopes):
            unknown = [scope for scope in scopes if scope not in RIGHTS]
            rights = frozenset(cast("list[Right]", scopes))
            faults += [
                FieldError("scopes", "is unknown", abbreviated(scope), _RIGHTS_ALLOWED) for scope in unknown
            ]
        else:
            faults.append(FieldError("scopes", "must be a list", None, _RIGHTS_ALLOWED))
    if type(life_s) is not int or not LIFE_S[0] <= life_s <= LIFE_S[1]:
        shown = life_s if isinstance(life_s, (int, float)) and abs(life_s) < 1e15 else None
        allowed = f"a whole number of seconds, {LIFE_S[0]}..{LIFE_S[1]}"
        faults.append(FieldError("ttlSeconds", "is out of range", shown, allowed))
    if faults:
        raise InvalidInput(f"Invalid token request: {faults[0].field} {faults[0].reason}", faults)
    return rights, life_s

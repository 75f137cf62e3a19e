"""Why a live connection is closed: the one table of close codes, for SSE and WebSocket alike.

=====  ==================================================================  ===========
code   when                                                                 come back?
=====  ==================================================================  ===========
1001   the process ends, and could not say so in time                       yes
1008   not allowed: the caller's scope, the origin, an unknown protocol     no
1011   a bug of ours; the log has the request id                            yes
1012   the replica restarts, or Redis is away: another one answers          yes
4400   a frame that is no frame of ``sessions.v1``                          no
4401   no key or token, or none that is valid                               no
4404   no such session, or it was deleted                                   no
4408   the client read too slowly; its cursor leads it back                 yes
4410   the session is over                                                  no
4429   too many followers, frames or requests                               yes
=====  ==================================================================  ===========
"""

from __future__ import annotations

from typing import NamedTuple

from sessions_api import errors


class Closing(NamedTuple):
    """A close code; *retry* says whether to come back, with the cursor; *reason* is for a reader of logs."""

    code: int
    retry: bool
    reason: str


GOING_AWAY = Closing(1001, True, "going away")
POLICY = Closing(1008, False, "not allowed")
BUG = Closing(1011, True, "internal error")
RESTART = Closing(1012, True, "restarting")
BAD_FRAME = Closing(4400, False, "bad frame")
UNAUTHENTICATED = Closing(4401, False, "unauthenticated")
GONE = Closing(4404, False, "no such session")
TOO_SLOW = Closing(4408, True, "too slow")
OVER = Closing(4410, False, "session over")
TOO_MANY = Closing(4429, True, "too many")

ALL = (
    GOING_AWAY,
    POLICY,
    BUG,
    RESTART,
    BAD_FRAME,
    UNAUTHENTICATED,
    GONE,
    TOO_SLOW,
    OVER,
    TOO_MANY,
)

_OF_ERRORS: dict[type[errors.SessionsError], Closing] = {
    errors.SessionsError: BUG,
    errors.CallerError: POLICY,
    errors.InvalidInput: BAD_FRAME,
    errors.MalformedBody: BAD_FRAME,
    errors.BodyTooLarge: BAD_FRAME,
    errors.RequestTooSlow: TOO_SLOW,
    errors.Unauthenticated: UNAUTHENTICATED,
    errors.SessionNotFound: GONE,
    errors.SessionExpired: OVER,
    errors.SessionBusy: TOO_MANY,
    errors.AgentInUse: TOO_MANY,
    errors.BacklogFull: TOO_MANY,
    errors.LimitReached: TOO_MANY,
    errors.RateLimited: TOO_MANY,
    errors.StorageError: RESTART,
    errors.Draining: RESTART,
}


def closing_of(error: BaseException) -> Closing:
    """The close code for a connection that *error* ends: the nearest class in the table decides."""
    for kind in type(error).__mro__:
        closing = _OF_ERRORS.get(kind)
        if closing is not None:
            return closing
    return BUG

"""Who calls, and what of the service is theirs.

A caller is known by an access key, by a session token, or, while no key is
configured, by being on this machine. What they may *do* is in their scopes and
rights (``api/routes.py`` says which a route asks for); which sessions are
*theirs* is in their grants, which the scripts test where the session is
(``store/lua/lib/session.lua``), so that ownership costs no round trip of its own.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

import msgspec

from sessions_api.domain.ids import AgentId, AppName, SessionId

Grant: TypeAlias = str
"""Which sessions are the caller's, in the words that scripts test: any word that fits opens.

``""``: every session. ``<app>``: those of the application. ``agent:<agentId>``: those
of the agent. ``token:<epoch>:<expires_ms>``: the one session that a token was made
for, until Redis's clock says otherwise or its tokens are revoked.
"""
EVERYTHING: Final[Grant] = ""
NOTHING: Final[Grant] = "!"
"""No session; it must not be empty, which opens them all."""

Right = Literal["read", "send", "renew", "cancel", "end"]
"""What a session token may allow; each is a part of what its session's app may do."""
RIGHTS: Final[tuple[Right, ...]] = get_args(Right)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sent a request, and for which application.

    *agents*: whose turns they may work on. *rights*: of a session token; None for
    all other callers, to whom nothing of a session of theirs is closed.
    *name* is for limits and logs: a key's id, never its secret; empty for a token.
    """

    app: AppName
    grant: Grant
    """The sessions that are theirs to use: of their application, or the one of their token."""
    read_grant: Grant = NOTHING
    """The sessions that they may read: those, and those of the agents that they work for."""
    work_grant: Grant = NOTHING
    """The sessions whose turns they may write to: those of the agents that they work for."""
    is_admin: bool = False
    is_app: bool = False
    agents: frozenset[AgentId] = frozenset()
    rights: frozenset[Right] | None = None
    session_id: SessionId | None = None
    """The one session that a token opens."""
    life_s: int = 0
    """For how long the token was made; a refreshed one gets as long."""
    name: str = ""
    signed_by: str = ""
    """The id of the key that signed their token."""

    @property
    def key_id(self) -> str:
        """The key that they come by: their own, or the one that signed their token; empty if by none."""
        return self.name or self.signed_by

    @property
    def is_key(self) -> bool:
        """Whether an access key was shown."""
        return self.name != ""

    def may_serve(self, agent_id: AgentId) -> bool:
        """Whether they may work for the agent."""
        return self.is_admin or agent_id in self.agents


def local_caller(app: AppName) -> Caller:
    """Whoever is on this machine, while no access key is configured: everything is theirs."""
    return Caller(
        app=app, grant=EVERYTHING, read_grant=EVERYTHING, work_grant=EVERYTHING, is_admin=True, is_app=True
    )


def key_caller(app: AppName, scopes: frozenset[str], name: str) -> Caller:
    """The caller that shows a key of these *scopes*: ``admin``, ``app``, ``agent:<agentId>``.

    Scopes add up, and nothing more: one that has ``app`` and ``agent`` reads and
    answers another application's sessions of its agent, and cannot end them.
    """
    agents = frozenset(
        AgentId(scope.removeprefix("agent:")) for scope in scopes if scope.startswith("agent:")
    )
    is_admin = "admin" in scopes
    own = [str(app)] if "app" in scopes else []
    served = sorted(f"agent:{agent_id}" for agent_id in agents)

    def grant(words: list[str]) -> Grant:
        return EVERYTHING if is_admin else " ".join(words) or NOTHING

    return Caller(
        app=app,
        grant=grant(own),
        read_grant=grant(own + served),
        work_grant=grant(served),
        is_admin=is_admin,
        is_app=is_admin or "app" in scopes,
        agents=agents,
        name=name,
    )


def token_grant(epoch: int, expires_ms: int) -> Grant:
    return f"token:{epoch}:{expires_ms}"


def is_of_token(grant: Grant) -> bool:
    return grant.startswith("token:")


def expiry_of(grant: Grant) -> int:
    """When a token's grant ends, in milliseconds of Redis's clock; 0 for any other, which does not."""
    return int(grant.rpartition(":")[2]) if is_of_token(grant) else 0

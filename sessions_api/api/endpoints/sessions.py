"""Sessions: create, read, list, renew, heartbeat, configure, end."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import UNSET

from sessions_api.api.bodies import joined, read_create, read_patch
from sessions_api.api.idempotency import read_key
from sessions_api.api.paging import Query
from sessions_api.api.replies import REPLAYED, Header, Reply, limit_headers, reply, session_reply
from sessions_api.api.requests import MERGE_PATCH, Request
from sessions_api.domain import timeouts
from sessions_api.domain.access import Caller
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import (
    LOCAL_APP,
    AgentId,
    AppName,
    SessionId,
    UserId,
    new_op_id,
    new_session_id,
)
from sessions_api.domain.sessions import STAGES, ConfigChange, NewSession, Session
from sessions_api.domain.timeouts import TimeoutChoice
from sessions_api.errors import ConfigChanged, FieldError, Forbidden, InvalidInput
from sessions_api.store.sessions import Once
from sessions_api.telemetry import metrics
from sessions_api.wire.sessions import Deleted, SessionInfo, SessionList, SessionStats

BASE: Final = "/api/messaging/sessions"
MAX_PAGE: Final = 1_000
_PATCHABLE: Final = {
    "timeoutMinutes": "timeout_ms",
    "autoRenew": "auto_renew",
    "maxDurationMinutes": "max_duration_ms",
    "warningThresholdMinutes": "warning_ms",
}
_ETAG: Final = re.compile(r'(W/)?"([!#-~]*)"')
_ETAGS: Final = re.compile(r'(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*')
_encode = msgspec.json.Encoder().encode


async def create(request: Request) -> Reply:
    """Open a session between a user and an agent."""
    state = request.state
    body = read_create(await request.json(), state.rules.bounds)
    key = read_key(request.headers.get(b"idempotency-key"))
    agent = await state.store.agents.find(AgentId(body.agent_id.lower()))
    config = timeouts.resolve(body.choice, agent.session, state.rules.default_config)
    if not body.reader.errors:
        body.reader.check(body.choice, config.timeout_ms)
        if body.reader.errors:
            body.faults.append(body.reader.error(body.given))
    if body.faults:
        raise joined(body.faults)
    standings = await state.gate.create(request.caller, request.address)
    await state.operations.check_available(agent.agent_id)
    user_id = UserId(body.user_id.lower())
    new = NewSession(
        session_id=new_session_id(user_id),
        app=request.caller.app,
        agent_id=body.agent_id,
        user_id=body.user_id,
        metadata=body.metadata,
        config=config,
        on_busy=body.on_busy or agent.on_busy or state.rules.on_busy,
        retention_ms=state.rules.retention_ms,
    )
    session, is_repeat = await state.store.sessions.create(
        new,
        once=_once_of_user(key, request.caller.app, user_id, new, body.choice),
        max_open=state.rules.max_open_per_user,
    )
    headers: tuple[Header, ...] = ((b"location", f"{BASE}/{session.session_id}".encode()),)
    if is_repeat:
        headers = (*headers, REPLAYED)
    else:
        headers += limit_headers(standings)
        metrics.CREATED.of(metrics.agent(agent.agent_id)).inc()
    return session_reply(session, status=201, headers=headers)


def _once_of_user(
    key: str | None, app: AppName, user_id: UserId, new: NewSession, choice: TimeoutChoice
) -> Once | None:
    if key is None:
        return None
    content = _encode(("create", new.agent_id.lower(), msgspec.Raw(new.metadata), choice, new.on_busy))
    return Once.of(app=app, scope=user_id, key=key, content=content)


async def read(request: Request) -> Reply:
    """The session as it stands; renews nothing."""
    session = await request.state.store.sessions.read(request.session_id, grant=request.caller.read_grant)
    return session_reply(session)


async def renew(request: Request) -> Reply:
    """Restart the idle clock by hand."""
    await request.body()
    key = read_key(request.headers.get(b"idempotency-key"))
    session, is_repeat = await request.state.operations.renew(request.session_id, request.caller, key)
    return session_reply(session, headers=(REPLAYED,) if is_repeat else ())


async def heartbeat(request: Request) -> Reply:
    """The user is there: last activity moves, and the deadline if the session renews itself."""
    await request.body()
    session, renewed = await request.state.operations.heartbeat(request.session_id, request.caller)
    return session_reply(session, renewed=renewed)


async def end(request: Request) -> Reply:
    """Erase the session and everything it holds, also an expired one."""
    await request.body()
    session_id = request.session_id
    await request.state.store.sessions.end(session_id, grant=request.caller.grant)
    return reply(
        Deleted(True, f"Session {request.params['sessionId']} deleted successfully", {"success": True})
    )


async def configure(request: Request) -> Reply:
    """Change the session's timeouts; fields that are not named keep their value."""
    state = request.state
    is_merge = request.content_type == MERGE_PATCH
    choice, returned = read_patch(await request.json(), state.rules.bounds, is_merge=is_merge)
    session_id = request.session_id
    versions = _if_match(request.headers.get(b"if-match"))
    known: Session | None = None
    if returned or (versions is not None and len(versions) != 1):
        known = await state.store.sessions.read(session_id, grant=request.caller.grant)
    agent = state.store.agents.get(known.agent) if known is not None else None
    session = await state.store.sessions.configure(
        session_id,
        grant=request.caller.grant,
        op=new_op_id(),
        change=_change(choice, returned, agent, state.rules.default_config),
        if_match=_one_of(versions, session_id, known),
    )
    return session_reply(session)


def _change(
    choice: TimeoutChoice,
    returned: frozenset[str],
    agent: AgentDefinition | None,
    default: timeouts.TimeoutConfig,
) -> ConfigChange:
    """Chosen fields become the session's own; returned ones get what the tier below says."""
    changes: dict[str, tuple[str, int]] = {}
    for name, attribute in _PATCHABLE.items():
        value = getattr(choice, attribute)
        if value is not None:
            changes[attribute] = ("s", int(value))
        elif name in returned:
            below = getattr(agent.session, attribute) if agent is not None else None
            letter = "d" if below is None else "a"
            changes[attribute] = (letter, int(getattr(default, attribute) if below is None else below))
    return ConfigChange(**changes)


def _if_match(sent: bytes | None) -> list[int] | None:
    """The versions that ``If-Match`` names; None if any will do.

    The comparison is strong (RFC 9110): a weak tag, or one that is none of
    ours, names no version, so that nothing matches it.

    Raises:
        InvalidInput: it is no list of entity tags.
    """
    if sent is None or sent.strip() == b"*":
        return None
    text = sent.decode("latin-1").strip()
    if text.isascii() and text.isdigit():  # unquoted, as hurried clients send it
        text = f'"{text}"'
    if _ETAGS.fullmatch(text) is None:
        raise InvalidInput(
            "Invalid If-Match", [FieldError("If-Match", "is unusable", None, "the ETag of a reply, or *")]
        )
    return [
        int(tag)
        for weak, tag in _ETAG.findall(text)
        if not weak and tag.isascii() and tag.isdigit() and len(tag) <= 15
    ]


def _one_of(versions: list[int] | None, session_id: SessionId, known: Session | None) -> int | None:
    """The version to hold the change against; of several the current one."""
    if versions is None:
        return None
    if known is None or len(versions) == 1:
        return versions[0]
    if known.config_version not in versions:
        raise ConfigChanged(session_id, known.config_version)
    return known.config_version


async def list_(request: Request) -> Reply:
    """Live sessions page by page: an application's own, or for ``admin`` those of all."""
    query = Query(request.query())
    limit = query.limit(MAX_PAGE, MAX_PAGE)
    user_id, agent_id = query.uuid("userId"), query.uuid("agentId")
    named = query.matching("app", "[a-z0-9-]{1,32}")
    stage = query.choice("stage", STAGES)
    created_after, created_before = query.instant("createdAfter"), query.instant("createdBefore")
    query.check()
    app = _listed_app(request.caller, AppName(named) if named else None)
    apps = request.state.keyring.apps | {LOCAL_APP}
    listing, counts = request.state.store.listing, request.state.counts
    by_user = UserId(user_id) if user_id is not None else None
    by_agent = AgentId(agent_id) if agent_id is not None and by_user is None else None
    page = await listing.page(
        app=app, apps=apps, agent_id=by_agent, user_id=by_user, limit=limit, after=query.text("cursor")
    )
    sessions = [
        session
        for session in page.sessions
        if (stage is None or session.stage == stage)
        and (agent_id is None or session.agent == agent_id)
        and (created_after is None or session.created_ms > created_after)
        and (created_before is None or session.created_ms < created_before)
    ]
    is_counted = stage is None and created_after is None and created_before is None
    is_counted = is_counted and not (user_id is not None and agent_id is not None)
    # What is counted may be a second old; what is listed is there.
    listed = len(page.sessions)
    overall = max(listed, await counts.total(app=app))
    total = overall
    if is_counted and (by_user or by_agent):
        total = max(listed, await counts.total(app=app, apps=apps, agent_id=by_agent, user_id=by_user))
    content = SessionList(
        [SessionInfo.of(session) for session in sessions],
        SessionStats(overall, overall, 0),
        total if is_counted else UNSET,
        page.next or UNSET,
    )
    headers: tuple[Header, ...] = ()
    if page.next is not None:
        headers = ((b"link", request.link(cursor=page.next, rel="next")),)
    return reply(content, headers=headers)


def _listed_app(caller: Caller, named: AppName | None) -> AppName | None:
    """Whose sessions are listed; None: everybody's.

    Raises:
        Forbidden: another application's.
    """
    if caller.is_admin:
        return named
    if named not in {None, caller.app}:
        raise Forbidden("A key lists the sessions of its own application")
    return caller.app

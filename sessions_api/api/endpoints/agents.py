"""Agents: define one, read them, forget one; whether one is there to answer."""

from __future__ import annotations

from typing import Final

from sessions_api.api.paging import Query
from sessions_api.api.replies import Header, Reply, reply
from sessions_api.api.requests import Request
from sessions_api.api.state import State
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import AgentId
from sessions_api.errors import AgentInUse, AgentNotFound, Forbidden
from sessions_api.wire.agents import AgentDeleted, AgentInfo, AgentList, AvailabilityInfo
from sessions_api.wire.definitions import DefinitionReader

BASE: Final = "/api/agents"


async def put(request: Request) -> Reply:
    """Define an agent; every replica knows it within a second."""
    state = request.state
    body = await request.json()
    agent_id = _agent_id(request)
    if not request.caller.may_serve(agent_id):
        raise Forbidden("This key is for another agent")
    await state.store.agents.refresh()  # `********` keeps what is stored, not what was half a second ago
    reader = DefinitionReader(state.rules.bounds)
    definition = reader.read_put(
        request.params["agentId"], {} if body is None else body, state.store.agents.get(agent_id)
    )
    is_new = await state.store.agents.put(definition)
    await state.attend()
    headers: tuple[Header, ...] = ((b"location", f"{BASE}/{agent_id}".encode()),) if is_new else ()
    info = _info(state, definition, shows_secret=reader.has_made_secret)
    return reply(info, status=201 if is_new else 200, headers=headers)


async def read(request: Request) -> Reply:
    """The definition, its secrets hidden."""
    agent_id = _agent_id(request)
    if not request.caller.may_serve(agent_id):
        raise AgentNotFound(request.params["agentId"])
    return reply(_info(request.state, await request.state.store.agents.find(agent_id)))


async def list_(request: Request) -> Reply:
    """Every definition, by id."""
    state = request.state
    await state.store.agents.refresh()
    return reply(AgentList([_info(state, definition) for definition in state.store.agents.all()]))


async def forget(request: Request) -> Reply:
    """Forget an agent; with live sessions only by force, and then their open turns fail."""
    await request.body()
    query = Query(request.query())
    is_forced = query.truth("force")
    query.check()
    store, agent_id = request.state.store, _agent_id(request)
    await store.agents.find(agent_id)
    sessions = await store.agents.sessions_of(agent_id)
    if sessions and not is_forced:
        raise AgentInUse(request.params["agentId"], sessions)
    if not await store.agents.forget(agent_id):
        raise AgentNotFound(request.params["agentId"])
    await store.attendance.forget(agent_id)
    # What a message opens meanwhile, the keeper fails in the same way.
    failed = await store.turns.abandon_all(agent_id, code=AgentNotFound.code, message="The agent was deleted")
    told = f"Agent {request.params['agentId']} deleted successfully"
    return reply(AgentDeleted(True, told, sessions, failed))


async def availability(request: Request) -> Reply:
    """Whether the agent is there to answer, and what it has to do; read from Redis now."""
    store, agent_id = request.state.store, _agent_id(request)
    if not request.caller.is_app and not request.caller.may_serve(agent_id):
        raise AgentNotFound(request.params["agentId"])
    agent = await store.agents.find(agent_id)
    return reply(AvailabilityInfo.of(agent.agent_id, await store.attendance.read(agent.agent_id)))


def _agent_id(request: Request) -> AgentId:
    return AgentId(request.params["agentId"].lower())


def _info(state: State, definition: AgentDefinition, *, shows_secret: bool = False) -> AgentInfo:
    known = state.store.attendance.state(definition.agent_id)
    return AgentInfo.of(definition, known, shows_secret=shows_secret)

"""Workers: take a turn of an agent, answer it bit by bit, end it or hand it back. All of it is repeatable."""

from __future__ import annotations

from typing import Final

from sessions_api.api.operations import as_turn_id
from sessions_api.api.replies import EMPTY, Reply, reply
from sessions_api.api.requests import Request, unless_gone
from sessions_api.api.workerbodies import (
    read_claim,
    read_complete,
    read_delta,
    read_extend,
    read_fail,
    read_release,
)
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import AgentId, is_uuid
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.errors import AgentNotFound, FieldError, InvalidInput
from sessions_api.wire.claims import Written, claimed_json

LONGEST_WAIT_S: Final = 60.0
LONGEST_STAY_S: Final = 20.0
"""Of an extension: shorter than the lease that it brings."""
MAX_ANSWER_BYTES: Final = 1024 * 1024


async def claim(request: Request) -> Reply:
    """Wait for a turn of the agent; nothing after ``?wait=`` seconds.

    A turn whose client is gone before this reply is written is handed back at
    once, its attempt uncounted.
    """
    body, wait_s = read_claim(await request.json(), request.query(), longest_wait_s=LONGEST_WAIT_S)
    agent = await _worker_agent(request)
    desk = request.state.desk

    def hand_back(turn: ClaimedTurn | None) -> None:
        if turn is not None:
            desk.hand_back(turn)

    turn = await unless_gone(
        request.receive,
        desk.claim(agent.agent_id, worker=body.worker, capacity=body.capacity, wait_s=wait_s),
        unwanted=hand_back,
    )
    if turn is None:
        return EMPTY
    return Reply(200, claimed_json(turn))


async def delta(request: Request) -> Reply:
    """More of the running answer."""
    body = read_delta(await request.json(max_bytes=MAX_ANSWER_BYTES))
    is_cancelled = await request.state.work.delta(
        request.session_id,
        as_turn_id(request.params["turnId"]),
        grant=request.caller.work_grant,
        fence=body.fence,
        text=body.text,
        offset=body.offset,
    )
    return _written(is_cancelled)


async def extend(request: Request) -> Reply:
    """Still at it. With ``?wait=`` the reply stays out so long, unless somebody ends the turn."""
    fence, wait_s = read_extend(await request.json(), request.query(), longest_wait_s=LONGEST_STAY_S)
    extending = request.state.work.extend(
        request.session_id,
        as_turn_id(request.params["turnId"]),
        grant=request.caller.work_grant,
        fence=fence,
        wait_s=wait_s,
    )
    return _written(await (unless_gone(request.receive, extending) if wait_s else extending))


async def complete(request: Request) -> Reply:
    """The answer is whole."""
    body = read_complete(await request.json(max_bytes=MAX_ANSWER_BYTES))
    is_cancelled = await request.state.work.complete(
        request.session_id,
        as_turn_id(request.params["turnId"]),
        grant=request.caller.work_grant,
        fence=body.fence,
        answer=body.answer,
    )
    return _written(is_cancelled)


async def fail(request: Request) -> Reply:
    """The attempt is given up."""
    body = read_fail(await request.json())
    is_cancelled = await request.state.work.fail(
        request.session_id,
        as_turn_id(request.params["turnId"]),
        grant=request.caller.work_grant,
        fence=body.fence,
        code=body.code,
        message=body.message,
        retry=body.retry,
        pause_ms=body.pause_ms,
    )
    return _written(is_cancelled)


async def release(request: Request) -> Reply:
    """The turn is handed back at once; the attempt does not count."""
    fence = read_release(await request.json())
    is_cancelled = await request.state.work.release(
        request.session_id, as_turn_id(request.params["turnId"]), grant=request.caller.work_grant, fence=fence
    )
    return _written(is_cancelled)


async def _worker_agent(request: Request) -> AgentDefinition:
    text = request.params["agentId"]
    if not is_uuid(text) or not request.caller.may_serve(AgentId(text.lower())):
        raise AgentNotFound(text)
    agent = await request.state.store.agents.find(AgentId(text.lower()))
    if agent.kind != "worker":
        bad = FieldError("agentId", "is an agent without workers", agent.kind, "an agent of kind worker")
        raise InvalidInput("Invalid agentId: is an agent without workers", [bad])
    return agent


_WRITTEN: Final = reply(Written(cancelled=False))
_CANCELLED: Final = reply(Written(cancelled=True))


def _written(is_cancelled: bool) -> Reply:
    return _CANCELLED if is_cancelled else _WRITTEN

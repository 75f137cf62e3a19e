"""Turns: how an answer is coming along, and the way to stop it."""

from __future__ import annotations

from sessions_api.api.operations import as_turn_id
from sessions_api.api.replies import Reply, reply
from sessions_api.api.requests import Request
from sessions_api.wire.messages import TurnInfo


async def read(request: Request) -> Reply:
    """The turn's state, also of a session that has expired."""
    session_id = request.session_id
    turn = await request.state.store.turns.read(
        session_id, as_turn_id(request.params["turnId"]), grant=request.caller.read_grant
    )
    return reply(TurnInfo.of(turn, session_id))


async def cancel(request: Request) -> Reply:
    """Stop a turn; what was said so far stays. One that has ended is left as it is."""
    await request.body()
    info = await request.state.operations.cancel(request.session_id, request.caller, request.params["turnId"])
    return reply(info)

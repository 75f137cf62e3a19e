"""Opens a session with an agent that may only be starting, as one started on the line before is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

from sessions_api.cli import service

LOOK_S = 0.3
"""Between two looks whether the agent has come."""


async def open_session(
    api: service.Service, body: dict[str, object], *, wait_s: float, tell: Callable[[str], None]
) -> str:
    """A new session's id. For an agent that is not there yet it waits up to *wait_s*, and says so.

    Raises:
        NoAgent: nobody came.
        CommandError
    """
    until_s = asyncio.get_running_loop().time() + wait_s
    session_id, missing = _try_to_open(api, body)
    if missing is not None and wait_s > 0:
        tell(f"the agent is not there yet; waiting up to {wait_s:g} s for it")
    while missing is not None:
        if asyncio.get_running_loop().time() >= until_s:
            raise missing
        await asyncio.sleep(LOOK_S)
        if _is_there(api, f"{service.AGENTS}/{body['agentId']}/availability"):
            session_id, missing = _try_to_open(api, body)
    return session_id


def _try_to_open(api: service.Service, body: dict[str, object]) -> tuple[str, service.NoAgent | None]:
    try:
        return api.ask("POST", body=body, key=str(uuid4()))["sessionId"], None
    except service.NoAgent as missing:
        return "", missing


def _is_there(api: service.Service, path: str) -> bool:
    """A look costs the service less than a refusal, whose ``Retry-After`` would be longer, too."""
    try:
        return bool(api.ask("GET", path)["state"] != "offline")
    except service.NoAgent:
        return False

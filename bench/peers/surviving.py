"""What is left of a conversation when every process of a system is killed, and the system started again."""

from __future__ import annotations

import http.client
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from bench.figures import progress
from bench.peers.dialects import ANSWER, QUESTION
from bench.peers.systems import Running, System, ask, running

SETTLED_S = 12.0
"""Longer than the ten seconds in which `langgraph dev` writes its memory to files."""


class Left(msgspec.Struct, frozen=True):
    """Of one conversation: is the session found, the user's message in its history, the agent's answer?"""

    session: bool
    question: bool
    answer: bool


class Survival(msgspec.Struct, frozen=True):
    """Of a conversation that had ended 12 s before the kill, and of one that was answered just before."""

    settled: Left
    last: Left


def survivals(
    systems: Sequence[System], scratch: Path, *, settle_s: float = SETTLED_S
) -> dict[str, Survival]:
    """By name. Each is killed in the instant in which it has answered, started again, and asked."""
    folders = {system.name: scratch / f"kill-{number}" for number, system in enumerate(systems)}
    found: dict[str, Survival] = {}
    with ExitStack() as stack:
        started: list[tuple[System, Running, str]] = []
        for system in systems:
            progress(f"{system.name}: starting, to be killed")
            before = stack.enter_context(running(system, folders[system.name]))
            started.append((system, before, _converse(system, before.port)))
        time.sleep(settle_s)
        last: dict[str, str] = {}
        for system, before, _ in started:
            family = before.family()
            last[system.name] = _converse(system, before.port)
            for pid in family:
                os.kill(pid, signal.SIGKILL)
    for system, _, settled in started:
        progress(f"{system.name}: starting again, to be asked")
        with running(system, folders[system.name]) as after:
            found[system.name] = Survival(
                _left(system, after.port, settled), _left(system, after.port, last[system.name])
            )
    return found


def _converse(system: System, port: int) -> str:
    key = system.dialect.key(ask(port, system.dialect.create()))
    ask(port, system.dialect.send(key))
    return key


def _left(system: System, port: int, key: str) -> Left:
    session = _found(system, port, key, is_history=False)
    history = _found(system, port, key, is_history=True)
    return Left(session is not None, QUESTION in (history or ""), ANSWER in (history or ""))


def _found(system: System, port: int, key: str, *, is_history: bool) -> str | None:
    request = system.dialect.history(key) if is_history else system.dialect.get(key)
    try:
        return ask(port, request).decode()
    except (RuntimeError, http.client.HTTPException):
        return None

"""What is asked again and again while costs are counted: each an :data:`~bench.charges.Act`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bench.charges import Act
from bench.links import Ear, Link, closing
from bench.processes import Service
from bench.speaking import QUESTION
from bench.workers import BASE
from sessions_api.domain.agents import ECHO_ID
from sessions_api.domain.ids import SessionId, UserId

MARK = b"event: message.created\n"
HEARD_S = 10.0


class Heard:
    """Counts what came to all of some followers."""

    def __init__(self) -> None:
        self._count = 0
        self._news = asyncio.Event()

    def note(self, count: int) -> None:
        self._count += count
        self._news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(HEARD_S):
            while self._count < count:
                self._news.clear()
                await self._news.wait()
        self._count -= count


def asking(method: str, paths: Sequence[str], content: object = None) -> Act:
    """The same of one path after the other."""

    async def act(link: Link, number: int) -> bytes:
        _, reply = await link.ask(method, paths[number % len(paths)], content)
        return reply

    return act


def reading(sessions: Sequence[SessionId]) -> Act:
    return asking("GET", [f"{BASE}/{sid}" for sid in sessions])


def posting(sessions: Sequence[SessionId]) -> Act:
    return asking("POST", [f"{BASE}/{sid}/messages" for sid in sessions], {"content": QUESTION})


def paging(sessions: Sequence[SessionId], limit: int) -> Act:
    return asking("GET", [f"{BASE}/{sid}/messages?limit={limit}" for sid in sessions])


def listing(users: Sequence[UserId], limit: int) -> Act:
    return asking("GET", [f"{BASE}?userId={user}&limit={limit}" for user in users])


def creating(users: Sequence[UserId]) -> Act:
    async def act(link: Link, number: int) -> bytes:
        _, reply = await link.ask("POST", BASE, {"agentId": ECHO_ID, "userId": users[number % len(users)]})
        return reply

    return act


def conversing(sessions: Sequence[SessionId]) -> Act:
    """Post, and wait for the answer; a session has its next message when the others had theirs."""
    paths = [f"{BASE}/{sid}/messages" for sid in sessions]
    return asking("POST", paths, {"content": QUESTION, "transport": "http"})


def telling(post: Act, heard: Sequence[Heard], followers: int) -> Act:
    """Post, and wait until the session's followers have it; each connection posts to sessions of its own."""

    async def act(link: Link, number: int) -> bytes:
        reply = await post(link, number)
        await heard[number % len(heard)].until(followers)
        return reply

    return act


def replaying(worker: Service, sessions: Sequence[tuple[SessionId, int]], count: int) -> Act:
    """Follow a session from a cursor on, and leave when *count* messages have come."""

    async def act(_link: Link, number: int) -> bytes:
        session_id, after = sessions[number % len(sessions)]
        heard = Heard()
        ear = await Ear.open(worker, f"{BASE}/{session_id}/events?after={after}", MARK, heard.note)
        with closing([ear]):
            await heard.until(count)
        return b""

    return act

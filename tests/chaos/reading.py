"""What is there when all is quiet: every session read back, then deleted, and then what is left of it."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.chaos.asking import Service
from tests.chaos.clients import Client
from tests.chaos.history import LOGGED, Entry, History, Life, Read
from tests.chaos.processes import Replica
from tests.chaos.world import World, until
from tests.support.client import BASE
from tests.support.streams import EventStream

RECOVERED_S = 15.0
"""From the last fault until every replica is ready."""
QUIET_S = 45.0
"""Until the last turn has its outcome, after five attempts of 3 s with pauses, and brief sessions ended."""
CAUGHT_UP_S = 20.0
GONE_S = 10.0
AT_ONCE = 8
SPARE_DESCRIPTORS = 8
"""Of connections that workers, webhooks and Redis have by chance."""
OF_SESSIONS = ("session:", "alarm:", "log:", "draft:")
OF_CLIENTS = ("sessions_followers", "sessions_running_turns")
INDEXES = ("due:", "ready:", "running:", "users:", "agents:", "near:")


class Reader:
    """Reads one world into one history."""

    def __init__(self, world: World, service: Service, history: History) -> None:
        self._world = world
        self._service = service
        self._history = history
        self._places = asyncio.Semaphore(AT_ONCE)

    async def recovered(self) -> None:
        """Until every replica is ready again."""

        async def are_ready() -> bool:
            return all([await self._is_ready(number) for number in range(len(self._world.replicas))])

        if not await until(are_ready, within_s=RECOVERED_S):
            self._history.left.append(f"not every replica was ready {RECOVERED_S:g} s after the last fault")

    async def _is_ready(self, number: int) -> bool:
        return await asyncio.to_thread(self._world.replicas[number].readiness) == 200

    async def read_all(self) -> None:
        """Wait for each session to be quiet, and read it."""
        async with asyncio.TaskGroup() as group:
            for number, life in enumerate(self._history.lives):
                group.create_task(self._read(life, number))

    async def _read(self, life: Life, at: int) -> None:
        read = Read(session_id=life.session_id, status=0)
        cursor = 0

        async def is_settled() -> bool:
            nonlocal cursor
            async with self._places:
                asked, info = await self._ask("get", life, at, "")
            if asked.status not in {200, 404, 410}:
                return False
            read.status, read.end_ms = asked.status, asked.end_ms
            if asked.status != 200:
                return True
            cursor = info["cursor"]
            return info["stage"] != "waiting" and "activeTurn" not in info and not life.is_brief

        read.is_quiet = await until(is_settled, within_s=QUIET_S)
        async with self._places:
            if read.status in {200, 410}:
                read.history = await self._messages(life, at, read)
                read.entries = await self._replayed(life, at, cursor if read.status == 200 else None)
                read.turns = await self._turns(life, at)
        self._history.found[life.session_id] = read

    async def _ask(self, what: str, life: Life, at: int, path: str, **params: Any) -> tuple[Any, Any]:
        return await self._service.ask(
            what,
            "GET",
            f"{BASE}/{life.session_id}{path}",
            session_id=life.session_id,
            replica=at,
            may_give_up=False,
            params=params,
        )

    async def _messages(self, life: Life, at: int, read: Read) -> list[Any]:
        messages: list[Any] = []
        params: dict[str, Any] = {"limit": 100, "ended": "true"}
        while True:
            asked, page = await self._ask("ended history", life, at, "/messages", **params)
            assert asked.status == 200, (asked, page)
            messages += page["messages"]
            if not page["hasMore"]:
                return messages[::-1]
            params["before"] = page["cursors"]["before"]

    async def _replayed(self, life: Life, at: int, newest: int | None) -> list[Entry]:
        """The log from its beginning to *newest*, or to its end if there is none."""
        entries: list[Entry] = []
        if newest == 0:
            return entries
        port = self._world.replicas[at % len(self._world.replicas)].port
        path = f"{BASE}/{life.session_id}/events?after=0"
        async with EventStream(port, path) as stream:
            while (frame := await stream.next()) is not None:
                if frame.event in LOGGED:
                    event = frame.data
                    entries.append(
                        Entry(
                            cursor=event["cursor"], prev=event["prev"], type=event["type"], data=event["data"]
                        )
                    )
                    if event["cursor"] == newest:
                        break
        return entries

    async def _turns(self, life: Life, at: int) -> dict[str, Any]:
        """The state of every turn that an acknowledgement named."""
        states = {}
        for said in self._history.said:
            if said.session_id == life.session_id and said.acks:
                turn_id = said.acks[0].turn_id
                asked, turn = await self._ask("turn", life, at, f"/turns/{turn_id}")
                states[turn_id] = turn["state"] if asked.status == 200 else f"{asked.status} {asked.code}"
        return states

    async def caught_up(self, clients: list[Client]) -> None:
        """Until followers have heard all that was read; those that do not are the checker's business."""
        followers = [follower for client in clients for follower in client.followers]

        async def have_heard() -> bool:
            for follower in followers:
                read = self._history.found[follower.following.session_id]
                newest = read.entries[-1].cursor if read.entries else 0
                if not (follower.has_come_to(newest) if read.status == 200 else follower.is_over):
                    return False
            return True

        await until(have_heard, within_s=CAUGHT_UP_S)
        for follower in followers:
            await follower.stop()

    # ------------------------------------------------------------ what is left

    async def erase(self) -> None:
        """Delete what is still there; afterwards nothing of any session is in Redis."""
        self._history.left += [f"no TTL: {key}" for key in await self._world.immortal_keys()]
        for number, life in enumerate(self._history.lives):
            if self._history.found[life.session_id].status != 404:
                life.deleted_ms = life.deleted_ms or self._history.asked[-1].ended_ms
                asked, _ = await self._service.ask(
                    "delete",
                    "DELETE",
                    f"{BASE}/{life.session_id}",
                    session_id=life.session_id,
                    replica=number,
                    may_give_up=False,
                )
                if asked.status != 200:
                    self._history.left.append(f"{life.session_id} cannot be deleted: {asked}")
        left: list[str] = []

        async def is_empty() -> bool:
            names = [key.decode().partition(":")[2] for key in await self._world.storage.keys()]
            left[:] = [name for name in names if name.startswith((*OF_SESSIONS, *INDEXES))]
            return not left

        if not await until(is_empty, within_s=GONE_S):
            self._history.left += [f"left in Redis: {name}" for name in left[:20]]

    async def released(self) -> None:
        """Once nobody is connected: no follower, no turn, no more descriptors than before clients came."""
        most = max(self._world.descriptors) + SPARE_DESCRIPTORS
        found: list[str] = []

        async def are_released() -> bool:
            found[:] = [
                f"replica {number}: {text}"
                for number, replica in enumerate(self._world.replicas)
                for text in await asyncio.to_thread(_held, replica, most)
            ]
            return not found

        if not await until(are_released, within_s=GONE_S):
            self._history.left += found


def _held(replica: Replica, most_descriptors: int) -> list[str]:
    """What a replica still has that it should have given back."""
    held = [f"{name} is {replica.metric(name):g}" for name in OF_CLIENTS if replica.metric(name)]
    if replica.descriptors > most_descriptors:
        held.append(f"{replica.descriptors} descriptors, {most_descriptors} at most")
    return held

"""One run of an agent: claims turns while there is room, outlives a service that is away, leaves in order.

There is one claim at a time, whatever the number of free places: it takes
milliseconds where work is waiting, and waits on one connection where none is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from sessions_api.sdk.attempt import Attempt, Handler, Outcome
from sessions_api.sdk.backoff import Backoff
from sessions_api.sdk.link import Away, Link, Refused, agent_path
from sessions_api.sdk.logs import say

CLAIM_WAIT_S: Final = 25.0
EARLY_S: Final = 1.0
"""A claim that comes back empty sooner than this was sent away by a service about to stop."""
LAST_PAUSE_S: Final = 5.0
GOODBYE_S: Final = 2.0
ANSWERED_S: Final = 0.5
"""For the answer to the claim that waits: immediate, unless it waits at another replica."""
LEAVE_S: Final = 7.0
"""For handing back what the grace did not suffice for."""


class Worker:
    """Serves until told to stop."""

    def __init__(
        self,
        link: Link,
        agent_id: str,
        handler: Handler,
        *,
        definition: Mapping[str, Any] | None,
        concurrency: int,
        grace_s: float,
        known: asyncio.Event,
    ) -> None:
        self._link = link
        self._agent_id = agent_id
        self._path = agent_path(agent_id)
        self._handler = handler
        self._definition = definition
        self._concurrency = concurrency
        self._grace_s = grace_s
        self._name = _worker_name()
        self._attempts: dict[asyncio.Task[Outcome], Attempt] = {}
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self._known = known  # set once the service has seen this worker
        self._has_asked = False  # a claim may have been heard, and wants a goodbye
        self._is_greeting = False

    def stop(self) -> None:
        """Claim no more, and end when the running turns have; a second time: end now."""
        if self._stopping.is_set():
            self._hurried.set()
        self._stopping.set()

    async def run(self) -> None:
        """Serve until :meth:`stop`.

        Raises:
            Refused: the service does not take this worker: its key, its agent or its definition.
        """
        claiming = asyncio.create_task(self._claim_all())
        stopping = asyncio.create_task(self._stopping.wait())
        grace_s, has_left = 0.0, False
        try:
            await asyncio.wait({claiming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if claiming.done():
                claiming.result()
            grace_s = self._grace_s
            if self._is_greeting:  # answered by itself, and it must not come after the goodbye
                await asyncio.wait({claiming}, timeout=GOODBYE_S)
            # The claim that waits is answered by this, with a turn or without: none is lost on its way.
            await self._say_goodbye()
            await asyncio.wait({claiming}, timeout=ANSWERED_S)
            if claiming.done():
                claiming.result()
                has_left = not self._attempts
        finally:
            claiming.cancel()
            stopping.cancel()
            await asyncio.wait({claiming, stopping})
            await self._leave(grace_s)
            if not has_left:  # it was not said, or writes brought the worker back
                await self._say_goodbye()
            say(logging.INFO, "worker_stopped", agent=self._agent_id, worker=self._name)

    # ------------------------------------------------------------ claiming

    async def _claim_all(self) -> None:
        backoff = Backoff(LAST_PAUSE_S)
        has_to_define = self._definition is not None
        loop = asyncio.get_running_loop()
        while True:
            while len(self._attempts) >= self._concurrency:
                await asyncio.wait(self._attempts, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                return
            pause_s = 0.0
            began_s = loop.time()
            try:
                if has_to_define:
                    await self._link.ask("PUT", self._path, self._definition or {})
                    has_to_define = False
                    if self._stopping.is_set():
                        return
                # The first one only says that we are here.
                wait_s = CLAIM_WAIT_S if self._known.is_set() and not backoff.failures else 0.0
                claimed = await self._claim(wait_s)
            except Away as away:
                if not backoff.failures:
                    say(logging.WARNING, "service_away", url=self._link.url, reason=away)
                pause_s = backoff.next_s(away.asked_s)
            except Refused as refused:
                if not self._known.is_set():
                    self._has_asked = False
                    raise
                # Deleted by somebody, it stays deleted; a service that came back without it is told again.
                has_to_define = (
                    refused.code == "AGENT_NOT_FOUND"
                    and self._definition is not None
                    and backoff.failures > 0
                    and not has_to_define
                )
                if not has_to_define:
                    say(logging.ERROR, "claim_refused", agent=self._agent_id, reason=refused)
                    pause_s = LAST_PAUSE_S
            else:
                self._welcome(backoff)
                if claimed is not None:
                    self._start(claimed)
                elif wait_s and loop.time() - began_s < EARLY_S:
                    pause_s = Backoff(LAST_PAUSE_S).next_s(EARLY_S / 2)
            if pause_s:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _claim(self, wait_s: float) -> dict[str, Any] | None:
        body = {"worker": self._name, "capacity": self._concurrency}
        self._has_asked, self._is_greeting = True, not wait_s
        try:
            return await self._link.ask("POST", f"{self._path}/turns/claim", body, wait_s=wait_s)
        finally:
            self._is_greeting = False

    def _welcome(self, backoff: Backoff) -> None:
        if not self._known.is_set():
            say(
                logging.INFO,
                "worker_started",
                agent=self._agent_id,
                url=self._link.url,
                worker=self._name,
                concurrency=self._concurrency,
            )
            self._known.set()
        elif backoff.failures:
            say(logging.INFO, "service_back", url=self._link.url, tries=backoff.failures)
        backoff.reset()

    def _start(self, claimed: Mapping[str, Any]) -> None:
        attempt = Attempt(self._link, self._handler, claimed)
        say(logging.DEBUG, "turn_started", turn=attempt.turn.id, session=attempt.turn.session.id)
        task = asyncio.create_task(attempt.run())
        self._attempts[task] = attempt
        task.add_done_callback(self._attempts.pop)

    # ------------------------------------------------------------ leaving

    async def _leave(self, grace_s: float) -> None:
        if self._attempts:
            say(logging.INFO, "worker_stopping", turns=len(self._attempts), grace_s=grace_s)
        hurried = asyncio.create_task(self._hurried.wait())
        ending = asyncio.gather(*self._attempts)
        tasks: set[asyncio.Future[Any]] = {hurried, ending}
        try:
            await asyncio.wait(tasks, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
            for attempt in self._attempts.values():
                attempt.release()
            await asyncio.wait({ending}, timeout=LEAVE_S)
        finally:
            hurried.cancel()
            for task in self._attempts:  # handlers that go on although they were cancelled
                task.cancel()

    async def _say_goodbye(self) -> None:
        if not self._has_asked:
            return
        try:
            async with asyncio.timeout(GOODBYE_S):
                body = {"worker": self._name, "capacity": 0}
                await self._link.ask("POST", f"{self._path}/turns/claim", body)
        except (Away, Refused, TimeoutError) as error:  # its presence lapses by itself
            say(logging.DEBUG, "goodbye_not_heard", reason=error)


def _worker_name() -> str:
    """Tells one run of one process from every other, and an operator where to look."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:60] or "worker"
    return f"{host}:{os.getpid()}:{secrets.token_hex(4)}"

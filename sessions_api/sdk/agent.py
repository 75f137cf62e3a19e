"""An agent as its developer writes it."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from types import TracebackType
from typing import Final, Self, TypeVar

from sessions_api.sdk.attempt import Handler
from sessions_api.sdk.definition import OnBusy, definition, session_settings
from sessions_api.sdk.link import Link, address
from sessions_api.sdk.logs import show_if_nobody_does
from sessions_api.sdk.worker import Worker

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
HandlerT = TypeVar("HandlerT", bound=Handler)


class Agent:
    """Takes the turns of one agent and answers them, up to *concurrency* at once.

    The handler, given here or by :meth:`answer`, is an async generator that
    yields text, or a coroutine that returns text or an :class:`~.turn.Answer`. A
    turn that is cancelled cancels it at its ``await``; an exception fails the
    attempt, and the turn is tried again while attempts are left. Work that blocks
    belongs into ``asyncio.to_thread``: it would stop every turn of this process.

    *key* is shown to a service that asks for one; without it that of
    ``SESSIONS_API_KEY``.

    With *name* the agent is defined in the service at start, as of kind
    ``worker``, with what is given of *on_busy*, *history* (messages handed to a
    turn), *turn_timeout_s*, *max_attempts*; without, it has to be there. With
    *settings_from_env* its sessions start with ``SESSION_TIMEOUT_MINUTES``,
    ``SESSION_AUTO_RENEW``, ``SESSION_MAX_DURATION_MINUTES`` and
    ``SESSION_WARNING_THRESHOLD_MINUTES`` of this process's environment. The last
    definition put wins.

    *grace_s* is what running turns get when the worker is told to stop; those
    that need longer are handed back for another worker, uncounted.

    Raises:
        ValueError: an argument, or a variable of the environment, cannot be.
    """

    def __init__(
        self,
        url: str,
        agent_id: str,
        key: str | None = None,
        *,
        handler: Handler | None = None,
        name: str | None = None,
        concurrency: int = 8,
        settings_from_env: bool = False,
        on_busy: OnBusy | None = None,
        history: int | None = None,
        turn_timeout_s: float | None = None,
        max_attempts: int | None = None,
        grace_s: float = 25.0,
    ) -> None:
        if not 1 <= concurrency <= 1000:
            raise ValueError(f"concurrency is {concurrency}; allowed is 1..1000")
        chosen = (on_busy, history, turn_timeout_s, max_attempts)
        if name is None and (settings_from_env or any(each is not None for each in chosen)):
            raise ValueError("these settings are part of the agent's definition: give its name as well")
        self._url = address(url)
        self._agent_id = agent_id
        self._key = key or os.environ.get("SESSIONS_API_KEY", "").strip() or None
        self._handler = handler
        self._concurrency = concurrency
        self._grace_s = grace_s
        self._definition = None
        if name is not None:
            self._definition = definition(
                name,
                session_settings(os.environ) if settings_from_env else {},
                on_busy=on_busy,
                history=history,
                turn_timeout_s=turn_timeout_s,
                max_attempts=max_attempts,
            )
        self._worker: Worker | None = None
        self._serving: asyncio.Task[None] | None = None

    def answer(self, handler: HandlerT) -> HandlerT:
        """Decorate the handler; it stays what it is."""
        self._handler = handler
        return handler

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; a second one hands back at once what still runs.

        Where the process has set up no logging, what happens is told on stderr.

        Raises:
            Refused: as of :meth:`serve`.
        """
        show_if_nobody_does()
        asyncio.run(self._run())

    async def serve(self) -> None:
        """Serve until :meth:`stop`, also while the service is away; cancelled, hand back what still runs.

        Raises:
            Refused: the service does not take this worker: its key, its agent or its definition.
            RuntimeError: there is no handler, or this agent serves already.
        """
        await self._serve(asyncio.Event())

    async def _serve(self, known: asyncio.Event) -> None:
        if self._handler is None:
            raise RuntimeError("there is no handler: decorate one with @agent.answer")
        if self._worker is not None:
            raise RuntimeError("this agent serves already")
        # A turn holds one connection while it extends and one while it writes; the claim has its own.
        async with Link(self._url, self._key, connections=2 * self._concurrency + 2) as link:
            self._worker = Worker(
                link,
                self._agent_id,
                self._handler,
                definition=self._definition,
                concurrency=self._concurrency,
                grace_s=self._grace_s,
                known=known,
            )
            try:
                await self._worker.run()
            finally:
                self._worker = None

    def stop(self) -> None:
        """Take no more turns, and end when those that run are done; again: hand them back now."""
        if self._worker is not None:
            self._worker.stop()

    async def __aenter__(self) -> Self:
        """Serve in the background; returns when the service has seen this worker."""
        is_known = asyncio.Event()
        serving = asyncio.create_task(self._serve(is_known))
        known = asyncio.create_task(is_known.wait())
        try:
            await asyncio.wait((serving, known), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            serving.cancel()
            await asyncio.wait({serving})
            raise
        finally:
            known.cancel()
        if serving.done():
            serving.result()
        self._serving = serving
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        serving, self._serving = self._serving, None
        self.stop()
        if serving is not None:
            await serving

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            with suppress(NotImplementedError):  # not on Windows: Ctrl-C ends it as any other program
                loop.add_signal_handler(number, self.stop)
        try:
            await self.serve()
        finally:
            for number in SIGNALS:
                with suppress(NotImplementedError):
                    loop.remove_signal_handler(number)

"""The composition root: makes the parts from the settings, starts them, stops them in reverse."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import version

import structlog
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sessions_api.access.tokens import Tokens
from sessions_api.agents.connectors import CONNECTORS, Connector
from sessions_api.agents.connectors.openai import OpenAIChat
from sessions_api.agents.connectors.outgoing import Outgoing
from sessions_api.agents.connectors.webhook import Webhook
from sessions_api.agents.desk import Desk
from sessions_api.agents.dispatcher import Dispatcher
from sessions_api.agents.finder import Finder
from sessions_api.agents.presences import Presences
from sessions_api.agents.work import Work
from sessions_api.api.addresses import Addresses
from sessions_api.api.auth import Access
from sessions_api.api.counts import Counts
from sessions_api.api.gate import Gate
from sessions_api.api.middleware import Surface
from sessions_api.api.operations import Operations
from sessions_api.api.state import Rules, State
from sessions_api.api.traced import Traced
from sessions_api.domain.agents import AgentState
from sessions_api.domain.ids import AgentId
from sessions_api.errors import SettingsError, StorageError
from sessions_api.keeper.keeper import Keeper
from sessions_api.live.hub import Hub
from sessions_api.settings import IGNORED, Settings, shared
from sessions_api.store import Redis, Store
from sessions_api.store.keys import Keyspace
from sessions_api.store.replicas import Identity
from sessions_api.telemetry import logs, metrics
from sessions_api.telemetry.loops import cancelled, run_forever
from sessions_api.telemetry.tracing import tracing_by

OPEN_AGAIN_S = 0.25
REFUSED_AGAIN_S = 30.0
REFRESH_S = 0.5
KEYS_EVERY_S = 0.5
SIGNING_EVERY = 10
"""So many looks at the file of keys to each at the keys of tokens: less than what a new one waits for."""

log = structlog.get_logger(__name__)


class App(Starlette):
    """Starlette's application object and lifespan, with our one layer in place of its stack."""

    surface: ASGIApp

    def build_middleware_stack(self) -> ASGIApp:
        return self.surface


class Parts:
    """The running parts of one process.

    Redis may be away at the start and come and go later: everything starts
    without it, and what needs it answers 503 meanwhile.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.redis_url:
            raise SettingsError(
                ["REDIS_URL is not set: name a Redis, or run `sessions-api dev`, which brings one"]
            )
        self._settings = settings
        replica_id = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.tracing = tracing_by(settings.trace_exporters, instance=replica_id)
        self.redis = Redis.from_url(
            settings.redis_url,
            deadline_ms=settings.sessions_redis_deadline_ms,
            replicas=settings.awaited_replicas,
            key_prefix=settings.sessions_key_prefix.encode(),
        )
        self.store = Store(
            self.redis,
            Keyspace(settings.sessions_key_prefix),
            limits_without_redis=settings.sessions_limits_without_redis,
        )
        self.hub = Hub(
            self.store,
            state_of=self._state_of,
            max_followers=settings.sessions_max_followers,
            max_followers_per_session=settings.sessions_max_followers_per_session,
        )
        self.keyring = settings.keyring()
        self.keyring.load()
        self.identity = Identity(
            replica_id,
            version=version("sessions-api"),
            settings=shared(settings, self.keyring.keys()),
            keeps=settings.runs_keeper,
        )
        self.keeper = Keeper(
            self.store, replica_id=replica_id, is_keeping=settings.runs_keeper, identity=self.identity
        )
        self.finder = Finder(self.store)
        self.presences = Presences(self.store.attendance)
        self.desk = Desk(self.store, self.finder, self.presences)
        self.work = Work(self.store, self.desk, self.presences)
        self.outgoing = Outgoing(settings.outgoing_allow, tracing=self.tracing)
        self.dispatcher: Dispatcher | None = None
        if settings.runs_dispatcher:
            self.dispatcher = Dispatcher(
                self.store,
                self.finder,
                worker=replica_id,
                turns=settings.sessions_dispatcher_turns,
                connectors=_connectors(self.outgoing),
                tracing=self.tracing,
            )
        self.store.scripts.overdue = self.keeper.ring_soon
        rules = Rules(
            app=settings.app,
            bounds=settings.bounds,
            default_config=settings.default_config,
            retention_ms=settings.retention_ms,
            max_content_chars=settings.session_max_content_chars,
            max_open_per_user=settings.session_max_open_per_user,
            is_dev=settings.is_dev,
        )
        tokens = Tokens(self.store.signing)
        gate = Gate(settings.policies, self.store)
        self.state = State(
            rules=rules,
            access=Access(settings.app, self.keyring, tokens, origins=settings.cors_origins),
            addresses=Addresses(settings.trusted_proxies),
            gate=gate,
            tokens=tokens,
            keyring=self.keyring,
            store=self.store,
            hub=self.hub,
            counts=Counts(self.store.listing),
            operations=Operations(self.store, gate),
            desk=self.desk,
            work=self.work,
        )
        if self.dispatcher is not None:
            self.state.attend = self.dispatcher.attend
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # ------------------------------------------------------------ start and stop

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything; at the end drain, then stop in reverse.

        Raises:
            SettingsError: what is stored in Redis is not ours to serve.
        """
        self._loop = asyncio.get_running_loop()
        for name in self._settings.ignored:
            log.warning("setting_ignored", name=name, reason=IGNORED[name])
        if not self.keyring.is_configured:
            log.warning("access_open", reason="no access key is configured: only this machine may call")
        async with AsyncExitStack() as stack:
            self.tracing.start()
            stack.push_async_callback(self.tracing.stop)  # the last to go: what the others end is in it
            self._start_metrics(stack)
            await self.redis.start()
            stack.push_async_callback(self.redis.stop)
            stack.push_async_callback(self.store.limits.stop)
            await self.hub.start()
            stack.push_async_callback(self.hub.stop)
            await self._start_agents_and_keeper(stack)
            stack.push_async_callback(self._drained)
            log.info("service_started", host=self._settings.host, port=self._settings.port)
            yield
        log.info("service_stopped")

    def _start_metrics(self, stack: AsyncExitStack) -> None:
        stack.callback(metrics.follow_redis(self.hub.subscriber.stats, line="pubsub"))
        stack.callback(
            metrics.follow_redis(
                self.redis.stats, line="commands", is_open_circuit=lambda: self.redis.circuit == "open"
            )
        )
        flushing = asyncio.create_task(metrics.flush_forever(), name="metrics")
        stack.push_async_callback(cancelled, flushing)

    async def _start_agents_and_keeper(self, stack: AsyncExitStack) -> None:
        """Open the store, now or as soon as Redis is there; only then the keeper touches what is in it."""
        stack.push_async_callback(self.keeper.stop)
        try:
            await self._open()
        except StorageError as error:
            log.warning("store_not_opened", reason=str(getattr(error, "reason", error)))
        for tend, name in ((self._tend, "agents"), (self._tend_access, "access")):
            tending = asyncio.create_task(run_forever(tend, loop=name), name=name)
            stack.push_async_callback(cancelled, tending)
        await self.finder.start()
        stack.push_async_callback(self.finder.stop)
        stack.push_async_callback(self.desk.stop)
        stack.push_async_callback(self.outgoing.aclose)
        if self.dispatcher is not None:
            await self.dispatcher.start()
            stack.push_async_callback(self.dispatcher.stop)
            self.outgoing.start()

    async def _open(self) -> None:
        await self.store.open()
        for definition in self._settings.agents:
            await self.store.agents.put(definition)
        if self.keyring.is_configured:
            await self.store.signing.refresh()
        await self.state.attend()  # ready means: who asks now finds the agents of this replica there
        await self._refresh_states()
        await self.keeper.start()
        self.state.is_open = True
        log.info("store_opened", agents=len(self.store.agents.all()))

    async def _tend(self) -> None:
        """Open the store if it is not yet; later keep the agents' definitions and states fresh."""
        await asyncio.sleep(REFRESH_S if self.state.is_open else OPEN_AGAIN_S)
        try:
            if not self.state.is_open:
                await self._open()
                return
            for refresh in (self._refresh_agents, self._refresh_states):  # they may lie on two servers
                with suppress(StorageError):
                    await refresh()
        except StorageError:
            return  # requests meanwhile say so themselves
        except SettingsError as refused:  # Redis came after us, with sessions that are not ours to serve
            log.critical("store_refused", problems=refused.problems)
            await asyncio.sleep(REFUSED_AGAIN_S)

    async def _tend_access(self) -> None:
        """Take over changed access keys; keep the tokens' keys fresh, and note which keys were used."""
        for _ in range(SIGNING_EVERY):
            await asyncio.sleep(KEYS_EVERY_S)
            before = self.keyring.keys()
            if self.keyring.refresh():
                # A key that has other scopes or another secret now is another key to those who follow by it.
                same = set(before).intersection(self.keyring.keys())
                self.hub.keys_changed({key.id for key in same} | self.store.signing.ids)
                self.identity.settings = shared(self._settings, self.keyring.keys())
        if not self.state.is_open:
            return
        try:
            if self.store.signing.current is not None:  # else nobody has a token, or needs one
                await self.store.signing.refresh()
                self.hub.keys_changed(self.state.key_ids)
            if uses := self.keyring.take_uses():
                await self.store.key_uses.note(uses)
        except StorageError:
            return  # a use that is not noted is noted at the next

    async def _refresh_agents(self) -> None:
        if await self.store.agents.refresh():
            await self.state.attend()

    async def _refresh_states(self) -> None:
        """Read which agents are there; their sessions' followers are told of those that changed."""
        for agent_id, state in (await self.store.attendance.refresh()).items():
            self.hub.agent_changed(agent_id, state)

    def _state_of(self, agent_id: AgentId) -> AgentState | None:
        if self.store.agents.get(agent_id) is None:
            return None
        return self.store.attendance.state(agent_id)

    # ------------------------------------------------------------ drain

    def drain(self) -> None:
        """Stop taking work: readiness fails, followers go elsewhere. For signal handlers; repeatable."""
        self.state.is_draining = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_draining)

    def _begin_draining(self) -> None:
        if self._draining is None:
            log.info("drain_started", seconds=self._settings.drain_seconds)
            self._draining = asyncio.get_running_loop().create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        within_s = self._settings.drain_seconds
        self.desk.drain()  # waiting workers ask another replica, at once
        parts = [self.hub.drain(within_s * 1000)]
        if self.dispatcher is not None:
            parts.append(self.dispatcher.drain(within_s))
        await asyncio.gather(*parts)

    async def _drained(self) -> None:
        self.state.is_draining = True
        self._begin_draining()
        if self._draining is not None:
            await self._draining


def _connectors(outgoing: Outgoing) -> dict[str, Connector]:
    """How each kind of agent that this service asks is asked."""
    return {**CONNECTORS, "webhook": Webhook(outgoing), "openai": OpenAIChat(outgoing)}


def create_app(settings: Settings) -> Starlette:
    """The ASGI application of these settings.

    ``app.state.drain()`` starts a shutdown early, from a signal handler.

    Raises:
        SettingsError: a setting that only shows now to be unusable, such as the Redis URL.
    """
    logs.configure(settings.log_level, settings.log_format)
    parts = Parts(settings)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with parts.running():
            yield

    app = App(lifespan=lifespan)
    app.surface = Surface(
        parts.state,
        _told_in_words(app.router),
        metrics_port=settings.sessions_metrics_port,
        logs_requests=logs.is_enabled("debug"),
    )
    if parts.tracing.is_on:
        app.surface = Traced(app.surface, parts.tracing)
    app.state.drain = parts.drain
    app.state.service = parts.state
    return app


def _told_in_words(lifespan: ASGIApp) -> ASGIApp:
    """*lifespan*, whose refusal to start over a setting is said in words; Starlette would send a stack."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []

        async def hold(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                held.append(message)
            else:
                await send(message)

        try:
            await lifespan(scope, receive, hold)
        except SettingsError as refused:
            await send({"type": "lifespan.startup.failed", "message": str(refused)})
        except BaseException:
            for message in held:
                await send(message)
            raise

    return app

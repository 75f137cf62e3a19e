"""Finds work: one ear for the wake hints of all agents that this process answers for.

Work is announced on an agent's wake channel with the session it belongs to. The
finder makes a *lead* of it and gives it to the agent's :class:`Taker` (the
dispatcher, or the desk where workers wait) as soon as that has a free place: at
most one claim for each lead, so idle places cost nothing, and a message costs
each replica one claim at most. A claim's reply names the agent's next session
with work, which is the next lead: a backlog drains without further hints.

Leads that find no place are remembered, up to a bound; what is beyond it, and
what was said while nobody listened, is found by a *look*: one round trip that
reads the agent's first session in each of the 64 partitions. It happens when a
trail begins, after a lost connection, and when leads had to be forgotten.

A payload of two words, ``<sid> <turn_id>``, is a *stop hint*: that turn was ended
by somebody else than its worker. Hints of both kinds may get lost: the keeper
repeats those of work that waits, and a worker's next write tells it the rest.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

import structlog

from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import AgentId, SessionId, TurnId, new_message_id, partition_of_session
from sessions_api.domain.turns import ClaimedTurn
from sessions_api.errors import StorageUnavailable
from sessions_api.store import Store
from sessions_api.store.pubsub import Subscriber
from sessions_api.store.turns import Claim
from sessions_api.telemetry import metrics
from sessions_api.telemetry.loops import cancelled, run_forever

REMEMBERED: Final = 64
"""Leads of one agent; about what one look can bring."""
MISSES: Final = 8
"""Two members of `ready` that cannot be claimed (their sessions lost with a failover) would name each other
for ever: so many claims in a row may lead on and bring nothing."""
STOPS: Final = 256
LOOK_AGAIN_S: Final = 1.0
FORGETFUL: Final = frozenset({"echo"})
"""Kinds of agents that look at nothing but what they answer: what was said before is not read for them."""

log = structlog.get_logger(__name__)


class Lead(NamedTuple):
    """A session that may have work for the agent."""

    agent_id: AgentId
    session_id: SessionId
    misses: int
    number: int
    """In the order they were heard of, among the claims."""


class Taker(Protocol):
    """Has places in which turns are answered."""

    def has_place(self, agent_id: AgentId) -> bool:
        """Whether :meth:`take` may be called now."""

    def take(self, lead: Lead) -> None:
        """Occupy a place and follow the lead with :meth:`Finder.claim`; never blocks.

        Whoever has a place free again calls :meth:`Trail.fill`.
        """


class Trail:
    """One taker's interest in one agent, from :meth:`Finder.join` to :meth:`Finder.leave`."""

    def __init__(self, agent_id: AgentId, taker: Taker, look: Callable[[], None]) -> None:
        self.agent_id = agent_id
        self.caught_up = asyncio.Event()
        """Set while hints arrive and everything from before them was looked at."""
        self.heard = asyncio.Event()
        """Set once the agent's channel is subscribed."""
        self.heard_s = float("inf")
        """Since when it is, by the loop's clock."""
        self.must_look = True
        self.again: asyncio.TimerHandle | None = None
        """A claim failed: then it is looked again."""
        self.claiming: set[SessionId] = set()
        """Where a claim is on its way: it finds what there is, and its own reply names the next."""
        self._taker = taker
        self._ask_for_look = look
        self._leads: dict[SessionId, Lead] = {}

    @property
    def has_place(self) -> bool:
        return self._taker.has_place(self.agent_id)

    @property
    def has_leads(self) -> bool:
        return bool(self._leads) or self.must_look

    def hear(self, since_s: float) -> None:
        self.heard_s = since_s
        self.heard.set()

    def forget(self) -> None:
        """Something may have been missed: look again at the next free place."""
        self.must_look = True
        self.caught_up.clear()

    def note(self, lead: Lead) -> None:
        """Follow *lead* now, or when a place is free."""
        if lead.misses > MISSES:
            return
        if lead.session_id not in self._leads:
            if len(self._leads) >= REMEMBERED:
                self.forget()
                return
            self._leads[lead.session_id] = lead
        self.fill()

    def drop(self, partition: int, before: int) -> None:
        """Leads of *partition* from before a claim that saw no more work there are old news."""
        for lead in list(self._leads.values()):
            if lead.number < before and partition_of_session(lead.session_id) == partition:
                del self._leads[lead.session_id]

    def fill(self) -> None:
        """Follow leads, the oldest first, while there are places."""
        while self._leads and self.has_place:
            self._taker.take(self._leads.pop(next(iter(self._leads))))
        if self.must_look and not self._leads and self.has_place:
            self._ask_for_look()


class Finder:
    """Hears hints from :meth:`start`, which waits for nothing, until :meth:`stop`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._subscriber = Subscriber(
            store.redis,
            on_message=self._heard,
            on_resubscribed=self._look_again,
            key_prefix=store.keyspace.prefix.encode(),
        )
        self._trails: dict[bytes, list[Trail]] = {}  # by wake channel
        self._numbers = itertools.count()
        self._news = asyncio.Event()
        self._watched: dict[str, list[Callable[[], None]]] = {}  # by turn
        self._stopped: dict[str, None] = {}  # the last stop hints: one may overtake the claim's reply
        self._unfollow: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._unfollow = metrics.follow_redis(self._subscriber.stats, line="pubsub")
        await self._subscriber.start()
        self._tasks.append(asyncio.create_task(run_forever(self._step, loop="finder"), name="finder"))

    async def stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        await cancelled(*tasks)
        await self._subscriber.stop()
        self._unfollow()

    # ------------------------------------------------------------ trails

    def join(self, agent_id: AgentId, taker: Taker) -> Trail:
        """Bring *taker* the agent's work from now on, and what waits already."""
        trail = Trail(agent_id, taker, self._news.set)
        trails = self._trails.setdefault(self._store.keyspace.wake(agent_id), [])
        for other in trails:
            if other.heard.is_set():
                trail.hear(other.heard_s)
        trails.append(trail)
        self._news.set()
        return trail

    def leave(self, trail: Trail) -> None:
        channel = self._store.keyspace.wake(trail.agent_id)
        trails = self._trails.get(channel, [])
        if trail in trails:
            trails.remove(trail)
            if not trails:
                del self._trails[channel]
                self._subscriber.unsubscribe(channel)

    async def _step(self) -> None:
        """Listen for those who came; then look where something may have been missed."""
        self._news.clear()
        deaf = [
            channel
            for channel, trails in self._trails.items()
            if not all(trail.heard.is_set() for trail in trails)
        ]
        await asyncio.gather(*(self._listen(channel) for channel in deaf))
        is_whole = True
        for trail in [trail for trails in self._trails.values() for trail in trails]:
            if trail.must_look and trail.heard.is_set() and trail.has_place:
                is_whole &= await self._look(trail)
        if not is_whole:  # again, after a pause
            raise StorageUnavailable("some partitions could not tell what waits there")
        await self._news.wait()

    async def _listen(self, channel: bytes) -> None:
        await self._subscriber.subscribe(channel)
        for trail in self._trails.get(channel, ()):
            if not trail.heard.is_set():
                trail.hear(asyncio.get_running_loop().time())

    async def _look(self, trail: Trail) -> bool:
        """Note what waits; False if not every partition could tell: it is to be looked at again."""
        trail.must_look = False  # first: what is missed during the look is not forgotten
        try:
            waiting = await self._store.ready.next_ready(trail.agent_id)
        except BaseException:
            trail.forget()
            raise
        if not waiting.is_whole:
            trail.forget()
        elif not trail.must_look:
            trail.caught_up.set()
        for session_id in waiting.session_ids:
            self._note(trail, session_id)
        return waiting.is_whole

    def _look_again(self) -> None:
        for trails in self._trails.values():
            for trail in trails:
                trail.forget()
        self._news.set()

    def _look_again_for(self, trail: Trail) -> None:
        trail.again = None
        trail.forget()
        self._news.set()

    def _note(self, trail: Trail, session_id: SessionId, *, misses: int = 0) -> None:
        trail.note(Lead(trail.agent_id, session_id, misses, next(self._numbers)))

    def _heard(self, channel: bytes, payload: bytes) -> None:
        session_id, _, turn_id = payload.decode().partition(" ")
        if turn_id:
            self._stop(turn_id)
            return
        for trail in list(self._trails.get(channel, ())):
            self._note(trail, SessionId(session_id))

    # ------------------------------------------------------------ claims

    async def claim(
        self, trail: Trail, lead: Lead, definition: AgentDefinition, *, worker: str
    ) -> ClaimedTurn | None:
        """The session's next turn, if it is still there; what the reply says of others becomes leads.

        Raises nothing: a turn that could not be claimed stays ready, and is
        looked for again in a second.
        """
        number = next(self._numbers)
        trail.claiming.add(lead.session_id)
        try:
            claim = await self._claim(lead.session_id, definition, worker)
        except Exception as error:  # noqa: BLE001  see above
            metrics.LOOP_FAILURES.of("claim").inc()
            log.warning("claim_failed", session_id=lead.session_id, agent_id=lead.agent_id, error=repr(error))
            if trail.again is None:  # one for all that fail meanwhile
                trail.again = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again_for, trail)
            return None
        finally:
            trail.claiming.discard(lead.session_id)
        metrics.CLAIMS.of("taken" if claim.turn is None else "claimed").inc()
        if claim.next is None:
            trail.drop(partition_of_session(lead.session_id), number)
        elif claim.next not in trail.claiming:
            self._note(trail, claim.next, misses=lead.misses + 1 if claim.turn is None else 0)
        return claim.turn

    async def _claim(self, session_id: SessionId, definition: AgentDefinition, worker: str) -> Claim:
        return await self._store.turns.claim(
            session_id,
            agent_id=definition.agent_id,
            worker=worker,
            fence_bits=secrets.token_hex(8),
            message_id=new_message_id(),
            turn_ms=definition.turn_timeout_ms,
            max_attempts=definition.max_attempts,
            history=0 if definition.kind in FORGETFUL else definition.history,
        )

    # ------------------------------------------------------------ stop hints

    @contextmanager
    def watch(self, turn_id: TurnId, on_stop: Callable[[], None]) -> Iterator[None]:
        """Call *on_stop* when a hint says that the turn was ended, also one that came a moment ago.

        Heard only while somebody has a trail of the turn's agent.
        """
        callbacks = self._watched.setdefault(turn_id, [])
        callbacks.append(on_stop)
        if turn_id in self._stopped:
            on_stop()
        try:
            yield
        finally:
            callbacks.remove(on_stop)
            if not callbacks:
                self._watched.pop(turn_id, None)

    def _stop(self, turn_id: str) -> None:
        self._stopped[turn_id] = None
        if len(self._stopped) > STOPS:
            del self._stopped[next(iter(self._stopped))]
        for on_stop in list(self._watched.get(turn_id, ())):
            on_stop()

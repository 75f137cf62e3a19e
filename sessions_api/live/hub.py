"""Fan-out: a pub/sub connection per primary, a channel per followed session, a queue per follower.

Pub/sub is a hint with the event inside; the log and the session are the truth.
The script that changes a session publishes the change, so the channel's order
is the log's order. What makes the hint safe:

1. *Attach*: the subscription is confirmed **before** the session, its running
   text and the first page of the log are read, in one script. What comes while
   a page is read is kept, and tested against the page (``subscription.py``).
2. *Every live event is tested*: an entry of the log names the cursor before it,
   a live-only fact the session's ``rev``, a delta its offset. Whoever misses one
   reads from its cursor.
3. *Positions are compared*, of all followed sessions in one batch: every 20 to
   40 s, and at once after a re-subscription. So a lost publish that nothing
   follows is found too. A running text has no position: it is read then.
4. *The end is looked for*: within a second after a session's deadline its
   position is read, whether the keeper published anything or not.

A follower reads its replay itself, as it drains; the channels and the one task
that compares positions are in ``tails.py``.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import structlog

from sessions_api.domain.access import Grant
from sessions_api.domain.agents import AgentState
from sessions_api.domain.ids import AgentId, SessionId
from sessions_api.errors import Draining, TooManyFollowers
from sessions_api.live.closing import UNAUTHENTICATED
from sessions_api.live.subscription import Subscription
from sessions_api.live.tails import CHECK_S, LINGER_S, Tails
from sessions_api.live.waiting import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sessions_api.store import Store
    from sessions_api.store.fleet import Shards
    from sessions_api.store.pubsub import Subscriber

MAX_FOLLOWERS: Final = 10_000
MAX_FOLLOWERS_PER_SESSION: Final = 100
SUBSCRIBE_TIMEOUT_S: Final = 2.5
RECONNECT_MS: Final = 5_000

log = structlog.get_logger(__name__)


class Hub:
    """All live connections of this process.

    *state_of* tells an agent's state as this process knows it, without asking
    anybody; None: it knows of no such agent, and followers are told nothing.

    1. :meth:`start` before the first follower; it does not need Redis to be there.
    2. :meth:`drain` tells everybody to go elsewhere, and waits for them.
    3. :meth:`stop` ends what is left; no task and no connection remains.
    """

    def __init__(
        self,
        store: Store,
        *,
        state_of: Callable[[AgentId], AgentState | None] = lambda _agent_id: None,
        max_followers: int = MAX_FOLLOWERS,
        max_followers_per_session: int = MAX_FOLLOWERS_PER_SESSION,
        check_s: tuple[float, float] = CHECK_S,
        linger_s: float = LINGER_S,
    ) -> None:
        self._tails = Tails(store, state_of=state_of, check_s=check_s, linger_s=linger_s)
        self._max_followers = max_followers
        self._max_per_session = max_followers_per_session
        self._is_draining = False

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        await self._tails.start()

    async def drain(self, within_ms: int) -> None:
        """Send everybody away, jittered; return when they are gone, or after *within_ms*.

        Streams are told at once; a waiting poster's turn may still end within a
        quarter of the time, then it hears ``DRAINING``. Nobody new is let in.
        """
        self._is_draining = True
        log.info("hub_draining", followers=self._tails.followers, sessions=len(self._tails))
        for listener in self._tails.listeners():
            if listener.is_follower:
                listener.drain(int(random.uniform(0.02, 1) * min(RECONNECT_MS, max(within_ms, 100))))  # noqa: S311  jitter
        if not await self._tails.are_left(within_ms / 4):
            for listener in self._tails.listeners():
                listener.drain(0)
            await self._tails.are_left(within_ms * 3 / 4)

    async def stop(self) -> None:
        self._is_draining = True
        await self._tails.stop()

    @property
    def followers(self) -> int:
        return self._tails.followers

    @property
    def subscriber(self) -> Subscriber | Shards:
        """The pub/sub connection, or one to each primary: up or not, and its statistics."""
        return self._tails.subscriber

    def agent_changed(self, agent_id: AgentId, state: AgentState) -> None:
        """An agent came, went or became busy: its sessions' followers are told."""
        self._tails.agent_changed(agent_id, state)

    # ------------------------------------------------------------ listeners

    def keys_changed(self, known: Iterable[str]) -> None:
        """Cut off those who came by a key, theirs or their token's, that is none of the *known* any more."""
        for listener in self._tails.listeners():
            if (
                isinstance(listener, Subscription)
                and (key_id := listener.proof.key_id)
                and key_id not in known
            ):
                listener.finish(UNAUTHENTICATED)

    async def follow(
        self, session_id: SessionId, *, grant: Grant, after: int | None, key_id: str = ""
    ) -> Subscription:
        """A follower of the session from *after* on; None: from now. The first page is read already.

        *key_id*: of the key that the grant is by, if it is by one (``Caller.key_id``).

        Raises:
            SessionNotFound: no such session, or not the grant's. (An expired one is followed to its end.)
            TooManyFollowers: the session or this process has as many as it may.
            Draining: this replica shuts down.
            StorageUnavailable: Redis cannot be asked now.
        """
        await self._tails.store.log.check_opens(session_id, grant)
        if self._is_draining:
            raise Draining
        if self._tails.followers >= self._max_followers:
            raise TooManyFollowers(self._max_followers)
        tail = self._tails.find(session_id)
        if sum(listener.is_follower for listener in tail.listeners) >= self._max_per_session:
            raise TooManyFollowers(self._max_per_session)
        subscription = Subscription(self._tails, tail, grant=grant, after=after, key_id=key_id)
        self._tails.join(tail, subscription)
        try:
            await self._tails.subscribed(tail, SUBSCRIBE_TIMEOUT_S)
            await subscription.attach()
        except BaseException:
            subscription.close()
            raise
        return subscription

    def watch(self, session_id: SessionId) -> Watch:
        """What a waiting poster enters (``async with``) before it appends its message.

        Raises:
            Draining: nothing was appended yet, another replica takes the whole request.
        """
        if self._is_draining:
            raise Draining
        return Watch(self._tails, session_id)

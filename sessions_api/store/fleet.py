"""Subscribers at the primaries of a cluster, for what each tells its own subscribers alone.

Keyspace notifications are every server's own: :class:`Everywhere` has a
subscriber at each primary. What happens to a session is told by *sharded*
pub/sub: :class:`Shards` subscribes its channel at the primary that serves its
slot, and there alone, so nothing comes twice and nothing crosses the cluster's bus.

Nobody has to agree on that. A script runs at the primary of its session's slot
and publishes as that server can: SPUBLISH, or PUBLISH on one older than Redis 7.
Whoever follows asks the same server for SSUBSCRIBE, and for SUBSCRIBE if it has
none. So servers may be upgraded one by one: each connection asks anew.

Where a slot moves, so do its channels: when the map says so, when the server
ends a subscription by itself, and when it answers MOVED. What was published in
between is lost, and whoever listens to one of *these* channels is told so.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TYPE_CHECKING

import structlog

from sessions_api.store.cluster import Cluster, Node
from sessions_api.store.lines import Stats
from sessions_api.store.pubsub import PROBE_S, Feed, Subscriber
from sessions_api.store.slots import redirection, slot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from sessions_api.store.connection import Redis
    from sessions_api.store.lines import ServerError
    from sessions_api.store.pubsub import Name
    from sessions_api.store.topology import Link

log = structlog.get_logger(__name__)

SHARDED = b"SSUBSCRIBE"
CLASSIC = b"SUBSCRIBE"


def live_subscriber(
    redis: Redis,
    *,
    on_message: Callable[[bytes, bytes], None],
    on_resubscribed: Callable[[Sequence[bytes] | None], None],
    key_prefix: bytes,
) -> Subscriber | Shards:
    """Who hears the channels of sessions; *on_resubscribed* gets those that missed something, None: all."""
    if isinstance(redis.topology, Cluster):
        return Shards(redis, redis.topology, on_message=on_message, on_resubscribed=on_resubscribed)
    return Subscriber(
        redis, on_message=on_message, on_resubscribed=lambda: on_resubscribed(None), key_prefix=key_prefix
    )


class _Goodbyes:
    """Subscribers that are being closed; none is left behind."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, stopping: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(stopping, name="subscriber stops")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def done(self) -> None:
        await asyncio.gather(*self._tasks)


class Everywhere:
    """*channel*, subscribed classically at every primary there is, also at those that come.

    *on_subscribed* is called with each primary at which a subscription begins,
    and begins again; *on_message* as a :class:`Subscriber`'s.
    """

    def __init__(
        self,
        redis: Redis,
        channel: bytes,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_subscribed: Callable[[Link], None],
        key_prefix: bytes = b"sa:",
        probe_s: float = PROBE_S,
    ) -> None:
        self.stats = Stats()
        self._redis = redis
        self._channel = channel
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._key_prefix = key_prefix
        self._probe_s = probe_s
        self._subscribers: dict[Link, Subscriber] = {}
        self._goodbyes = _Goodbyes()

    @property
    def is_up(self) -> bool:
        """Every primary that we know of is listened to."""
        return bool(self._subscribers) and all(each.is_up for each in self._subscribers.values())

    async def start(self) -> None:
        self._unwatch = self._redis.topology.watch(self._follow)
        self._follow()
        await asyncio.gather(*(each.tried() for each in self._subscribers.values()))

    async def stop(self) -> None:
        self._unwatch()
        subscribers, self._subscribers = self._subscribers, {}
        await asyncio.gather(*(each.stop() for each in subscribers.values()))
        await self._goodbyes.done()

    def _follow(self) -> None:
        """Be at every primary of now, and nowhere else."""
        now = dict.fromkeys(self._redis.topology.primaries)
        for link in [link for link in self._subscribers if link not in now]:
            self._goodbyes.add(self._subscribers.pop(link).stop())
        for link in now:
            if link not in self._subscribers:
                subscriber = self._subscribers[link] = self._at(link)
                subscriber.adopt(self._channel)
                subscriber.begin()

    def _at(self, link: Link) -> Subscriber:
        return Subscriber(
            self._redis,
            on_message=self._on_message,
            on_resubscribed=lambda: self._on_subscribed(link),
            key_prefix=self._key_prefix,
            probe_s=self._probe_s,
            at=link.address if isinstance(link, Node) else None,
            server=link.server,
            stats=self.stats,
        )


class Shards:
    """Keeps channels subscribed, each at the primary that serves its slot; used as a :class:`Subscriber`.

    *on_resubscribed* gets the channels of which something may have been missed.
    """

    def __init__(
        self,
        redis: Redis,
        cluster: Cluster,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_resubscribed: Callable[[Sequence[bytes]], None],
        probe_s: float = PROBE_S,
    ) -> None:
        self.stats = Stats()
        self.redis = redis
        self.cluster = cluster
        self.on_resubscribed = on_resubscribed
        self.probe_s = probe_s
        self._on_message = on_message
        self._shards: dict[Link, Shard] = {}
        self._places: dict[bytes, Shard] = {}
        self._goodbyes = _Goodbyes()
        self._is_started = False

    @property
    def is_up(self) -> bool:
        """Some primary is listened to, and all that is wanted of any is confirmed."""
        return self.cluster.is_up and all(
            shard.is_up or not shard.channels for shard in self._shards.values()
        )

    async def start(self) -> None:
        self._is_started = True
        self._unwatch = self.cluster.watch(self._follow)
        for link, shard in self._shards.items():
            if isinstance(link, Node):
                shard.begin()
        self._follow()
        await asyncio.gather(
            *(shard.tried() for link, shard in self._shards.items() if isinstance(link, Node))
        )

    async def stop(self) -> None:
        if not self._is_started:
            return
        self._is_started = False
        self._unwatch()
        shards, self._shards, self._places = self._shards, {}, {}
        await asyncio.gather(*(shard.stop() for shard in shards.values()))
        await self._goodbyes.done()

    async def subscribe(self, channel: bytes) -> None:
        """Return when the server has confirmed: what is published from then on arrives.

        Bound it with ``asyncio.timeout``. The channel stays wanted, and goes with
        its slot, until :meth:`unsubscribe`.
        """
        shard = self._places.get(channel)
        if shard is None:
            shard = self._places[channel] = self._shard(self.cluster.serving(slot_of(channel)))
        await shard.subscribe(channel)

    def unsubscribe(self, channel: bytes) -> None:
        """Stop wanting *channel*; messages already on their way may still arrive."""
        shard = self._places.pop(channel, None)
        if shard is not None:
            shard.unsubscribe(channel)

    def _shard(self, link: Link) -> Shard:
        """The shard at *link*; that of slots which nobody serves only remembers what is wanted."""
        shard = self._shards.get(link)
        if shard is None:
            shard = self._shards[link] = Shard(self, link)
            if self._is_started and isinstance(link, Node):
                shard.begin()
        return shard

    def _follow(self) -> None:
        """Be at every primary of now, and have each channel where its slot is served."""
        primaries: tuple[Link, ...] = self.cluster.primaries
        for primary in primaries:
            self._shard(primary)
        for channel, shard in self._places.items():
            serving = self.cluster.serving(slot_of(channel))
            if serving is not shard.link:
                place = self._places[channel] = self._shard(serving)
                place.adopt(channel, shard.give_up(channel))
        for link in [
            link for link, shard in self._shards.items() if not shard.channels and link not in primaries
        ]:
            self._goodbyes.add(self._shards.pop(link).stop())

    def heard(self, shard: Shard, channel: bytes, payload: bytes) -> None:
        if self._places.get(channel) is shard:  # else it has moved, and is heard elsewhere
            self._on_message(channel, payload)


class Shard(Subscriber):
    """The channels at one primary."""

    def __init__(self, shards: Shards, link: Link) -> None:
        super().__init__(
            shards.redis,
            on_message=lambda channel, payload: shards.heard(self, channel, payload),
            on_resubscribed=lambda: None,
            probe_s=shards.probe_s,
            at=link.address if isinstance(link, Node) else shards.redis.address,
            server=link.server,
            stats=shards.stats,
        )
        self.link = link
        self._shards = shards
        self._verb = SHARDED
        self._leaving: Counter[bytes] = Counter()  # asked to leave, and not confirmed

    @property
    def channels(self) -> int:
        return len(self._wanted)

    def unsubscribe(self, channel: bytes) -> None:
        if (self._verb, channel) in self._wanted and self._lifeline.line is not None:
            self._leaving[channel] += 1
        super().unsubscribe(channel)

    def give_up(self, channel: bytes) -> list[asyncio.Future[None]]:
        """Leave *channel* to another; who waits for its confirmation goes there, too."""
        requests = self._asked.pop((self._verb, channel), ())
        self.unsubscribe(channel)
        return [future for futures in requests for future in futures]

    def _came_up(self, line: Feed) -> None:
        self._leaving.clear()
        waiting = self._call(SHARDED)  # it may be a newer server than the last time
        self._asked = {name: deque([futures]) for name, futures in waiting.items()}
        super()._came_up(line)

    def _resubscribed(self, channels: list[bytes]) -> None:
        if channels:
            self._shards.on_resubscribed(channels)

    def _refused(self, line: Feed, error: ServerError) -> None:
        if error.word == "MOVED" and isinstance(self.link, Node):
            moved = redirection(str(error), asked=self.link.host)
            if moved is not None:
                slot, host = moved
                for channel in [channel for channel in self._leaving if slot_of(channel) == slot]:
                    del self._leaving[channel]
                self._shards.cluster.follow(slot, host)
                return
        said = str(error).lower()
        if "ssubscribe" in said and ("unknown command" in said or error.word == "NOPERM"):
            if self._verb == SHARDED:
                waiting = self._call(CLASSIC)
                for name, futures in waiting.items():
                    self._ask(line, name, futures)
            return
        super()._refused(line, error)

    def _call(self, verb: bytes) -> dict[Name, list[asyncio.Future[None]]]:
        """Ask with *verb* from now on; what was asked for, by its new name, with who waits for it."""
        self._verb = verb
        self._wanted = {(verb, channel): None for _, channel in self._wanted}
        self._returning = {(verb, channel) for _, channel in self._returning}
        asked, self._asked = self._asked, {}
        flat: dict[Name, list[asyncio.Future[None]]] = {}
        for (_, channel), requests in asked.items():
            flat.setdefault((verb, channel), []).extend(future for futures in requests for future in futures)
        return flat

    def _left(self, channel: bytes) -> None:
        """Not by our asking: its slot has moved. Who asks again is told where to."""
        if self._leaving[channel] > 0:
            self._leaving[channel] -= 1
            if not self._leaving[channel]:
                del self._leaving[channel]
        elif (self._verb, channel) in self._wanted:
            self._returning.add((self._verb, channel))
            self._ask(self._lifeline.line, (self._verb, channel), [])

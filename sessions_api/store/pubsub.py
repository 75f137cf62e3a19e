"""The subscriber connection: told of everything that other replicas publish.

Pub/sub has no memory: whatever was published while the connection was down is
gone, without a trace but the second confirmation of a subscription. So a
:class:`Subscriber` says when it subscribed anew (*on_resubscribed*: read the
state again), and it makes sure to notice: a hung server, or a primary that was
demoted, leaves a subscriber deaf with no error at all (12 s in one experiment,
and still deaf afterwards). It therefore publishes to a channel of its own
through the command connection, and takes a silence of several probes for death.

In a cluster what is published classically arrives at every server, so one
connection to any of them hears it. What is told by each server to its own
subscribers alone needs a connection to each (``fleet.py``); such a subscriber is
made with *at* and probes by PING, since it is the map that tells of a demotion.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

import hiredis
import structlog

from sessions_api.errors import StorageUnavailable
from sessions_api.store.lifeline import Lifeline
from sessions_api.store.lines import INCOMPLETE, ServerError, Stats, Wire, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sessions_api.store.connection import Redis
    from sessions_api.store.topology import Door

PROBE_S: Final = 1.0
SILENT_PROBES: Final = 3

log = structlog.get_logger(__name__)
Name = tuple[bytes, bytes]  # SUBSCRIBE, PSUBSCRIBE or SSUBSCRIBE, and the channel or pattern


class Feed(Wire):
    """A line in subscriber mode: it is told, and never answers a question."""

    def __init__(self, stats: Stats, on_reply: Callable[[Feed, object], None]) -> None:
        super().__init__(stats)
        self.was_heard = True
        self._on_reply = on_reply

    def data_received(self, data: bytes) -> None:
        self.was_heard = True
        gets = self.reader.gets
        try:
            self.reader.feed(data)
            while (reply := gets()) is not INCOMPLETE and not self.reason:
                self._on_reply(self, reply)
        except hiredis.ProtocolError as error:
            self.drop(f"not the Redis protocol: {error}")

    def ask(self, *command: bytes) -> None:
        """Queue a (un)subscription; everything asked for in one tick leaves in one write."""
        self.write(pack(command))


class Subscriber:
    """Keeps channels and patterns subscribed through reconnects.

    *on_message* gets channel and payload, called synchronously as the bytes
    arrive and in their order; it must be quick. *on_resubscribed* is called
    when, after a loss, the last of all subscriptions is confirmed again: what
    was published in between is lost, what is published from now on is not.
    An error in either is logged and goes no further.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_resubscribed: Callable[[], None],
        key_prefix: bytes = b"sa:",
        probe_s: float = PROBE_S,
        at: Door | None = None,
        server: str = "",
        stats: Stats | None = None,
    ) -> None:
        self.stats = stats or Stats()
        self._redis = redis
        self._door = at or redis.address
        self._on_message = on_message
        self._on_resubscribed = on_resubscribed
        self._probe_s = probe_s
        self._probe = b"%sprobe:%s" % (key_prefix, secrets.token_hex(8).encode())
        self._silent_probes = 0
        self._timer: asyncio.TimerHandle | None = None
        # What should be subscribed. A dict for its order: confirmations come in it.
        self._wanted: dict[Name, None] = {} if at else {(b"SUBSCRIBE", self._probe): None}
        self._verb = b"SUBSCRIBE"
        self._pings = at is not None
        # Per name, one entry for each request on this line that has no confirmation yet: a channel
        # left and joined again within a round trip must not take the first confirmation for the second.
        self._asked: dict[Name, deque[list[asyncio.Future[None]]]] = {}
        self._was_up = False
        self._returning: set[Name] = set()  # to be confirmed again before on_resubscribed
        self._returned: list[bytes] = []  # were
        self._lifeline = Lifeline(
            self._connect, name="subscriber", stats=self.stats, on_up=self._came_up, server=server
        )

    @property
    def is_up(self) -> bool:
        """There is a connection, and everything on it is confirmed."""
        return self._lifeline.line is not None and not self._asked

    async def start(self) -> None:
        """Begin to connect; returns after the first try, whether Redis is there or not."""
        self.begin()
        await self.tried()

    def begin(self) -> None:
        """Begin to connect, and wait for nothing."""
        self._lifeline.begin()
        self._timer = asyncio.get_running_loop().call_later(self._probe_s, self._look)

    async def tried(self) -> None:
        """Return when the first try to connect has ended."""
        await self._lifeline.tried()

    async def stop(self) -> None:
        """Close the connection; whoever waits for a confirmation gets StorageUnavailable."""
        if self._timer is not None:
            self._timer.cancel()
        await self._lifeline.stop()
        asked, self._asked = self._asked, {}
        for futures in (futures for requests in asked.values() for futures in requests):
            for future in futures:
                if not future.done():
                    future.set_exception(StorageUnavailable("stopped"))

    async def subscribe(self, channel: bytes) -> None:
        """Return when the server has confirmed: what is published from then on arrives.

        While Redis is away this waits; bound it with ``asyncio.timeout``. The
        channel stays wanted, whatever becomes of the wait, until :meth:`unsubscribe`.
        """
        await self._join((self._verb, channel))

    async def psubscribe(self, pattern: bytes) -> None:
        """As :meth:`subscribe`, for every channel that matches *pattern*."""
        await self._join((b"PSUBSCRIBE", pattern))

    def unsubscribe(self, channel: bytes) -> None:
        """Stop wanting *channel*; messages already on their way may still arrive."""
        name = (self._verb, channel)
        if name not in self._wanted:
            return
        del self._wanted[name]
        if name in self._returning:
            self._has_returned(name, is_heard=False)
        line = self._lifeline.line
        if line is not None:
            line.ask(self._verb.replace(b"SUB", b"UNSUB"), channel)

    def adopt(self, channel: bytes, waiting: Iterable[asyncio.Future[None]] = ()) -> None:
        """Want *channel*, whose messages up to now were missed: its confirmation is one that is told.

        *waiting*: those who wait for that.
        """
        name = (self._verb, channel)
        self._wanted[name] = None
        self._returning.add(name)
        self._ask(self._lifeline.line, name, list(waiting))

    async def _join(self, name: Name) -> None:
        requests = self._asked.get(name)
        if name in self._wanted and requests is None and self._lifeline.line is not None:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if name in self._wanted and requests is not None:
            requests[-1].append(future)
        else:
            self._wanted[name] = None
            self._ask(self._lifeline.line, name, [future])
        await future

    def _ask(self, line: Feed | None, name: Name, futures: list[asyncio.Future[None]]) -> None:
        self._asked.setdefault(name, deque()).append(futures)
        if line is not None:
            line.ask(*name)

    async def _connect(self) -> Feed:
        feed = Feed(self.stats, self._on_reply)
        await self._door.connect(feed)
        return feed

    def _came_up(self, line: Feed) -> None:
        waiting, self._asked = self._asked, {}
        for name in self._wanted:
            futures = [future for request in waiting.pop(name, ()) for future in request]
            self._ask(line, name, futures)
        for requests in waiting.values():  # unwanted since: nobody will ever confirm those
            for future in (future for futures in requests for future in futures):
                if not future.done():
                    future.set_result(None)
        if self._was_up:
            self._returning = set(self._wanted)
        self._was_up = True
        self._silent_probes = 0

    def _on_reply(self, line: Feed, reply: object) -> None:
        match reply:
            case [b"message" | b"smessage", bytes(channel), bytes(payload)] if channel != self._probe:
                self._tell(channel, payload)
            case [b"pmessage", bytes(), bytes(channel), bytes(payload)]:
                self._tell(channel, payload)
            case [b"subscribe" | b"psubscribe" | b"ssubscribe" as kind, bytes(channel), int()]:
                self._confirmed((kind.upper(), channel))
            case [b"sunsubscribe", bytes(channel), int()]:
                self._left(channel)
            case [b"message" | b"unsubscribe" | b"punsubscribe" | b"pong", *_] | b"PONG":
                pass
            case ServerError():
                self._refused(line, reply)
            case _:
                line.stats.dirty += 1
                line.drop("bytes came that nothing had asked for")

    def _refused(self, line: Feed, error: ServerError) -> None:
        line.drop(f"refused: {error}")

    def _left(self, channel: bytes) -> None:
        """The server confirms that we left *channel*, or says that it is not served there any more."""

    def _tell(self, channel: bytes, payload: bytes) -> None:
        try:
            self._on_message(channel, payload)
        except Exception:  # the other messages, and the other followers, must not suffer
            log.exception("subscriber_callback_failed", channel=channel.decode(errors="replace"))

    def _confirmed(self, name: Name) -> None:
        requests = self._asked.get(name)
        if requests is None:
            return
        for future in requests.popleft():
            if not future.done():
                future.set_result(None)
        if not requests:
            del self._asked[name]
        if name in self._returning:
            self._has_returned(name)

    def _has_returned(self, name: Name, *, is_heard: bool = True) -> None:
        self._returning.discard(name)
        if is_heard:
            self._returned.append(name[1])
        if not self._returning:
            returned, self._returned = self._returned, []
            try:
                self._resubscribed(returned)
            except Exception:  # as above
                log.exception("subscriber_callback_failed")

    def _resubscribed(self, channels: list[bytes]) -> None:  # noqa: ARG002  here it is all of them
        self._on_resubscribed()

    def _look(self) -> None:
        """Publish the next probe; counted in looks, so that a loop which stood still proves nothing."""
        line = self._lifeline.line
        if line is not None:
            self._silent_probes = 0 if line.was_heard else self._silent_probes + 1
            line.was_heard = False
            if self._silent_probes >= SILENT_PROBES:
                self.stats.timeouts += 1
                line.drop("silent through several probes")
            elif self._pings:
                line.ask(b"PING")
            else:
                self._redis.post(b"PUBLISH", self._probe, b"")
        self._timer = asyncio.get_running_loop().call_later(self._probe_s, self._look)

"""A Redis Cluster: a link to each primary, and the map that says which serves a slot.

All keys of a transition lie in one slot, so a call is one server's, as on a single
Redis; what a cluster adds is that the server changes.

- *The map* is what any server says that knows who serves every slot, else whoever
  knows most. One that knows of nobody (reset, or it lost its ``nodes.conf``) is no
  witness. It is read at the start, after a lost line, after a ``MOVED``, while a
  slot is served by nobody or its server is away, and every ten seconds; never twice
  at a time, never more often than ``GAP_S``.
- *MOVED* is followed at once: the slot is noted, and the call goes on. *ASK* is
  followed for this one call, on a line of its server, ``ASKING`` before it in the
  same write. Both may name a server that the map does not have yet.
- *TRYAGAIN* is what a script on a slot in classic migration gets on both sides,
  since not all of its keys are on either: it waits, up to the deadline. Servers
  that migrate a slot atomically (Valkey 9, Redis 8.4) never say it.
- *A server that is away* hurts nobody else's calls: line, circuit and bound of
  waiting commands are each server's own. Its own calls wait for it or for the one
  that takes over; its circuit opens only when a call that began with the outage
  would have met its deadline. So it is with slots that nobody serves.

*Up* means that some primary can be reached: were it all of them, one lost shard
would have every replica of the service taken out of balance, and with it the
sessions of all others. The circuit counts as *open* while that of any primary is.

A server that serves no slot any more keeps its line for a while (a map may be
older than the one before, and a commands' reply under way), then it is closed.
Hosts are taken as the cluster announces them (``slots.py``); its URL is read in ``seeds.py``.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from sessions_api.errors import StorageUnavailable
from sessions_api.store.lifeline import OPEN_AFTER, Lifeline
from sessions_api.store.lines import Line, LineLost, ServerError, Stats
from sessions_api.store.slots import SLOTS, Range, covered, ranges, redirection, slot_of_command
from sessions_api.store.topology import Link, open_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sessions_api.store.address import Address, Host
    from sessions_api.store.lines import Arg
    from sessions_api.store.seeds import ClusterAddress
    from sessions_api.store.topology import MakeLine

    Ask = Callable[[], Awaitable[Any]]

REFRESH_S: Final = 10.0
GAP_S: Final = 0.1
LATEST_S: Final = 1.0
LINGER_S: Final = 15.0

log = structlog.get_logger(__name__)


class Node(Lifeline[Line]):
    """One server of the cluster, and the line to it."""

    def __init__(self, cluster: Cluster, host: Host, address: Address) -> None:
        super().__init__(
            lambda: open_line(
                address,
                cluster.stats,
                reply_timeout_s=cluster.reply_timeout_s,
                make_line=cluster.make_line,
            ),
            name=cluster.name,
            stats=cluster.stats,
            on_news=cluster.note,
            server=str(host),
            patience_s=cluster.patience_s,
        )
        self.host = host
        self.address = address
        self.until_s = 0.0  # a server without slots is left then


class Cluster:
    """Every primary of one Redis Cluster."""

    is_cluster = True

    def __init__(
        self,
        address: ClusterAddress,
        *,
        stats: Stats,
        reply_timeout_s: float,
        patience_s: float,
        linger_s: float = LINGER_S,
        make_line: MakeLine = Line,
        name: str = "commands",
    ) -> None:
        self.make_line = make_line
        self.name = name
        self.stats = stats
        self.reply_timeout_s = reply_timeout_s
        self.patience_s = patience_s
        self._address = address
        self._linger_s = linger_s
        self._watching: dict[object, Callable[[], None]] = {}
        self._nodes: dict[Host, Node] = {}
        # Whose slots nobody serves, as far as we know.
        self._nobody: Link = Lifeline(self._connect_nowhere, name=name, stats=stats)
        self._slots: list[Link] = [self._nobody] * SLOTS
        self._primaries: tuple[Node, ...] = ()
        self._moved_to: Node | None = None
        self._unserved_since_s: float | None = None  # some slots are nobody's
        self._failures = 0  # of reading the map, in a row
        self._asked_all_s = float("-inf")
        self._leaving: set[asyncio.Task[None]] = set()
        self._keeping: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()  # set, and another one put here, whenever a call that waits may go on
        self._stale = asyncio.Event()
        self._tried = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep(), name="cluster map")
        await self._tried.wait()
        await asyncio.gather(*(node.tried() for node in self._nodes.values()))

    async def stop(self) -> None:
        keeping, self._keeping = self._keeping, None
        if keeping is None:
            return
        self._stale.set()
        keeping.cancel()
        await asyncio.wait([keeping])
        nodes, self._nodes = self._nodes, {}
        await asyncio.gather(*(node.stop() for node in nodes.values()), *self._leaving)
        self._slots = [self._nobody] * SLOTS
        self._primaries = ()
        self._nobody.reason = "stopped"
        self._pulse()

    # ------------------------------------------------------------ where a command goes

    @property
    def is_up(self) -> bool:
        return any(node.line is not None for node in self._primaries)

    @property
    def is_open_circuit(self) -> bool:
        return (
            self._is_blind
            or self._nobody.is_open_circuit
            or any(node.is_open_circuit for node in self._primaries)
        )

    @property
    def _is_blind(self) -> bool:
        """Nobody tells us who serves what, and never did."""
        return not self._primaries and self._failures >= OPEN_AFTER

    @property
    def reason(self) -> str:
        return next((f"{node.server}: {node.reason}" for node in self._primaries), self._nobody.reason)

    @property
    def primaries(self) -> tuple[Node, ...]:
        return self._primaries

    def serving(self, slot: int) -> Link:
        """Who serves *slot*."""
        return self._slots[slot]

    def link(self, command: tuple[Arg, ...]) -> Link:
        slot = slot_of_command(command)
        if slot is not None:
            return self._slots[slot]
        # Always the same while it is there: a SCAN's cursor is its server's own.
        some = (node for node in self._primaries if node.line is not None)
        return next(some, None) or next(iter(self._primaries), self._nobody)

    async def wait(self, command: tuple[Arg, ...]) -> Link:
        while True:
            news = self._news
            link = self.link(command)
            if link.line is not None:
                return link
            if link.is_open_circuit or self._is_blind or self._keeping is None:
                raise StorageUnavailable(f"{link.server}: {link.reason}" if link.server else link.reason)
            await news.wait()

    def heed(self, error: ServerError, link: Link) -> Link | None:
        asked = link.host if isinstance(link, Node) else self._address.seeds[0]
        named = redirection(str(error), asked=asked)
        if error.word == "ASK" and named is not None:
            return self._node(named[1])
        if error.word == "MOVED" and named is not None:
            self.follow(*named)
        elif error.word != "TRYAGAIN":
            self._stale.set()
        return None

    def follow(self, slot: int, host: Host) -> None:
        """A server says that *slot* is at *host* now; the map will tell of other slots."""
        if self._keeping is None:
            return
        node = self._node(host)
        self._moved_to = node
        self._stale.set()
        if self._slots[slot] is not node:
            self._slots[slot] = node
            self._pulse()
            self._tell()

    def note(self) -> None:
        """A server's line came up or was lost, or its circuit opened."""
        if not all(node.line is not None for node in self._primaries):
            self._stale.set()
        self._pulse()

    def refresh(self) -> None:
        """Read the map soon."""
        self._stale.set()

    def watch(self, on_moved: Callable[[], None]) -> Callable[[], None]:
        key = object()
        self._watching[key] = on_moved
        return lambda: self._watching.pop(key, None) and None

    def _tell(self) -> None:
        for on_moved in tuple(self._watching.values()):
            on_moved()

    def _pulse(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _node(self, host: Host) -> Node:
        node = self._nodes.get(host)
        if node is None:
            node = self._nodes[host] = Node(self, host, self._address.of(host))
            node.begin()
        node.until_s = self._loop.time() + self._linger_s
        return node

    @staticmethod
    async def _connect_nowhere() -> Line:
        raise StorageUnavailable("nobody serves the slot")

    # ------------------------------------------------------------ the map

    async def _keep(self) -> None:
        pause_s = GAP_S
        while self._keeping is not None:
            self._stale.clear()
            try:
                await self._refresh()
            except Exception as error:  # noqa: BLE001  whatever it is, the process must find its way again
                self._failures += 1
                self._nobody.reason = error.reason if isinstance(error, StorageUnavailable) else repr(error)
                if self._failures == OPEN_AFTER:
                    log.error("redis_cluster_unknown", reason=self._nobody.reason)  # noqa: TRY400  a reason is enough
                self._pulse()
            self._tried.set()
            if self._is_whole:
                pause_s = GAP_S
                await asyncio.sleep(GAP_S)
                try:
                    async with asyncio.timeout(REFRESH_S * random.uniform(0.8, 1.2)):  # noqa: S311  jitter
                        await self._stale.wait()
                except TimeoutError:
                    pass
            else:
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
                pause_s = min(pause_s * 1.5, LATEST_S)

    @property
    def _is_whole(self) -> bool:
        """As far as we know somebody serves every slot, and can be reached."""
        return (
            self._failures == 0
            and all(node.line is not None for node in self._primaries)
            and self._nobody not in self._slots
        )

    async def _refresh(self) -> None:
        self._apply(await self._read())
        self._failures = 0

    async def _read(self) -> list[Range]:
        """The map: of the first that has all of it, else of who has most.

        Where those on a line know a part, the others are asked each ``REFRESH_S`` only: they may be away.

        Raises:
            StorageUnavailable: nobody knows of anybody.
        """
        reason = ""
        best: list[Range] = []
        told: set[Host] = set()
        for whom in (self._on_a_line(), self._elsewhere(told)):
            if best and self._loop.time() < self._asked_all_s + REFRESH_S:
                break
            for host, ask in whom:
                try:
                    found = list(ranges(await ask(), asked=host))
                except (StorageUnavailable, LineLost, ServerError) as error:
                    reason = f"{host}: {error.reason if isinstance(error, StorageUnavailable) else error}"
                    continue
                if covered(found) == SLOTS:
                    return found
                if not found:
                    reason = f"{host}: it knows of no server that serves a slot"
                told.add(host)
                best = max(best, found, key=covered)
        if not best:
            raise StorageUnavailable(reason)
        return best

    def _on_a_line(self) -> Iterator[tuple[Host, Ask]]:
        """First one that others say serves a new slot, then any."""
        up = [node for node in self._primaries if node.line is not None]
        moved_to, self._moved_to = self._moved_to, None
        first = [moved_to] if moved_to is not None else []
        for node in dict.fromkeys((*first, *random.sample(up, len(up)))):
            if type(node.line) is Line:  # another kind holds its replies back (``replicated.py``)
                yield node.host, partial(node.line.send, (b"CLUSTER", b"SLOTS"))

    def _elsewhere(self, told: set[Host]) -> Iterator[tuple[Host, Ask]]:
        """All but those that have *told* already."""
        self._asked_all_s = self._loop.time()
        for host in self._address.anywhere():
            if host not in told:
                yield host, partial(self._ask_at, host)

    async def _ask_at(self, host: Host) -> Any:
        line = await open_line(self._address.of(host), Stats(), reply_timeout_s=self.reply_timeout_s)
        try:
            return await line.send((b"CLUSTER", b"SLOTS"))
        finally:
            await line.close()

    def _apply(self, found: list[Range]) -> None:
        """Take over what was read."""
        if self._keeping is None:
            return
        slots: list[Link] = [self._nobody] * SLOTS
        primaries: dict[Node, None] = {}
        for first, last, host in found:
            node = self._node(host)
            primaries[node] = None
            slots[first : last + 1] = [node] * (last + 1 - first)
        self._nobody.reason = "nobody serves the slot"
        self._note_unserved(SLOTS - covered(found))
        self._address.known = tuple(node.host for node in primaries)
        changed = set(primaries) != set(self._primaries)
        if changed:
            log.info("redis_cluster_changed", primaries=sorted(node.server for node in primaries))
        if changed or slots != self._slots:
            self._slots, self._primaries = slots, tuple(primaries)
            self._pulse()
            self._tell()
        now_s = self._loop.time()
        for node in [node for node in self._nodes.values() if node.until_s < now_s]:
            del self._nodes[node.host]
            leaving = asyncio.create_task(self._leave(node), name=f"leave {node.server}")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    def _note_unserved(self, count: int) -> None:
        """Callers wait for somebody to take over, as long as for a server that is away; then no more."""
        now_s = self._loop.time()
        if not count:
            self._unserved_since_s = None
            self._nobody.is_open_circuit = False
            return
        since_s = self._unserved_since_s = self._unserved_since_s or now_s
        if now_s - since_s >= self.patience_s and not self._nobody.is_open_circuit:
            self._nobody.is_open_circuit = True
            log.error("redis_slots_unserved", count=count)
            self._pulse()

    async def _leave(self, node: Node) -> None:
        log.info("redis_server_left", server=node.server)
        await node.stop()

"""Which server a command goes to: the seam between one Redis server and many.

:class:`~sessions_api.store.connection.Redis` has the deadline, the repeats and
the translation of errors; where its commands go is the topology's. A server is
a *link*: the lifeline that keeps a line to it. :class:`Single` has one, which
may lead to another machine after a failover; ``cluster.py`` has one per primary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from sessions_api.errors import StorageUnavailable
from sessions_api.store.lifeline import Lifeline
from sessions_api.store.lines import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sessions_api.store.lines import Arg, ServerError, Stats, Wire

Link: TypeAlias = Lifeline[Line]


class MakeLine(Protocol):
    """A line of commands that is not open yet: :class:`Line`, or one that does more with them."""

    def __call__(self, stats: Stats, *, reply_timeout_s: float) -> Line: ...


class Door(Protocol):
    """Where a server is, and who we are to it (``address.py``)."""

    @property
    def url(self) -> str: ...

    @property
    def database(self) -> int: ...

    async def connect(self, wire: Wire) -> None:
        """Put *wire* on a socket of its own.

        Raises:
            StorageUnavailable: nobody is there, or will not have us.
        """


class Topology(Protocol):
    """The servers behind one URL."""

    @property
    def is_cluster(self) -> bool: ...

    @property
    def is_up(self) -> bool:
        """There is a server that calls can reach."""

    @property
    def is_open_circuit(self) -> bool:
        """There are calls that are refused at once."""

    @property
    def reason(self) -> str:
        """Why it is not up."""

    @property
    def primaries(self) -> Sequence[Link]:
        """Every server that keys are written to, as far as it is known."""

    async def start(self) -> None:
        """Begin to connect; returns after the first try, whether Redis is there or not."""

    async def stop(self) -> None:
        """Close every line; no task is left."""

    def link(self, command: tuple[Arg, ...]) -> Link:
        """The server that *command* goes to; it may have no line."""

    async def wait(self, command: tuple[Arg, ...]) -> Link:
        """The server that *command* goes to, as soon as it has a line.

        Raises:
            StorageUnavailable: its circuit is open.
        """

    def heed(self, error: ServerError, link: Link) -> Link | None:
        """Learn from a refusal by *link*; the server that it sends this one command to, if it does.

        Raises:
            StorageUnavailable: where it sends us, nobody of this topology can go.
        """

    def watch(self, on_moved: Callable[[], None]) -> Callable[[], None]:
        """Call *on_moved* whenever keys are at other servers than before; the returned function ends it."""


class Single:
    """One server, or one primary that a failover may put elsewhere: one link for everything."""

    is_cluster = False

    def __init__(
        self,
        door: Door,
        *,
        stats: Stats,
        reply_timeout_s: float,
        make_line: MakeLine = Line,
        name: str = "commands",
    ) -> None:
        self._door = door
        self._make_line = make_line
        self._stats = stats
        self._reply_timeout_s = reply_timeout_s
        self.lifeline: Link = Lifeline(self._connect, name=name, stats=stats)
        self.primaries = (self.lifeline,)

    @property
    def is_up(self) -> bool:
        return self.lifeline.line is not None

    @property
    def is_open_circuit(self) -> bool:
        return self.lifeline.is_open_circuit

    @property
    def reason(self) -> str:
        return self.lifeline.reason

    async def start(self) -> None:
        await self.lifeline.start()

    async def stop(self) -> None:
        await self.lifeline.stop()

    def link(self, command: tuple[Arg, ...]) -> Link:  # noqa: ARG002  whatever it is
        return self.lifeline

    async def wait(self, command: tuple[Arg, ...]) -> Link:  # noqa: ARG002
        await self.lifeline.wait()
        return self.lifeline

    def heed(self, error: ServerError, link: Link) -> Link | None:
        """A primary that became a replica stays one: the next line may reach the new primary."""
        if error.word in {"MOVED", "ASK"}:
            raise StorageUnavailable("the server is one of a cluster: its URL begins with redis+cluster://")
        if error.word == "READONLY" and link.line is not None:
            link.line.drop("the server became a replica")
        return None

    def watch(self, on_moved: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG002  all is where it was
        return lambda: None

    async def _connect(self) -> Line:
        return await open_line(
            self._door, self._stats, reply_timeout_s=self._reply_timeout_s, make_line=self._make_line
        )


async def open_line(door: Door, stats: Stats, *, reply_timeout_s: float, make_line: MakeLine = Line) -> Line:
    """A line of commands to the server behind *door*.

    Raises:
        StorageUnavailable: it cannot be reached now.
    """
    line = make_line(stats, reply_timeout_s=reply_timeout_s)
    await door.connect(line)
    return line

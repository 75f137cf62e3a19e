"""What everybody was told while a schedule ran, and what was read back afterwards: what the checker is given.

Plain records, kept by the clients as they hear and judged by nobody before the
end. All instants are milliseconds of this machine's clock, which is Redis's too.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

LOGGED = frozenset({"message.created", "turn.failed", "turn.cancelled"})


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request, and what came of it."""

    what: str
    session_id: str
    replica: int
    began_ms: int
    ended_ms: int = 0
    status: int = 0
    """0: no reply."""
    code: str = ""
    """Of the error; without a reply, why there was none."""
    retry_after: str | None = None
    waits: bool = False
    """For the outcome of its turn: it may take as long as that."""
    gave_up: bool = False
    """The client did not want the reply any more."""
    is_replay: bool = False
    """The reply says that this repeats an earlier one, which it does however long ago that was."""
    echoed: str = ""
    """The session that the reply is about, where it says so."""
    end_ms: int = 0
    """Of a 410: when the session ended."""

    @property
    def took_ms(self) -> int:
        return self.ended_ms - self.began_ms


@dataclass(slots=True, kw_only=True)
class Ack:
    """What an acknowledgement of a message said."""

    at_ms: int
    message_id: str
    cursor: int
    turn_id: str


@dataclass(slots=True, kw_only=True)
class Said:
    """One message that a client sent, as often as it took."""

    session_id: str
    who: str
    content: str
    """Unlike that of any other message; it begins with the session's id."""
    began_ms: int = 0
    """When it was first sent."""
    waits: bool = False
    """For its answer, at first: then that is in how long it took."""
    tries: int = 0
    acks: list[Ack] = field(default_factory=list)
    outcome: str = ""
    """Why it was not sent again: ``acknowledged``, ``over`` (410), ``gone`` (404), ``busy`` (409)."""
    answer: str = ""
    """What the reply said the agent answered, where the client waited for it."""


@dataclass(slots=True, kw_only=True)
class Heard:
    """One event at a follower."""

    at_ms: int
    connection: int
    """Counted by the follower; 1 is its first."""
    type: str
    session_id: str
    cursor: int | None = None
    prev: int | None = None
    data: Any = None


@dataclass(slots=True, kw_only=True)
class Following:
    """One follower of one session, through all its connections."""

    who: str
    session_id: str
    after: int | None
    """Where it began: after this cursor, or None: with the snapshot."""
    events: list[Heard] = field(default_factory=list)
    connections: int = 0
    ended_by: str = ""
    """``expired`` or ``deleted`` once it was told that there is no more to come."""


@dataclass(slots=True, kw_only=True)
class Life:
    """One session, as those who made and ended it know it."""

    session_id: str
    ids: list[str]
    """Every id that a repeat of its creation got."""
    agent: str
    is_brief: bool
    """It ends by itself while the schedule runs, or soon after."""
    deleted_ms: int = 0
    """When somebody first asked to delete it; 0: nobody did."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """One entry of a log, as a replay from the beginning told it."""

    cursor: int
    prev: int
    type: str
    data: Any


@dataclass(slots=True, kw_only=True)
class Read:
    """A session as it was found when all was quiet."""

    session_id: str
    status: int
    """200, 410, or 404."""
    end_ms: int = 0
    entries: list[Entry] = field(default_factory=list)
    history: list[Any] = field(default_factory=list)
    """Messages as ``GET …/messages`` has them, oldest first."""
    turns: dict[str, Any] = field(default_factory=dict)
    """State of each turn that was ever named."""
    is_quiet: bool = True
    """No turn was open when it was read."""


@dataclass(slots=True, kw_only=True)
class Struck:
    """A fault that was done."""

    kind: str
    replica: int | None
    """The one it was done to; None: to what all share."""
    began_ms: int
    ended_ms: int = 0
    """When it was mended, as far as whoever did it can tell."""


@dataclass(slots=True, kw_only=True)
class History:
    """All of one schedule."""

    may_rewind: bool = False
    """A failover may have lost the newest writes; followers are told."""
    is_replicated: bool = False
    """But none of those that were acknowledged."""
    lives: list[Life] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    followings: list[Following] = field(default_factory=list)
    struck: list[Struck] = field(default_factory=list)
    found: dict[str, Read] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    """What was still there when nothing should be: keys, descriptors, bugs in logs."""

    @property
    def may_lose(self) -> bool:
        """What was acknowledged may be gone."""
        return self.may_rewind and not self.is_replicated

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

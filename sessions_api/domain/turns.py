"""A turn: an agent's duty to answer, from queue to outcome."""

from __future__ import annotations

from typing import Literal

import msgspec

from sessions_api.domain.ids import MessageId, TurnId
from sessions_api.domain.messages import LogEntry
from sessions_api.domain.traces import NO_TRACE, Trace

TurnState = Literal["queued", "running", "completed", "failed", "cancelled"]
OPEN_STATES = frozenset({"queued", "running"})


class TurnError(msgspec.Struct, frozen=True):
    """Why a turn failed; *message* is for the user."""

    code: str
    message: str


class Turn(msgspec.Struct, frozen=True):
    """One turn as its record in the session's hash has it (a MessagePack map, same names).

    Instants are milliseconds of Redis's clock, 0 where not yet.
    """

    turn_id: TurnId
    state: TurnState
    messages: list[int]
    """Cursors of the user messages it answers."""
    attempt: int = 0
    queued_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    not_before_ms: int = 0
    lease_ms: int = 0
    deadline_ms: int = 0
    fence: str = ""
    worker: str = ""
    message_id: MessageId = MessageId("")
    """Of the current attempt's answer."""
    units: int = 0
    """Length of the draft, in UTF-16 units."""
    index: int = 0
    """How many deltas the draft is made of."""
    answer: int = 0
    """Cursor of the answer in the log; 0 if it was empty or there is none."""
    by: str = ""
    """Who cancelled it: user, interrupt, delete, agent."""
    superseded_by: str = ""
    error: TurnError | None = None
    traces: tuple[Trace, ...] = ()
    """While it is open, of the requests that brought its messages: first the one it goes on with."""

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES


class Draft(msgspec.Struct, frozen=True):
    """The running answer so far."""

    turn_id: TurnId
    message_id: MessageId
    attempt: int
    index: int
    text: str
    units: int


class Answer(msgspec.Struct, frozen=True):
    """How an agent ends its turn."""

    content: str | None = None
    """None: what was streamed is the answer. An empty one is stored only if there *is more* to it."""
    metadata: bytes = b"{}"
    """Compact JSON of an object: thought, actions, …; *usage* is put in as ``usage``."""
    attachments: bytes | None = None
    """Compact JSON of an array."""
    usage: bytes | None = None
    """Compact JSON of an object."""

    @property
    def is_more(self) -> bool:
        """Whether it says more than its text does; what it cost (*usage*) says nothing to the user."""
        return self.metadata != b"{}" or self.attachments not in {None, b"[]"}


class ClaimedTurn(msgspec.Struct, frozen=True):
    """What a worker gets: the turn, its user messages and the history before them."""

    session_id: str
    agent_id: str
    user_id: str
    metadata: bytes
    turn: Turn
    messages: list[LogEntry]
    history: list[LogEntry]
    more: bool
    """Whether there is older history than was handed out."""
    now_ms: int

    @property
    def trace(self) -> Trace:
        """What the agent goes on with; empty if the messages came without."""
        return self.turn.traces[0] if self.turn.traces else NO_TRACE

    def within(self, trace: Trace) -> ClaimedTurn:
        """The same, with *trace* for the agent to go on with."""
        turn = msgspec.structs.replace(self.turn, traces=(trace,))
        return msgspec.structs.replace(self, turn=turn)

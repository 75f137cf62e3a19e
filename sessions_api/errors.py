"""Every error raised on purpose, in one tree.

::

    SessionsError
    ├── CallerError                    the request cannot be granted as it stands
    │   ├── InvalidInput               shape, ids, content, metadata, paging, timeouts
    │   ├── MalformedBody              not JSON, not UTF-8, too deep
    │   ├── Unauthenticated · Forbidden
    │   ├── RouteNotFound · MethodNotAllowed
    │   ├── BodyTooLarge · UnsupportedMediaType
    │   ├── MalformedRequest · HeadTooLarge · RequestTooSlow    before there is a request
    │   ├── SessionNotFound · AgentNotFound · TurnNotFound
    │   ├── SessionExpired
    │   ├── SessionBusy · BacklogFull
    │   ├── LimitReached               as many at once as there may be
    │   │   └── TooManyOpenSessions · TooManyFollowers · TooManyClaims
    │   ├── RateLimited                as many in a time as there may be
    │   ├── AgentInUse                 deleted while it has live sessions
    │   ├── MaxDurationReached · IdempotencyMismatch
    │   ├── ConfigChanged              stale If-Match
    │   └── TurnLost · DeltaGap · AnswerTooLarge    a worker's write
    ├── AgentError                     the agent's side of a turn a poster waits for
    │   └── AgentUnavailable · AgentFailed · AgentTimedOut
    ├── StorageError
    │   ├── StorageUnavailable         Redis is away, slow or refusing
    │   │   └── NotReplicated          done, and too few replicas of Redis have it
    │   └── StorageFull                Redis is out of memory; reads and expiry go on
    ├── Draining                       this replica is shutting down
    ├── TooManyConnections             this process has as many as it may
    ├── SettingsError                  the start is refused; names the variable
    └── StorageFault                   Redis answered what it never should: our bug

Errors do not know HTTP: ``wire/problems.py`` maps each to a status and a body,
``live/closing.py`` to a close code. None carries a secret or a message's content.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal


class SessionsError(Exception):
    """Root of the tree: something this service says on purpose."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    retryable: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field: what is wrong, what came, what is allowed."""

    field: str
    reason: str
    provided: str | int | float | bool | None = None
    allowed: str | None = None


class CallerError(SessionsError):
    """The request cannot be granted as it stands."""


@dataclass(eq=False)
class InvalidInput(CallerError):
    """One or several fields are unusable; *errors* lists every one of them.

    *details* are the members the reference sends for its own messages
    (``missingFields``, ``reason`` and so on); clients written for it read those.
    """

    message: str
    errors: list[FieldError] = field(default_factory=list)
    details: dict[str, object] = field(default_factory=dict)
    code: ClassVar[str] = "VALIDATION_ERROR"

    def __str__(self) -> str:
        return self.message


@dataclass(eq=False)
class MalformedBody(CallerError):
    """The body is not JSON in UTF-8, is nested too deep, or is no object."""

    reason: str
    code: ClassVar[str] = "VALIDATION_ERROR"


@dataclass(eq=False)
class Unauthenticated(CallerError):
    """A key or token is missing, unknown or expired."""

    reason: str
    code: ClassVar[str] = "UNAUTHENTICATED"


@dataclass(eq=False)
class Forbidden(CallerError):
    """The caller is known, and this is not for them."""

    reason: str
    code: ClassVar[str] = "FORBIDDEN"


class RouteNotFound(CallerError):
    """No route has this path."""

    code: ClassVar[str] = "NOT_FOUND"


@dataclass(eq=False)
class MethodNotAllowed(CallerError):
    """The path exists; *allowed* are its methods."""

    allowed: tuple[str, ...]
    code: ClassVar[str] = "METHOD_NOT_ALLOWED"


@dataclass(eq=False)
class BodyTooLarge(CallerError):
    """The body has more than *limit_bytes*."""

    limit_bytes: int
    code: ClassVar[str] = "PAYLOAD_TOO_LARGE"


@dataclass(eq=False)
class UnsupportedMediaType(CallerError):
    """The body's Content-Type is none of *allowed*."""

    provided: str
    allowed: tuple[str, ...]
    code: ClassVar[str] = "UNSUPPORTED_MEDIA_TYPE"


class MalformedRequest(CallerError):
    """What came is no HTTP."""

    code: ClassVar[str] = "VALIDATION_ERROR"


@dataclass(eq=False)
class HeadTooLarge(CallerError):
    """Request line and headers together have more than *limit_bytes*."""

    limit_bytes: int
    code: ClassVar[str] = "HEADERS_TOO_LARGE"


@dataclass(eq=False)
class RequestTooSlow(CallerError):
    """A request was begun and had not arrived whole after *within_s*."""

    within_s: float
    code: ClassVar[str] = "REQUEST_TIMEOUT"
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class SessionNotFound(CallerError):
    """Never existed, deleted, past its retention, not the caller's: one, so that strangers learn nothing."""

    session_id: str
    code: ClassVar[str] = "SESSION_NOT_FOUND"


@dataclass(eq=False)
class AgentNotFound(CallerError):
    """No agent of this id is defined."""

    agent_id: str
    code: ClassVar[str] = "AGENT_NOT_FOUND"


@dataclass(eq=False)
class TurnNotFound(CallerError):
    """The session never had this turn, or it ended more than 50 turns ago."""

    turn_id: str
    code: ClassVar[str] = "TURN_NOT_FOUND"


@dataclass(eq=False)
class SessionExpired(CallerError):
    """The session passed its deadline; its log stays readable until *retained_until_ms*.

    Kept apart from SessionNotFound so that a client can offer "continue"
    instead of failing: the caller already proved it may see this session.
    """

    session_id: str
    expires_ms: int
    retained_until_ms: int
    reason: str
    code: ClassVar[str] = "SESSION_EXPIRED"


@dataclass(eq=False)
class SessionBusy(CallerError):
    """``onBusy: reject`` met a turn that is queued or running."""

    session_id: str
    turn_id: str
    state: str
    retry_after_s: int = 5
    code: ClassVar[str] = "SESSION_BUSY"
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class BacklogFull(CallerError):
    """The session has as many unanswered messages as it may (100, or 4 MiB)."""

    session_id: str
    queued: int
    retry_after_s: int = 5
    policy: ClassVar[str] = "backlog"
    code: ClassVar[str] = "RATE_LIMIT_EXCEEDED"
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class LimitReached(CallerError):
    """There are *limit* of them already, as many as may be at once."""

    limit: int
    retry_after_s: int = 5
    policy: ClassVar[str]
    code: ClassVar[str] = "RATE_LIMIT_EXCEEDED"
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class TooManyOpenSessions(LimitReached):
    """The user has as many live sessions as a user may."""

    retry_after_s: int = 60
    policy: ClassVar[str] = "open-sessions"


class TooManyFollowers(LimitReached):
    """The session, or this process, has as many live followers as it may."""

    policy: ClassVar[str] = "followers"


class TooManyClaims(LimitReached):
    """As many workers wait for turns at this process as may."""

    policy: ClassVar[str] = "claims"


@dataclass(eq=False)
class RateLimited(CallerError):
    """As many came in *window_s* as *policy* allows; nothing was done. *retry_after_s*: until one may."""

    policy: str
    quota: int
    window_s: int
    retry_after_s: int
    code: ClassVar[str] = "RATE_LIMIT_EXCEEDED"
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class AgentInUse(CallerError):
    """An agent was to be deleted that has live sessions: they would get no answers any more."""

    agent_id: str
    sessions: int
    code: ClassVar[str] = "AGENT_IN_USE"
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class MaxDurationReached(CallerError):
    """A renewal by hand found the deadline already at createdAt + maxDuration."""

    session_id: str
    created_ms: int
    max_duration_ms: int
    expires_ms: int
    now_ms: int
    code: ClassVar[str] = "SESSION_RENEWAL_FAILED"


@dataclass(eq=False)
class ConfigChanged(CallerError):
    """``If-Match`` named another version of the configuration than the current one."""

    session_id: str
    current: int
    code: ClassVar[str] = "PRECONDITION_FAILED"


@dataclass(eq=False)
class IdempotencyMismatch(CallerError):
    """The same idempotency key came with other content."""

    code: ClassVar[str] = "IDEMPOTENCY_MISMATCH"


@dataclass(eq=False)
class TurnLost(CallerError):
    """A worker wrote to a turn that is not its own, or no longer."""

    turn_id: str
    state: str
    why: Literal["taken", "ended", "late"]
    """By another attempt; this one is over; its deadline has passed: there is nothing to extend."""
    code: ClassVar[str] = "TURN_LOST"


@dataclass(eq=False)
class DeltaGap(CallerError):
    """A delta would leave a hole in the answer; *expected* is the next offset, in UTF-16 units."""

    turn_id: str
    expected: int
    code: ClassVar[str] = "DELTA_GAP"


@dataclass(eq=False)
class AnswerTooLarge(CallerError):
    """An answer has more than *limit_chars* UTF-16 units; its turn has failed for good."""

    turn_id: str
    limit_chars: int
    code: ClassVar[str] = "ANSWER_TOO_LARGE"


class AgentError(SessionsError):
    """The agent's side of a turn that a poster waits for."""


@dataclass(eq=False)
class AgentUnavailable(AgentError):
    """The agent is defined and not running."""

    agent_id: str
    retry_after_s: int = 5
    code: ClassVar[str] = "AGENT_UNAVAILABLE"
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class AgentFailed(AgentError):
    """The turn failed for good; *agent_code* and *reason* are its own."""

    turn_id: str
    attempts: int
    reason: str
    agent_code: str
    code: ClassVar[str] = "AGENT_FAILED"


@dataclass(eq=False)
class AgentTimedOut(AgentError):
    """The poster waited *waited_ms*; the turn goes on."""

    turn_id: str
    waited_ms: int
    code: ClassVar[str] = "AGENT_TIMEOUT"
    retryable: ClassVar[bool] = True


class StorageError(SessionsError):
    """Redis cannot serve this now."""

    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class StorageUnavailable(StorageError):
    """Redis is away, slow, or refusing; *reason* is for the log, never for the caller."""

    reason: str
    retry_after_s: int = 1
    code: ClassVar[str] = "STORAGE_UNAVAILABLE"


class NotReplicated(StorageUnavailable):
    """The write is done, and fewer replicas of Redis have it than ``SESSIONS_REDIS_REPLICAS`` says.

    A failover now could lose it, so it is not called a success. A repeat under the
    same idempotency key finds it done, and waits for the replicas anew.
    """

    code: ClassVar[str] = "NOT_REPLICATED"


@dataclass(eq=False)
class StorageFull(StorageError):
    """Redis is out of memory and refuses writes; nothing was written."""

    retry_after_s: int = 10
    code: ClassVar[str] = "STORAGE_FULL"


@dataclass(eq=False)
class Draining(SessionsError):
    """This replica is shutting down; another one answers."""

    retry_after_s: int = 1
    code: ClassVar[str] = "DRAINING"
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class TooManyConnections(SessionsError):
    """This process has *limit* connections, as many as it may; another replica may have room."""

    limit: int
    retry_after_s: int = 5
    code: ClassVar[str] = "OVERLOADED"
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class SettingsError(SessionsError):
    """A setting is unusable; the start is refused. Names variable, value and range."""

    problems: list[str]
    code: ClassVar[str] = "SETTINGS_ERROR"

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(eq=False)
class StorageFault(SessionsError):
    """Redis answered what it never should (another session's reply, an unknown word).

    Our bug: the caller gets 500 with the request id, the log gets *what*.
    """

    what: str
    code: ClassVar[str] = "INTERNAL_ERROR"

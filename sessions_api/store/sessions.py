"""Sessions: opened, read, renewed, configured, ended."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from sessions_api.domain.access import Grant
from sessions_api.domain.ids import AppName, OpId, SessionId
from sessions_api.domain.timeouts import MINUTE_MS
from sessions_api.errors import (
    ConfigChanged,
    FieldError,
    IdempotencyMismatch,
    InvalidInput,
    MaxDurationReached,
    SessionNotFound,
    StorageFault,
    TooManyOpenSessions,
)
from sessions_api.store.loader import load
from sessions_api.store.scripts import unknown
from sessions_api.store.state import session_of
from sessions_api.telemetry import metrics

if TYPE_CHECKING:
    from sessions_api.domain.sessions import ConfigChange, NewSession, Session
    from sessions_api.store.scripts import Scripts

CREATE = load("create")
READ = load("read")
RENEW = load("renew")
HEARTBEAT = load("heartbeat")
CONFIGURE = load("configure")
REVOKE = load("revoke")
END = load("end")


class Once(msgspec.Struct, frozen=True):
    """An idempotency key: *digest* names it within its scope, *fingerprint* its content."""

    digest: str
    fingerprint: str

    @classmethod
    def of(cls, *, app: AppName, scope: str, key: str, content: bytes) -> Once:
        """*scope*: the session's id, or the user's for a creation."""
        digest = hashlib.sha256(f"{app}\n{scope}\n{key}".encode("utf-8", "surrogatepass")).hexdigest()
        return cls(digest, hashlib.sha256(content).hexdigest()[:32])


class Sessions:
    """The life of sessions; each method is one script and one round trip."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def create(
        self, new: NewSession, *, once: Once | None = None, max_open: int = 1_000
    ) -> tuple[Session, bool]:
        """Open a session; True beside it if *once* had opened it before.

        Raises:
            TooManyOpenSessions: the user has *max_open* live sessions.
            IdempotencyMismatch: the key came with other content before.
            SessionNotFound: what the key opened is deleted.
        """
        config = new.config
        of = self._scripts.keyspace.of(new.session_id)
        reply = await self._scripts.redis.script(
            CREATE,
            [*of.all(), of.once(once.digest if once else "-")],
            (
                of.sid,
                new.app,
                new.agent_id,
                new.user_id,
                new.metadata,
                config.timeout_ms,
                int(config.auto_renew),
                config.max_duration_ms,
                config.warning_ms,
                config.sources,
                new.on_busy,
                new.retention_ms,
                once.fingerprint if once else b"",
                max_open,
            ),
        )
        if reply[0] == b"repeated":
            return await self._first(SessionId(reply[1].decode()), new.app), True
        match self._scripts.checked(CREATE, new.session_id, reply):
            case [b"ok", _, now, fields]:
                return session_of(new.session_id, now, fields), False
            case [b"mismatch", _]:
                raise IdempotencyMismatch
            case [b"crowded", _, _]:
                raise TooManyOpenSessions(max_open)
            case _:
                raise unknown(CREATE, reply)

    async def _first(self, session_id: SessionId, app: AppName) -> Session:
        """What an idempotency key opened; expired meanwhile, it is still the first success."""
        of = self._scripts.keyspace.of(session_id)
        match await self._scripts.redis.script(READ, [of.session], (of.sid, app)):
            case [b"ok", sid, now, fields] | [b"expired", sid, now, _, _, _, _, fields] if sid == of.sid:
                return session_of(session_id, now, fields)
            case [b"absent", _]:
                raise SessionNotFound(session_id)
            case _:
                raise StorageFault("read replied for another session")

    async def read(self, session_id: SessionId, *, grant: Grant) -> Session:
        """The session as it stands; renews nothing.

        Raises:
            SessionNotFound, SessionExpired
        """
        match await self._scripts.look(READ, session_id, grant, keys=1):
            case [b"ok", _, now, fields]:
                return session_of(session_id, now, fields)
            case reply:
                raise unknown(READ, reply)

    async def renew(
        self, session_id: SessionId, *, grant: Grant, op: OpId, once: Once | None = None
    ) -> tuple[Session, bool]:
        """Restart the idle clock by hand; True beside it if *once* had done so before.

        Raises:
            SessionNotFound, SessionExpired
            MaxDurationReached: the session may not live longer than it does.
            IdempotencyMismatch: the key came with other content before.
        """
        reply = await self._scripts.run(
            RENEW, session_id, grant, op, once.fingerprint if once else b"", once=once.digest if once else "-"
        )
        match reply:
            case [b"ok", _, now, fields]:
                metrics.RENEWALS.of("manual").inc()
                return session_of(session_id, now, fields), False
            case [b"repeated", _, now, fields]:
                return session_of(session_id, now, fields), True
            case [b"capped", _, now, fields]:
                session = session_of(session_id, now, fields)
                raise MaxDurationReached(
                    session_id,
                    created_ms=session.created_ms,
                    max_duration_ms=session.config.max_duration_ms,
                    expires_ms=session.expires_ms,
                    now_ms=session.now_ms,
                )
            case [b"mismatch", _]:
                raise IdempotencyMismatch
            case _:
                raise unknown(RENEW, reply)

    async def heartbeat(self, session_id: SessionId, *, grant: Grant, op: OpId) -> tuple[Session, bool]:
        """The user is there; True beside it if that renewed the session.

        Raises:
            SessionNotFound, SessionExpired
        """
        match await self._scripts.run(HEARTBEAT, session_id, grant, op):
            case [b"renewed" | b"kept" as word, _, now, fields]:
                if word == b"renewed":
                    metrics.RENEWALS.of("heartbeat").inc()
                return session_of(session_id, now, fields), word == b"renewed"
            case reply:
                raise unknown(HEARTBEAT, reply)

    async def configure(
        self,
        session_id: SessionId,
        *,
        grant: Grant,
        op: OpId,
        change: ConfigChange,
        if_match: int | None = None,
    ) -> Session:
        """Change the session's timeouts; its deadline counts from its last renewal.

        Raises:
            SessionNotFound, SessionExpired
            ConfigChanged: *if_match* is not the current version.
            InvalidInput: the fields contradict each other, or the deadline would lie in the past.
        """
        args: list[str | int] = [op, "" if if_match is None else if_match]
        for name in ("timeout_ms", "auto_renew", "max_duration_ms", "warning_ms"):
            args += getattr(change, name) or ("", "")
        match await self._scripts.run(CONFIGURE, session_id, grant, *args):
            case [b"renewed" | b"kept" as word, _, now, fields]:
                if word == b"renewed":
                    metrics.RENEWALS.of("config").inc()
                session = session_of(session_id, now, fields)
                if session.warned_ms == session.now_ms:  # a wider threshold warns at once
                    metrics.count_due("warned", lag_ms=0)
                return session
            case [b"stale", _, version]:
                raise ConfigChanged(session_id, int(version))
            case [b"threshold", _, timeout_ms, value]:
                raise _contradiction(
                    "warningThresholdMinutes", "must be below timeoutMinutes", value, timeout_ms
                )
            case [b"duration", _, timeout_ms, value]:
                raise _contradiction(
                    "maxDurationMinutes", "must not be below timeoutMinutes", value, timeout_ms
                )
            case [b"past", _, _]:
                reason = "The new deadline would lie in the past; renew the session first"
                raise InvalidInput(
                    f"Invalid timeout configuration: {reason}",
                    [FieldError("timeoutMinutes", reason)],
                    {"reason": reason},
                )
            case reply:
                raise unknown(CONFIGURE, reply)

    async def revoke(self, session_id: SessionId, *, grant: Grant, op: OpId) -> Session:
        """End every session token that was made for the session so far, on all replicas at once.

        Raises:
            SessionNotFound, SessionExpired
        """
        match await self._scripts.run(REVOKE, session_id, grant, op):
            case [b"ok", _, now, fields]:
                return session_of(session_id, now, fields)
            case reply:
                raise unknown(REVOKE, reply)

    async def end(self, session_id: SessionId, *, grant: Grant) -> None:
        """Erase the session, live or expired, with everything it holds.

        Raises:
            SessionNotFound: unless an earlier try of this very call may have erased it.
        """
        reply, repeated = await self._scripts.run_noting_repeats(END, session_id, grant)
        if repeated and reply[0] == b"absent":
            return
        self._scripts.checked(END, session_id, reply)


def _contradiction(field: str, reason: str, value: bytes, timeout_ms: bytes) -> InvalidInput:
    minutes, timeout = int(value) / MINUTE_MS, int(timeout_ms) / MINUTE_MS
    text = f"{field} {reason} ({minutes:g}, timeoutMinutes is {timeout:g})"
    return InvalidInput(
        f"Invalid timeout configuration: {text}",
        [FieldError(field, reason, minutes, f"timeoutMinutes is {timeout:g}")],
        {"reason": text},
    )

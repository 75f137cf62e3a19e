"""The rules of requests: answered in time, for the right session, as was promised; and of sessions' ends."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import Asked, History, Struck
from tests.chaos.violations import Violation

DEADLINE_MS = 2_500
"""Of a request to Redis; DESIGN section 9."""
SLACK_MS = 4_000
"""For a machine whose two cores have more to do than this."""
AFTERMATH_MS = 1_500
"""A connection that was kept open to a process that ended is found dead by the next request on it."""

DEATHS = frozenset({"replica-kill", "replica-term", "replica-clock"})
PAUSES = frozenset({"replica-stop"})

UNAVAILABLE = frozenset(
    "STORAGE_UNAVAILABLE NOT_REPLICATED STORAGE_FULL DRAINING OVERLOADED AGENT_UNAVAILABLE".split()
)
REFUSALS: dict[tuple[int, str], frozenset[str]] = {
    (409, "SESSION_BUSY"): frozenset({"post"}),
    (410, "SESSION_EXPIRED"): frozenset({"post", "get", "history", "renew", "heartbeat", "patch", "cancel"}),
    (404, "SESSION_NOT_FOUND"): frozenset(
        {"post", "get", "history", "renew", "heartbeat", "patch", "cancel", "delete"}
    ),
    (404, "TURN_NOT_FOUND"): frozenset(),
    (400, "VALIDATION_ERROR"): frozenset({"patch"}),  # a deadline that would lie in the past
    (422, "SESSION_RENEWAL_FAILED"): frozenset({"renew"}),
    (429, "RATE_LIMIT_EXCEEDED"): frozenset({"post"}),
    (502, "AGENT_FAILED"): frozenset({"post"}),
    (504, "AGENT_TIMEOUT"): frozenset({"post"}),
}


def promised(history: History) -> Iterator[Violation]:
    """Success, or a refusal that fits; what may pass says when to come back; never a 500."""
    deleted = {life.session_id: life.deleted_ms for life in history.lives}
    for asked in history.asked:
        if asked.status < 300:
            continue
        told = f"{asked.what}: {asked.status} {asked.code}"
        if (asked.status == 503 and asked.code in UNAVAILABLE) or (
            asked.code == "TURN_NOT_FOUND" and _has_lost(history, asked.session_id)
        ):
            pass
        elif asked.what not in REFUSALS.get((asked.status, asked.code), frozenset()):
            yield Violation("unpromised", asked.session_id, told)
        elif asked.status in {502, 504} and not asked.waits:
            yield Violation("unpromised", asked.session_id, f"{told}, and it did not wait for its turn")
        if asked.status == 404 and not history.may_lose:
            deleted_ms = deleted.get(asked.session_id, 0)
            if not deleted_ms or asked.ended_ms < deleted_ms:
                yield Violation("lost", asked.session_id, f"{told}, and nobody had deleted it")
        if asked.status in {429, 503} and not _is_pause(asked.retry_after):
            yield Violation("unpromised", asked.session_id, f"{told}, Retry-After: {asked.retry_after}")


def _has_lost(history: History, session_id: str) -> bool:
    """Whether a failover took messages of the session along, and with them their turns."""
    read = history.found.get(session_id)
    there = {entry.cursor for entry in read.entries} if read is not None else set()
    acks = (ack for said in history.said if said.session_id == session_id for ack in said.acks)
    return history.may_lose and any(ack.cursor not in there for ack in acks)


def _is_pause(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and 0 < int(text) <= 60


def answered(history: History) -> Iterator[Violation]:
    """Nobody waits for much longer than the deadline, or is left without a reply by a process that lives."""
    for asked in history.asked:
        if asked.gave_up:
            continue
        if not asked.status and not during(history, asked, DEATHS | PAUSES):
            text = f"{asked.what} at replica {asked.replica}: no reply, {asked.code}"
            yield Violation("hung up", asked.session_id, text)
        is_slow = asked.took_ms > DEADLINE_MS + SLACK_MS and not asked.waits
        if asked.status and is_slow and not during(history, asked, PAUSES):
            yield Violation("hung", asked.session_id, f"{asked.what} took {asked.took_ms} ms")


def during(history: History, asked: Asked, kinds: frozenset[str]) -> list[Struck]:
    """The faults of these kinds that its replica had meanwhile."""
    return [
        struck
        for struck in history.struck
        if struck.kind in kinds
        and struck.replica == asked.replica
        and struck.began_ms <= asked.ended_ms
        and struck.ended_ms + AFTERMATH_MS >= asked.began_ms
    ]


def own(history: History) -> Iterator[Violation]:
    """A reply is about the session that was asked for."""
    for asked in history.asked:
        if asked.echoed and asked.session_id and asked.echoed.lower() != asked.session_id.lower():
            yield Violation("crossed", asked.session_id, f"{asked.what} was answered for {asked.echoed}")


# ------------------------------------------------------------ the end of a session


def ended_at_one_instant(history: History) -> Iterator[Violation]:
    """Every 410 of a session names the same end, and none comes before it."""
    for asked in history.asked:
        if asked.status != 410:
            continue
        if asked.ended_ms < asked.end_ms:
            text = f"{asked.what}: 410 {asked.end_ms - asked.ended_ms} ms before the end"
            yield Violation("expired early", asked.session_id, text)
        read = history.found.get(asked.session_id)
        if read is None or history.may_rewind:  # a renewal, or the end of a turn, may be among what was lost
            continue
        if read.status == 410 and asked.end_ms != read.end_ms:
            text = f"{asked.what}: ended at {asked.end_ms}, and later at {read.end_ms}"
            yield Violation("two ends", asked.session_id, text)
        if read.status == 200:
            yield Violation("expired, and alive", asked.session_id, f"{asked.what}: ended at {asked.end_ms}")


def unusable_afterwards(history: History) -> Iterator[Violation]:
    """After its end no request succeeds on any replica, and nothing is said."""
    if history.may_rewind:
        return  # what moved the end may be lost, and the end found now an earlier one
    ends = {read.session_id: read.end_ms for read in history.found.values() if read.status == 410}
    for asked in history.asked:
        end_ms = ends.get(asked.session_id)
        if end_ms is None or asked.is_replay or asked.what in {"delete", "turn", "ended history"}:
            continue
        if 0 < asked.status < 300 and asked.began_ms > end_ms:
            text = f"{asked.what}: {asked.status} {asked.began_ms - end_ms} ms after the end"
            yield Violation("used after its end", asked.session_id, text)
    for read in history.found.values():
        if read.status == 410:
            for entry in read.entries:
                is_said = entry.type == "message.created" and entry.data["role"] == "user"
                if is_said and entry.cursor > read.end_ms:
                    text = f"a message {entry.cursor - read.end_ms} ms after the end"
                    yield Violation("used after its end", read.session_id, text)


RULES = (promised, answered, own, ended_at_one_instant, unusable_afterwards)

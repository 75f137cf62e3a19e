"""The rules of followers: every later event once and in order, or a gap with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from tests.chaos.history import LOGGED, Following, Heard, History, Read, Struck
from tests.chaos.violations import Violation

SECOND_MS = 1000
LAG_MS = 1 * SECOND_MS
"""DESIGN's bound for p99; a check of single ones is more generous, by :data:`SLACK_MS`."""
AFTER_FAULT_MS = 6 * SECOND_MS
"""The bound for the partitions of a keeper that was just killed."""
SLACK_MS = 5 * SECOND_MS
"""For a machine whose two cores have more to do than this."""


def was_told_of_loss(history: History, session_id: str, cursor: int) -> bool:
    """Whether each follower that had heard of *cursor* was told of a rewind after that."""
    for following in history.followings:
        if following.session_id != session_id:
            continue
        heard = [at for at, event in enumerate(following.events) if event.cursor == cursor]
        if heard and not any(is_rewind(event) for event in following.events[heard[0] :]):
            return False
    return True


def is_rewind(event: Heard) -> bool:
    return event.type == "gap" and event.data["reason"] == "rewound"


def in_order(history: History) -> Iterator[Violation]:
    """Each entry follows on the one before, stands in the log as it was told, and the last is the log's."""
    for following in history.followings:
        read = history.found.get(following.session_id)
        log = log_of(history, following, read)
        position = following.after
        is_gap = False
        for at, event in enumerate(following.events):
            if event.session_id != following.session_id:
                yield _of(following, "crossed", f"{event.type} of {event.session_id}")
            if event.type == "gap":
                is_gap = True
                if not history.may_rewind:
                    yield _of(following, "gap", str(event.data))
            elif event.type == "session.snapshot" and position is None:
                position = event.data["cursor"]
            elif event.type in LOGGED and event.cursor is not None:
                if not is_gap and position is not None:
                    if event.cursor <= position:
                        yield _of(following, "heard twice", f"{event.cursor} after {position}")
                    elif event.prev != position:
                        yield _of(following, "missed", f"{event.prev} → {event.cursor} after {position}")
                position, is_gap = event.cursor, False
                was_lost = history.may_rewind and any(is_rewind(later) for later in following.events[at:])
                if log.get(event.cursor) != (event.type, event.prev, event.data) and not was_lost:
                    yield _of(following, "heard what is not there", f"{event.type} at {event.cursor}")
        yield from _caught_up(following, read, position, is_gap=is_gap, may_rewind=history.may_rewind)


def _caught_up(
    following: Following, read: Read | None, position: int | None, *, is_gap: bool, may_rewind: bool
) -> Iterator[Violation]:
    if read is None or read.status == 404 or is_gap:
        return
    if following.ended_by and (may_rewind or position is None):
        return  # at an end that may be among what was lost, or that came before its snapshot
    newest = read.entries[-1].cursor if read.entries else 0
    if position != newest:
        yield _of(following, "missed", f"stands at {position or 'no cursor'}, the log at {newest}")


def log_of(history: History, following: Following, read: Read | None) -> dict[int, tuple[str, Any, Any]]:
    """The log as read; of a deleted session, whose log is gone, as its other followers heard it."""
    if read is not None and read.status != 404:
        return {entry.cursor: (entry.type, entry.prev, entry.data) for entry in read.entries}
    heard: dict[int, tuple[str, Any, Any]] = {}
    for other in history.followings:
        if other.session_id == following.session_id:
            for event in other.events:
                if event.type in LOGGED and event.cursor is not None:
                    heard.setdefault(event.cursor, (event.type, event.prev, event.data))
    return heard


def expired_once(history: History) -> Iterator[Violation]:
    """A follower of a session that expired hears so once, at the end, with the instant a 410 names."""
    for following in history.followings:
        read = history.found.get(following.session_id)
        ends = [event for event in following.events if event.type == "session.expired"]
        if read is None or read.status == 404:
            continue
        if read.status == 200:
            if ends and not history.may_rewind:
                yield _of(following, "expired, and alive", str(ends[0].data))
            continue
        if not ends and not (history.may_rewind and following.ended_by == "deleted"):
            yield _of(following, "never told of the end", f"the session ended at {read.end_ms}")
        for connection, count in Counter(event.connection for event in ends).items():
            if count > 1:
                yield _of(following, "told twice of the end", f"{count} times on connection {connection}")
        closed = {event.connection for event in following.events if event.type == "closing"}
        complete = [event for event in ends if event.connection in closed]
        if len(complete) > 1:
            yield _of(following, "told twice of the end", f"on {len(complete)} connections")
        for event in ends:
            if instant_ms(event.data["expiredAt"]) != read.end_ms and not history.may_rewind:
                yield _of(following, "two ends", f"{event.data['expiredAt']}, and 410 says {read.end_ms}")
            if any(later.cursor for later in following.events[following.events.index(event) :]):
                yield _of(following, "reordered", "an entry of the log came after the end")


def warned_once(history: History) -> Iterator[Violation]:
    """Of one deadline a follower is warned once."""
    for following in history.followings:
        warned = Counter(e.data["expiresAt"] for e in following.events if e.type == "session.expiring")
        for deadline, count in warned.items():
            if count > 1 and not history.may_rewind:
                yield _of(following, "warned twice", f"{count} times of {deadline}")


class Text(NamedTuple):
    """What a follower has of a running answer."""

    message_id: str
    text: str


def whole_text(history: History) -> Iterator[Violation]:
    """Deltas follow on one another, and the answer begins with what they joined to."""
    for following in history.followings:
        texts: dict[str, Text] = {}  # by turn
        connection = 0
        for event in following.events:
            if event.connection != connection:
                connection = event.connection
                texts.clear()  # the snapshot says it anew
            data = event.data
            if event.type == "session.snapshot":
                turn = data.get("turn")
                texts = {turn["turnId"]: Text(turn["messageId"], turn["text"])} if turn else {}
            elif event.type in {"turn.started", "turn.queued"}:
                texts.pop(data["turnId"], None)
            elif event.type == "turn.delta":
                known = texts.get(data["turnId"], Text(data["messageId"], ""))
                if known.message_id != data["messageId"] or len(known.text) != data["offset"]:
                    text = f"a delta of {data['messageId']} at {data['offset']}, where {known} was known"
                    yield _of(following, "torn text", text)
                texts[data["turnId"]] = Text(data["messageId"], known.text[: data["offset"]] + data["text"])
            elif event.type == "message.created" and data["role"] == "agent":
                known = texts.pop(data["turnId"], Text(data["id"], ""))
                if known.message_id == data["id"] and not data["content"].startswith(known.text):
                    yield _of(following, "torn text", f"{known.text!r} became {data['content']!r}")


# ------------------------------------------------------------ how late


class Lag(NamedTuple):
    """How late a follower that was there when its session ended heard so."""

    following: Following
    end_ms: int
    late_ms: int
    faults: list[Struck]
    """Those that were under way about then, or not long over."""


def lags(history: History) -> Iterator[Lag]:
    """Of all followers and ends; who came later heard of it when it came."""
    for following in history.followings:
        began: dict[int, int] = {}
        for event in following.events:
            began.setdefault(event.connection, event.at_ms)
            if event.type == "session.expired":
                end_ms = instant_ms(event.data["expiredAt"])
                if began[event.connection] <= end_ms:
                    faults = about(history, end_ms - AFTER_FAULT_MS, event.at_ms)
                    yield Lag(following, end_ms, event.at_ms - end_ms, faults)


def about(history: History, from_ms: int, until_ms: int) -> list[Struck]:
    """The faults that were under way at some instant between these."""
    return [struck for struck in history.struck if struck.began_ms <= until_ms and struck.ended_ms >= from_ms]


class Stall(NamedTuple):
    """How long a message took, from its first try to its acknowledgement."""

    took_ms: int
    faults: list[Struck]
    """Those that were under way meanwhile."""
    is_calm: bool
    """There were none, nor shortly before."""


def stalls(history: History) -> Iterator[Stall]:
    """Of all messages that were acknowledged before their answers were there."""
    for said in history.said:
        if said.acks and not said.waits:
            ended_ms = said.acks[0].at_ms
            faults = about(history, said.began_ms, ended_ms)
            is_calm = not about(history, said.began_ms - AFTER_FAULT_MS, ended_ms)
            yield Stall(ended_ms - said.began_ms, faults, is_calm)


def in_time(history: History) -> Iterator[Violation]:
    """Within a second, or six after the last fault that was about then; a slack on top of both."""
    for lag in lags(history):
        over_ms = [struck.ended_ms + AFTER_FAULT_MS - lag.end_ms for struck in lag.faults]
        if lag.late_ms > max([LAG_MS, *over_ms]) + SLACK_MS:
            yield _of(lag.following, "told late of the end", f"{lag.late_ms} ms")


def instant_ms(text: str) -> int:
    """Milliseconds of an RFC 3339 instant."""
    instant = datetime.fromisoformat(text)
    return round(instant.timestamp() * 1000)


def _of(following: Following, kind: str, text: str) -> Violation:
    return Violation(kind, following.session_id, f"{following.who}: {text}")


RULES = (in_order, expired_once, warned_once, whole_text, in_time)

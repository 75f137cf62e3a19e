"""Holds what everybody was told against what is there: the verdict on a schedule.

Every rule is a function of the history alone and yields what breaks it. This
module has the rules of the log and its turns; ``hearing.py`` those of followers,
``replies.py`` those of requests and of time. ``test_checker.py`` gives each a
history that breaks it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.chaos import hearing, replies
from tests.chaos.history import Entry, History, Read, Said
from tests.chaos.violations import Violation

Rule = Callable[[History], Iterator[Violation]]


def check(history: History) -> list[Violation]:
    """Everything that is wrong."""
    return [violation for rule in RULES for violation in rule(history)]


class Kept(NamedTuple):
    """One session that can still be read, with what was said to it."""

    read: Read
    said: list[Said]

    @property
    def session_id(self) -> str:
        return self.read.session_id


def kept(history: History) -> Iterator[Kept]:
    by_session: dict[str, list[Said]] = defaultdict(list)
    for said in history.said:
        by_session[said.session_id].append(said)
    for read in history.found.values():
        if read.status in {200, 410}:
            yield Kept(read, by_session[read.session_id])


def is_of_user(entry: Entry) -> bool:
    return entry.type == "message.created" and entry.data["role"] == "user"


def is_of_agent(entry: Entry) -> bool:
    return entry.type == "message.created" and entry.data["role"] == "agent"


# ------------------------------------------------------------ messages


def lost(history: History) -> Iterator[Violation]:
    """What was acknowledged stands where the acknowledgement said."""
    for session in kept(history):
        there = {(e.data["id"], e.cursor, e.data["turnId"], e.data["content"]) for e in user_entries(session)}
        for said in session.said:
            for ack in said.acks:
                if (ack.message_id, ack.cursor, ack.turn_id, said.content) in there:
                    continue
                if history.may_lose and hearing.was_told_of_loss(history, session.session_id, ack.cursor):
                    continue
                yield Violation("lost", session.session_id, f"{said.content!r}, acknowledged at {ack.cursor}")


def doubled(history: History) -> Iterator[Violation]:
    """One key is one message, however often it was sent; no id comes twice."""
    for session in kept(history):
        entries = user_entries(session)
        for content, count in Counter(entry.data["content"] for entry in entries).items():
            if count > 1:
                yield Violation("doubled", session.session_id, f"{content!r} stands there {count} times")
        ids = Counter(entry.data["id"] for entry in session.read.entries if entry.type == "message.created")
        for message_id, count in ids.items():
            if count > 1:
                yield Violation("doubled", session.session_id, f"the id {message_id} came {count} times")
    for said in history.said:
        acks = {(ack.message_id, ack.cursor, ack.turn_id) for ack in said.acks}
        if len(acks) > 1 and not history.may_lose:
            yield Violation(
                "doubled", said.session_id, f"{said.content!r} was acknowledged as {sorted(acks)}"
            )


def reordered(history: History) -> Iterator[Violation]:
    """The log is a chain of rising cursors, and keeps the order of each client's acknowledgements."""
    for session in kept(history):
        before = 0
        for entry in session.read.entries:
            if entry.prev != before or entry.cursor <= before:
                link = f"{entry.prev} → {entry.cursor}"
                yield Violation("reordered", session.session_id, f"after {before} stands {link}")
            before = entry.cursor
    newest: dict[tuple[str, str], int] = {}
    for said in history.said:
        if said.acks:
            speaker = (said.session_id, said.who)
            cursor = said.acks[0].cursor
            if cursor <= newest.get(speaker, 0) and not history.may_lose:
                text = f"{said.content!r} at {cursor}, said after what is at {newest[speaker]}"
                yield Violation("reordered", said.session_id, text)
            newest[speaker] = cursor


def crossed(history: History) -> Iterator[Violation]:
    """A session has what was said in it, and answers to that; nobody else's."""
    for session in kept(history):
        contents = {said.content for said in session.said}
        for entry in session.read.entries:
            if is_of_user(entry) and entry.data["content"] not in contents:
                yield Violation("crossed", session.session_id, f"nobody said {entry.data['content']!r} here")
            if is_of_agent(entry) and not answers(session.session_id, entry):
                yield Violation(
                    "crossed", session.session_id, f"an answer to others: {entry.data['content']!r}"
                )
    for said in history.said:
        if said.answer and said.session_id not in said.answer:
            yield Violation("crossed", said.session_id, f"its poster was answered {said.answer!r}")


def answers(session_id: str, entry: Entry) -> bool:
    """Agents say the session's id first, or repeat the message, which begins with it.

    One that was cancelled may not have come that far.
    """
    content = entry.data["content"].removeprefix("echo: ")
    length = min(len(content), len(session_id))
    return bool(content[:length] == session_id[:length]) and (
        length == len(session_id) or entry.data["status"] == "cancelled"
    )


def kept_though_refused(history: History) -> Iterator[Violation]:
    """A message that was refused because the session is over is not in the log."""
    for session in kept(history):
        contents = {entry.data["content"] for entry in user_entries(session)}
        for said in session.said:
            if said.outcome == "over" and not said.acks and said.content in contents:
                yield Violation("refused, and kept", session.session_id, said.content)


def never_acknowledged(history: History) -> Iterator[Violation]:
    """A client that repeats its message as documented is acknowledged or refused in the end."""
    for said in history.said:
        if not said.outcome:
            yield Violation("never acknowledged", said.session_id, f"{said.content!r}, {said.tries} tries")


def user_entries(session: Kept) -> list[Entry]:
    return [entry for entry in session.read.entries if is_of_user(entry)]


# ------------------------------------------------------------ turns


def outcomes(read: Read) -> dict[str, list[Entry]]:
    """What each turn came to, by the log. Text that a cancelled one leaves behind is no outcome."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in read.entries:
        ends = entry.type != "message.created" or (is_of_agent(entry) and entry.data["status"] == "complete")
        if ends:
            found[entry.data["turnId"]].append(entry)
    return found


STATES = {"message.created": "completed", "turn.failed": "failed", "turn.cancelled": "cancelled"}


def ended_once(history: History) -> Iterator[Violation]:
    """Every turn has one outcome, behind its messages, and its state says the same."""
    for session in kept(history):
        ended = outcomes(session.read)
        asked = {entry.data["turnId"]: entry.cursor for entry in user_entries(session)}
        asked |= {
            ack.turn_id: ack.cursor for said in session.said for ack in said.acks if ack.turn_id in asked
        }
        for turn_id, cursor in asked.items():
            found = ended.get(turn_id, [])
            if not found:
                yield Violation("never ended", session.session_id, f"turn {turn_id}, asked at {cursor}")
            elif len(found) > 1:
                text = f"turn {turn_id}: {[entry.type for entry in found]}"
                yield Violation("ended twice", session.session_id, text)
            elif found[0].cursor < cursor:
                yield Violation("reordered", session.session_id, f"turn {turn_id} ended before it was asked")
            state = session.read.turns.get(turn_id)
            if found and state is not None and state != STATES[found[0].type]:
                text = f"turn {turn_id} is {state}, and its log says {found[0].type}"
                yield Violation("two readings", session.session_id, text)
        for turn_id in ended.keys() - asked.keys():
            yield Violation("crossed", session.session_id, f"turn {turn_id} ended, and was never asked")
        if not session.read.is_quiet:
            yield Violation("never ended", session.session_id, "a turn was still open in the end")


def read_alike(history: History) -> Iterator[Violation]:
    """The history and a replay of the log are one."""
    for session in kept(history):
        replayed = [entry.data for entry in session.read.entries if entry.type == "message.created"]
        if replayed != session.read.history:
            text = f"{len(session.read.history)} messages in the history, {len(replayed)} in the replay"
            yield Violation("two readings", session.session_id, text)


# ------------------------------------------------------------ what is left


def created_once(history: History) -> Iterator[Violation]:
    """A repeated creation is the same session."""
    for life in history.lives:
        if len(set(life.ids)) > 1 and not history.may_lose:
            yield Violation("doubled", life.session_id, f"one key created {sorted(set(life.ids))}")


def vanished(history: History) -> Iterator[Violation]:
    """A session that nobody deleted can be read: it lives, or has expired."""
    for life in history.lives:
        read = history.found.get(life.session_id)
        if read is not None and read.status == 404 and not life.deleted_ms and not history.may_lose:
            yield Violation("lost", life.session_id, "the session is not there, and nobody deleted it")


def left_behind(history: History) -> Iterator[Violation]:
    """Nothing stays: no key without an end, no descriptor, no stack trace in a log."""
    for what in history.left:
        yield Violation("left behind", "", what)


RULES: tuple[Rule, ...] = (
    lost,
    doubled,
    reordered,
    crossed,
    kept_though_refused,
    never_acknowledged,
    ended_once,
    read_alike,
    created_once,
    vanished,
    left_behind,
    *hearing.RULES,
    *replies.RULES,
)

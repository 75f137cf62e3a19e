"""What may go wrong with a history, one thing at a time, and which violation the checker must then find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.chaos.history import Ack, Entry, History, Read, Said
from tests.chaos.sound import ALIVE, BEGAN_MS, END_MS, OTHER, OVER, USER_AT, asked, event, iso

Doctor = Callable[[History], Any]
DOCTORS: list[tuple[str, Doctor]] = []


def breaks(kind: str) -> Callable[[Doctor], Doctor]:
    """The decorated function makes a sound history one in which the checker must find *kind*."""

    def register(doctor: Doctor) -> Doctor:
        DOCTORS.append((kind, doctor))
        return doctor

    return register


def drop(history: History, session_id: str, number: int) -> Entry:
    """Take an entry out of a log, and close the chain behind it."""
    read = history.found[session_id]
    entry = read.entries.pop(number)
    read.history.remove(entry.data)
    for later in read.entries[number : number + 1]:
        later.prev = entry.prev
    return entry


@breaks("lost")
def acknowledged_message_is_missing(history: History) -> None:
    drop(history, ALIVE, 2)


@breaks("lost")
def acknowledged_under_another_cursor(history: History) -> None:
    history.said[0].acks[0].cursor += 1


@breaks("lost")
def session_is_not_there(history: History) -> None:
    history.found[ALIVE] = Read(session_id=ALIVE, status=404)


@breaks("lost")
def session_was_not_there_for_a_moment(history: History) -> None:
    history.asked.append(asked("get", ALIVE, 404, code="SESSION_NOT_FOUND"))


@breaks("doubled")
def message_stands_there_twice(history: History) -> None:
    read = history.found[ALIVE]
    last = read.entries[-1]
    data = read.entries[0].data | {"id": "again", "cursor": last.cursor + 1}
    read.entries.append(Entry(cursor=last.cursor + 1, prev=last.cursor, type="message.created", data=data))


@breaks("doubled")
def one_key_is_two_messages(history: History) -> None:
    ack = history.said[0].acks[0]
    history.said[0].acks.append(
        Ack(at_ms=ack.at_ms, message_id="another", cursor=ack.cursor + 7, turn_id=ack.turn_id)
    )


@breaks("doubled")
def one_key_creates_two_sessions(history: History) -> None:
    history.lives[0].ids.append(OTHER)


@breaks("reordered")
def log_is_no_chain(history: History) -> None:
    history.found[ALIVE].entries[1].prev -= 1


@breaks("reordered")
def acknowledged_in_another_order(history: History) -> None:
    history.said[0], history.said[1] = history.said[1], history.said[0]


@breaks("reordered")
def answered_before_it_was_asked(history: History) -> None:
    entries = history.found[ALIVE].entries
    entries[0].data, entries[1].data = entries[1].data, entries[0].data
    history.said[0].acks[0].cursor = entries[1].cursor


@breaks("crossed")
def message_of_another_session(history: History) -> None:
    history.found[ALIVE].entries[0].data["content"] = f"{OTHER} client 0"


@breaks("crossed")
def answer_to_another_session(history: History) -> None:
    history.found[ALIVE].entries[1].data["content"] = f"{OTHER} answers {OTHER} client 0"


@breaks("crossed")
def poster_gets_anothers_answer(history: History) -> None:
    history.said[0].answer = f"{OTHER} answers"


@breaks("crossed")
def reply_about_another_session(history: History) -> None:
    history.asked[0].echoed = OTHER


@breaks("crossed")
def event_of_another_session(history: History) -> None:
    history.followings[0].events[1].session_id = OTHER


@breaks("crossed")
def outcome_of_a_turn_that_nobody_asked_for(history: History) -> None:
    drop(history, ALIVE, 2)
    del history.said[1]


@breaks("refused, and kept")
def refused_message_is_in_the_log(history: History) -> None:
    history.said[0].acks.clear()
    history.said[0].outcome = "over"


@breaks("never acknowledged")
def client_tries_in_vain(history: History) -> None:
    history.said.append(Said(session_id=ALIVE, who="client", content=f"{ALIVE} client 9", tries=30))


@breaks("never ended")
def turn_has_no_outcome(history: History) -> None:
    drop(history, ALIVE, 3)


@breaks("never ended")
def turn_is_still_open(history: History) -> None:
    history.found[ALIVE].is_quiet = False


@breaks("ended twice")
def turn_is_answered_and_failed(history: History) -> None:
    read = history.found[ALIVE]
    last = read.entries[-1].cursor
    data = {"turnId": "turn-1", "code": "AGENT_TIMEOUT"}
    read.entries.append(Entry(cursor=last + 1, prev=last, type="turn.failed", data=data))


@breaks("two readings")
def turn_says_other_than_its_log(history: History) -> None:
    history.found[ALIVE].turns["turn-0"] = "failed"


@breaks("two readings")
def history_lacks_what_the_replay_has(history: History) -> None:
    history.found[ALIVE].history.pop()


@breaks("left behind")
def key_without_an_end(history: History) -> None:
    history.left.append("no TTL: sa:log:{p99}:…")


# ------------------------------------------------------------ followers


@breaks("missed")
def follower_misses_one_in_between(history: History) -> None:
    del history.followings[0].events[1]


@breaks("missed")
def follower_misses_the_last_one(history: History) -> None:
    del history.followings[0].events[-1]


@breaks("missed")
def follower_is_never_told_anything(history: History) -> None:
    history.followings[0].after = None
    history.followings[0].events.clear()


@breaks("heard twice")
def follower_hears_one_twice(history: History) -> None:
    history.followings[0].events.append(history.followings[0].events[-1])


@breaks("heard twice")
def follower_hears_two_in_the_wrong_order(history: History) -> None:
    events = history.followings[0].events
    logged = [number for number, each in enumerate(events) if each.cursor]
    events[logged[0]], events[logged[1]] = events[logged[1]], events[logged[0]]


@breaks("heard what is not there")
def follower_hears_other_words(history: History) -> None:
    told = history.followings[0].events[1]
    told.data = told.data | {"content": f"{ALIVE} client 7"}


@breaks("gap")
def follower_is_told_of_a_gap(history: History) -> None:
    history.followings[0].events.insert(1, event(ALIVE, "gap", {"reason": "rewound"}))


@breaks("never told of the end")
def follower_is_not_told_of_the_end(history: History) -> None:
    del history.followings[1].events[-2]


@breaks("told twice of the end")
def follower_is_told_twice_of_the_end(history: History) -> None:
    history.followings[1].events.append(history.followings[1].events[-2])


@breaks("told twice of the end")
def follower_is_told_of_the_end_after_it_was_closed(history: History) -> None:
    end, closing = history.followings[1].events[-2:]
    for again in (end, closing):
        later = event(OVER, again.type, again.data, at_ms=again.at_ms)
        later.connection = 2
        history.followings[1].events.append(later)


@breaks("two ends")
def follower_is_told_another_end(history: History) -> None:
    history.followings[1].events[-2].data = {"expiredAt": iso(END_MS + 1)}


@breaks("expired, and alive")
def follower_is_told_of_an_end_that_was_none(history: History) -> None:
    history.followings[0].events.append(event(ALIVE, "session.expired", {"expiredAt": iso(END_MS)}))


@breaks("reordered")
def follower_hears_of_entries_after_the_end(history: History) -> None:
    events = history.followings[1].events
    events.append(events.pop(-4))


@breaks("warned twice")
def follower_is_warned_twice(history: History) -> None:
    history.followings[1].events.insert(-2, history.followings[1].events[-3])


@breaks("torn text")
def delta_leaves_a_hole(history: History) -> None:
    deltas = [each for each in history.followings[0].events if each.type == "turn.delta"]
    history.followings[0].events.remove(deltas[0])


@breaks("torn text")
def answer_is_other_than_its_text(history: History) -> None:
    deltas = [each for each in history.followings[0].events if each.type == "turn.delta"]
    deltas[1].data["text"] = "other"


@breaks("told late of the end")
def follower_is_told_late(history: History) -> None:
    for told in history.followings[1].events[-2:]:
        told.at_ms += 20_000


# ------------------------------------------------------------ requests


@breaks("unpromised")
def server_error(history: History) -> None:
    history.asked.append(asked("post", ALIVE, 500, code="INTERNAL_ERROR"))


@breaks("unpromised")
def refusal_without_a_time_to_come_back(history: History) -> None:
    history.asked.append(asked("post", ALIVE, 503, code="STORAGE_UNAVAILABLE"))


@breaks("unpromised")
def refusal_that_does_not_fit(history: History) -> None:
    history.asked.append(asked("heartbeat", ALIVE, 422, code="SESSION_RENEWAL_FAILED"))


@breaks("unpromised")
def turn_that_is_gone(history: History) -> None:
    history.asked.append(asked("turn", ALIVE, 404, code="TURN_NOT_FOUND"))


@breaks("unpromised")
def timeout_of_the_agent_for_who_does_not_wait(history: History) -> None:
    history.asked.append(asked("post", ALIVE, 504, code="AGENT_TIMEOUT"))


@breaks("hung up")
def no_reply_from_a_replica_that_lives(history: History) -> None:
    history.asked.append(asked("get", ALIVE, 0, code="ReadError"))


@breaks("hung")
def reply_long_after_the_deadline(history: History) -> None:
    late = asked("get", ALIVE, 200)
    late.ended_ms = late.began_ms + 9_000
    history.asked.append(late)


@breaks("two ends")
def another_end_on_another_replica(history: History) -> None:
    history.asked.append(
        asked("get", OVER, 410, code="SESSION_EXPIRED", end_ms=END_MS - 300, at_ms=END_MS + 50)
    )


@breaks("expired early")
def refused_before_the_end(history: History) -> None:
    history.asked.append(asked("get", OVER, 410, code="SESSION_EXPIRED", end_ms=END_MS, at_ms=END_MS - 100))


@breaks("expired, and alive")
def refused_as_over_and_found_alive(history: History) -> None:
    history.asked.append(asked("get", ALIVE, 410, code="SESSION_EXPIRED", end_ms=BEGAN_MS))


@breaks("used after its end")
def renewed_after_the_end(history: History) -> None:
    history.asked.append(asked("renew", OVER, 200, at_ms=END_MS + 1))


@breaks("used after its end")
def said_after_the_end(history: History) -> None:
    history.found[OVER].end_ms = USER_AT + 1

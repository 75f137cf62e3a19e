"""A history as it should be, of a session that lives and one that expired, for the checker's tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.chaos.history import Ack, Asked, Entry, Following, Heard, History, Life, Read, Said, Struck

ALIVE, OVER, OTHER = (f"{number}a000000-0000-4000-8000-000000000000" for number in (1, 2, 3))
BEGAN_MS = 1_800_000_000_000
END_MS = BEGAN_MS + 5_000
USER_AT, ANSWER_AT = BEGAN_MS + 100, BEGAN_MS + 200


def iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def message(session_id: str, role: str, cursor: int, *, number: int = 0, **more: Any) -> dict[str, Any]:
    said = f"{session_id} client {number}"
    return (
        {
            "id": f"{role}-{number}",
            "cursor": cursor,
            "turnId": f"turn-{number}",
            "role": role,
            "content": said if role == "user" else f"{session_id} answers {said}",
        }
        | ({"status": "complete"} if role == "agent" else {})
        | more
    )


def conversation(session_id: str) -> list[Entry]:
    """Two messages, each answered."""
    entries = []
    prev = 0
    for number in range(2):
        for role, at in (("user", USER_AT), ("agent", ANSWER_AT)):
            cursor = at + 1000 * number
            data = message(session_id, role, cursor, number=number)
            entries.append(Entry(cursor=cursor, prev=prev, type="message.created", data=data))
            prev = cursor
    return entries


def heard(session_id: str) -> list[Heard]:
    """What a follower from the beginning is told of :func:`conversation`, with the text of the answers."""
    events = [event(session_id, "session.snapshot", {"cursor": 0, "turn": None})]
    for entry in conversation(session_id):
        data = entry.data
        if data["role"] == "agent":
            turn = {"turnId": data["turnId"], "messageId": data["id"]}
            events.append(event(session_id, "turn.started", turn))
            for offset in (0, 5):
                text = data["content"][offset : offset + 5]
                events.append(event(session_id, "turn.delta", turn | {"offset": offset, "text": text}))
        heard_now = event(session_id, "message.created", data)
        heard_now.cursor, heard_now.prev = entry.cursor, entry.prev
        events.append(heard_now)
    return events


def event(session_id: str, kind: str, data: dict[str, Any], *, at_ms: int = BEGAN_MS) -> Heard:
    return Heard(at_ms=at_ms, connection=1, type=kind, session_id=session_id, data=data)


def asked(what: str, session_id: str, status: int, **more: Any) -> Asked:
    at_ms = more.pop("at_ms", BEGAN_MS + 1_000)
    return Asked(
        what=what,
        session_id=session_id,
        replica=0,
        began_ms=at_ms,
        ended_ms=at_ms + 10,
        status=status,
        **more,
    )


def sound() -> History:
    """A session that lives and one that expired, as it should be."""
    history = History()
    for session_id in (ALIVE, OVER):
        history.lives.append(
            Life(session_id=session_id, ids=[session_id], agent="worker", is_brief=session_id == OVER)
        )
        entries = conversation(session_id)
        history.found[session_id] = Read(
            session_id=session_id,
            status=200 if session_id == ALIVE else 410,
            end_ms=END_MS if session_id == OVER else 0,
            entries=entries,
            history=[entry.data for entry in entries],
            turns={"turn-0": "completed", "turn-1": "completed"},
        )
        for entry in entries[::2]:
            data = entry.data
            ack = Ack(
                at_ms=entry.cursor + 5, message_id=data["id"], cursor=entry.cursor, turn_id=data["turnId"]
            )
            history.said.append(
                Said(
                    session_id=session_id,
                    who="client",
                    content=data["content"],
                    tries=1,
                    acks=[ack],
                    outcome="acknowledged",
                )
            )
        history.followings.append(
            Following(who="follower", session_id=session_id, after=0, connections=1, events=heard(session_id))
        )
        history.asked.append(asked("get", session_id, 200, echoed=session_id))
    history.followings[1].events += [
        event(OVER, "session.expiring", {"expiresAt": iso(END_MS)}, at_ms=END_MS - 500),
        event(OVER, "session.expired", {"expiredAt": iso(END_MS)}, at_ms=END_MS + 20),
        event(OVER, "closing", {"code": 4410}, at_ms=END_MS + 20),
    ]
    history.asked.append(asked("post", OVER, 410, code="SESSION_EXPIRED", end_ms=END_MS, at_ms=END_MS + 1))
    history.asked.append(
        asked("post", ALIVE, 503, code="STORAGE_UNAVAILABLE", retry_after="1", at_ms=BEGAN_MS)
    )
    history.struck.append(
        Struck(kind="replica-kill", replica=1, began_ms=BEGAN_MS - 9_000, ended_ms=BEGAN_MS - 8_000)
    )
    return history

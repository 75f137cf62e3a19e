"""One session as its user sees it: who asks, who follows, and what the history says in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from tests.support.client import Api, Event, Stream, eventually

PATIENCE_MS = 90_000


def asks(session_id: str, content: str, **more: Any) -> Callable[[Api], httpx2.Response]:
    """For ``meanwhile``: a poster that waits for its answer."""
    headers = more.pop("headers", None)
    body = {"content": content, "transport": "http", "timeoutMs": PATIENCE_MS} | more

    def ask(api: Api) -> httpx2.Response:
        return api.call("POST", f"/{session_id}/messages", json=body, headers=headers, timeout=120)

    return ask


@contextmanager
def following(api: Api, session_id: str, last_event_id: str = "0") -> Iterator[Stream]:
    """A follower from the beginning, or a cursor, who is there now; what has been is the first it reads."""
    with api.events(session_id, last_event_id=last_event_id) as stream:
        assert stream.next().name == "session.snapshot"
        yield stream


def messages_of(events: list[Event]) -> list[tuple[str, str]]:
    """Role and content of the messages among *events*."""
    created = [event.data["data"] for event in events if event.name == "message.created"]
    return [(message["role"], message["content"]) for message in created]


def streamed(events: list[Event]) -> str:
    """What a poster's stream says the answer is: the chunks since the last restart."""
    text = ""
    for event in events:
        if event.name == "restart":
            text = ""
        elif event.name == "chunk":
            text += event.data["chunk"]
    return text


def turn_of(api: Api, session_id: str, turn_id: str) -> dict[str, Any]:
    response = api.call("GET", f"/{session_id}/turns/{turn_id}")
    assert response.status_code == 200, response.text
    turn: dict[str, Any] = response.json()
    return turn


def turn_is(api: Api, session_id: str, turn_id: str, state: str) -> dict[str, Any]:
    """Wait until it is."""

    def found() -> dict[str, Any] | None:
        turn = turn_of(api, session_id, turn_id)
        return turn if turn["state"] == state else None

    turn: dict[str, Any] = eventually(found, within_s=60)
    return turn


def told(api: Api, session_id: str) -> list[tuple[str, str]]:
    """Role and content of each message, oldest first."""
    messages = api.history(session_id)["messages"][::-1]
    return [(message["role"], message["content"]) for message in messages]


def draft(api: Api, session_id: str) -> Any:
    """The running answer, as whoever comes now is shown it."""
    with api.events(session_id) as stream:
        return stream.next().data["data"].get("turn")


def answer_to(session_id: str, content: str) -> str:
    return f"{session_id} answers {content}"


def dialogue(session_id: str, *contents: str) -> list[tuple[str, str]]:
    """What :func:`told` says if each was answered in its turn."""
    return [
        entry
        for content in contents
        for entry in (("user", content), ("agent", answer_to(session_id, content)))
    ]

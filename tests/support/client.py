"""A client of the wire contract, written from the contract alone: it shares no code with the service."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import httpx2
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

ECHO = "00000000-0000-4000-8000-000000000001"
BASE = "/api/messaging/sessions"
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def some_id() -> str:
    return str(uuid.uuid4())


def eventually(condition: Callable[[], Any], *, within_s: float = 10.0) -> Any:
    """The first true value of *condition*; fails after *within_s*."""
    deadline_s = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"did not happen within {within_s} s"
        time.sleep(0.01)
    return value


@contextmanager
def meanwhile(url: str, *actions: Callable[[Api], Any]) -> Iterator[list[Future[Any]]]:
    """Each of *actions* in a thread with a client of its own; at the end all have ended."""

    def act(action: Callable[[Api], Any]) -> Any:
        api = Api(url)
        try:
            return action(api)
        finally:
            api.close()

    with ThreadPoolExecutor(len(actions)) as pool:
        yield [pool.submit(act, action) for action in actions]


class Event(NamedTuple):
    """One frame of an event stream that has a name."""

    id: str | None
    name: str
    data: Any


class Stream:
    """An open event stream, read event by event; comments and ``retry:`` are kept apart."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.comments: list[str] = []
        self.retry_ms: int | None = None
        self._lines = response.iter_lines()

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                if "event" in fields:
                    yield Event(fields.get("id"), fields["event"], json.loads(fields["data"]))
                fields = {}
            elif line.startswith(":"):
                self.comments.append(line)
            else:
                name, _, value = line.partition(": ")
                assert name in {"id", "event", "data", "retry"}, line
                if name == "retry":
                    self.retry_ms = int(value)
                fields[name] = value

    def next(self) -> Event:
        return next(iter(self))

    def until(self, name: str) -> list[Event]:
        """The events up to the first of that name."""
        seen = []
        for event in self:
            seen.append(event)
            if event.name == name:
                return seen
        raise AssertionError(f"the stream ended without {name}: {seen}")

    def rest(self) -> list[Event]:
        """The events up to the stream's end."""
        return list(self)


class Api:
    """One service, by its URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx2.Client(base_url=url, timeout=20)

    def close(self) -> None:
        self.http.close()

    def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return self.http.request(method, BASE + path, **options)

    def create(self, **fields: Any) -> dict[str, Any]:
        response = self.call("POST", "", json={"agentId": ECHO, "userId": some_id()} | fields)
        assert response.status_code == 201, response.text
        created: dict[str, Any] = response.json()
        return created

    def session(self, **fields: Any) -> str:
        """The id of a new session."""
        return str(self.create(**fields)["sessionId"])

    def get(self, session_id: str) -> dict[str, Any]:
        response = self.call("GET", f"/{session_id}")
        assert response.status_code == 200, response.text
        info: dict[str, Any] = response.json()
        return info

    def post(
        self, session_id: str, content: str = "hello", *, headers: Any = None, **fields: Any
    ) -> httpx2.Response:
        body = {"content": content} | fields
        return self.call("POST", f"/{session_id}/messages", json=body, headers=headers)

    def say(self, session_id: str, content: str = "hello", **fields: Any) -> dict[str, Any]:
        """Post, and expect it to be accepted."""
        response = self.post(session_id, content, **fields)
        assert response.status_code == 201, response.text
        posted: dict[str, Any] = response.json()
        return posted

    def ask(self, session_id: str, content: str = "hello") -> dict[str, Any]:
        """Post, and wait for the answer."""
        return self.say(session_id, content, transport="http")

    def history(self, session_id: str, **params: Any) -> dict[str, Any]:
        response = self.call("GET", f"/{session_id}/messages", params=params)
        assert response.status_code == 200, response.text
        page: dict[str, Any] = response.json()
        return page

    @contextmanager
    def events(self, session_id: str, *, last_event_id: str | None = None, **params: Any) -> Iterator[Stream]:
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        with self.http.stream(
            "GET", f"{BASE}/{session_id}/events", params=params, headers=headers
        ) as response:
            yield Stream(response)

    @contextmanager
    def stream_post(self, session_id: str, content: str = "hello", **fields: Any) -> Iterator[Stream]:
        body = {"content": content, "transport": "sse"} | fields
        headers = body.pop("headers", None)
        with self.http.stream(
            "POST", f"{BASE}/{session_id}/messages", json=body, headers=headers
        ) as response:
            yield Stream(response)

    def websocket(self, session_id: str, query: str = "", **options: Any) -> ClientConnection:
        url = f"{self.url.replace('http', 'ws', 1)}{BASE}/{session_id}/ws{query}"
        subprotocols = [Subprotocol("sessions.v1")]
        connection: ClientConnection = connect(url, subprotocols=subprotocols, open_timeout=10, **options)
        return connection


def problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The ``error`` of a reply that is the one envelope, entire."""
    assert response.status_code == status, f"{response.status_code} {response.text[:500]}"
    body = response.json()
    error: dict[str, Any] = body["error"]
    assert error["code"] == code, error
    assert error.keys() <= {"code", "message", "details", "timestamp", "requestId", "retryable"}, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert INSTANT.fullmatch(error["timestamp"])
    assert error["requestId"] == response.headers["x-request-id"]
    assert isinstance(error["retryable"], bool)
    assert body["type"] == "urn:sessions-api:problem:" + code.lower().replace("_", "-")
    assert body["status"] == status
    assert body["title"]
    assert body["detail"] == error["message"]
    assert body["instance"].startswith("/")
    assert response.headers["content-type"].split(";")[0] in {"application/json", "application/problem+json"}
    for leak in ("Traceback", 'File "', "site-packages", "EVALSHA", "redis.exceptions"):
        assert leak not in response.text
    return error


def received(socket: ClientConnection, *, within_s: float = 10) -> dict[str, Any]:
    """The next frame of a WebSocket."""
    frame: dict[str, Any] = json.loads(socket.recv(timeout=within_s))
    return frame


def received_until(socket: ClientConnection, type_: str) -> list[dict[str, Any]]:
    """The frames up to the first of that type."""
    seen = [received(socket)]
    while seen[-1]["type"] != type_:
        seen.append(received(socket))
    return seen


def closed(socket: ClientConnection) -> tuple[int, list[dict[str, Any]]]:
    """The close code, and the frames before it."""
    frames: list[dict[str, Any]] = []
    with suppress(ConnectionClosed):
        while True:
            frames.append(received(socket))
    assert socket.close_code is not None
    return socket.close_code, frames

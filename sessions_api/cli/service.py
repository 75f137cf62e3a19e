"""The running service as the client commands see it: where it is, what it answers, how it fails."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import msgspec

from sessions_api.cli.errors import CommandError
from sessions_api.domain.ids import is_uuid

SESSIONS = "/api/messaging/sessions"
AGENTS = "/api/agents"
TIMEOUT_S = 10.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """What every client command takes."""
    parser.add_argument(
        "--url", help="where the service is (SESSIONS_URL, else HOST and PORT, else http://127.0.0.1:3000)"
    )
    parser.add_argument(
        "--key", help="an access key or session token, where the service has keys (SESSIONS_API_KEY)"
    )


def session_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="ID", type=uuid, help="the session's id")


def uuid(text: str) -> str:
    """An argparse type.

    Raises:
        argparse.ArgumentTypeError: *text* is no UUID.
    """
    if not is_uuid(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no id: ids are UUIDs, such as `sessions-api ls` shows")
    return text


class Frame(NamedTuple):
    """One event of a stream; *id* is what to come back with."""

    id: str
    event: dict[str, Any]


class Service:
    """Speaks HTTP with one service; every failure is a :class:`CommandError` of one line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.url = _url(args.url)
        self.key = args.key or os.environ.get("SESSIONS_API_KEY", "").strip()
        self._client = httpx2.Client(
            base_url=self.url, timeout=TIMEOUT_S, trust_env=False, headers=self.key_header
        )

    @property
    def key_header(self) -> dict[str, str]:
        """What shows the key; nothing without one.

        Raises:
            CommandError: it is none that a header can carry.
        """
        if not self.key:
            return {}
        if not self.key.isascii() or not self.key.isprintable():
            raise CommandError("the key has characters that no access key has", status=2)
        return {"X-API-KEY": self.key}

    @property
    def websocket_url(self) -> str:
        return re.sub(r"^http", "ws", self.url)

    def ask(
        self,
        method: str,
        path: str = "",
        *,
        body: object = None,
        params: dict[str, str] | None = None,
        key: str = "",
    ) -> Any:
        """The JSON of one reply; *path* is that of a session, or whole (``/api/…``).

        Raises:
            CommandError: nobody answers, or the answer is an error.
            Gone: what was asked for is over or unknown.
            NoAgent: the agent is not defined, or not there.
            Invalid: fields of the request are refused.
        """
        headers = {"Idempotency-Key": key} if key else {}
        try:
            whole = path if path.startswith("/api/") else SESSIONS + path
            reply = self._client.request(method, whole, json=body, params=params, headers=headers)
        except httpx2.HTTPError as error:
            raise self.unreachable(error) from error
        return _read(reply)

    def follow(self, session_id: str, after: str | None) -> Iterator[Frame]:
        """The session's live events, until the connection ends.

        *after* is the last frame's id: what came later follows, nothing else. None begins with now.

        Raises:
            Lost: the connection broke, or nobody answers; come back with the last id.
            Over: the session has ended and there is nothing more to come.
        """
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after is not None else {})
        timeout = httpx2.Timeout(TIMEOUT_S, read=45.0)  # a comment comes every 15 s
        path = f"{SESSIONS}/{session_id}/events"
        try:
            with self._client.stream("GET", path, headers=headers, timeout=timeout) as reply:
                if reply.status_code == 204:
                    raise Over("the session is over, and all of it was seen")
                if reply.status_code >= 500:
                    raise Lost(f"the service answers {reply.status_code}")
                if reply.is_error:
                    reply.read()
                    _read(reply)
                yield from _frames(reply.iter_lines())
        except httpx2.HTTPError as error:
            raise Lost(str(self.unreachable(error))) from error

    def unreachable(self, error: Exception) -> CommandError:
        if isinstance(error, httpx2.ConnectError):
            return CommandError(
                f"no service answers at {self.url}: start one with `sessions-api dev`, "
                "or name it with --url or SESSIONS_URL"
            )
        if isinstance(error, httpx2.TimeoutException):
            return CommandError(f"{self.url} did not answer within {TIMEOUT_S:.0f} s")
        return CommandError(f"{self.url}: the connection broke ({type(error).__name__})")


class Gone(CommandError):
    """The session is over (410), or what was asked for is unknown (404)."""


class NoAgent(CommandError):
    """Nobody is there to answer, or nobody defined the agent: either may come about."""


class Invalid(CommandError):
    """Fields are refused; *problems* names each of them."""

    def __init__(self, message: str, problems: list[str]) -> None:
        super().__init__(message)
        self.problems = problems


class Over(CommandError):
    """The stream has come to its end."""


class Lost(CommandError):
    """The stream's connection broke."""


def _url(given: str | None) -> str:
    host = os.environ.get("HOST", "").strip() or "127.0.0.1"
    port = os.environ.get("PORT", "").strip() or "3000"
    host = f"[{host}]" if ":" in host else host
    url = given or os.environ.get("SESSIONS_URL", "").strip() or f"http://{host}:{port}"
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise CommandError(f"{url} is no address of a service: it looks like http://127.0.0.1:3000", status=2)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _read(reply: httpx2.Response) -> Any:
    try:
        body = msgspec.json.decode(reply.content)
    except msgspec.DecodeError as error:
        raise CommandError(
            f"{reply.url} is no Sessions API: it answers {reply.status_code} without JSON"
        ) from error
    if not reply.is_error:
        return body
    told = body.get("error") if isinstance(body, dict) else None
    if not isinstance(told, dict):
        raise CommandError(f"{reply.url} answers {reply.status_code}")
    line = f"{told.get('message')} ({told.get('code')}, request {told.get('requestId')})"
    if told.get("code") in {"AGENT_NOT_FOUND", "AGENT_UNAVAILABLE"}:
        raise NoAgent(line)
    if reply.status_code in {404, 410}:
        raise Gone(line)
    problems = [_in_words(bad) for bad in (told.get("details") or {}).get("errors", [])]
    raise Invalid(line, problems) if problems else CommandError(line)


def _in_words(bad: dict[str, Any]) -> str:
    """One refused field."""
    shown = f" ({bad['provided']!r})" if "provided" in bad else ""
    allowed = f"; allowed is {bad['allowed']}" if "allowed" in bad else ""
    return f"{bad['field']}{shown} {bad['reason']}{allowed}"


def _frames(lines: Iterator[str]) -> Iterator[Frame]:
    """Server-sent events; comments, names and retry times are the transport's own."""
    frame_id = ""
    data: list[str] = []
    for line in lines:
        field, _, value = line.partition(":")
        if not line:
            if data:
                yield Frame(frame_id, msgspec.json.decode("\n".join(data)))
            frame_id, data = "", []
        elif field == "data":
            data.append(value.removeprefix(" "))
        elif field == "id":
            frame_id = value.removeprefix(" ")

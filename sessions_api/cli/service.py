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
TIMEOUT_S = 10.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """What every client command takes."""
    parser.add_argument(
        "--url", help="where the service is (SESSIONS_URL, else HOST and PORT, else http://127.0.0.1:3000)"
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
        self._client = httpx2.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)

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
        """The JSON of one reply.

        Raises:
            CommandError: nobody answers, or the answer is an error.
            Gone: the session is over or unknown.
        """
        headers = {"Idempotency-Key": key} if key else {}
        try:
            reply = self._client.request(method, SESSIONS + path, json=body, params=params, headers=headers)
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
    """The session is over (410) or unknown (404)."""


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
    raise (Gone if reply.status_code in {404, 410} else CommandError)(line)


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

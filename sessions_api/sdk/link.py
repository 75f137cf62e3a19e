"""The worker's side of HTTP: one request, or one write repeated until it is known to have arrived.

Every write of the protocol may be repeated: the service answers a repeat like the
first. So a lost connection, a 5xx and a 429 are no failures, only delays.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Mapping
from typing import Any, Final, Self
from urllib.parse import quote

import httpx2

from sessions_api.sdk.backoff import Backoff, asked_s
from sessions_api.sdk.logs import say

CONNECT_S: Final = 5.0
REPLY_S: Final = 15.0
KEPT_S: Final = 3.0
"""For an idle connection; servers close theirs after five, and a request would meet that."""
LAST_PAUSE_S: Final = 2.0
"""Between two tries of a write: a turn's lease is short."""


class Refused(Exception):
    """The service understood, and says no; trying again is of no use."""

    def __init__(self, status: int, code: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(f"{message} ({code}){_fields(details)}")
        self.status = status
        self.code = code
        self.details = details


class Away(Exception):
    """Nobody answers, or not now; *asked_s* is the pause that was asked for."""

    def __init__(self, reason: str, asked_s: float = 0.0) -> None:
        super().__init__(reason)
        self.asked_s = asked_s


class Link:
    """One service, by its URL; open between ``async with``."""

    def __init__(self, url: str, key: str | None, *, connections: int) -> None:
        self.url = address(url)
        headers = {"X-API-KEY": key} if key else {}
        self._client = httpx2.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx2.Timeout(REPLY_S, connect=CONNECT_S, pool=None),
            limits=httpx2.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=KEPT_S,
            ),
            trust_env=not _is_loopback(self.url),  # a proxy of the environment has no way to this machine
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._client.aclose()

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any], *, wait_s: float | None = None
    ) -> dict[str, Any] | None:
        """The JSON of one reply, None if it has no content; told to, the service may take *wait_s* for it.

        Raises:
            Away: try again later.
            Refused: do not.
        """
        params = {} if wait_s is None else {"wait": f"{wait_s:g}"}
        timeout = httpx2.Timeout((wait_s or 0.0) + REPLY_S, connect=CONNECT_S, pool=None)
        try:
            reply = await self._client.request(method, path, json=body, params=params, timeout=timeout)
        except httpx2.RequestError as error:
            raise Away(type(error).__name__) from error
        return _read(reply)

    async def write(
        self, path: str, body: Mapping[str, Any], *, until_s: float, wait_s: float | None = None
    ) -> dict[str, Any]:
        """Repeat a write until it is answered, at the latest until *until_s* of the loop's clock.

        Raises:
            Refused: by the service.
            Away: *until_s* has come.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff(LAST_PAUSE_S)
        while True:
            try:
                async with asyncio.timeout_at(until_s):
                    return await self.ask("POST", path, body, wait_s=wait_s) or {}
            except TimeoutError as error:
                raise Away("no time is left") from error
            except Away as away:
                pause_s = backoff.next_s(away.asked_s)
                if loop.time() + pause_s >= until_s:
                    raise
                say(logging.DEBUG, "write_repeated", path=path, reason=away, pause_s=round(pause_s, 2))
            await asyncio.sleep(pause_s)


def address(url: str) -> str:
    """A service's URL as paths are put behind it.

    Raises:
        ValueError: it is none.
    """
    parts = httpx2.URL(url)
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise ValueError(f"{url!r} is no address of a service: it looks like http://127.0.0.1:3000")
    return url.rstrip("/")


def agent_path(agent_id: str) -> str:
    return f"/api/agents/{quote(agent_id, safe='')}"


def turn_path(session_id: str, turn_id: str) -> str:
    return f"/api/messaging/sessions/{session_id}/turns/{turn_id}"


def _read(reply: httpx2.Response) -> dict[str, Any] | None:
    if reply.status_code == 204:
        return None
    if reply.is_success:
        try:
            body = reply.json()
        except ValueError as error:  # cut off by something in between
            raise Away(f"a {reply.status_code} without JSON") from error
        return body if isinstance(body, dict) else {}
    if reply.is_server_error or reply.status_code in {408, 429}:
        raise Away(f"status {reply.status_code}", asked_s(reply.headers.get("retry-after")))
    raise _refused(reply)


def _refused(reply: httpx2.Response) -> Refused:
    try:
        told = reply.json()["error"]
        return Refused(reply.status_code, str(told["code"]), str(told["message"]), told.get("details") or {})
    except (ValueError, LookupError, TypeError):
        return Refused(reply.status_code, f"HTTP_{reply.status_code}", f"{reply.url} is no Sessions API", {})


def _fields(details: Mapping[str, Any]) -> str:
    """Every bad field of a refused request, in words."""
    errors = details.get("errors") or ()
    words = "; ".join(f"{each.get('field')} {each.get('reason')}" for each in errors)
    return f": {words}" if words else ""


def _is_loopback(url: str) -> bool:
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""HTTP to agents: never to an address that is not permitted (``guarded.py``), never more than is asked for.

A URL of an agent is somebody's input, and so is where it redirects to. Proxies
and ``.netrc`` of the environment play no part, and no cookie is kept.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from email.utils import parsedate_to_datetime
from time import time
from typing import Final

import httpx2
import structlog

from sessions_api.agents.connectors.addresses import Network
from sessions_api.agents.connectors.failure import AttemptFailed
from sessions_api.agents.connectors.guarded import (
    CONNECT_S,
    AddressRefused,
    Guard,
    Resolve,
    Transport,
    resolve_host,
)
from sessions_api.domain.ids import AgentId
from sessions_api.domain.traces import NO_TRACE, Trace, trace_headers
from sessions_api.telemetry.tracing import OFF, HttpSpan, Tracing

WRITE_S: Final = 30.0
MAX_REDIRECTS: Final = 3
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
MAX_EVENT_BYTES: Final = 1024 * 1024
_SECONDS: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


log = structlog.get_logger(__name__)


class Outgoing:
    """Posts to agents; *allowed* networks may be reached although they are not public.

    One for all connectors: it keeps idle connections. :meth:`aclose` closes those;
    a later request opens new ones.

    Reading the trusted certificates takes 35 to 65 ms. That happens in a thread,
    for which the first request waits unless :meth:`start` began it.
    """

    def __init__(
        self, allowed: Iterable[Network] = (), *, resolve: Resolve = resolve_host, tracing: Tracing = OFF
    ) -> None:
        self._tracing = tracing
        self._guard = Guard(tuple(allowed), resolve)
        self._made: Transport | None = None
        self._reading: asyncio.Task[ssl.SSLContext] | None = None

    def start(self) -> None:
        """Begin to read the trusted certificates; returns at once."""
        self._read()

    @asynccontextmanager
    async def post(
        self,
        url: str,
        body: bytes,
        *,
        agent_id: AgentId,
        headers: Mapping[str, str],
        secrets: Mapping[str, str] | None = None,
        silent_s: float | None = None,
        trace: Trace = NO_TRACE,
    ) -> AsyncGenerator[httpx2.Response, None]:
        """POST *body* and give the reply, its body unread; leaving closes it.

        *agent_id* is for the log. *secrets* are headers for the origin of *url* and no other. *silent_s* is
        the longest pause between two bytes (None: no end). *trace* is what it belongs
        to. At most three redirects are followed, of the kinds that keep a POST (307,
        308), never from https to http. The reply is uncompressed and at most 64 MiB.

        Raises:
            AttemptFailed: also while the body is read. Nothing it says was sent or received.
        """
        try:
            reply, span = await self._open(url, body, headers, secrets or {}, silent_s, trace)
            try:
                yield reply
            except Exception as error:
                span.failed(_kind(error))
                raise
            finally:
                await reply.aclose()
                span.end()
        except AddressRefused as error:
            log.warning(
                "outgoing_address_refused",
                agent_id=agent_id,
                host=error.host,
                addresses=[str(address) for address in error.addresses],
                setting="SESSIONS_OUTGOING_ALLOW",
            )
            raise
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            # An error may quote what it is about, a header for instance: only those of connecting are shown.
            reason = str(error) if isinstance(error, httpx2.ConnectError) else ""
            log.info("outgoing_failed", agent_id=agent_id, error=type(error).__name__, reason=reason)
            raise _failure(error) from None

    async def aclose(self) -> None:
        if self._reading is not None:
            await asyncio.wait((self._reading,))
        made, self._made = self._made, None
        if made is not None:
            await made.aclose()

    async def _open(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        secrets: Mapping[str, str],
        silent_s: float | None,
        trace: Trace,
    ) -> tuple[httpx2.Response, HttpSpan]:
        target = origin = _checked(httpx2.URL(url))
        transport = await self._transport()
        timeout = httpx2.Timeout(connect=CONNECT_S, write=WRITE_S, read=silent_s, pool=CONNECT_S)
        for resends in range(MAX_REDIRECTS + 1):
            span = self._tracing.call("POST", str(target), trace, resends=resends)
            request = httpx2.Request(
                "POST",
                target,
                content=body,
                # identity: a compressed reply could be a thousand times what its bytes say.
                headers={"user-agent": "sessions-api", "accept-encoding": "identity", **headers}
                | trace_headers(span.trace)
                | (dict(secrets) if target.origin == origin.origin else {}),
                extensions={"timeout": timeout.as_dict()},
            )
            try:
                reply = await transport.handle_async_request(request)
            except BaseException as error:
                span.failed(_kind(error))
                span.end()
                raise
            reply.request = request
            span.answered(reply.status_code)
            if 300 <= reply.status_code < 400:
                span.end()
                await reply.aclose()
                target = _redirected(target, reply)
                continue
            if reply.headers.get("content-encoding", "identity").lower() not in {"", "identity"}:
                span.failed("AGENT_ERROR")
                span.end()
                await reply.aclose()
                raise AttemptFailed("AGENT_ERROR", "The agent answered in an encoding it was not asked for")
            return reply, span
        raise _refused("The agent redirects too often")

    async def _transport(self) -> Transport:
        context = await asyncio.shield(self._read())
        if self._made is None:
            self._made = Transport(self._guard, context)
        return self._made

    def _read(self) -> asyncio.Task[ssl.SSLContext]:
        """The certificates, read once; again if that failed."""
        task = self._reading
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            reading = asyncio.to_thread(httpx2.create_ssl_context)
            task = self._reading = asyncio.get_running_loop().create_task(reading, name="certificates")
        return task


async def whole(reply: httpx2.Response, most_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The body of *reply*.

    Raises:
        AttemptFailed: it is longer than *most_bytes*.
    """
    parts: list[bytes] = []
    left = most_bytes
    async with aclosing(reply.aiter_bytes()) as stream:
        async for part in stream:
            left -= len(part)
            if left < 0:
                raise _too_large()
            parts.append(part)
    return b"".join(parts)


async def beginning(reply: httpx2.Response, most_bytes: int) -> str:
    """The first bytes of a body as text, for what only wants to know what it is about."""
    parts: list[bytes] = []
    left = most_bytes
    async with aclosing(reply.aiter_bytes()) as stream:
        async for part in stream:
            parts.append(part[:left])
            left -= len(parts[-1])
            if left <= 0:
                break
    return b"".join(parts).decode(errors="replace")


async def events(reply: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
    """The events of a stream, whatever type it calls itself; they are UTF-8 by their own standard."""
    reply.headers["content-type"] = "text/event-stream; charset=utf-8"
    async for event in httpx2.EventSource(reply, max_event_size=MAX_EVENT_BYTES):
        yield event


def content_type(reply: httpx2.Response) -> str:
    """The media type in lower case, without parameters; "" if it has none."""
    return str(reply.headers.get("content-type", "")).partition(";")[0].strip().lower()


def failure_of(reply: httpx2.Response) -> AttemptFailed:
    """What a status that is no 2xx means: again later, or never."""
    status = reply.status_code
    if status == 429:
        return AttemptFailed("AGENT_RATE_LIMITED", "The agent is asked too often", pause_s=pause_s(reply))
    if status >= 500 or status in {408, 409, 425}:
        return AttemptFailed("AGENT_ERROR", f"The agent answered {status}", pause_s=pause_s(reply))
    return _refused(f"The agent answered {status}")


def pause_s(reply: httpx2.Response) -> float:
    """The seconds that ``Retry-After`` (or OpenAI's ``retry-after-ms``) asks for; 0 without one."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = str(reply.headers.get(name, "")).strip()
        if _SECONDS.fullmatch(value):
            return float(value) * scale
    try:
        return max(0.0, parsedate_to_datetime(reply.headers["retry-after"]).timestamp() - time())
    except (KeyError, ValueError, OverflowError):
        return 0.0


# ---------------------------------------------------------------- URLs


def _checked(url: httpx2.URL) -> httpx2.URL:
    if url.scheme not in {"http", "https"} or not url.host:
        raise _refused("The agent's address is no http or https URL")
    if url.userinfo:
        raise _refused("The agent's address may hold no name and password")
    return url


def _redirected(url: httpx2.URL, reply: httpx2.Response) -> httpx2.URL:
    location = reply.headers.get("location")
    if reply.status_code not in {307, 308} or not location:
        raise _refused(f"The agent answered {reply.status_code}; only 307 and 308 keep a POST")
    target = _checked(url.join(location))
    if url.scheme == "https" and target.scheme != "https":
        raise _refused("The agent redirects from https to http")
    return target


def _refused(message: str) -> AttemptFailed:
    return AttemptFailed("AGENT_REFUSED", message, retry=False)


def _too_large() -> AttemptFailed:
    return AttemptFailed("ANSWER_TOO_LARGE", "The agent's answer is too large", retry=False)


def _kind(error: BaseException) -> str:
    """What a span says of *error*: never its message."""
    return error.code if isinstance(error, AttemptFailed) else type(error).__name__


def _failure(error: Exception) -> AttemptFailed:
    match error:
        case httpx2.ConnectError() | httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return AttemptFailed("AGENT_UNREACHABLE", "The agent cannot be reached")
        case httpx2.TimeoutException():
            return AttemptFailed("AGENT_TIMEOUT", "The agent fell silent")
        case httpx2.SSEError():  # an event beyond its bound; the content type is never wrong here
            return _too_large()
        case httpx2.NetworkError() | httpx2.RemoteProtocolError():
            return AttemptFailed("AGENT_UNREACHABLE", "The connection to the agent broke")
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol() | httpx2.LocalProtocolError():
            return _refused("The agent cannot be asked with this definition")
        case _:
            return AttemptFailed("AGENT_ERROR", "The agent's answer cannot be read")

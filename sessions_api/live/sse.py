"""``GET /{id}/events``: a subscription written as ``text/event-stream``.

Pure ASGI: one task writes, one waits for the client to leave. What is ready
goes out in one write. A client that does not read blocks the writer; meanwhile
its queue fills up and is cut (``subscription.py``), and after a while the
connection is too.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, NamedTuple

from sessions_api.errors import FieldError, InvalidInput
from sessions_api.live.closing import TOO_SLOW
from sessions_api.live.patience import Patience
from sessions_api.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Receive, Send

    from sessions_api.live.subscription import Subscription

BEAT_S: Final = 15.0
SEND_TIMEOUT_S: Final = 30.0
CHUNK_BYTES: Final = 64 * 1024
RETRY_MS: Final = (1_000, 4_000)
MAX_CURSOR_DIGITS: Final = 16

# Padded: some proxies and virus scanners hold a stream back until they have a few hundred bytes of it.
BEAT: Final = b": keep-alive" + b" " * 500 + b"\n\n"

HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class Start(NamedTuple):
    """Where a stream begins. *is_over*: the client has everything of an ended session; answer 204."""

    after: int | None
    is_over: bool = False


def start_of(last_event_id: str | None, after: str | None) -> Start:
    """Where to begin, from ``Last-Event-ID`` (a reconnect: it wins) or ``?after=``.

    Raises:
        InvalidInput: neither a cursor nor one of our ends.
    """
    if last_event_id:
        cursor, dot, end = last_event_id.strip().partition(".")
        if dot and end == "end":
            return Start(None, is_over=True)
        return Start(_cursor(cursor if not dot else last_event_id, "Last-Event-ID"))
    if after:
        return Start(_cursor(after, "after"))
    return Start(None)


def _cursor(text: str, name: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= MAX_CURSOR_DIGITS:
        return int(text)
    reason = "must be a cursor: an integer from an earlier event"
    raise InvalidInput(
        f"Invalid position '{name}': {reason}",
        [FieldError(name, reason, text[:100])],
        {"parameter": name, "value": text[:100]},
    )


async def stream_events(
    subscription: Subscription,
    receive: Receive,
    send: Send,
    *,
    headers: Iterable[tuple[bytes, bytes]] = (),
    beat_s: float = BEAT_S,
    send_timeout_s: float = SEND_TIMEOUT_S,
) -> None:
    """Write *subscription* until it closes or the client leaves; closes it in any case."""
    followers = metrics.FOLLOWERS.labels("sse")
    followers.inc()
    patience = Patience()
    leaving = asyncio.create_task(_close_when_gone(receive, subscription), name="sse client")
    try:
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})
        await _write(subscription, leaving, send, patience, beat_s=beat_s, send_timeout_s=send_timeout_s)
    finally:
        patience.close()
        followers.dec()
        subscription.close()
        leaving.cancel()
        await asyncio.wait([leaving])


async def _write(
    subscription: Subscription,
    leaving: asyncio.Task[None],
    send: Send,
    patience: Patience,
    *,
    beat_s: float,
    send_timeout_s: float,
) -> None:
    sent = metrics.EVENTS.of("sse")
    parts = [f"retry: {random.randint(*RETRY_MS)}\n\n".encode()]  # noqa: S311  jitter
    while True:
        closing = None
        try:
            with patience.within(beat_s):
                event = await subscription.next()
        except TimeoutError:
            parts.append(BEAT)
        else:
            size = 0
            while event.closing is None:
                parts.append(event.sse)
                sent.inc()
                size += len(parts[-1])
                ready = subscription.ready() if size < CHUNK_BYTES else None
                if ready is None:
                    break
                event = ready
            else:
                closing = event.closing
                parts.append(event.sse)
        if leaving.done():
            return
        try:
            with patience.within(send_timeout_s):
                await send(
                    {"type": "http.response.body", "body": b"".join(parts), "more_body": closing is None}
                )
        except TimeoutError:
            metrics.FOLLOWERS_CUT.of(str(TOO_SLOW.code)).inc()
            return  # the server ends the connection: nothing can be written on it
        if closing is not None:
            metrics.FOLLOWERS_CUT.of(str(closing.code)).inc()
            return
        parts = []


async def _close_when_gone(receive: Receive, subscription: Subscription) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    subscription.close()

"""Messages: send one in any of three transports, page through the history."""

from __future__ import annotations

from typing import Final

from sessions_api.api.bodies import SendBody, read_message
from sessions_api.api.idempotency import read_key
from sessions_api.api.operations import Accepted
from sessions_api.api.paging import Query
from sessions_api.api.poststream import PostStream
from sessions_api.api.replies import REPLAYED, Header, Reply, limit_headers
from sessions_api.api.requests import Request, unless_gone
from sessions_api.wire.messages import history_json

DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 100


async def send(request: Request) -> Reply | PostStream:
    """Append a message; depending on ``transport`` wait for the answer to it, or stream that."""
    message = read_message(
        await request.json(),
        max_chars=request.state.rules.max_content_chars,
        wants_stream=request.wants_event_stream,
    )
    key = read_key(request.headers.get(b"idempotency-key"))
    if message.role != "user":
        spoken = await request.state.operations.speak(request.session_id, request.caller, message, key)
        body = spoken.json(minimal=request.prefers_minimal)
        return Reply(201, body, (REPLAYED,) if spoken.is_repeat else ())
    if message.transport == "sse":
        return PostStream(request, message, key)
    if message.transport == "http":
        return await _send_and_wait(request, message, key)
    accepted = await request.state.operations.accept(
        request.session_id, request.caller, message, key, address=request.address, trace=request.trace
    )
    return _posted(request, accepted)


async def _send_and_wait(request: Request, message: SendBody, key: str | None) -> Reply:
    """The reply has the answer, or is the error of the turn that brought none.

    A client that leaves stops the waiting, never the turn.
    """
    session_id = request.session_id
    await request.state.operations.check_poster(session_id, request.caller)
    async with request.state.hub.watch(session_id) as watch:
        accepted = await request.state.operations.accept(
            session_id, request.caller, message, key, address=request.address, trace=request.trace
        )
        request.turn_id = accepted.turn_id
        outcome = await unless_gone(
            request.receive,
            watch.outcome(accepted.turn_id, timeout_ms=message.wait_ms, is_repeat=accepted.is_repeat),
        )
    if outcome.error is not None:
        request.turn_id = outcome.turn_id
        raise outcome.error
    answer: bytes | None = None  # forgotten: the turn is too old to tell
    if outcome.kind == "cancelled":
        answer = accepted.reply.answer(outcome.answer, is_cancelled=True)
    elif outcome.kind == "completed":
        answer = (
            b"null" if outcome.answer is None else accepted.reply.answer(outcome.answer, is_cancelled=False)
        )
    return _posted(request, accepted, answer)


def _posted(request: Request, accepted: Accepted, answer: bytes | None = None) -> Reply:
    body = accepted.reply.json(minimal=request.prefers_minimal, answer=answer)
    return Reply(201, body, (REPLAYED,) if accepted.is_repeat else limit_headers(accepted.standings))


async def history(request: Request) -> Reply:
    """A page of the history, newest first; both bounds are exclusive."""
    query = Query(request.query())
    limit = query.limit(DEFAULT_PAGE, MAX_PAGE)
    before, after = query.position("before"), query.position("after")
    ended = query.truth("ended")
    session_id = request.session_id
    query.check()
    page = await request.state.store.log.history(
        session_id, grant=request.caller.read_grant, limit=limit, before=before, after=after, ended=ended
    )
    headers: tuple[Header, ...] = ()
    if page.entries:
        oldest, newest = page.entries[-1].cursor, page.entries[0].cursor
        links = [request.link(after=str(newest), rel="prev")]
        if after is None or before is not None or page.has_more:
            links.insert(0, request.link(before=str(oldest), rel="next"))
        headers = ((b"link", b", ".join(links)),)
    return Reply(200, history_json(page.entries, has_more=page.has_more), headers)

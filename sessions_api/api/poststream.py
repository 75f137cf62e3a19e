"""``POST …/messages`` with ``transport: sse``: the answer as it is said, to its poster.

::

    event: user_message   the accepted message
    event: chunk          a piece of the answer
    event: restart        the text so far is void: another attempt began, or the answer is other than it
    event: done           the whole answer; or
    event: error          why there is none

The stream is a courtesy to the poster: the answer goes to the history and to
every follower whether the poster stays or not.
"""

from __future__ import annotations

from contextlib import aclosing, suppress
from typing import Final

import msgspec
from msgspec import UNSET
from starlette.types import Receive, Send

from sessions_api.api.bodies import SendBody
from sessions_api.api.operations import Accepted
from sessions_api.api.replies import CLOSED, REPLAYED, SAFE, Header, limit_headers
from sessions_api.api.requests import ClientGone, Request, unless_gone
from sessions_api.domain.ids import TurnId
from sessions_api.errors import AgentFailed, SessionsError
from sessions_api.live.outcomes import Beat, Chunk, Outcome, Restart
from sessions_api.live.sse import BEAT, BEAT_S
from sessions_api.live.waiting import Watch
from sessions_api.wire import posted
from sessions_api.wire.problems import problem_of

HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    *SAFE,
    CLOSED,
)

_encode = msgspec.json.Encoder().encode


class PostStream:
    """One poster's stream; what is wrong before it begins is an ordinary error."""

    def __init__(self, request: Request, message: SendBody, key: str | None) -> None:
        self._request = request
        self._message = message
        self._key = key

    async def run(self, receive: Receive, send: Send, headers: tuple[Header, ...]) -> None:
        request, message = self._request, self._message
        session_id = request.session_id
        await request.state.operations.check_poster(session_id, request.caller)
        async with request.state.hub.watch(session_id) as watch:
            accepted = await request.state.operations.accept(
                session_id,
                request.caller,
                message,
                self._key,
                address=request.address,
                trace=request.trace,
            )
            replayed = (REPLAYED,) if accepted.is_repeat else limit_headers(accepted.standings)
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [*HEADERS, *headers, *replayed],
                }
            )
            await _say(send, "user_message", accepted.reply.user_message)
            with suppress(ClientGone):  # the reply has begun: nothing more is to be said of it
                await unless_gone(receive, self._write(watch, accepted, send))

    async def _write(self, watch: Watch, accepted: Accepted, send: Send) -> None:
        """Write part by part, up to the outcome."""
        parts = watch.stream(
            accepted.turn_id, timeout_ms=self._message.wait_ms, is_repeat=accepted.is_repeat, beat_s=BEAT_S
        )
        async with aclosing(parts):
            async for part in parts:
                match part:
                    case Chunk():
                        chunk = posted.Chunk(
                            part.message_id, part.text, part.index, part.offset, part.turn_id
                        )
                        await _say(send, "chunk", _encode(chunk))
                    case Restart():
                        again = posted.Restart(part.message_id, part.attempt, part.turn_id)
                        await _say(send, "restart", _encode(again))
                    case Outcome():
                        await self._close(part, accepted, send)
                    case Beat():
                        await send({"type": "http.response.body", "body": BEAT, "more_body": True})

    async def _close(self, outcome: Outcome, accepted: Accepted, send: Send) -> None:
        if outcome.error is not None:
            data = error_json(outcome.error, self._request.id.decode(), outcome.turn_id)
            await _say(send, "error", data, last=True)
            return
        answer = accepted.reply.answer(outcome.answer, is_cancelled=outcome.kind == "cancelled")
        await _say(send, "done", answer, last=True)


def error_json(error: SessionsError, request_id: str, turn_id: TurnId) -> bytes:
    """The data of an ``error`` event: the envelope's message and code, in the reference's shape."""
    problem = problem_of(error, request_id=request_id, turn_id=turn_id)
    message = msgspec.json.decode(problem.body)["error"]["message"]
    agent_code = error.agent_code if isinstance(error, AgentFailed) else UNSET
    return _encode(
        posted.StreamError(message, problem.code, error.retryable, request_id, turn_id, agent_code)
    )


async def _say(send: Send, event: str, data: bytes, *, last: bool = False) -> None:
    body = b"event: %b\ndata: %b\n\n" % (event.encode(), data)
    await send({"type": "http.response.body", "body": body, "more_body": not last})

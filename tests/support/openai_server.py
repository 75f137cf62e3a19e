"""A server that speaks ``/v1/chat/completions`` as OpenAI's does, without a model behind it.

It says the last user message back, word by word. ``test_openai_server.py``
checks it with OpenAI's own client. A test may put an answer of its own in
:attr:`ChatServer.faults`: each is used once, before the server is itself again.

``python -m tests.support.openai_server [port]`` serves it for the examples, with
``MODEL_SERVER_KEY`` as its key if that is set.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.streams import Served

MODEL = "parrot-1"
Fault = Callable[[dict[str, Any]], Response]


class ChatServer:
    """On a free port; :attr:`base_url` is what a client is given. Without *key* it asks for none."""

    def __init__(self, *, key: str = "") -> None:
        self._key = key
        self.bodies: list[dict[str, Any]] = []
        """What was asked, oldest first."""
        self.headers: list[dict[str, str]] = []
        self.faults: list[Fault] = []
        self.usual: Fault = self._complete
        self.hold = asyncio.Event()
        """Cleared, a stream stops before its second word until it is set."""
        self.hold.set()
        self.hung_up = asyncio.Event()
        """A client left in mid-stream."""
        self.app = Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])
        self._served = Served(self.app)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._served.port}/v1"

    async def __aenter__(self) -> Self:
        await self._served.__aenter__()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.hold.set()
        await self._served.__aexit__()

    async def _answer(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        given = request.headers.get("authorization", "")
        if self._key and given != f"Bearer {self._key}":
            shown = given.removeprefix("Bearer ")
            return error(401, f"Incorrect API key provided: {shown}.", "invalid_api_key")
        body = await request.json()
        self.bodies.append(body)
        if self.faults:
            return self.faults.pop(0)(body)
        return self.usual(body)

    def _complete(self, body: dict[str, Any]) -> Response:
        if body.get("model") != MODEL:
            message = f"The model `{body.get('model')}` does not exist"
            return error(404, message, "model_not_found")
        words, reason = self._words(body)
        if not body.get("stream"):
            return JSONResponse(whole(body, "".join(words), reason))
        return StreamingResponse(self._stream(body, words, reason), media_type="text/event-stream")

    @staticmethod
    def _words(body: dict[str, Any]) -> tuple[list[str], str]:
        said = [message for message in body["messages"] if message["role"] == "user"][-1]["content"]
        if isinstance(said, list):
            said = " ".join(part["text"] for part in said if part["type"] == "text")
        words = re.findall(r"\S+\s*", said)
        most = body.get("max_tokens") or body.get("max_completion_tokens") or len(words)
        return words[:most], "stop" if len(words) <= most else "length"

    async def _stream(self, body: dict[str, Any], words: list[str], reason: str) -> AsyncIterator[bytes]:
        is_done = False
        try:
            yield sse(chunk(body, {"role": "assistant", "content": ""}))
            for number, word in enumerate(words):
                if number:
                    await self.hold.wait()
                yield sse(chunk(body, {"content": word}))
            yield sse(chunk(body, {}, reason))
            if (body.get("stream_options") or {}).get("include_usage"):
                yield sse({**chunk(body, {}), "choices": [], "usage": usage(body, len(words))})
            yield b"data: [DONE]\n\n"
            is_done = True
        finally:
            if not is_done:
                self.hung_up.set()


# ---------------------------------------------------------------- the protocol's shapes


def chunk(body: dict[str, Any], delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    """One event of a stream."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": body.get("model"),
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}],
    }


def whole(body: dict[str, Any], content: str, reason: str = "stop", **more: Any) -> dict[str, Any]:
    """A reply that is not streamed."""
    message = {"role": "assistant", "content": content, "refusal": None, **more}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": body.get("model"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": usage(body, len(content.split())),
    }


def usage(body: dict[str, Any], words: int) -> dict[str, int]:
    """A word is a token here."""
    asked = sum(len(str(message["content"]).split()) for message in body["messages"])
    return {"prompt_tokens": asked, "completion_tokens": words, "total_tokens": asked + words}


def error(status: int, message: str, code: str = "", **headers: str) -> Response:
    """An error as OpenAI words it."""
    kind = {401: "invalid_request_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
    content = {"error": {"message": message, "type": kind, "param": None, "code": code or None}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(content, status, headers=named)


def sse(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def raw(*parts: bytes, media_type: str | None = "text/event-stream") -> Fault:
    """An answer of exactly these bytes, each in a write of its own."""

    async def stream() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
            await asyncio.sleep(0)

    return lambda _body: StreamingResponse(stream(), media_type=media_type)


if __name__ == "__main__":
    uvicorn.run(
        ChatServer(key=os.environ.get("MODEL_SERVER_KEY", "")).app,
        port=int(sys.argv[1]) if len(sys.argv) > 1 else 8080,
        log_level="warning",
    )

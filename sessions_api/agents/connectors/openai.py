"""Asks any server that speaks OpenAI's ``/chat/completions``, streamed.

The key is sent to the origin of ``baseUrl`` and appears nowhere else: an
upstream's words, which may quote it, are searched for what went wrong and then
dropped.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

import httpx2
import msgspec
import structlog

from sessions_api.agents.connectors.completions import Completion, is_too_long, out_of_quota, too_long
from sessions_api.agents.connectors.failure import AttemptFailed
from sessions_api.agents.connectors.outgoing import (
    Outgoing,
    beginning,
    content_type,
    events,
    failure_of,
    whole,
)
from sessions_api.agents.connectors.prompts import prompt
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.turns import Answer, ClaimedTurn

_KEY: Final = re.compile(r"[\x21-\x7e]+")
_CODE: Final = re.compile(r"[a-z_]{1,64}")  # no digits and no dashes: nothing that could be a key
_ERROR_BYTES: Final = 64 * 1024
_REMEMBERED: Final = 1000

log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode


class _Config(msgspec.Struct, frozen=True, rename="camel"):
    """The ``config`` of a definition."""

    base_url: str
    model: str
    api_key: str = ""
    system: str = ""
    temperature: float | None = None
    max_tokens: int | None = None


class OpenAIChat:
    """One completion for each attempt."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        # What a server is known not to take, so that only its first turn pays for finding out.
        self._lacks: dict[tuple[str, str], frozenset[str]] = {}

    async def answer(
        self, turn: ClaimedTurn, definition: AgentDefinition
    ) -> AsyncGenerator[str | Answer, None]:
        config = _config(definition)
        headers = {"content-type": "application/json", "accept": "text/event-stream, application/json"}
        server = (config.base_url, config.model)
        lacks = self._lacks.get(server, frozenset())
        while True:
            sent = _request(turn, config, lacks)
            async with self._outgoing.post(
                config.base_url.rstrip("/") + "/chat/completions",
                _encode(sent),
                agent_id=definition.agent_id,
                headers=headers,
                secrets=_authorization(config.api_key),
                silent_s=definition.turn_timeout_ms / 1000,
                trace=turn.trace,
            ) as reply:
                if reply.is_success:
                    self._remember(server, lacks)
                    async with aclosing(_read(reply)) as pieces:
                        async for piece in pieces:
                            yield piece
                    return
                text = await beginning(reply, _ERROR_BYTES)
                lack = _lack(reply, text, sent)
                if not lack:
                    _log(definition, reply, text)
                    raise _failure(reply, text)
                lacks |= {lack}

    def _remember(self, server: tuple[str, str], lacks: frozenset[str]) -> None:
        if lacks:
            if len(self._lacks) >= _REMEMBERED:
                self._lacks.clear()
            self._lacks[server] = lacks


# ---------------------------------------------------------------- the request


def _config(definition: AgentDefinition) -> _Config:
    try:
        return msgspec.convert(definition.config, _Config)
    except msgspec.ValidationError:
        raise _refused("The agent's definition is not complete") from None


def _authorization(key: str) -> dict[str, str]:
    if not key:
        return {}
    if not _KEY.fullmatch(key):  # the HTTP client's own error would quote it
        raise _refused("The agent's key cannot be sent")
    return {"authorization": f"Bearer {key}"}


def _request(turn: ClaimedTurn, config: _Config, lacks: frozenset[str]) -> dict[str, object]:
    body: dict[str, object] = {
        "model": config.model,
        "messages": prompt(turn, config.system),
        "stream": True,
    }
    if "stream_options" not in lacks:
        body["stream_options"] = {"include_usage": True}
    if config.temperature is not None:
        body["temperature"] = config.temperature
    if config.max_tokens is not None:
        body["max_completion_tokens" if "max_tokens" in lacks else "max_tokens"] = config.max_tokens
    return body


def _lack(reply: httpx2.Response, text: str, sent: Mapping[str, object]) -> str:
    """What the server refused of what we *sent* and can do without; "" if it is something else."""
    if reply.status_code not in {400, 422}:
        return ""
    if "stream_options" in sent and "stream_options" in text:
        return "stream_options"
    # OpenAI's reasoning models know only the new name, other servers only the old one.
    if "max_tokens" in sent and "max_completion_tokens" in text and "nsupported" in text:
        return "max_tokens"
    return ""


# ---------------------------------------------------------------- the reply


async def _read(reply: httpx2.Response) -> AsyncGenerator[str | Answer, None]:
    completion = Completion()
    if content_type(reply) == "application/json":  # it does not stream
        yield completion.take(await whole(reply))
        yield completion.answer()
        return
    try:
        async with aclosing(events(reply)) as stream:
            async for event in stream:
                if event.data == "[DONE]":
                    completion.is_finished = True
                    break
                if event.data:
                    yield completion.take(event.data)
    except (httpx2.NetworkError, httpx2.RemoteProtocolError):
        if not completion.is_finished:  # after the finish reason nothing is missing but the usage
            raise
    if not completion.is_finished:
        raise AttemptFailed("AGENT_ERROR", "The agent's answer broke off")
    yield completion.answer()


def _failure(reply: httpx2.Response, text: str) -> AttemptFailed:
    status = reply.status_code
    if status in {401, 403}:
        return _refused("The agent's service refuses its key")
    if status == 429 and "insufficient_quota" in text:
        return out_of_quota()
    if status in {400, 413, 422} and is_too_long(text):
        return too_long()
    return failure_of(reply)


def _log(definition: AgentDefinition, reply: httpx2.Response, text: str) -> None:
    """What an operator needs to know, in the upstream's own code if it is one; never its message."""
    try:
        error = msgspec.json.decode(text)["error"]
        codes = [error.get("code"), error.get("type")]
    except (msgspec.DecodeError, UnicodeError, KeyError, TypeError, AttributeError):
        codes = []
    shown = next((code for code in codes if isinstance(code, str) and _CODE.fullmatch(code)), "")
    log.warning(
        "agent_service_failed", agent_id=definition.agent_id, status=reply.status_code, error_code=shown
    )


def _refused(message: str) -> AttemptFailed:
    return AttemptFailed("AGENT_REFUSED", message, retry=False)

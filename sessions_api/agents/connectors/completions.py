"""Reads a chat completion, streamed or whole, from any server that says it speaks the protocol.

Few speak all of it, some more than all: whatever is absent, null or unknown is
taken as nothing said.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sessions_api.agents.connectors.failure import AttemptFailed
from sessions_api.domain.turns import Answer

MAX_METADATA_BYTES: Final = 9 * 1024
MAX_USAGE_BYTES: Final = 1024
"""Compact JSON, together what a message's metadata may hold. A longer thought is cut."""

_TOO_LONG: Final = re.compile(
    r"context[ _](?:length|window|size)|maximum context|prompt is too long|too many tokens", re.IGNORECASE
)
_encode = msgspec.json.Encoder().encode


class Completion:
    """One answer, put together; *done* once the server has said that nothing follows."""

    def __init__(self) -> None:
        self.is_finished = False
        self._thought: list[str] = []
        self._calls: dict[object, _Call] = {}
        self._finish_reason = ""
        self._usage: dict[str, Any] | None = None

    def take(self, data: str | bytes) -> str:
        """Take one event's data, or a whole reply; the text it adds, often none.

        Raises:
            AttemptFailed: it is an error, or cannot be read.
        """
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeError):
            raise AttemptFailed("AGENT_ERROR", "The agent's service answers what cannot be read") from None
        if chunk.error or chunk.object == "error":
            raise failure_within(chunk.error or chunk.code, data)
        if chunk.usage:
            self._usage = chunk.usage
        choice = next((each for each in chunk.choices or () if not each.index), None)
        if choice is None:
            return ""
        if choice.finish_reason:
            self._finish_reason = choice.finish_reason
            self.is_finished = True
        said = choice.delta or choice.message
        return "" if said is None else self._hear(said)

    def _hear(self, said: _Said) -> str:
        thought = said.reasoning_content or said.reasoning
        if isinstance(thought, str):
            self._thought.append(thought)
        for position, call in enumerate(said.tool_calls or ()):
            key = position if call.index is None else call.index
            self._calls.setdefault(key, _Call()).add(call)
        text = said.content
        if isinstance(text, list):  # parts, as Mistral's
            text = "".join(str(part.get("text") or "") for part in text if isinstance(part, dict))
        return (text or "") + (said.refusal or "")

    def answer(self) -> Answer:
        """The end of the turn; the content is what :meth:`take` gave."""
        metadata: dict[str, Any] = {}
        if thought := "".join(self._thought):
            metadata["thought"] = thought
        if self._calls:
            metadata["actions"] = [call.told() for call in self._calls.values()]
        if self._finish_reason not in {"", "stop"}:
            metadata["finishReason"] = self._finish_reason[:64]
        usage = _encode(self._usage) if self._usage else None
        return Answer(
            metadata=_fitting(metadata), usage=usage if usage and len(usage) <= MAX_USAGE_BYTES else None
        )


def failure_within(error: Any, whole: str | bytes) -> AttemptFailed:
    """What an error that came as data says, if it says a thing we know."""
    text = whole.decode(errors="replace") if isinstance(whole, bytes) else whole
    fields = error if isinstance(error, dict) else {"code": error}
    words = {str(fields.get(name)).lower() for name in ("code", "type", "status")}
    if is_too_long(text):
        return too_long()
    if "insufficient_quota" in words:
        return out_of_quota()
    if words & {"429", "rate_limit_exceeded", "rate_limit_error", "too_many_requests"}:
        return AttemptFailed("AGENT_RATE_LIMITED", "The agent's service is asked too often")
    return AttemptFailed("AGENT_ERROR", "The agent's service failed while it answered")


def is_too_long(text: str) -> bool:
    """Whether an error's text says that the prompt is longer than the model can read."""
    return _TOO_LONG.search(text) is not None


def too_long() -> AttemptFailed:
    return AttemptFailed("AGENT_REFUSED", "The conversation is too long for the agent's model", retry=False)


def out_of_quota() -> AttemptFailed:
    return AttemptFailed("AGENT_RATE_LIMITED", "The agent's service has no quota left", retry=False)


# ---------------------------------------------------------------- what is sent


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Said(msgspec.Struct):
    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    object: str | None = None
    code: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class _Call:
    """A tool call, which comes in fragments. It is passed on as an action and never executed."""

    def __init__(self) -> None:
        self._id = ""
        self._name = ""
        self._arguments: list[str] = []

    def add(self, call: _ToolCall) -> None:
        self._id = call.id or self._id
        if call.function is None:
            return
        self._name = call.function.name or self._name
        arguments = call.function.arguments
        if arguments is not None:
            self._arguments.append(arguments if isinstance(arguments, str) else _encode(arguments).decode())

    def told(self) -> dict[str, str]:
        return {"id": self._id, "name": self._name, "arguments": "".join(self._arguments)}


def _fitting(metadata: dict[str, Any]) -> bytes:
    """*metadata* in JSON, within its bound: the thought is cut first, then the last actions go."""
    while (excess := len(encoded := _encode(metadata)) - MAX_METADATA_BYTES) > 0:
        thought = metadata.get("thought", "")
        if len(thought) > 1:  # each of its characters is a byte at least, … is three
            metadata["thought"] = thought[: max(0, len(thought) - excess - 3)] + "…"
        elif metadata.get("actions"):
            metadata["actions"].pop()
        else:
            return b"{}"
    return encoded

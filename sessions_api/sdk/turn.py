"""What a handler is given, and what it may give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation."""

    id: str
    role: Literal["user", "agent", "system"]
    content: str
    author_id: str
    created_at: datetime
    cursor: int
    """Its place in the session's log."""
    metadata: Mapping[str, Any]
    attachments: Sequence[Mapping[str, Any]]
    turn_id: str | None
    status: str | None
    """``cancelled`` for an answer that was stopped; what is here is what came until then."""

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        return cls(
            id=body["id"],
            role=body["role"],
            content=body["content"],
            author_id=body["authorId"],
            created_at=datetime.fromisoformat(body["createdAt"]),
            cursor=body["cursor"],
            metadata=body.get("metadata", {}),
            attachments=body.get("attachments", ()),
            turn_id=body.get("turnId"),
            status=body.get("status"),
        )


@dataclass(frozen=True, slots=True)
class Session:
    """The conversation that a turn belongs to."""

    id: str
    agent_id: str
    user_id: str
    metadata: Mapping[str, Any]
    """What the app said of the session when it created it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a coroutine may return instead of text."""

    content: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    attachments: Sequence[Mapping[str, Any]] = ()
    usage: Mapping[str, Any] = field(default_factory=dict)


class TurnFailed(Exception):
    """Raised by a handler that cannot answer.

    *code* (``[A-Z0-9_]``, up to 64) and *message* (up to 1,000 characters) are
    shown to the user. With *retry* the turn is tried again, if attempts are left,
    not before *retry_after_s*.
    """

    def __init__(self, code: str, message: str, *, retry: bool = True, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry = retry
        self.retry_after_s = retry_after_s


class Turn:
    """The duty to answer what the user said last.

    The same turn may come again, with :attr:`attempt` one higher, after a crash or
    a failure; :attr:`id` stays, so that what must happen once can be told apart.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        session = body["session"]
        self.id: str = body["turnId"]
        self.attempt: int = body["attempt"]
        """1 for the first."""
        self.session = Session(
            session["sessionId"], session["agentId"], session["userId"], session.get("metadata", {})
        )
        self.messages = [Message.read(each) for each in body["messages"]]
        """The user's messages to answer, oldest first; more than one where they were merged."""
        self.history = [Message.read(each) for each in body["history"]]
        """What was said before them, oldest first: as many as the agent's definition asks for."""
        self.has_older_history: bool = body.get("more", False)
        self.traceparent: str | None = body.get("traceparent")
        """Where the request with the message stands in a trace (W3C Trace Context), if it said so.

        A program with OpenTelemetry need not care: its handler works in a span below.
        """
        self.tracestate: str | None = body.get("tracestate")
        self.metadata: dict[str, Any] = {}
        """Goes with the answer, which the app and every follower see."""
        self.attachments: list[dict[str, Any]] = []
        self._usage: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """What the user said: the contents of :attr:`messages`, one per line."""
        return "\n".join(message.content for message in self.messages)

    def thought(self, text: str) -> None:
        """Tell what the agent thought; a second one is added on a new line."""
        before = self.metadata.get("thought")
        self.metadata["thought"] = text if before is None else f"{before}\n{text}"

    def action(self, name: str) -> None:
        """Tell what the agent did."""
        self.metadata.setdefault("actions", []).append(name)

    def attach(
        self,
        *,
        url: str | None = None,
        data: str | None = None,
        content_type: str,
        name: str | None = None,
        **more: Any,
    ) -> None:
        """Add a file to the answer, by *url* or with its *data* (base64); 16 at most."""
        if (url is None) == (data is None):
            raise ValueError("an attachment has a url or data")
        given = {"url": url, "data": data, "contentType": content_type, "name": name, **more}
        self.attachments.append({key: value for key, value in given.items() if value is not None})

    def usage(self, *, input_tokens: int = 0, output_tokens: int = 0, **more: Any) -> None:
        """Tell what the answer cost; the tokens of several calls are added up."""
        for key, tokens in (("inputTokens", input_tokens), ("outputTokens", output_tokens)):
            self._usage[key] = self._usage.get(key, 0) + tokens
        self._usage.update(more)

    def ending(self, answer: Answer | None) -> dict[str, Any]:
        """The members of the completion that say more than its text."""
        metadata, attachments, usage = dict(self.metadata), list(self.attachments), dict(self._usage)
        if answer is not None:
            metadata.update(answer.metadata)
            attachments.extend(dict(each) for each in answer.attachments)
            usage.update(answer.usage)
        given = {"metadata": metadata, "attachments": attachments, "usage": usage}
        return {key: value for key, value in given.items() if value}

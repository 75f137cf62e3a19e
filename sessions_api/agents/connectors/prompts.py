"""A turn as the messages of a chat completion: the system prompt, the history, what is to be answered."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sessions_api.domain.turns import ClaimedTurn
from sessions_api.wire.messages import MessageBody, read_body

_ROLES: Final = {"user": "user", "agent": "assistant", "system": "system"}
_IMAGE_NAME: Final = re.compile(r"\.(?:png|jpe?g|gif|webp)(?:[?#]|$)", re.IGNORECASE)

Prompt = list[dict[str, object]]


def prompt(turn: ClaimedTurn, system: str = "") -> Prompt:
    """The messages, oldest first.

    An answer that was cancelled counts as what the assistant said: the user has
    read it. Turns that failed or were cancelled without a word say nothing.
    """
    messages: Prompt = [{"role": "system", "content": system}] if system else []
    for entry in [*turn.history, *turn.messages]:
        if entry.kind == "message":
            body = read_body(entry.body)
            content = _content(body)
            if content:
                messages.append({"role": _ROLES[body.role], "content": content})
    return messages


def _content(body: MessageBody) -> str | list[dict[str, object]]:
    """Text, or parts where the user sent images: only a user's message may hold some."""
    if body.role != "user" or not isinstance(body.attachments, msgspec.Raw):
        return body.content
    images = [url for each in msgspec.json.decode(body.attachments) if (url := _image_url(each))]
    if not images:
        return body.content
    parts: list[dict[str, object]] = [{"type": "text", "text": body.content}] if body.content else []
    return parts + [{"type": "image_url", "image_url": {"url": url}} for url in images]


def _image_url(attachment: dict[str, Any]) -> str:
    """Where the model finds the image: a URL, or the image itself as one; "" if it is none."""
    kind = str(attachment.get("contentType") or "").lower()
    data, url = attachment.get("data"), attachment.get("url")
    if isinstance(data, str) and data:
        if data.startswith("data:"):
            return data if data.startswith("data:image/") else ""
        return f"data:{kind};base64,{data}" if kind.startswith("image/") else ""
    if not isinstance(url, str) or not url.startswith(("https://", "http://", "data:image/")):
        return ""
    if kind.startswith("image/") or url.startswith("data:") or (not kind and _IMAGE_NAME.search(url)):
        return url
    return ""

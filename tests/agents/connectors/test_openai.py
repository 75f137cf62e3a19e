"""The ``openai`` connector and a server that speaks the protocol: what it is asked, how the answer comes."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import pytest

from sessions_api.agents.connectors.openai import OpenAIChat
from sessions_api.domain.turns import Answer
from tests.agents.connectors.conftest import defined
from tests.support import asked
from tests.support.openai_server import MODEL, ChatServer
from tests.support.waiting import until


class TestAnswer:
    async def test_comes_as_the_model_speaks(self, chat: OpenAIChat, upstream: ChatServer) -> None:
        """The first word is there while the model still holds the second one."""
        upstream.hold.clear()
        async with aclosing(chat.answer(asked.turn(asked.user("one two")), defined(upstream))) as pieces:
            first = await anext(piece async for piece in pieces if piece)
            upstream.hold.set()
            rest = [piece async for piece in pieces if piece]

        assert (first, rest[0]) == ("one ", "two")
        [_, end] = rest
        assert end == Answer(usage=b'{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4}')

    async def test_is_asked_for_with_the_definition(self, chat: OpenAIChat, upstream: ChatServer) -> None:
        definition = defined(upstream, system="Be brief.", temperature=0.2, maxTokens=1)

        pieces, end = await asked.heard(chat, asked.turn(asked.user("one two")), definition)

        assert pieces == ["one "]
        assert end is not None
        assert end.metadata == b'{"finishReason":"length"}'
        [body] = upstream.bodies
        assert body == {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "one two"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.2,
            "max_tokens": 1,
        }

    async def test_needs_no_key_where_none_is_defined(self, chat: OpenAIChat) -> None:
        async with ChatServer() as upstream:
            definition = asked.definition("openai", {"baseUrl": upstream.base_url + "/", "model": MODEL})
            pieces, _ = await asked.heard(chat, asked.turn(), definition)

            assert "authorization" not in upstream.headers[0]
        assert "".join(pieces) == "Hello there"

    async def test_ends_with_the_connection_when_the_turn_is_cancelled(
        self, chat: OpenAIChat, upstream: ChatServer
    ) -> None:
        """The model need not finish what nobody reads."""
        upstream.hold.clear()
        async with aclosing(chat.answer(asked.turn(), defined(upstream))) as pieces:
            await anext(piece async for piece in pieces if piece)

        await until(upstream.hung_up.is_set)


class TestHistory:
    async def test_is_told_with_its_roles(self, chat: OpenAIChat, upstream: ChatServer) -> None:
        """What was cancelled counts as said; turns without an answer say nothing."""
        history = [
            asked.user("first"),
            asked.agent("answer"),
            asked.entry(b'{"code":"BOOM"}', kind="turn.failed"),
            asked.entry(system_body("Speak French from now on")),
            asked.user("second"),
            asked.agent("half an ans", status="cancelled"),
        ]

        await asked.heard(
            chat, asked.turn(asked.user("a"), asked.user("b"), history=history), defined(upstream)
        )

        assert [(each["role"], each["content"]) for each in upstream.bodies[0]["messages"]] == [
            ("user", "first"),
            ("assistant", "answer"),
            ("system", "Speak French from now on"),
            ("user", "second"),
            ("assistant", "half an ans"),
            ("user", "a"),
            ("user", "b"),
        ]

    @pytest.mark.parametrize(
        "attachment, url",
        [
            ({"url": "https://example.org/a.png"}, "https://example.org/a.png"),
            ({"url": "https://example.org/x", "contentType": "image/png"}, "https://example.org/x"),
            ({"data": "QUJD", "contentType": "image/jpeg"}, "data:image/jpeg;base64,QUJD"),
            ({"data": "data:image/gif;base64,QUJD"}, "data:image/gif;base64,QUJD"),
            ({"url": "data:image/gif;base64,QUJD"}, "data:image/gif;base64,QUJD"),
        ],
    )
    async def test_shows_images(
        self, chat: OpenAIChat, upstream: ChatServer, attachment: dict[str, Any], url: str
    ) -> None:
        await asked.heard(chat, asked.turn(asked.user("What is it?", [attachment])), defined(upstream))

        assert upstream.bodies[0]["messages"][0]["content"] == [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": url}},
        ]

    @pytest.mark.parametrize(
        "attachment",
        [
            {"url": "https://example.org/a.pdf"},
            {"url": "https://example.org/a.png", "contentType": "application/pdf"},
            {"url": "file:///etc/passwd.png"},
            {"data": "QUJD", "contentType": "audio/wav"},
            {"data": "QUJD"},
            {"data": "data:text/html,x"},
            {},
        ],
    )
    async def test_leaves_other_attachments_out(
        self, chat: OpenAIChat, upstream: ChatServer, attachment: dict[str, Any]
    ) -> None:
        await asked.heard(chat, asked.turn(asked.user("What is it?", [attachment])), defined(upstream))

        assert upstream.bodies[0]["messages"][0]["content"] == "What is it?"


def system_body(content: str) -> bytes:
    body = {"authorId": "x", "id": asked.MESSAGE, "content": content, "isAgent": False, "role": "system"}
    return json.dumps(body | {"metadata": {}}).encode()

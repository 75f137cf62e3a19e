"""The server that the connector is tested against is one for OpenAI's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.openai_server import MODEL, ChatServer

KEY = "sk-test-0001"
ASKED: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one two three"},
]


@pytest.fixture
async def upstream() -> AsyncIterator[ChatServer]:
    async with ChatServer(key=KEY) as upstream:
        yield upstream


@pytest.fixture
async def client(upstream: ChatServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=upstream.base_url, api_key=KEY, max_retries=0) as client:
        yield client


class TestChatServer:
    async def test_streams(self, client: openai.AsyncOpenAI) -> None:
        """Words, then the finish reason, then the usage in a chunk without choices."""
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=ASKED,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]

        said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        assert [word for word in said if word] == ["one ", "two ", "three"]
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage is not None
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (5, 3)

    async def test_answers_whole(self, client: openai.AsyncOpenAI) -> None:
        """Cut to the tokens that were allowed."""
        answer = await client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=2)

        assert answer.choices[0].message.content == "one two "
        assert answer.choices[0].finish_reason == "length"

    async def test_refuses_another_key(self, upstream: ChatServer) -> None:
        async with openai.AsyncOpenAI(base_url=upstream.base_url, api_key="sk-no", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="sk-no"):
                await client.chat.completions.create(model=MODEL, messages=ASKED)

    async def test_knows_one_model(self, client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as failed:
            await client.chat.completions.create(model="none", messages=ASKED)

        assert failed.value.code == "model_not_found"

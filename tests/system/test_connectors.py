"""The examples of agents that the service asks, run as they are printed; and a key that nobody sees."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import StreamingResponse

from tests.support.client import Api, eventually
from tests.support.commands import RunningService, clean_environment
from tests.support.ports import free_port
from tests.support.waiting import until
from tests.support.webhook_server import SECRET, Receiver

CHECKOUT = Path(__file__).parents[2]
WEBHOOK_AGENT = "5b0c2b5e-6d3c-4f0e-8a39-1d2f6a7c9b02"
MODEL_AGENT = "9e1d7c44-2b8f-4c1a-9a6e-3f5b8d0c7a03"
KEY = "sk-system-5e11"

pytestmark = pytest.mark.timeout(120)


@contextmanager
def program(*words: str, port: int, **env: str) -> Iterator[None]:
    """A Python program in the checkout, from when it listens on *port*."""
    process = subprocess.Popen([sys.executable, *words], cwd=CHECKOUT, env=clean_environment(env))

    def listens() -> bool:
        assert process.poll() is None, "it ended"
        try:
            httpx2.get(f"http://127.0.0.1:{port}/", trust_env=False)
        except httpx2.TransportError:
            return False
        return True

    try:
        eventually(listens, within_s=30)
        yield
    finally:
        process.terminate()
        process.wait(10)


def read(service: RunningService, path: str) -> str:
    return httpx2.get(service.url + path, trust_env=False).text


@contextmanager
def talking(service: RunningService, agent_id: str) -> Iterator[tuple[Api, str]]:
    """A client, and a session with the agent once it can be had."""
    path = f"/api/agents/{agent_id}/availability"
    eventually(lambda: json.loads(read(service, path)).get("state") == "available")
    api = Api(service.url)
    try:
        yield api, service.create(agentId=agent_id)
    finally:
        api.close()


def agents_file(folder: Path, port: int, *, key: str = "") -> Path:
    """``examples/openai.toml`` with the model at *port*."""
    text = (CHECKOUT / "examples" / "openai.toml").read_text(encoding="utf-8")
    text, count = re.subn(r"(?m)^baseUrl = .*$", f'baseUrl = "http://127.0.0.1:{port}/v1"', text)
    assert count == 1
    if key:
        text += f'\napiKeyEnv = "{key}"\n'
    folder.mkdir(exist_ok=True)
    path = folder / "agents.toml"
    path.write_text(text, encoding="utf-8")
    return path


class TestWebhookExample:
    def test_answers(self, tmp_path: Path) -> None:
        """It defines itself, verifies the signature, and its thought reaches the history."""
        port = free_port()
        with (
            RunningService(tmp_path) as service,
            program("examples/webhook.py", port=port, SESSIONS_URL=service.url, WEBHOOK_PORT=str(port)),
            talking(service, WEBHOOK_AGENT) as (api, session_id),
        ):
            assert httpx2.post(f"http://127.0.0.1:{port}/turns", json={}, trust_env=False).status_code == 401

            api.ask(session_id, "one two three")

            answer = api.history(session_id)["messages"][0]
        assert answer["content"].split() == ["three", "two", "one"]
        assert answer["metadata"]["thought"] == "3 words, the last one first"


class TestModelExample:
    def test_answers(self, tmp_path: Path) -> None:
        """Word by word, and what it cost stands with the answer."""
        port = free_port()
        path = agents_file(tmp_path, port)
        with (
            program("-m", "tests.support.openai_server", str(port), port=port),
            RunningService(tmp_path / "service", env={"SESSIONS_AGENTS_FILE": str(path)}) as service,
            talking(service, MODEL_AGENT) as (api, session_id),
        ):
            api.ask(session_id, "one two three")

            answer = api.history(session_id)["messages"][0]
        assert answer["content"] == "one two three"
        assert answer["metadata"]["usage"]["completion_tokens"] == 3


class Silent(Receiver):
    """Takes the turn, says one word and then nothing."""

    def __init__(self) -> None:
        super().__init__(lambda _received: StreamingResponse(self._say(), media_type="text/event-stream"))

    async def _say(self) -> AsyncIterator[str]:
        try:
            yield 'event: delta\ndata: {"text": "Well"}\n\n'
            await asyncio.Event().wait()
        finally:
            self.hung_up.set()


def put(service: RunningService, receiver: Receiver, **more: object) -> None:
    config = {"url": receiver.url, "secret": SECRET}
    body = {"name": "Silent", "kind": "webhook", "config": config, **more}
    httpx2.put(f"{service.url}/api/agents/{WEBHOOK_AGENT}", json=body, trust_env=False).raise_for_status()


class TestSilentReceiver:
    async def test_is_left_when_the_turn_is_cancelled(self, tmp_path: Path) -> None:
        """The connection is closed within moments, and what was said is kept."""

        def begin() -> tuple[str, str]:
            put(service, receiver)
            with talking(service, WEBHOOK_AGENT) as (api, session_id):
                return session_id, api.say(session_id, "hello")["turnId"]

        def cancel() -> dict[str, Any]:
            with talking(service, WEBHOOK_AGENT) as (api, _):
                api.call("POST", f"/{session_id}/turns/{turn_id}/cancel")
                turn: dict[str, Any] = api.call("GET", f"/{session_id}/turns/{turn_id}").json()
                return turn

        async with Silent() as receiver:
            with RunningService(tmp_path) as service:
                session_id, turn_id = await asyncio.to_thread(begin)
                await until(lambda: receiver.received)

                turn = await asyncio.to_thread(cancel)

                await until(receiver.hung_up.is_set, within_s=5)
        assert turn["state"] == "cancelled"

    async def test_is_left_at_the_end_of_the_attempt(self, tmp_path: Path) -> None:
        """An attempt that says nothing more for so long has failed."""

        def ask() -> dict[str, Any]:
            put(service, receiver, turnTimeoutMs=1000, maxAttempts=1)
            with talking(service, WEBHOOK_AGENT) as (api, session_id):
                turn_id = api.say(session_id, "hello")["turnId"]
                path = f"/{session_id}/turns/{turn_id}"
                eventually(lambda: api.call("GET", path).json()["state"] == "failed")
                turn: dict[str, Any] = api.call("GET", path).json()
                return turn

        async with Silent() as receiver:
            with RunningService(tmp_path) as service:
                turn = await asyncio.to_thread(ask)

                await until(receiver.hung_up.is_set, within_s=5)
        assert turn["error"]["code"] == "AGENT_TIMEOUT"


class TestKey:
    def test_is_seen_by_nobody_but_the_model(self, tmp_path: Path) -> None:
        """Refused by an upstream that quotes it: no reply, no history, no metric and no log has it."""
        port = free_port()
        env = {
            "SESSIONS_AGENTS_FILE": str(agents_file(tmp_path, port, key="MODEL_KEY")),
            "MODEL_KEY": KEY,
            "LOG_LEVEL": "debug",
        }
        with (
            program("-m", "tests.support.openai_server", str(port), port=port, MODEL_SERVER_KEY="another"),
            RunningService(tmp_path / "service", env=env) as service,
            talking(service, MODEL_AGENT) as (api, session_id),
        ):
            with api.stream_post(session_id, "hello") as stream:
                told = [event.data for event in stream.rest()]
            turn = api.call("GET", f"/{session_id}/turns/{told[-1]['turnId']}").json()
            seen = [
                json.dumps([told, turn]),
                read(service, f"/api/agents/{MODEL_AGENT}"),
                read(service, "/api/agents"),
                json.dumps(api.history(session_id)),
                read(service, "/metrics"),
            ]
        seen += [service.out(), service.err()]

        assert turn["error"] == {"code": "AGENT_REFUSED", "message": "The agent's service refuses its key"}
        assert "agent_service_failed" in service.err()
        assert KEY not in "".join(seen)

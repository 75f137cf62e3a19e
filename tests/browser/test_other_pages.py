"""A page of another origin in a real Chromium: a listed one does everything, any other nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sessions_api.access.keyring import mint
from tests.browser.chromium import Page
from tests.support.client import BASE, ECHO, some_id
from tests.support.service import Service

pytestmark = pytest.mark.timeout(180)
LINE, KEY = mint("shop", ["app"])
SCRIPT = """
(async () => {
  const [sessions, key, agentId, userId] = %s;
  const headers = {"content-type": "application/json", "x-api-key": key, "idempotency-key": "k"};
  const post = (url, body) => fetch(url, {method: "POST", headers, body: JSON.stringify(body)});
  const created = await post(sessions, {agentId, userId});
  const one = `${sessions}/${(await created.json()).sessionId}`;
  const answer = await post(`${one}/messages`, {content: "hi", transport: "sse"});
  const refused = await fetch(one, {headers: {"x-api-key": "wrong"}});
  const frames = await new Promise((resolve) => {
    const socket = new WebSocket(`${one.replace("http", "ws")}/ws`, "sessions.v1"), seen = [];
    socket.onopen = () => socket.send(JSON.stringify({type: "auth", token: key}));
    socket.onmessage = (event) => seen.push(JSON.parse(event.data).type) > 1 && resolve(seen.slice(0, 2));
    socket.onclose = () => resolve(seen);
  });
  window.told = {
    created: created.status, left: created.headers.get("ratelimit"), etag: created.headers.get("etag"),
    isAnswered: (await answer.text()).includes("event: done"), refused: refused.status, frames,
  };
})().catch((error) => { window.told = String(error); });
"""


class Blank(BaseHTTPRequestHandler):
    """A page with nothing on it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>page</title>")

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def origins() -> Iterator[list[str]]:
    """Of two servers of pages."""
    with ExitStack() as stack:
        servers = [stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Blank)) for _ in range(2)]
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(server.shutdown)
        yield [f"http://localhost:{server.server_port}" for server in servers]


def test_a_listed_page_may_call_and_no_other(
    page: Page, origins: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The listed one creates, streams, reads headers and errors, and converses over a WebSocket."""
    listed, unlisted = origins
    env = {"SESSIONS_KEYS": LINE, "SESSIONS_CORS_ORIGINS": listed}
    with Service(tmp_path_factory.mktemp("cors"), env=env) as service:
        script = SCRIPT % json.dumps([service.url + BASE, KEY, ECHO, some_id()])

        def told_at(origin: str) -> object:
            page.goto(origin)
            page.run(script)
            page.until("window.told")
            return page.run("window.told")

        assert told_at(listed) == {
            "created": 201,
            "left": '"creates-key";r=99;t=1',
            "etag": '"1"',
            "isAnswered": True,
            "refused": 401,
            "frames": ["ack", "session.snapshot"],
        }
        assert told_at(unlisted) == "TypeError: Failed to fetch"

"""What keeps a browser from making more of a reply than it is: on every one, of whatever kind."""

from __future__ import annotations

import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256

import httpx2
import pytest

from tests.api.test_doors import UNKNOWN
from tests.support.client import BASE, Api
from tests.support.service import Service

EXPECTED = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
TELLTALES = {"server", "x-powered-by", "via", "set-cookie", "access-control-allow-origin"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with Service(tmp_path_factory.mktemp("safe")) as service:
        api = Api(service.url)
        yield api
        api.close()


def assert_safe(headers: httpx2.Headers, *, is_page: bool = False) -> None:
    """Each exactly once: of two policies a browser holds a page to both."""
    for name, value in EXPECTED.items():
        if not (is_page and name == "content-security-policy"):
            assert headers.get_list(name) == [value]
    assert len(headers.get_list("content-security-policy")) == 1
    assert not TELLTALES & set(headers)


def raw(api: Api, request: bytes) -> tuple[int, httpx2.Headers]:
    """Status and headers of what comes back for these bytes."""
    host, _, port = api.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as reply:
            status = int(reply.readline().split()[1])
            lines = [line.rstrip().split(b": ", 1) for line in iter(reply.readline, b"\r\n")]
    return status, httpx2.Headers([(name, value) for name, value in lines])


class TestReplies:
    def test_json_of_every_kind(self, api: Api) -> None:
        session_id = api.session()
        replies = [
            (201, api.post(session_id)),
            (200, api.call("GET", f"/{session_id}")),
            (200, api.call("HEAD", f"/{session_id}")),
            (204, api.call("OPTIONS", "")),
            (204, api.call("GET", f"/{session_id}/events", headers={"last-event-id": "1.end"})),
            (200, api.http.get("/livez")),
            (200, api.http.get("/metrics")),
            (200, api.http.get("/openapi.json")),
            (400, api.post(session_id, "")),
            (403, api.call("GET", "", headers={"origin": "https://evil.example"})),
            (403, api.call("GET", "", headers={"host": "evil.example"})),
            (404, api.call("GET", f"/{UNKNOWN}")),
            (404, api.http.get("/nowhere", headers={"accept": "application/problem+json"})),
            (405, api.call("PUT", "")),
        ]

        for status, reply in replies:
            assert reply.status_code == status
            assert_safe(reply.headers)
            assert reply.headers["cache-control"] == "no-store"

    def test_streams(self, api: Api) -> None:
        session_id = api.session()

        with api.events(session_id) as events, api.stream_post(session_id) as answer:
            for stream in (events, answer):
                assert stream.response.status_code == 200
                assert_safe(stream.response.headers)
            answer.rest()

    @pytest.mark.parametrize("path", ["/docs", "/chat"])
    def test_pages_run_their_own_script_and_no_other(self, api: Api, path: str) -> None:
        """Text that became markup would not run: no script may but the one whose hash the policy names."""
        page = api.http.get(path)

        assert_safe(page.headers, is_page=True)
        (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
        policy = dict(
            directive.strip().partition(" ")[::2]
            for directive in page.headers["content-security-policy"].split(";")
        )
        digest = b64encode(sha256(script.encode()).digest()).decode()
        assert policy["script-src"] == f"'sha256-{digest}'"
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert page.headers["cross-origin-opener-policy"] == "same-origin"
        assert not re.search(r"<[^>]+\son[a-z]+=", page.text.replace(script, ""))


class TestRefusals:
    """What is refused before it is a request."""

    @pytest.mark.parametrize(
        "request_, status",
        [
            (b"hello there\r\n\r\n", 400),
            (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n", 431),
            (
                b"GET %b/%b/ws HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n\r\n"
                % (BASE.encode(), UNKNOWN.encode()),
                400,
            ),
        ],
        ids=["no HTTP", "large head", "bad handshake"],
    )
    def test_carry_the_same(self, api: Api, request_: bytes, status: int) -> None:
        told, headers = raw(api, request_)

        assert told == status
        assert_safe(headers)
        assert headers["cache-control"] == "no-store"

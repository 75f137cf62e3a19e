"""CORS: a listed page may call and read every reply, an error or a stream too; no other page may anything."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest

from sessions_api.access.keyring import mint
from sessions_api.api.routes import ROUTES
from tests.api.conftest import BASE, Api
from tests.api.test_doors import UNKNOWN
from tests.api.test_sessions import error_of
from tests.support.client import Api as Client
from tests.support.client import closed, received
from tests.support.servers import TestServer
from tests.support.service import Service

LISTED, ALSO_LISTED = "https://shop.example", "http://localhost:5173"
UNLISTED = [
    "https://evil.example",
    "http://shop.example",
    "https://shop.example:8443",
    "https://shop.example.evil.example",
    "https://www.shop.example",
    "https://evilshop.example",
    "https://shop.example/",
    "https://SHOP.example",
    f"{LISTED} https://evil.example",
    "*",
    "null",
    "",
]
READABLE = {
    "x-request-id", "etag", "location", "link", "retry-after", "ratelimit", "ratelimit-policy",
    "idempotency-replayed", "www-authenticate",
}  # fmt: skip
SENT = {
    "authorization", "x-api-key", "content-type", "idempotency-key", "if-match", "last-event-id", "prefer",
    "x-request-id", "traceparent", "tracestate",
}  # fmt: skip
LINE, KEY = mint("shop", ["admin"])


def words(value: str) -> set[str]:
    return {word.strip().lower() for word in value.split(",")}


def cors_of(reply: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


def is_readable(reply: httpx2.Response, origin: str = LISTED) -> bool:
    """Whether a browser shows the reply to a page of *origin*, and nothing is said to any other."""
    given = cors_of(reply)
    return (
        given.keys() == {"access-control-allow-origin", "access-control-expose-headers"}
        and given["access-control-allow-origin"] == origin
        and words(given["access-control-expose-headers"]) == READABLE
        and reply.headers.get_list("vary") == ["origin"]
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A service with a key and two listed origins; the client shows the key and comes from one of them."""
    env = {"SESSIONS_KEYS": LINE, "SESSIONS_CORS_ORIGINS": f"{LISTED}, {ALSO_LISTED}"}
    with Service(tmp_path_factory.mktemp("cors"), env=env) as service:
        client = Client(service.url)
        client.http.headers = httpx2.Headers({"x-api-key": KEY, "origin": LISTED})
        yield client
        client.close()
        service.assert_no_bug_logged()


def preflight(
    client: Client, path: str, *, origin: str = LISTED, method: str = "POST", headers: str = "x-api-key"
) -> httpx2.Response:
    """As a browser asks before a page's request: without the page's own headers."""
    with httpx2.Client(base_url=client.url) as browser:
        return browser.options(
            path,
            headers={
                "origin": origin,
                "access-control-request-method": method,
                "access-control-request-headers": headers,
            },
        )


class TestPreflight:
    @pytest.mark.parametrize("path", sorted({route.path for route in ROUTES}))
    def test_of_a_listed_page_tells_what_it_may_send(self, client: Client, path: str) -> None:
        """On every path, without a key: a browser shows none."""
        reply = preflight(client, path.replace("{sessionId}", UNKNOWN))

        given = cors_of(reply)
        assert (reply.status_code, reply.content) == (204, b"")
        assert given.pop("access-control-allow-origin") == LISTED
        assert words(given.pop("access-control-allow-methods")) == words(reply.headers["allow"])
        assert words(given.pop("access-control-allow-headers")) == SENT
        assert given.pop("access-control-max-age") == "600"
        assert given.keys() == {"access-control-expose-headers"}
        assert reply.headers["vary"] == "origin"

    def test_names_the_methods_of_the_path(self, client: Client) -> None:
        reply = preflight(client, f"{BASE}/{UNKNOWN}/timeout", method="PATCH")

        assert reply.headers["access-control-allow-methods"] == "PATCH, OPTIONS"

    @pytest.mark.parametrize("origin", UNLISTED)
    def test_of_any_other_page_is_refused(self, client: Client, origin: str) -> None:
        reply = preflight(client, BASE, origin=origin)

        error_of(reply, 403, "FORBIDDEN")
        assert cors_of(reply) == {}
        assert reply.headers["vary"] == "origin"

    def test_on_no_path_of_ours_is_a_404_that_the_page_may_read(self, client: Client) -> None:
        assert is_readable(preflight(client, "/api/nowhere"))

    def test_options_without_a_question_is_answered_without_cors(self, client: Client) -> None:
        reply = httpx2.options(client.url + BASE)

        assert (reply.status_code, reply.headers["allow"]) == (204, "GET, HEAD, POST, OPTIONS")
        assert cors_of(reply) == {}


class TestReplies:
    def test_a_listed_page_reads_them(self, client: Client) -> None:
        session_id = client.session()

        for reply in (
            client.call("POST", "", json={"agentId": UNKNOWN.upper(), "userId": UNKNOWN}),
            client.call("GET", f"/{session_id}"),
            client.call("HEAD", f"/{session_id}"),
            client.post(session_id),
            client.call("GET", "/health"),
            client.http.get("/livez"),
            client.http.get("/openapi.json"),
            client.http.get("/metrics"),
        ):
            assert is_readable(reply), reply.request

    def test_each_listed_page_by_its_own_name(self, client: Client) -> None:
        reply = client.call("GET", "", headers={"origin": ALSO_LISTED})

        assert is_readable(reply, ALSO_LISTED)

    def test_errors_are_readable_too(self, client: Client) -> None:
        """A page that cannot read why it was refused can only guess."""
        session_id = client.session()
        refused = [
            (401, client.call("GET", "", headers={"x-api-key": "wrong"})),
            (404, client.call("GET", f"/{UNKNOWN}")),
            (404, client.http.get("/api/nowhere")),
            (405, client.call("PUT", "")),
            (400, client.post(session_id, "")),
            (413, client.post(session_id, "x" * 300_000)),
            (415, client.call("POST", "", content=b"x=1", headers={"content-type": "text/plain"})),
        ]

        for status, reply in refused:
            assert reply.status_code == status
            assert is_readable(reply), reply.request

    def test_a_reply_with_debug_is_no_exception(self, client: Client) -> None:
        reply = client.call("GET", "", headers={"x-debug": "true"})

        assert "debug" in reply.json()
        assert is_readable(reply)

    def test_streams_are_readable(self, client: Client) -> None:
        session_id = client.session()

        with client.events(session_id) as events:
            assert is_readable(events.response)
        with client.stream_post(session_id) as answer:
            assert is_readable(answer.response)
            assert answer.rest()[-1].name == "done"

    def test_no_page_is_let_in_by_a_cookie(self, client: Client) -> None:
        """So a forged request has nothing to ride on, and ``Access-Control-Allow-Credentials`` no use."""
        reply = httpx2.get(client.url + BASE, headers={"origin": LISTED, "cookie": f"X-API-KEY={KEY}"})

        error_of(reply, 401, "UNAUTHENTICATED")
        assert "set-cookie" not in reply.headers

    @pytest.mark.parametrize("origin", UNLISTED)
    def test_other_pages_are_refused_whatever_they_show(self, client: Client, origin: str) -> None:
        """Before anything is done: a browser sends a simple request without asking first."""
        before = client.call("GET", "").json()["total"]
        body = {"agentId": UNKNOWN, "userId": UNKNOWN}

        for reply in (
            client.call("GET", "", headers={"origin": origin}),
            client.call("POST", "", json=body, headers={"origin": origin}),
            client.http.get("/livez", headers={"origin": origin}),
        ):
            error_of(reply, 403, "FORBIDDEN")
            assert cors_of(reply) == {}
            assert reply.headers["vary"] == "origin"
        assert client.call("GET", "").json()["total"] == before

    def test_who_is_no_page_needs_no_origin(self, client: Client) -> None:
        """A cache must not hand that reply to a page: it says that it would have differed."""
        reply = httpx2.get(client.url + BASE, headers={"x-api-key": KEY})

        assert reply.status_code == 200
        assert cors_of(reply) == {}
        assert reply.headers["vary"] == "origin"

    def test_a_page_of_our_own_needs_no_list(self, client: Client) -> None:
        """``/docs`` and ``/chat``: a browser names their origin in a POST."""
        reply = client.call("GET", "", headers={"origin": client.url})

        assert reply.status_code == 200
        assert cors_of(reply) == {}


class TestWebSocket:
    """A browser asks no leave before a handshake, and shows the page whatever comes: the origin decides."""

    def test_a_listed_page_converses(self, client: Client) -> None:
        with client.websocket(client.session(), origin=LISTED) as socket:
            socket.send(json.dumps({"type": "auth", "token": KEY}))

            assert received(socket)["type"] == "ack"
            assert received(socket)["type"] == "session.snapshot"

    @pytest.mark.parametrize("origin", [origin for origin in UNLISTED if origin])
    def test_any_other_is_refused_whatever_it_shows(self, client: Client, origin: str) -> None:
        session_id = client.session()

        with client.websocket(session_id, origin=origin, additional_headers={"x-api-key": KEY}) as socket:
            code, frames = closed(socket)

        assert code == 1008
        assert [(frame["type"], frame["error"]["code"]) for frame in frames] == [("error", "FORBIDDEN")]


@pytest.mark.servers("valkey")
class TestWithoutAList:
    """No page but the service's own."""

    async def test_nothing_is_said_of_cors(self, server: TestServer) -> None:
        async with Api(server.url, SESSIONS_KEYS=LINE) as api:
            reply = await api.http.get(BASE, headers={"x-api-key": KEY})
            assert reply.status_code == 200
            assert "vary" not in reply.headers
            assert cors_of(reply) == {}

            refused = await api.http.get(BASE, headers={"x-api-key": KEY, "origin": LISTED})
            asked = await api.http.options(
                BASE, headers={"origin": LISTED, "access-control-request-method": "POST"}
            )

        for reply in (refused, asked):
            error_of(reply, 403, "FORBIDDEN")
            assert cors_of(reply) == {}

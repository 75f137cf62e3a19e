"""What holds for every request: ids, envelopes, access, bodies, the document."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from sessions_api.api.bodies import read_create, read_message, read_patch
from sessions_api.api.reference import OPERATIONS
from sessions_api.api.requests import read_json
from sessions_api.api.routes import ROUTES
from sessions_api.domain.agents import ECHO_ID
from sessions_api.errors import InvalidInput, MalformedBody
from sessions_api.wire.timeouts import TimeoutBounds
from tests.api.conftest import BASE, USER, Api
from tests.api.test_sessions import error_of
from tests.support.servers import TestServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers("valkey")
E = TypeVar("E", InvalidInput, MalformedBody)
JSON = {"content-type": "application/json"}
BOUNDS = TimeoutBounds(5 * 60_000, 1440 * 60_000)


class TestEveryReply:
    @pytest.mark.parametrize("sent, kept", [("abc-1.2", True), ("a b", False), ("x" * 129, False)])
    async def test_has_a_request_id_the_callers_own_if_it_is_sane(
        self, api: Api, sent: str, *, kept: bool
    ) -> None:
        reply = await api.http.get("/livez", headers={"x-request-id": sent})

        assert reply.headers["x-request-id"]
        assert (reply.headers["x-request-id"] == sent) is kept

    async def test_an_error_is_a_problem_for_who_asks(self, api: Api) -> None:
        reply = await api.http.get("/nowhere", headers={"accept": "application/problem+json"})

        assert reply.headers["content-type"] == "application/problem+json"
        assert error_of(reply, 404, "NOT_FOUND")["retryable"] is False

    async def test_debug_tells_what_it_cost(self, api: Api) -> None:
        info = await api.create()
        await api.http.get(api.url(info))  # now the server knows the script

        body = (await api.http.get(api.url(info), headers={"x-debug": "true"})).json()
        plain = (await api.http.get(api.url(info), headers={"x-debug": "no"})).json()

        assert body["debug"]["redisTrips"] == 1
        assert body["debug"]["scripts"] == ["read"]
        assert "debug" not in plain

    async def test_head_has_the_headers_of_get_and_no_body(self, api: Api) -> None:
        info = await api.create()

        reply = await api.http.head(api.url(info))

        assert (reply.status_code, reply.content) == (200, b"")
        assert int(reply.headers["content-length"]) > 100

    async def test_options_and_405_name_the_methods(self, api: Api) -> None:
        options = await api.http.options(f"{BASE}/x")
        wrong = await api.http.put(BASE)

        assert (options.status_code, options.headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS")
        error_of(wrong, 405, "METHOD_NOT_ALLOWED")
        assert wrong.headers["allow"] == "GET, HEAD, POST, OPTIONS"

    async def test_a_slash_at_the_end_does_not_matter(self, api: Api) -> None:
        assert (await api.http.get(BASE + "/")).status_code == 200


class TestAccessWithoutKeys:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1:3000", "localhost", "[::1]:3000", "127.8.8.8", "a.localhost:1"]
    )
    async def test_loopback_names_are_answered(self, api: Api, host: str) -> None:
        assert (await api.http.get(BASE, headers={"host": host})).status_code == 200

    @pytest.mark.parametrize(
        "host", ["example.org", "127.0.0.1.example.org", "10.0.0.1", "localhost.example.org"]
    )
    async def test_other_names_are_not(self, api: Api, host: str) -> None:
        """A stranger's name that resolves to 127.0.0.1 must open nothing."""
        error_of(await api.http.get(BASE, headers={"host": host}), 403, "FORBIDDEN")

    @pytest.mark.parametrize(
        "origin", ["http://evil.example", "null", "http://127.0.0.1:3001", "http://localhost:3000"]
    )
    async def test_other_pages_are_refused(self, api: Api, origin: str) -> None:
        error_of(await api.http.get(BASE, headers={"origin": origin}), 403, "FORBIDDEN")

    async def test_its_own_page_is_not(self, api: Api) -> None:
        reply = await api.http.get(BASE, headers={"origin": "http://127.0.0.1:3000"})

        assert reply.status_code == 200
        assert not [name for name in reply.headers if name.startswith("access-control")]


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b'{"a":NaN}',
            b'{"a":Infinity}',
            b'{"a":"\xff"}',
            b'"\\ud800"',
            b"[" * 100_000,
            b'{"a":' * 40_000,
            b"{} x",
            b"\xef\xbb\xbf{}",
            b"{'a':1}",
            b'{"a":1e400}',
        ],
        ids=lambda body: repr(body[:12]),
    )
    async def test_what_is_not_json_is_400(self, api: Api, body: bytes) -> None:
        error = error_of(await api.http.post(BASE, content=body, headers=JSON), 400, "VALIDATION_ERROR")

        assert error["message"].startswith("Malformed request body: ")

    async def test_json_that_is_cut_off_is_told_like_other_bad_json(self, api: Api) -> None:
        error = error_of(await api.http.post(BASE, content=b'{"a":', headers=JSON), 400, "VALIDATION_ERROR")

        assert error["message"] == "Malformed request body: JSON is malformed: it is truncated"

    @pytest.mark.parametrize(
        "headers",
        [
            {"content-type": "text/plain"},
            {"content-type": "application/x-www-form-urlencoded"},
            {"content-type": "application/json; charset=latin-1"},
            {"content-type": "application/json", "content-encoding": "gzip"},
            {"content-type": ""},
        ],
    )
    async def test_another_type_is_415(self, api: Api, headers: dict[str, str]) -> None:
        error_of(await api.http.post(BASE, content=b"{}", headers=headers), 415, "UNSUPPORTED_MEDIA_TYPE")

    async def test_262144_bytes_fit_and_one_more_is_413(self, api: Api) -> None:
        start = f'{{"agentId":"{ECHO_ID}","userId":"{USER}","x":"'.encode()
        fits = start + b"a" * (256 * 1024 - len(start) - 2) + b'"}'

        async def chunked() -> Any:
            yield fits
            yield b" "

        assert (await api.http.post(BASE, content=fits, headers=JSON)).status_code == 201
        for body in (fits + b" ", chunked()):
            reply = await api.http.post(BASE, content=body, headers=JSON)
            assert error_of(reply, 413, "PAYLOAD_TOO_LARGE")["details"] == {"limitBytes": 262_144}

    async def test_an_ignored_body_is_bounded_all_the_same(self, api: Api) -> None:
        info = await api.create()

        reply = await api.http.post(api.url(info, "/renew"), content=b"x" * 300_000)

        error_of(reply, 413, "PAYLOAD_TOO_LARGE")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400)])  # more than a float holds
    | st.floats()
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        "agentId", "userId", "metadata", "timeoutConfig", "onBusy", "content", "transport", "mode",
        "attachments",
        "timeoutMs", "timeoutMinutes", "autoRenew", "maxDurationMinutes", "warningThresholdMinutes",
    ]
)  # fmt: skip
bodies = st.dictionaries(fields, values) | values
lone_surrogates = st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))


def refused(read: Callable[[], object], kind: type[E]) -> E | None:
    """The error of *kind* that *read* raised, None if it did not."""
    try:
        read()
    except kind as error:
        return error
    return None


class TestAnyBody:
    @given(body=bodies)
    @settings(max_examples=300, deadline=None)
    def test_is_read_or_refused_with_its_fields(self, body: Any) -> None:
        for read in (
            lambda: read_create(body, BOUNDS),
            lambda: read_message(body, max_chars=4000),
            lambda: read_patch(body, BOUNDS, is_merge=True),
        ):
            fields = refused(read, InvalidInput)
            assert fields is None or (fields.errors and json.dumps([bad.provided for bad in fields.errors]))

    @given(
        body=st.binary(max_size=200)
        | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    )
    @settings(max_examples=300, deadline=None)
    def test_of_bytes_is_json_or_malformed(self, body: bytes) -> None:
        error = refused(lambda: read_json(body), MalformedBody)
        assert error is None or error.reason

    @given(body=bodies)
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_gives_no_500(self, server: TestServer, anyio_backend: Any, body: Any) -> None:
        import anyio

        async def send() -> None:
            async with Api(server.url) as api:
                info = await api.create()
                content = json.dumps(body).encode()
                for method, url in (
                    ("POST", BASE),
                    ("POST", api.url(info, "/messages")),
                    ("PATCH", api.url(info, "/timeout")),
                ):
                    reply = await api.http.request(method, url, content=content, headers=JSON)
                    assert reply.status_code < 500, reply.text

        anyio.run(send)


class TestService:
    async def test_live_ready_and_healthy(self, api: Api) -> None:
        await api.create()

        health = (await api.http.get(BASE + "/health")).json()

        assert (await api.http.get("/livez")).json() == {"status": "alive"}
        assert (await api.http.get("/readyz")).json() == {"status": "ready"}
        assert (health["status"], health["activeSessions"], health["expiringSoon"]) == ("healthy", 1, 0)
        assert health["uptime"] >= 0

    async def test_is_degraded_while_nothing_can_be_heard_live(self, api: Api, server: TestServer) -> None:
        """Requests are served, followers hear everything late."""

        async def is_told(status: str) -> bool:
            reply = await api.http.get(BASE + "/health")
            return (reply.status_code, reply.json()["status"]) == (200, status)

        await eventually(lambda: is_told("healthy"))
        server.call("ACL", "SETUSER", "default", "-subscribe", "-ssubscribe")
        try:
            server.call("CLIENT", "KILL", "TYPE", "pubsub")

            await eventually(lambda: is_told("degraded"))
            await api.create()
        finally:
            server.call("ACL", "SETUSER", "default", "+@all")
        await eventually(lambda: is_told("healthy"), within_s=20)

    async def test_draining_fails_readiness_and_refuses_work(self, api: Api) -> None:
        info = await api.create()

        api.app.state.drain()

        error_of(await api.http.get("/readyz"), 503, "DRAINING")
        reply = await api.http.get(api.url(info))
        assert error_of(reply, 503, "DRAINING")["retryable"] is True
        assert reply.headers["connection"] == "close"
        assert (await api.http.get("/livez")).status_code == 200

    async def test_starts_without_redis_and_serves_once_it_is_there(self, server: TestServer) -> None:
        server.stop()
        async with Api(server.url, SESSIONS_REDIS_DEADLINE_MS="200") as api:
            reply = await api.http.get(BASE)
            assert error_of(reply, 503, "STORAGE_UNAVAILABLE")["retryable"] is True
            assert int(reply.headers["retry-after"]) >= 1
            error_of(await api.http.get("/readyz"), 503, "STORAGE_UNAVAILABLE")
            health = await api.http.get(BASE + "/health")
            assert (health.status_code, health.json()["status"]) == (503, "unhealthy")

            server.start()

            async def is_ready() -> bool:
                return (await api.http.get("/readyz")).status_code == 200

            await eventually(is_ready, within_s=20)
            await api.create()

    async def test_metrics_count_by_template(self, api: Api) -> None:
        info = await api.create()
        await api.http.get(api.url(info))

        text = (await api.http.get("/metrics")).text

        assert 'route="/api/messaging/sessions/{sessionId}",status="200"' in text
        assert info["sessionId"] not in text

    async def test_pages_are_whole(self, api: Api) -> None:
        for path in ("/docs", "/chat"):
            reply = await api.http.get(path)
            assert reply.headers["content-type"] == "text/html; charset=utf-8"
            assert 'src="http' not in reply.text
            assert 'href="http' not in reply.text
            assert "default-src 'none'" in reply.headers["content-security-policy"]

    async def test_the_chat_page_is_for_dev(self, server: TestServer) -> None:
        async with Api(server.url, SESSIONS_DEV="off") as api:
            error_of(await api.http.get("/chat"), 404, "NOT_FOUND")


class TestDocument:
    async def test_is_valid_openapi(self, api: Api) -> None:
        document = (await api.http.get("/openapi.json")).json()

        validate(document)
        assert document["openapi"] == "3.1.0"

    def test_describes_every_route(self) -> None:
        assert {(route.method, route.path) for route in ROUTES} == set(OPERATIONS)

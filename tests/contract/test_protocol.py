"""HTTP itself: methods, unknown paths, request ids, Host and Origin, media types, hostile input."""

from __future__ import annotations

import http.client
import json
import socket

import pytest

from tests.support.client import BASE, Api, problem

ANY = "00000000-0000-4000-8000-00000000dead"
PATHS = {
    "": {"GET", "POST"},
    "/health": {"GET"},
    f"/{ANY}": {"GET", "DELETE"},
    f"/{ANY}/messages": {"GET", "POST"},
    f"/{ANY}/renew": {"POST"},
    f"/{ANY}/heartbeat": {"POST"},
    f"/{ANY}/timeout": {"PATCH"},
    f"/{ANY}/events": {"GET"},
    f"/{ANY}/turns/{ANY}": {"GET"},
    f"/{ANY}/turns/{ANY}/cancel": {"POST"},
}


def raw(api: Api, request: bytes) -> tuple[int, bytes]:
    """What the bytes of a request bring: the status (0: the connection was closed) and the body."""
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            return response.status, response.read()
        except (http.client.BadStatusLine, ConnectionError):
            return 0, b""
        finally:
            response.close()


class TestMethods:
    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "LOCK"])
    def test_that_a_path_does_not_know(self, api: Api, path: str, method: str) -> None:
        if method in PATHS[path]:
            return
        response = api.call(method, path)

        problem(response, 405, "METHOD_NOT_ALLOWED")
        allowed = {name.strip() for name in response.headers["allow"].split(",")}
        assert allowed >= PATHS[path]
        assert method not in allowed

    @pytest.mark.parametrize("path", PATHS)
    def test_options_says_what_there_is(self, api: Api, path: str) -> None:
        response = api.call("OPTIONS", path)

        assert response.status_code in {200, 204}
        assert {name.strip() for name in response.headers["allow"].split(",")} >= PATHS[path]
        assert "content-length" not in response.headers or response.status_code == 200

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/api",
            "/api/messaging",
            BASE + "x",
            f"{BASE}/{ANY}/nothing",
            f"{BASE}/{ANY}/messages/x",
            "/admin",
            "/../etc/passwd",
            "/%2e%2e/etc/passwd",
            "//",
        ],
    )
    def test_unknown_path(self, api: Api, path: str) -> None:
        problem(api.http.get(path), 404, "NOT_FOUND")


class TestRequestId:
    def test_a_sane_one_is_taken(self, api: Api) -> None:
        response = api.call("GET", "/health", headers={"X-Request-Id": "trace-1.2:3"})

        assert response.headers["x-request-id"] == "trace-1.2:3"

    @pytest.mark.parametrize("sent", ["", "x" * 1000, "a b", "<script>", "é", 'a"b', "{}"])
    def test_another_is_replaced(self, api: Api, sent: str) -> None:
        response = api.call("GET", "/nowhere", headers={"X-Request-Id": sent.encode()})

        assert response.headers["x-request-id"] != sent
        problem(response, 404, "SESSION_NOT_FOUND")

    def test_each_request_has_its_own(self, api: Api) -> None:
        assert len({api.call("GET", "/health").headers["x-request-id"] for _ in range(10)}) == 10


class TestEnvelope:
    def test_is_a_problem_where_asked_for(self, api: Api) -> None:
        plain = api.call("GET", f"/{ANY}")
        asked = api.call("GET", f"/{ANY}", headers={"Accept": "application/problem+json"})

        assert plain.headers["content-type"].split(";")[0] == "application/json"
        assert asked.headers["content-type"].split(";")[0] == "application/problem+json"
        assert asked.json()["type"] == "urn:sessions-api:problem:session-not-found"

    def test_debug_is_for_loopback_without_keys(self, api: Api) -> None:
        body = api.call("GET", f"/{api.session()}", headers={"X-Debug": "true"}).json()

        assert body["debug"].keys() >= {"ms", "partition"}
        assert "debug" not in api.call("GET", f"/{body['sessionId']}").json()

    def test_each_request_is_one_trip_to_redis(self, api: Api) -> None:
        session_id = api.session()
        headers = {"X-Debug": "true"}

        for method, path, body in (
            ("GET", "", None),
            ("POST", "/heartbeat", None),
            ("POST", "/renew", None),
            ("POST", "/messages", {"content": "x"}),
            ("GET", "/messages", None),
            ("PATCH", "/timeout", {"timeoutMinutes": 20}),
            ("DELETE", "", None),
        ):
            api.call(
                method, f"/{api.session()}{path}", json=body
            )  # the first use of a script brings it there
            debug = api.call(method, f"/{session_id}{path}", json=body, headers=headers).json()["debug"]
            assert debug["redisTrips"] == 1, (method, path, debug)


class TestHostAndOrigin:
    @pytest.mark.parametrize(
        "host",
        ["evil.example", "evil.example:3000", "127.0.0.1.evil.example", "192.0.2.1", "localhost.evil", ""],
    )
    def test_only_loopback_names_are_served(self, api: Api, host: str) -> None:
        status, body = raw(
            api, f"GET {BASE}/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )

        assert status in {400, 403}, body
        assert json.loads(body)["error"]["code"] in {"FORBIDDEN", "VALIDATION_ERROR"}

    @pytest.mark.parametrize(
        "host", ["localhost", "LOCALHOST:99", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:3000"]
    )
    def test_every_loopback_name_is(self, api: Api, host: str) -> None:
        status, _ = raw(
            api, f"GET {BASE}/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )

        assert status == 200

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "file://"]
    )
    @pytest.mark.parametrize(
        "method, path", [("GET", "/health"), ("POST", ""), ("GET", f"/{ANY}/events"), ("OPTIONS", "")]
    )
    def test_a_foreign_origin_is_refused(self, api: Api, origin: str, method: str, path: str) -> None:
        response = api.call(method, path, headers={"Origin": origin})

        problem(response, 403, "FORBIDDEN")
        assert "access-control-allow-origin" not in response.headers

    def test_its_own_origin_is_welcome(self, api: Api) -> None:
        response = api.call("GET", "/health", headers={"Origin": api.url})

        assert response.status_code == 200
        assert response.headers.get("access-control-allow-origin") != "*"


class TestService:
    @pytest.mark.parametrize("path", ["/livez", "/readyz"])
    def test_lives_and_is_ready(self, api: Api, path: str) -> None:
        assert api.http.get(path).status_code == 200

    def test_has_metrics(self, api: Api) -> None:
        api.create()
        response = api.http.get("/metrics")

        assert response.status_code == 200
        assert "sessions_" in response.text
        assert api.create()["sessionId"] not in response.text

    def test_has_an_openapi_document(self, api: Api) -> None:
        document = api.http.get("/openapi.json").json()

        assert document["openapi"].startswith("3.1")
        described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
        for method, path in (
            ("POST", BASE),
            ("GET", BASE),
            ("GET", f"{BASE}/health"),
            ("GET", BASE + "/{sessionId}"),
            ("DELETE", BASE + "/{sessionId}"),
            ("POST", BASE + "/{sessionId}/messages"),
            ("GET", BASE + "/{sessionId}/messages"),
            ("POST", BASE + "/{sessionId}/renew"),
            ("PATCH", BASE + "/{sessionId}/timeout"),
            ("POST", BASE + "/{sessionId}/heartbeat"),
        ):
            assert (method, path) in described

    def test_docs_and_chat_load_nothing_from_elsewhere(self, api: Api) -> None:
        for path in ("/docs", "/chat"):
            response = api.http.get(path)
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/html")
            for foreign in ('src="http', 'src="//', '<link rel="stylesheet" href="http', "@import"):
                assert foreign not in response.text

    def test_says_nothing_of_what_it_runs_on(self, api: Api) -> None:
        headers = api.http.get("/livez").headers

        assert "server" not in headers
        assert "x-powered-by" not in headers

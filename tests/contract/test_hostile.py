"""Hostile input: a 4xx in the envelope whatever comes, and the service goes on."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.contract.test_protocol import ANY, raw
from tests.support.client import BASE, ECHO, Api, problem, some_id

JSON = {"Content-Type": "application/json"}


def alive(api: Api) -> None:
    assert api.call("GET", "/health").status_code == 200


class TestBodies:
    @pytest.mark.parametrize(
        "content",
        [
            b"{",
            b"}",
            b"{]",
            b'{"content": }',
            b'{"content": NaN}',
            b'{"content": "x", "metadata": {"a": Infinity}}',
            b"\xff\xfe{}",
            b'{"content": "\xff"}',
            b'{"content": "\\ud800"}',
            b'{"content": "\\udc00\\ud800"}',
            b"\xed\xa0\x80",
            b'{"content": "x"} trailing',
            b'{"content": "x",}',
            b"{'content': 'x'}",
            b'{"content": "a\nb"}',
            b"[" * 10_000 + b"]" * 10_000,
            b'{"metadata":' * 10_000,
            b'{"content":"x","metadata":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001,
            b"\x00",
            b" ",
            b"\xef\xbb\xbf{}",
            b'{"content": "x", "attachments": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
            b"1" * 10_000,
            b'{"content": ' + b"9" * 5_000 + b"}",
            b'{"content": 1e99999}',
            '{"content": "x"}'.encode("utf-16"),
        ],
    )
    @pytest.mark.parametrize(
        "method, path", [("POST", ""), ("POST", "/{id}/messages"), ("PATCH", "/{id}/timeout")]
    )
    def test_that_are_no_json_are_a_400(self, api: Api, method: str, path: str, content: bytes) -> None:
        path = path.replace("{id}", api.session())

        error = problem(api.call(method, path, content=content, headers=JSON), 400, "VALIDATION_ERROR")

        assert len(error["message"]) < 500
        alive(api)

    @pytest.mark.parametrize(
        "method, path", [("POST", ""), ("POST", "/{id}/messages"), ("PATCH", "/{id}/timeout")]
    )
    @pytest.mark.parametrize("size", [256 * 1024 + 1, 1024 * 1024])
    def test_that_are_too_large_are_a_413(self, api: Api, method: str, path: str, size: int) -> None:
        path = path.replace("{id}", api.session())

        problem(api.call(method, path, content=b" " * size, headers=JSON), 413, "PAYLOAD_TOO_LARGE")
        alive(api)

    def test_that_are_too_large_and_come_in_chunks_are_a_413(self, api: Api) -> None:
        def chunks() -> Any:
            for _ in range(64):
                yield b" " * 16_384

        problem(api.call("POST", "", content=chunks(), headers=JSON), 413, "PAYLOAD_TOO_LARGE")

    @pytest.mark.parametrize(
        "content_type",
        [
            None,
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/xml",
            "application/json; charset=utf-16",
            "json",
            "application/jsonx",
            "*/*",
            "application/json, text/plain",
            "é",
        ],
    )
    def test_of_another_type_are_a_415(self, api: Api, content_type: str | None) -> None:
        headers = {} if content_type is None else {"Content-Type": content_type.encode()}
        body = json.dumps({"content": "x"}).encode()

        problem(
            api.call("POST", f"/{api.session()}/messages", content=body, headers=headers),
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        )

    @pytest.mark.parametrize(
        "content_type",
        [
            "application/json",
            "Application/JSON;charset=UTF-8",
            'application/json; charset="utf-8"',
            "application/json ; q=1",
        ],
    )
    def test_of_any_spelling_of_json_are_taken(self, api: Api, content_type: str) -> None:
        response = api.call(
            "POST",
            f"/{api.session()}/messages",
            content=b'{"content":"x"}',
            headers={"Content-Type": content_type},
        )

        assert response.status_code == 201

    def test_that_are_compressed_are_a_415(self, api: Api) -> None:
        response = api.call("POST", "", content=b"\x1f\x8b", headers=JSON | {"Content-Encoding": "gzip"})

        problem(response, 415, "UNSUPPORTED_MEDIA_TYPE")

    def test_of_a_repeated_key_the_last_counts(self, api: Api) -> None:
        session_id = api.session()
        response = api.call(
            "POST", f"/{session_id}/messages", content=b'{"content":"a","content":"b"}', headers=JSON
        )

        assert response.json()["content"] == "b"

    def test_keys_and_values_of_the_devil_are_only_data(self, api: Api) -> None:
        metadata = {
            "__proto__": {"x": 1},
            "constructor": "x",
            "\u0000": "\u0000",
            "\r\n": "\r\n",
            "</script>": "<script>",
            "$where": "1",
            "": "",
            "a" * 1000: 1,
            "emoji": "\N{GRINNING FACE}",
            "n": -0.0,
            "big": 2**53,
            "deep": [[[]]],
        }
        created = api.create(metadata=metadata)
        posted = api.say(
            created["sessionId"], "\r\nid: 1\r\n\r\nevent: evil\n\ndata: {}\n", metadata=metadata
        )

        assert api.get(created["sessionId"])["metadata"] == metadata
        assert api.history(created["sessionId"])["messages"][-1]["content"] == posted["content"]
        with api.events(created["sessionId"], after=0) as stream:
            assert stream.until("message.created")[-1].data["data"]["content"] == posted["content"]


class TestPaths:
    @pytest.mark.parametrize(
        "session_id",
        [
            "%00",
            "%2f",
            "%2e%2e",
            "..%2f..",
            "%ff",
            "%F0%9F%98%80",
            "x" * 5000,
            "'",
            '"',
            "{}",
            "*",
            "%3f",
            "%0d%0aX-Evil:1",
            ANY + "%00",
            "%20" + ANY,
            ANY.replace("-", ""),
            "{" + ANY + "}",
            "urn:uuid:" + ANY,
            "0" * 36,
            "null",
            "undefined",
            "health%00",
            "sa:session:*",
            ANY + ".json",
            ANY[:-1] + "%EF%BC%91",
        ],
    )
    @pytest.mark.parametrize(
        "method, tail",
        [
            ("GET", ""),
            ("GET", "/messages"),
            ("POST", "/messages"),
            ("DELETE", ""),
            ("GET", "/events"),
            ("PATCH", "/timeout"),
        ],
    )
    def test_odd_ids_are_a_404(self, api: Api, session_id: str, method: str, tail: str) -> None:
        body = {"content": "x", "timeoutMinutes": 20} if method in {"POST", "PATCH"} else None

        response = api.call(method, f"/{session_id}{tail}", json=body)

        assert response.status_code in {404, 405}, response.text
        error = problem(response, response.status_code, response.json()["error"]["code"])
        assert len(error["message"]) < 1000
        assert "x-evil" not in response.headers

    @pytest.mark.parametrize(
        "query",
        [
            "x" * 60_000,
            "&".join(f"k{n}=v" for n in range(5_000)),
            "a" * 8_000,
            "%",
            "%zz=%ff",
            "limit=1&limit=2",
            "=",
            "&&&",
            "limit[]=1",
            "%00=%00",
        ],
    )
    @pytest.mark.parametrize("path", ["", "/{id}/messages", "/{id}"])
    def test_odd_queries_are_no_crash(self, api: Api, query: str, path: str) -> None:
        response = api.http.get(f"{BASE}{path.replace('{id}', api.session())}?{query}")

        assert response.status_code in {200, 400, 414}
        if response.status_code != 200:
            problem(response, 400, "VALIDATION_ERROR")
        alive(api)

    def test_a_stray_agent_id_in_the_query_changes_nothing(self, api: Api) -> None:
        response = api.call("GET", f"/{api.session()}", params={"agentId": "junk"})

        assert response.status_code == 200


class TestWire:
    @pytest.mark.parametrize(
        "request_",
        [
            b"GET / HTTP/9.9\r\n\r\n",
            b"\x00\x01\x02\r\n\r\n",
            b"GET\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"POST /api/messaging/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            b"POST /api/messaging/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: abc\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /api/messaging/sessions HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
            b"GET /api/messaging/sessions/\xff\xfe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ],
    )
    def test_what_is_no_http_is_refused(self, api: Api, request_: bytes) -> None:
        status, body = raw(api, request_)

        assert status == 0 or 400 <= status < 500
        assert b"Traceback" not in body
        alive(api)

    def test_odd_headers_are_no_crash(self, api: Api) -> None:
        odd = {
            "Accept": "\xff",
            "Authorization": "Bearer " + "x" * 4000,
            "Cookie": "a=" + "b" * 4000,
            "Prefer": "\xff=\xff",
            "If-Match": '"' * 100,
            "Last-Event-ID": "\xff",
            "Idempotency-Key": "k",
            "X-Forwarded-For": "'; DROP",
            "Content-Type": "application/json",
            "X-Debug": "\xff",
            "Forwarded": "for=\xff",
            "Range": "bytes=0-0",
            "TE": "x",
            "Expect": "x",
            "Accept-Encoding": "\xff",
            "Accept-Language": "\xff",
            "X-API-KEY": "\xff",
        }
        headers = {name: value.encode("latin-1") for name, value in odd.items()}

        response = api.call("POST", "", json={"agentId": ECHO, "userId": some_id()}, headers=headers)

        assert response.status_code in {201, 400, 417}

    def test_a_client_that_leaves_in_its_body_is_no_crash(self, api: Api) -> None:
        host, port = api.url.removeprefix("http://").split(":")
        for _ in range(20):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(
                    f"POST {BASE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{{".encode()
                )
        alive(api)

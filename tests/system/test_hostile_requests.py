"""Requests that mean harm: too large, or written for keys, logs and metrics; others are served."""

from __future__ import annotations

import json
import zlib
from functools import cache

import httpx2
import pytest

from sessions_api.api.middleware import UNMATCHED
from sessions_api.api.requests import MAX_BODY_BYTES
from sessions_api.api.routes import ROUTES, WEBSOCKET
from sessions_api.cli.connections import MAX_HEAD_BYTES
from tests.support.client import BASE, ECHO, Api, problem, some_id
from tests.support.servers import TestServer
from tests.support.service import Service
from tests.support.target import CHUNKED, LAST, LIVEZ, POST, refused, replies_to, resident_kb
from tests.support.wire import Wire

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("others_are_served")]


class TestHeads:
    @pytest.mark.parametrize(
        "sent",
        [
            LIVEZ + b"X-A: " + b"a" * 1_000_000 + b"\r\n\r\n",
            LIVEZ + b"".join(b"X-%d: %b\r\n" % (n, b"a" * 1_000) for n in range(1_000)) + b"\r\n",
            LIVEZ + b"a:\r\n" * 16_000 + b"\r\n",
            b"GET /" + b"a" * 1_000_000,
            b"GET /?" + b"a=b&" * 250_000,
            b"\r\n" * 500_000,
        ],
        ids="value headers tiny path query blank".split(),
    )
    def test_of_a_megabyte_are_a_431(self, target: Service, sent: bytes) -> None:
        reply = refused(target, sent)

        assert (reply.status, reply.code) == (431, "HEADERS_TOO_LARGE")
        assert reply.body["error"]["details"] == {"limitBytes": MAX_HEAD_BYTES}

    def test_behind_a_large_body_are_counted_too(self, target: Service) -> None:
        first = POST + b"Content-Length: 200000\r\n\r\n" + b" " * 200_000
        head = LIVEZ + b"".join(b"X-%d: %b\r\n" % (n, b"a" * 1_000) for n in range(80))

        with Wire(target.port) as wire:
            wire.send(first + head)
            assert wire.reply().status == 400
            wire.send(b"\r\n")

            assert [reply.status for reply in wire.replies()] == [431]

    def test_many_headers_of_ordinary_size_are_answered(self, target: Service) -> None:
        head = LIVEZ + b"".join(b"X-%d: %b\r\n" % (n, b"a" * 100) for n in range(300))

        assert replies_to(target, head + b"Connection: close\r\n\r\n")[0].status == 200


class TestBodies:
    def test_announced_as_100_mb_are_refused_before_they_come(self, target: Service) -> None:
        with Wire(target.port) as wire:
            wire.send(POST + b"Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n")
            reply = wire.reply()

        assert (reply.status, reply.code) == (413, "PAYLOAD_TOO_LARGE")
        assert reply.body["error"]["details"] == {"limitBytes": MAX_BODY_BYTES}

    @pytest.mark.parametrize(
        "head, part",
        [
            (POST + b"Content-Length: 100000000\r\n\r\n", b"a" * 65_536),
            (CHUNKED, b"10000\r\n" + b"a" * 65_536 + b"\r\n"),
            (CHUNKED, b"1\r\na\r\n" * 10_000),
        ],
        ids=["announced", "chunked", "crumbs"],
    )
    def test_that_never_end_are_hung_up_on(self, target: Service, head: bytes, part: bytes) -> None:
        """After the answer some more is read, so that a client still sending gets to it; not all of it."""
        with Wire(target.port) as wire:
            wire.send(head)
            taken = wire.send_while_open(part, most_bytes=64 * 1024 * 1024)

        assert taken < 32 * 1024 * 1024

    @pytest.mark.parametrize(
        "part",
        [b"a" * 65_536, b"a: b\r\n" * 10_000, b"a" * 30_000 + b": b\r\n"],
        ids=["one", "many", "large"],
    )
    def test_trailers_without_end_are_a_431(self, target: Service, part: bytes) -> None:
        before_kb = resident_kb(target.pid)
        with Wire(target.port) as wire:
            wire.send(CHUNKED + b"0\r\n")
            taken = wire.send_while_open(part, most_bytes=64 * 1024 * 1024)

        assert taken < 32 * 1024 * 1024
        assert resident_kb(target.pid) - before_kb < 16 * 1024
        assert refused(target, CHUNKED + b"0\r\n" + b"a" * 400_000).status == 431

    def test_a_chunk_extension_without_end_is_a_431(self, target: Service) -> None:
        assert refused(target, CHUNKED + b"5;a=" + b"a" * 400_000).status == 431

    def test_one_byte_a_chunk_is_a_body(self, target: Service) -> None:
        """As long as it may be; framing is not counted against it."""
        body = b" " * (MAX_BODY_BYTES - 2) + b"{}"
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)

        reply = replies_to(target, CHUNKED + chunks + b"0\r\n\r\n", LAST)[0]

        assert (reply.status, reply.code) == (400, "VALIDATION_ERROR")

    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP", "compress"])
    def test_that_are_compressed_are_not_even_opened(
        self, target: Service, target_api: Api, encoding: str
    ) -> None:
        """A bomb: 256 KiB would become 250 MB."""
        before_kb, bomb = resident_kb(target.pid), zip_bomb()
        assert len(bomb) < MAX_BODY_BYTES

        reply = target_api.call(
            "POST",
            "",
            content=bomb,
            headers={"Content-Type": "application/json", "Content-Encoding": encoding},
        )

        problem(reply, 415, "UNSUPPORTED_MEDIA_TYPE")
        assert resident_kb(target.pid) - before_kb < 8 * 1024

    def test_of_too_many_levels_or_keys_are_told_the_limit(self, target: Service, target_api: Api) -> None:
        for content, limit in ((b"[" * 65 + b"]" * 65, "64 levels"), (many_keys(10_001), "10,000 keys")):
            reply = target_api.call("POST", "", content=content, headers={"Content-Type": "application/json"})

            assert limit in problem(reply, 400, "VALIDATION_ERROR")["message"]

    def test_a_query_of_more_than_8_kib_is_told_the_limit(self, target_api: Api) -> None:
        reply = target_api.call("GET", "?cursor=" + "a" * 8_200)

        assert (
            problem(reply, 400, "VALIDATION_ERROR")["details"]["errors"][0]["allowed"] == "up to 8192 bytes"
        )


@cache
def zip_bomb() -> bytes:
    return zlib.compress(b"\x00" * 250_000_000, 9)


def many_keys(count: int) -> bytes:
    return json.dumps(dict.fromkeys(map(str, range(count)), 0)).encode()


ODD = """
{} %7B0%7D a:b %00 ..%2f.. %2e%2e%2fsession %0a %0d%0aSET%20a%20b * a%D9%A1 sa: sa:meta
{id}%0a %7B{id}%7D {id}%00 {id}:{id} sa:{id} {id}~ [{id} ({id}
""".replace("{id}", ECHO).split()


class TestIds:
    def test_reach_no_key_but_their_own(
        self, target: Service, target_api: Api, target_redis: TestServer
    ) -> None:
        """An id that is no UUID is a 404 or a 400, and nothing is read or written under its name."""
        session_id = target_api.session()
        target_api.ask(session_id)
        before = target_redis.keys()
        for odd in ODD:
            session, agent = f"{BASE}/{odd}", f"/api/agents/{odd}"
            for method, path, body in (
                ("GET", f"{session}/turns/{ECHO}", None),
                ("POST", f"{session}/renew", None),
                ("POST", f"{session}/messages", {"content": "x"}),
                ("GET", f"{BASE}/{session_id}/turns/{odd}", None),
                ("POST", f"{BASE}/{session_id}/turns/{odd}/cancel", None),
                ("POST", f"{BASE}/{session_id}/turns/{odd}/delta", {"fence": "f", "text": "x", "offset": 0}),
                ("GET", agent, None),
                ("DELETE", agent, None),
                ("GET", f"{agent}/availability", None),
                ("PUT", agent, {"name": "x", "kind": "echo"}),
                ("POST", f"{agent}/turns/claim?wait=0", {"worker": "w"}),
                ("GET", f"{BASE}?userId={odd}", None),
                ("GET", f"{BASE}?cursor={odd}", None),
            ):
                reply = target_api.http.request(method, path, json=body)
                assert reply.status_code in {400, 404, 405}, (method, path, reply.text)
                assert problem(reply, reply.status_code, reply.json()["error"]["code"])
            for body in ({"agentId": odd, "userId": ECHO}, {"agentId": ECHO, "userId": odd}):
                assert target_api.call("POST", "", json=body).status_code == 400

        assert set(target_redis.keys()) <= set(before) | {b"sa:meta"}


class TestLog:
    def test_is_one_record_a_line_whatever_is_sent(self, target: Service, target_api: Api) -> None:
        """Every request is logged, and of what it brought only an id that fits one line."""
        evil = '","level":"critical","event":"evil'
        for value in (evil, "a\tb", "\x85", "\x1b[2J", "a" * 60_000, "${jndi:ldap://evil}", "%0d%0a evil"):
            names = (b"X-Request-Id", b"User-Agent", b"Referer", b"Origin")
            headers = [(name, value.encode("latin-1")) for name in names]
            target_api.http.get("/livez", headers=headers)
            target_api.call(
                "GET", f"/{httpx2.QueryParams({'e': value})}", headers={"Idempotency-Key": b"evil"}
            )
            target_api.http.request("GET", "/evil%0d%0aevil%1b%5B2J\u2028")
        replies_to(
            target,
            LIVEZ
            + b"X-Request-Id: a\r\nX-Evil: evil\r\nX-Request-Id: evil evil\r\nConnection: close\r\n\r\n",
        )

        lines = target.log.splitlines()
        records = target.records()
        assert len(lines) - len(records) <= 1  # the address, before there is a log
        assert all(line.isprintable() for line in lines)
        assert "evil" not in target.log
        assert any(record["event"] == "request_answered" for record in records)

    def test_does_not_grow_with_what_is_no_http(self, target: Service) -> None:
        """A line for each would let anybody fill the disk."""
        before = len(target.log)
        for _ in range(50):
            refused(target, b"no http\r\n\r\n")

        assert "Invalid HTTP" not in target.log[before:]
        assert len(target.log) - before < 50 * 40


class TestMetrics:
    def test_have_no_label_that_a_client_chose(self, target_api: Api) -> None:
        """Paths, methods and ids of the agents that there are not, and of the 150 that there are."""
        target_api.http.get("/metrics")
        for number in range(150):
            target_api.http.request("GET", f'/x"{number}}}%0asessions_evil 1')
            target_api.http.request("PROPFIND", f"{BASE}/{some_id()}")
            target_api.call("POST", "", json={"agentId": some_id(), "userId": some_id()})
            agent = some_id()
            put = target_api.http.put(f"/api/agents/{agent}", json={"name": "x", "kind": "echo"})
            assert put.status_code in {200, 201}
            target_api.call("POST", "", json={"agentId": agent, "userId": some_id()})

        text = target_api.http.get("/metrics").text
        labels = labels_of(text)
        assert labels["route"] <= {route.path for route in ROUTES} | {WEBSOCKET, UNMATCHED}
        assert labels["method"] <= {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "other"}
        assert all(status.isdigit() for status in labels["status"])
        assert len(labels["agent"]) <= 101
        assert "evil" not in text


def labels_of(text: str) -> dict[str, set[str]]:
    """Label → its values, over all series."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line.startswith("#") or "{" not in line:
            continue
        for pair in line[line.index("{") + 1 : line.rindex("}")].split('",'):
            name, _, value = pair.partition('="')
            found.setdefault(name, set()).add(value.rstrip('"'))
    return found

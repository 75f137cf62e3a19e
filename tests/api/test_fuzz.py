"""Every parser of the API takes anything: what comes of it is a value, or an error that a caller is told."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sessions_api.api.bodies import read_create, read_message, read_patch
from sessions_api.api.idempotency import MAX_KEY_CHARS, read_key
from sessions_api.api.paging import LAST_JAVASCRIPT_MS, Query
from sessions_api.api.requests import (
    MAX_QUERY_BYTES,
    Request,
    read_json,
    request_id_of,
)
from sessions_api.api.routes import BASE, ROUTES, Lookup
from sessions_api.api.workerbodies import (
    read_claim,
    read_complete,
    read_delta,
    read_extend,
    read_fail,
    read_release,
)
from sessions_api.domain.timeouts import MINUTE_MS
from sessions_api.errors import InvalidInput, MalformedBody, SessionsError
from sessions_api.live.framing import TYPES, BadFrame, read_frame
from sessions_api.live.sse import Start, start_of
from sessions_api.store.listing import _position
from sessions_api.wire.shapes import MAX_CONTAINERS, MAX_DEPTH, MAX_KEYS, check_shape
from sessions_api.wire.timeouts import FIELDS, TimeoutBounds
from tests.support.client import ECHO
from tests.support.garbage import answered, objects, sent, values, words

BOUNDS = TimeoutBounds(5 * MINUTE_MS, 1440 * MINUTE_MS)
LOOKUP = Lookup()
PATHS = [route.path for route in ROUTES]
quick = settings(max_examples=120, deadline=None)

messages = objects(
    "content metadata attachments transport mode role onBusy timeoutMs".split(),
    {"content": "hello", "transport": "http", "role": "agent", "metadata": {"a": 10**30}},
)
creations = objects(
    "agentId userId metadata timeoutConfig onBusy".split(),
    {"agentId": ECHO, "userId": ECHO, "timeoutConfig": {"timeoutMinutes": 1e308}},
)
writes = objects(
    "fence text offset content metadata attachments usage code message retry retryAfterMs worker".split(),
    {"fence": "f", "text": "t", "offset": 0, "code": "X", "message": "m", "worker": "w"},
)
queries = st.dictionaries(
    st.sampled_from("wait limit before after cursor userId stage ended app".split()) | words,
    words,
    max_size=6,
)


class TestJson:
    @quick
    @given(st.binary(max_size=200))
    def test_any_bytes(self, body: bytes) -> None:
        answered(lambda: read_json(body))

    @quick
    @given(values, st.data())
    def test_json_with_a_byte_changed(self, value: Any, data: st.DataObject) -> None:
        body = bytearray(sent(value))
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

        answered(lambda: read_json(bytes(body)))

    @quick
    @given(
        st.integers(MAX_DEPTH - 2, MAX_DEPTH + 2),
        st.sampled_from([("[", "]"), ('{"a":', "}"), ("[1,", "]"), ('{"b":1,"a":', "}")]),
        st.sampled_from(["1", "[]", '"]"', "{}"]),
    )
    def test_depth_is_exact(self, levels: int, bracket: tuple[str, str], inner: str) -> None:
        body = bracket[0] * levels + inner + bracket[1] * levels
        depth = levels + (inner in {"[]", "{}"})

        found = answered(lambda: read_json(body.encode()))

        assert isinstance(found, MalformedBody) is (depth > MAX_DEPTH)
        if isinstance(found, MalformedBody):
            assert str(MAX_DEPTH) in found.reason

    def test_keys_are_counted_over_all_objects(self) -> None:
        half = {str(number): ":" for number in range(MAX_KEYS // 2)}

        assert read_json(sent([half, half])) == [half, half]
        found = answered(lambda: read_json(sent([half, half, {"a": 1}])))

        assert isinstance(found, MalformedBody)
        assert f"{MAX_KEYS:,}" in found.reason

    def test_objects_and_arrays_are_counted_too(self) -> None:
        body = b"[" + b",".join([b"[]"] * (MAX_CONTAINERS - 1)) + b"]"

        assert len(read_json(body)) == MAX_CONTAINERS - 1
        found = answered(lambda: read_json(body[:-1] + b",{}]"))

        assert isinstance(found, MalformedBody)
        assert f"{MAX_CONTAINERS:,}" in found.reason

    @pytest.mark.parametrize("text", ["[" * 20_000, '{"a":' * 20_000, '\\"[' * 5_000, "\\"])
    def test_brackets_and_colons_in_a_text_are_text(self, text: str) -> None:
        assert read_json(sent({"content": text})) == {"content": text}

    @pytest.mark.parametrize("part", [b'"', b'\\"', b"\\", b'"\\', b'[\\"', b'":'])
    @pytest.mark.parametrize("end", [b"", b"\\", b'"'])
    def test_no_text_takes_long_to_look_at(self, part: bytes, end: bytes) -> None:
        """Quotes without an end, too: 256 KiB of them would take minutes, if each were tried."""
        with suppress(MalformedBody):
            check_shape(b"[" * 65 + b'"' + part * (262_144 // len(part)) + end)

    def test_very_deep_json_costs_no_stack(self) -> None:
        assert isinstance(answered(lambda: read_json(b"[" * 100_000 + b"]" * 100_000)), MalformedBody)


class TestBodies:
    @quick
    @given(values | messages, st.booleans())
    def test_message(self, body: Any, wants_stream: bool) -> None:
        answered(lambda: read_message(read_json(sent(body)), max_chars=4000, wants_stream=wants_stream))

    @quick
    @given(values | creations)
    def test_creation(self, body: Any) -> None:
        def parse() -> None:
            found = read_create(read_json(sent(body)), BOUNDS)
            found.reader.check(found.choice, BOUNDS.min_ms)
            if found.reader.errors:
                raise found.reader.error(found.given)
            for fault in found.faults:
                raise fault

        answered(parse)

    @quick
    @given(values | objects(FIELDS), st.booleans())
    def test_patch(self, body: Any, is_merge: bool) -> None:
        answered(lambda: read_patch(read_json(sent(body)), BOUNDS, is_merge=is_merge))

    @quick
    @given(values | writes, queries)
    def test_writes_of_workers(self, body: Any, query: dict[str, str]) -> None:
        given_ = answered(lambda: read_json(sent(body)))
        if isinstance(given_, SessionsError):
            return

        answered(lambda: read_claim(given_, query, longest_wait_s=60))
        answered(lambda: read_extend(given_, query, longest_wait_s=60))
        for read in (read_delta, read_complete, read_fail, read_release):
            answered(lambda read=read: read(given_))  # type: ignore[misc]


def request_of(
    query: bytes = b"", path: str = "/", headers: list[tuple[bytes, bytes]] | None = None
) -> Request:
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query, "headers": headers or []}
    return Request(scope, None, None)  # type: ignore[arg-type]  # nothing here reads or asks


class TestQuery:
    @quick
    @given(st.binary(max_size=300))
    def test_any_bytes(self, raw: bytes) -> None:
        answered(request_of(raw).query)

    @quick
    @given(queries)
    def test_parameters(self, fields: dict[str, str]) -> None:
        raw = "&".join(
            f"{quote_plus(k, errors='replace')}={quote_plus(v, errors='replace')}" for k, v in fields.items()
        )

        def parse() -> None:
            query = Query(request_of(raw.encode()).query())
            assert 1 <= query.limit(50, 100) <= 100
            for name in ("before", "after"):
                position = query.position(name)
                assert position is None or position >= 0
                instant = query.instant(name)
                assert instant is None or abs(instant) <= LAST_JAVASCRIPT_MS
            query.uuid("userId")
            query.choice("stage", ("active",))
            query.matching("app", "[a-z0-9-]{1,32}")
            query.truth("ended")
            query.check()

        answered(parse)

    def test_length_is_bounded(self) -> None:
        assert request_of(b"a=" + b"b" * (MAX_QUERY_BYTES - 2)).query()
        found = answered(request_of(b"a=" + b"b" * (MAX_QUERY_BYTES - 1)).query)

        assert isinstance(found, InvalidInput)
        assert found.errors[0].allowed == f"up to {MAX_QUERY_BYTES} bytes"

    @quick
    @given(words)
    def test_cursor_of_a_list(self, cursor: str) -> None:
        answered(lambda: _position(cursor))


class TestHeaders:
    @quick
    @given(st.binary(max_size=300))
    @example(b'"' + b"a" * 300)
    def test_idempotency_key(self, sent_: bytes) -> None:
        key = answered(lambda: read_key(sent_))

        if isinstance(key, str):
            assert 1 <= len(key) <= MAX_KEY_CHARS
            assert key.isascii()
            assert key.isprintable()

    @quick
    @given(st.none() | st.binary(max_size=200))
    @example(b"a\r\nX-Evil: 1")
    @example(b"a\n")
    def test_request_id_fits_one_line_of_a_log_and_a_header(self, sent_: bytes | None) -> None:
        text = request_id_of(sent_).decode("ascii")

        assert 1 <= len(text) <= 128
        assert text.isprintable()
        assert not set(text) & set("\"'{}<>\\ ")

    @quick
    @given(st.none() | words | st.from_regex(r"[0-9]{0,20}(\.[a-z]{0,4})?"), st.none() | words)
    def test_position_of_a_stream(self, last_event_id: str | None, after: str | None) -> None:
        start = answered(lambda: start_of(last_event_id, after))

        assert isinstance(start, SessionsError) or start.after is None or 0 <= start.after < 10**16
        assert isinstance(start, Start | InvalidInput)

    @quick
    @given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=100))
    def test_what_a_reply_says_of_them(self, accept: bytes, content_type: bytes, encoding: bytes) -> None:
        headers = [(b"accept", accept), (b"content-type", content_type), (b"content-encoding", encoding)]
        request = request_of(headers=headers)

        assert {
            type(x) for x in (request.wants_problem, request.wants_event_stream, request.prefers_minimal)
        } == {bool}
        answered(request._check_media_type)


class TestPaths:
    @quick
    @given(
        words
        | st.lists(st.sampled_from([*BASE.split("/"), "..", "%", "ws", "events", ECHO]) | words).map("/".join)
    )
    def test_any_path_leads_to_one_of_ours_or_nowhere(self, path: str) -> None:
        found = LOOKUP.find(path)
        socket = LOOKUP.find_websocket(path)

        assert found is None or found[0].path in PATHS
        assert socket is None or set(socket) == {"sessionId"}

    @quick
    @given(words)
    def test_an_id_that_is_none_is_unknown(self, text: str) -> None:
        request = request_of()
        request.params = {"sessionId": text}

        found = answered(lambda: request.session_id)

        assert isinstance(found, SessionsError) or found == text.lower() == ECHO

    @quick
    @given(st.text(max_size=600))
    def test_what_an_error_names_of_it_is_printable(self, path: str) -> None:
        instance = request_of(path=path).instance

        assert instance.isascii()
        assert not set(instance) & set('\r\n"<>\\ ')


class TestFrames:
    @quick
    @given(
        st.binary(max_size=100)
        | values.map(sent)
        | objects(["type", "ref", "after"], {"type": "ping"}).map(sent)
        | st.tuples(st.sampled_from(sorted(TYPES)), values).map(lambda x: sent({"type": x[0], "ref": x[1]}))
    )
    def test_any_bytes(self, raw: bytes) -> None:
        try:
            frame = read_frame(None, raw)
        except BadFrame as bad:
            error = bad.error
            answered(lambda: _raise(error))
        else:
            assert frame["type"] in TYPES
            assert json.dumps(frame.get("ref")) is not None


def _raise(error: Exception) -> None:
    raise error

"""Trace context: what is read of it, what is dropped, and what is passed on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions_api.domain.traces import (
    MAX_STATE_CHARS,
    NO_TRACE,
    read_trace,
    trace_fields,
    trace_headers,
    traceparent_of,
    tracestate_of,
)

IDS = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
PARENT = f"00-{IDS}-01"


class TestParent:
    @pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
    def test_is_passed_on_as_it_came(self, flags: str) -> None:
        assert trace_headers(read_trace(f"00-{IDS}-{flags}")) == {"traceparent": f"00-{IDS}-{flags}"}

    @pytest.mark.parametrize(
        "sent, read",
        [
            (f" {PARENT}\t", PARENT),
            (f"00-{IDS}-ff", f"00-{IDS}-03"),
            (f"01-{IDS}-01", PARENT),
            (f"cc-{IDS}-01-what-the-future-brings", PARENT),
        ],
    )
    def test_of_a_later_version_is_read_as_this_one(self, sent: str, read: str) -> None:
        """Flags that this version does not know are zero, as it asks for."""
        assert read_trace(sent) == read

    @pytest.mark.parametrize(
        "sent",
        [
            "",
            "00",
            PARENT.upper(),
            PARENT[:-1],
            PARENT + "0",
            PARENT + "-more",
            f"ff-{IDS}-01",
            "00-" + "0" * 32 + "-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
            PARENT + "\n",
            f"{PARENT}\r\nX-Evil: 1",
            f"{PARENT},{PARENT}",
            PARENT.replace("0af7", "0аf7"),  # a Cyrillic а
            PARENT.replace("0af7", "٠af7"),  # an Arabic zero
        ],
    )
    def test_that_is_none_is_dropped_with_its_state(self, sent: str) -> None:
        assert read_trace(sent, "v=1") == NO_TRACE


class TestState:
    @pytest.mark.parametrize(
        "sent, read",
        [
            ("v=1", "v=1"),
            ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
            (" a=1 ,\tb@c/d=x y , , ", "a=1,b@c/d=x y"),
            ("0a-_*/=~!#", "0a-_*/=~!#"),
            (",".join(f"k{number}=v" for number in range(32)), ",".join(f"k{n}=v" for n in range(32))),
            ("k=" + "v" * 256, "k=" + "v" * 256),
        ],
    )
    def test_goes_with_its_parent(self, sent: str, read: str) -> None:
        trace = read_trace(PARENT, sent)

        assert (traceparent_of(trace), tracestate_of(trace)) == (PARENT, read)
        assert trace_headers(trace) == {"traceparent": PARENT, "tracestate": read}

    @pytest.mark.parametrize(
        "sent",
        [
            "A=1",
            "a",
            "a=",
            "=1",
            "a=b=c",
            "a=é",
            "a=1\r\nX-Evil: 1",
            "a=1;b=2,c",
            ",".join(f"k{number}=v" for number in range(33)),
            "k=" + "v" * 257,
            ",".join(f"k{number}=" + "v" * 100 for number in range(6)),
            "a=1," * 5000,
        ],
    )
    def test_that_is_none_or_too_much_is_left_out_alone(self, sent: str) -> None:
        """The ids are what joins the spans; the state is an addition."""
        assert read_trace(PARENT, sent) == PARENT

    @given(st.text(max_size=200), st.text(max_size=600))
    def test_nothing_that_comes_can_break_a_header_or_grow(self, parent: str, state: str) -> None:
        for trace in (read_trace(parent, state), read_trace(PARENT, state)):
            assert re.fullmatch(r"[\x20-\x7e]*", trace)
            assert len(trace) <= len(PARENT) + 1 + MAX_STATE_CHARS
            assert read_trace(traceparent_of(trace), tracestate_of(trace)) == trace


class TestLogs:
    def test_name_both_ids(self) -> None:
        trace_id, span_id = IDS.split("-")

        assert trace_fields(read_trace(PARENT, "v=1")) == {"trace_id": trace_id, "span_id": span_id}
        assert trace_fields(NO_TRACE) == {}

"""Where a request stands in a distributed trace, as W3C Trace Context writes it.

A trace goes with a message to whoever answers it, whether this service records
anything of its own or not. It is one string: the ``traceparent``, and behind a
space the ``tracestate`` if there is one. Both are somebody's input and become
headers again, so what is not of the standard's form is dropped, not passed on.
"""

from __future__ import annotations

import re
from typing import Final, NewType

Trace = NewType("Trace", str)
"""``00-<32 hex>-<16 hex>-<2 hex>[ <tracestate>]``, at most 568 characters; empty: none."""
NO_TRACE: Final = Trace("")

MAX_STATE_CHARS: Final = 512
"""Of a tracestate: what the standard asks everybody to carry (3.3.1.5), and no more."""
MAX_STATE_MEMBERS: Final = 32
_PARENT_CHARS: Final = 55
_KNOWN_FLAGS: Final = 0x03
"""Sampled, and that the trace id is random; the others are to be zero (3.2.2.5)."""

# A later version may have more behind the flags, after another dash.
_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]",
    re.ASCII,
)


def read_trace(traceparent: str, tracestate: str = "") -> Trace:
    """The trace that the two headers tell of; empty if the first is none.

    A *tracestate* that is malformed or too long is left out by itself: it is an
    addition, and the ids are what joins the spans. What a later version of the
    standard may send is read, and passed on, as this version's.
    """
    found = _PARENT.fullmatch(traceparent.strip(" \t"))
    if found is None:
        return NO_TRACE
    version, trace_id, parent_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not parent_id.strip("0"):
        return NO_TRACE
    parent = f"00-{trace_id}-{parent_id}-{int(flags, 16) & _KNOWN_FLAGS:02x}"
    state = _state(tracestate)
    return Trace(f"{parent} {state}" if state else parent)


def _state(text: str) -> str:
    """*text* without the blanks and empty members that may stand between; empty if it is malformed."""
    if len(text) > 2 * MAX_STATE_CHARS:
        return ""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    state = ",".join(members)
    if len(members) > MAX_STATE_MEMBERS or len(state) > MAX_STATE_CHARS:
        return ""
    return state if all(_MEMBER.fullmatch(member) for member in members) else ""


def traceparent_of(trace: Trace) -> str:
    return trace[:_PARENT_CHARS]


def tracestate_of(trace: Trace) -> str:
    """Empty if there is none."""
    return trace[_PARENT_CHARS + 1 :]


def trace_headers(trace: Trace) -> dict[str, str]:
    """The headers that carry *trace* on; none where there is none."""
    if not trace:
        return {}
    headers = {"traceparent": traceparent_of(trace)}
    if state := tracestate_of(trace):
        headers["tracestate"] = state
    return headers


def trace_fields(trace: Trace) -> dict[str, str]:
    """What a log line says of it: under these names log and trace find each other."""
    return {"trace_id": trace[3:35], "span_id": trace[36:52]} if trace else {}

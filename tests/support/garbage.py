"""What Hypothesis feeds to parsers: any JSON, and near misses of the bodies that they expect."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from hypothesis import strategies as st

from sessions_api.errors import SessionsError
from sessions_api.wire.problems import problem_of
from tests.support.client import ECHO

T = TypeVar("T")
LARGEST_REFUSAL = 64 * 1024

texts = st.text(max_size=40) | st.sampled_from(
    ["", " ", "\x00", "\ud800", "\r\nX: y", "\u2028", "١", "１", "1e999", "-0", "NaN", "null", ECHO, "{}"]
)
words = texts.filter(lambda text: not re.search("[\ud800-\udfff]", text))
"""Text as it comes out of a URL or a header, which cannot hold half a surrogate pair."""
numbers = st.integers() | st.floats() | st.sampled_from([2**53, 2**63, 2**64, -(2**63) - 1, 10**400, 5e-324])
scalars = st.none() | st.booleans() | numbers | texts
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=8,
)


def objects(
    likely: Collection[str], right: dict[str, Any] | None = None
) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the *likely* members, of any type; *right* are good values of some."""

    def value_of(name: str) -> st.SearchStrategy[Any]:
        return values | st.just((right or {}).get(name)) if name in (right or {}) else values

    known = st.fixed_dictionaries({}, optional={name: value_of(name) for name in likely})
    return st.tuples(known, st.dictionaries(texts, values, max_size=2)).map(lambda both: both[1] | both[0])


def sent(value: Any) -> bytes:
    """*value* as a careless client sends it: Python writes NaN and lone surrogates as well."""
    return json.dumps(value, ensure_ascii=True).encode()


def answered(parse: Callable[[], T]) -> T | SessionsError:
    """What *parse* returned, or the error of ours that it raised, which a caller can be told.

    Any other exception fails the test: it would have been a 500.
    """
    try:
        return parse()
    except SessionsError as error:
        problem = problem_of(error, request_id="r")
        assert 400 <= problem.status < 500, problem
        assert len(problem.body) < LARGEST_REFUSAL
        for name, value in problem.headers:
            assert (name + value).isprintable()
        return error

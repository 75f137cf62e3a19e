"""The table of close codes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sessions_api import errors
from sessions_api.live import closing


def _tree(kind: type[errors.SessionsError]) -> Iterator[type[errors.SessionsError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


class TestTable:
    def test_is_told_whole_in_its_docstring(self) -> None:
        assert closing.__doc__ is not None
        for row in closing.ALL:
            assert f"\n{row.code}  " in closing.__doc__

    def test_no_code_stands_for_two_things(self) -> None:
        codes = [row.code for row in closing.ALL]

        assert len(codes) == len(set(codes))
        assert all(len(row.reason.encode()) <= 123 for row in closing.ALL)  # RFC 6455, 5.5

    @pytest.mark.parametrize("kind", sorted(set(_tree(errors.SessionsError)), key=str))
    def test_every_error_has_a_code_that_agrees_on_coming_back(
        self, kind: type[errors.SessionsError]
    ) -> None:
        found = closing.closing_of(kind.__new__(kind))

        assert found in closing.ALL
        assert found.retry or not kind.retryable

    @pytest.mark.parametrize(
        "error, code",
        [
            (errors.Unauthenticated("no key"), 4401),
            (errors.Forbidden("no scope"), 1008),
            (errors.SessionNotFound("x"), 4404),
            (errors.SessionExpired("x", 1, 2, "timeout"), 4410),
            (errors.TooManyFollowers(100), 4429),
            (errors.InvalidInput("bad"), 4400),
            (errors.StorageUnavailable("away"), 1012),
            (errors.Draining(), 1012),
            (errors.StorageFault("bug"), 1011),
            (ValueError("bug"), 1011),
        ],
    )
    def test_of_what_refuses_a_handshake(self, error: Exception, code: int) -> None:
        assert closing.closing_of(error).code == code

"""The pauses between two tries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from sessions_api.sdk.backoff import LONGEST_ASKED_S, Backoff, asked_s


class TestBackoff:
    def test_doubles_up_to_its_longest_with_jitter(self) -> None:
        backoff = Backoff(2.0)

        pauses = [backoff.next_s() for _ in range(30)]

        assert all(
            0.5 * min(2.0, 0.1 * 2**n) <= pause <= min(2.0, 0.1 * 2**n) for n, pause in enumerate(pauses)
        )
        assert len(set(pauses)) > 1

    def test_begins_anew_after_a_success(self) -> None:
        backoff = Backoff(2.0)
        for _ in range(10):
            backoff.next_s()

        backoff.reset()

        assert backoff.next_s() <= 0.1

    def test_is_never_shorter_than_was_asked_for_but_does_not_sleep_for_ever(self) -> None:
        assert Backoff(2.0).next_s(7.0) == 7.0
        assert Backoff(2.0).next_s(1e9) == LONGEST_ASKED_S


class TestRetryAfter:
    @pytest.mark.parametrize(
        "header, seconds", [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("soon", 0.0), ("", 0.0), (None, 0.0)]
    )
    def test_as_a_number(self, header: str | None, seconds: float) -> None:
        assert asked_s(header) == seconds

    def test_as_an_instant(self) -> None:
        later = datetime.now(UTC) + timedelta(seconds=30)

        assert 28 <= asked_s(format_datetime(later, usegmt=True)) <= 30
        assert asked_s(format_datetime(later - timedelta(minutes=5), usegmt=True)) == 0.0

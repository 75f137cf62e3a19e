"""Instants on the wire: what is written is read back, junk is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions_api.wire.instants import LAST_MS, iso, parse_instant


@given(ms=st.integers(0, LAST_MS))
def test_what_is_written_is_read_back(ms: int) -> None:
    assert parse_instant(iso(ms)) == ms


@given(moment=st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_agrees_with_the_standard_library(moment: datetime) -> None:
    ms = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)  # exact; a float is not

    assert parse_instant(moment.isoformat()) == ms


@pytest.mark.parametrize(
    "text, ms",
    [
        ("1970-01-02", 86_400_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:59:59.999Z", -1),
        ("1970-01-01t00:00:00.1234567z", 123),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ("0000-03-01T00:00:00Z", -62_162_035_200_000),
    ],
)
def test_reads_what_rfc_3339_allows(text: str, ms: int) -> None:
    assert parse_instant(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "2026",
        "2026-13-01",
        "2026-02-30",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:00+24:00",
        "٢٠٢٦-01-01",
    ],
)
def test_refuses_junk(text: str) -> None:
    with pytest.raises(ValueError):
        parse_instant(text)

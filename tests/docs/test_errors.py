"""Every error has a row in the table of statuses, and one in docs/errors.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sessions_api import errors
from sessions_api.wire.problems import TABLE

ERRORS = Path(__file__).parents[2] / "docs" / "errors.md"
NOT_SENT = {errors.SettingsError, errors.StorageFault}


def leaves(kind: type[errors.SessionsError] = errors.SessionsError) -> Iterator[type[errors.SessionsError]]:
    below = kind.__subclasses__()
    if not below:
        yield kind
    for each in below:
        yield from leaves(each)


@pytest.mark.parametrize("kind", list(leaves()), ids=lambda kind: kind.__name__)
class TestEveryError:
    def test_has_a_status(self, kind: type[errors.SessionsError]) -> None:
        assert kind in TABLE

    def test_stands_in_the_docs_with_its_status(self, kind: type[errors.SessionsError]) -> None:
        rows = [line.split("|") for line in ERRORS.read_text().splitlines() if line.startswith("| ")]
        documented = {(row[1].strip(), row[2].strip()) for row in rows}

        status = TABLE[kind].status
        code = "INTERNAL_ERROR" if kind in NOT_SENT else kind.code

        assert (str(status), f"`{code}`") in documented

"""Calls for many partitions, of which one server's cannot be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from sessions_api.errors import StorageFull, StorageUnavailable
from sessions_api.store.parts import from_those_there


async def told(what: str | Exception | None) -> str | None:
    if isinstance(what, Exception):
        raise what
    return what


def calls(*what: str | Exception | None) -> list[Awaitable[str | None]]:
    return [told(each) for each in what]


class TestFromThoseThere:
    async def test_has_none_of_a_server_that_is_away(self) -> None:
        assert await from_those_there(calls("a", StorageUnavailable("away"), "c")) == ["a", None, "c"]

    async def test_of_nobody_is_nothing(self) -> None:
        assert await from_those_there(calls()) == []

    async def test_raises_where_all_are_away(self) -> None:
        with pytest.raises(StorageUnavailable, match="one"):
            await from_those_there(calls(StorageUnavailable("one"), StorageUnavailable("two")))

    async def test_raises_whatever_else_goes_wrong(self) -> None:
        with pytest.raises(StorageFull):
            await from_those_there(calls("a", StorageFull(), StorageUnavailable("away")))

    async def test_begins_at_once(self) -> None:
        """What is called for a pace has to have left when the clock starts."""
        begun: list[str] = []

        async def begin() -> None:
            begun.append("now")

        waiting = from_those_there([begin()])
        await asyncio.sleep(0)
        assert begun == ["now"]
        await waiting

"""Calls for many partitions: of a cluster one server may be away, and the others' partitions go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from sessions_api.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

T = TypeVar("T")


def from_those_there(calls: Iterable[Awaitable[T]]) -> Awaitable[list[T | None]]:
    """What each of *calls*, which begin at once, returns: None of a server that is away.

    Raises:
        StorageUnavailable: all are, as a single server is.
        SessionsError: whatever else a call raises.
    """
    return _from_those_there(asyncio.gather(*calls, return_exceptions=True))


async def _from_those_there(called: Awaitable[list[T | BaseException]]) -> list[T | None]:
    there: list[T | None] = []
    away: list[StorageUnavailable] = []
    for told in await called:
        if isinstance(told, StorageUnavailable):
            away.append(told)
            there.append(None)
        elif isinstance(told, BaseException):
            raise told
        else:
            there.append(told)
    if away and len(away) == len(there):
        raise away[0]
    return there

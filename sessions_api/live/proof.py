"""What a follower showed to be let in, and when to ask whether it still holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sessions_api.domain.access import Grant, expiry_of, is_of_token


class Proof:
    """A grant, and the id of the key that it came by, if any.

    *on_end* is called when a session token should have ended, for Redis's clock to say.
    """

    __slots__ = ("_on_end", "_timer", "grant", "key_id")

    def __init__(self, grant: Grant, on_end: Callable[[], None], *, key_id: str = "") -> None:
        self.grant = grant
        self.key_id = key_id
        self._on_end = on_end
        self._timer: asyncio.TimerHandle | None = None

    @property
    def may_be_revoked(self) -> bool:
        return is_of_token(self.grant)

    def renew(self, grant: Grant, key_id: str) -> None:
        """From now on *grant* holds."""
        self.forget()
        self.grant = grant
        self.key_id = key_id

    def held_at(self, now_ms: int) -> None:
        """It held at *now_ms* of Redis's clock."""
        expires_ms = expiry_of(self.grant)
        if expires_ms and self._timer is None:
            left_s = max(0, expires_ms - now_ms) / 1000
            self._timer = asyncio.get_running_loop().call_later(left_s, self._end)

    def _end(self) -> None:
        self._timer = None
        self._on_end()

    def forget(self) -> None:
        """No longer wait for its end. Repeatable."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

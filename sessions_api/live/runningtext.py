"""What a follower's client knows of the answer that is being given: of which attempt, and how much."""

from __future__ import annotations

from sessions_api.domain.turns import Draft
from sessions_api.live.events import Event


class RunningText:
    """Empty ids: no turn runs, as far as the client was told."""

    __slots__ = ("message_id", "turn_id", "units")

    def __init__(self) -> None:
        self.turn_id = ""
        self.message_id = ""
        self.units = 0
        """Its length; -1 where pieces of it were left out, and no text is what the client has."""

    def know(self, draft: Draft | None) -> None:
        """The client was told all of *draft*."""
        if draft is None:
            self.drop()
        else:
            self.begin(draft.turn_id, draft.message_id, draft.units)

    def begin(self, turn_id: str, message_id: str, units: int = 0) -> None:
        self.turn_id = turn_id
        self.message_id = message_id
        self.units = units

    def drop(self) -> None:
        self.begin("", "")

    def is_known(self, draft: Draft | None) -> bool:
        """Whether the client has all of *draft*."""
        units = draft.units if draft is not None else 0
        if units != self.units:
            return False
        return not units or draft is None or draft.message_id == self.message_id

    def has(self, delta: Event) -> bool:
        """Whether the client has that piece already."""
        return delta.message_id == self.message_id and delta.offset + delta.units <= self.units

    def goes_on_with(self, delta: Event) -> bool:
        """Whether that piece is the next one."""
        return (delta.message_id == self.message_id or not self.units) and delta.offset == self.units

    def grow(self, delta: Event) -> None:
        self.begin(delta.turn_id, delta.message_id, self.units + delta.units)

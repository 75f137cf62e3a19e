"""The text of one turn's answer, as its poster was told it so far.

What comes is told once and in order, whatever is heard twice, late or not at
all; where a piece is missing, :meth:`Spoken.hear` says so, and the draft is read.
"""

from __future__ import annotations

from sessions_api.domain.ids import MessageId, TurnId
from sessions_api.domain.messages import LogEntry, after_utf16_units, utf16_units
from sessions_api.domain.turns import Draft, Turn
from sessions_api.live.events import Event
from sessions_api.live.outcomes import Chunk, Restart
from sessions_api.wire.messages import read_body


class Spoken:
    """The pieces of the current attempt; each method returns what is new to the poster."""

    def __init__(self) -> None:
        self.attempt = 0
        """Of the text that is being told; 0 where it was not heard yet."""
        self._message_id = MessageId("")
        self._pieces: list[str] = []
        self._units = 0
        self._read_ms = 0

    def hear(self, event: Event) -> list[Chunk | Restart] | None:
        """What a ``turn.started`` or ``turn.delta`` adds; None if something before it was missed."""
        turn_id, message_id = TurnId(event.turn_id), MessageId(event.message_id)
        if message_id != self._message_id and event.time_ms <= self._read_ms:
            # Of an attempt that was over when the draft was read; or begun in that very millisecond.
            return [] if event.time_ms < self._read_ms else None
        if event.type == "turn.started":
            return self._begin(turn_id, message_id, event.attempt)
        if message_id != self._message_id:
            if self._message_id or event.offset:
                return None
            self._message_id = message_id
        if event.offset != self._units:
            return None if event.offset + event.units > self._units else []
        return [self._say(turn_id, event.text.decode(errors="replace"))]

    def misses(self, turn: Turn) -> bool:
        """Whether the *turn*'s draft has text that was not told."""
        return turn.state == "running" and (turn.message_id != self._message_id or turn.units > self._units)

    def catch_up(self, draft: Draft, now_ms: int) -> list[Chunk | Restart]:
        """What *draft*, read at *now_ms*, has beyond what was told."""
        self._read_ms = now_ms
        parts = self._begin(draft.turn_id, draft.message_id, draft.attempt)
        if draft.units > self._units:
            parts.append(self._say(draft.turn_id, after_utf16_units(draft.text, self._units)))
        return parts

    def is_other(self, answer: LogEntry | None) -> bool:
        """Whether what was told is not how the *answer* begins; None: an empty one."""
        told = "".join(self._pieces)
        if not told or answer is None:
            return bool(told)
        body = read_body(answer.body)
        return body.id != self._message_id or not body.content.startswith(told)

    def finish(self, turn_id: TurnId, answer: LogEntry | None) -> list[Chunk | Restart]:
        """What of the *answer* was not told yet, so that the chunks are the answer."""
        parts: list[Chunk | Restart] = []
        body = None if answer is None else read_body(answer.body)
        is_other = self.is_other(answer)
        if body is not None:
            self._message_id = MessageId(body.id)
        if is_other:
            self._forget()
            parts.append(Restart(turn_id, self._message_id, max(1, self.attempt)))
        if body is not None:
            told = "".join(self._pieces)
            if body.content != told:
                parts.append(self._say(turn_id, body.content[len(told) :]))
        return parts

    def _begin(self, turn_id: TurnId, message_id: MessageId, attempt: int) -> list[Chunk | Restart]:
        self.attempt = attempt
        if message_id == self._message_id:
            return []
        is_another = bool(self._message_id) or attempt > 1
        self._message_id = message_id
        self._forget()
        return [Restart(turn_id, message_id, attempt)] if is_another else []

    def _forget(self) -> None:
        self._pieces.clear()
        self._units = 0

    def _say(self, turn_id: TurnId, text: str) -> Chunk:
        chunk = Chunk(turn_id, self._message_id, text, len(self._pieces), self._units)
        self._pieces.append(text)
        self._units += utf16_units(text)
        return chunk

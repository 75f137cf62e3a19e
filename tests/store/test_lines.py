"""How commands leave on a line: what is written at once, and in what order; no server has a part in it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from sessions_api.store.lines import Line, Stats
from sessions_api.store.replicated import ReplicatedLine

MANY = 20


class Recorder(asyncio.Transport):
    """A transport that keeps what was written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def abort(self) -> None:
        pass

    @property
    def words(self) -> list[list[str]]:
        """Of each write, the name of each command and its number, where it has one."""
        return [
            [word.decode() for word in re.findall(rb"(?<=\n)([A-Z]+|\d+)\r\n", write)]
            for write in self.writes
        ]


@pytest.fixture
def transport() -> Recorder:
    return Recorder()


def opened(line: Line, transport: Recorder) -> Line:
    line.take_over(transport, None)
    return line


def numbers(words: list[str]) -> list[int]:
    return [int(word) for word in words if word.isdigit()]


class TestALine:
    async def test_sends_eight_at_once_and_the_rest_when_the_tick_is_over(self, transport: Recorder) -> None:
        line = opened(Line(Stats(), reply_timeout_s=1000), transport)
        for number in range(MANY):
            line.send((b"ECHO", b"%d" % number))
        assert [len(numbers(words)) for words in transport.words] == [8, 8]

        await asyncio.sleep(0)

        assert [len(numbers(words)) for words in transport.words] == [8, 8, 4]
        assert [number for words in transport.words for number in numbers(words)] == [*range(MANY)]
        assert (line.stats.round_trips, line.stats.commands, line.waiting) == (1, MANY, MANY)

    async def test_keeps_asking_before_what_it_is_for(self, transport: Recorder) -> None:
        line = opened(Line(Stats(), reply_timeout_s=1000), transport)
        for number in range(7):
            line.send((b"ECHO", b"%d" % number))
        line.send_asking((b"GET", b"7"))
        line.send((b"ECHO", b"8"))

        await asyncio.sleep(0)

        words = [word for its in transport.words for word in its]
        assert words[-5:] == ["ASKING", "GET", "7", "ECHO", "8"]

    async def test_that_was_given_up_sends_nothing(self, transport: Recorder) -> None:
        line = opened(Line(Stats(), reply_timeout_s=1000), transport)
        reply = line.send((b"ECHO", b"1"))
        line.drop("given up")

        await asyncio.sleep(0)

        assert transport.writes == []
        assert line.stats.round_trips == 0
        assert reply.exception() is not None


class TestAReplicatedLine:
    async def test_sends_a_batch_whole_with_wait_behind_it(self, transport: Recorder) -> None:
        line = opened(ReplicatedLine(Stats(), reply_timeout_s=1000, replicas=1), transport)
        for number in range(MANY):
            line.send((b"ECHO", b"%d" % number))
        assert transport.writes == []

        await asyncio.sleep(0)

        [words] = transport.words
        assert words[: 2 * MANY : 2] == ["ECHO"] * MANY
        assert [word for word in words if not word.isdigit()][MANY:] == ["SET", "EX", "WAIT"]

"""What the benchmark hears, it counts once: else its latencies would be of something else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.bystanders import GoodClient
from bench.crowd import Crowd, Follower, Heard, SseFollower, WsFollower
from bench.expiry import EXPIRED, NO_WARNING_MS, WARNED, Plan, told_of
from bench.figures import percentile
from bench.followers import latencies
from bench.wiretap import Published
from tests.support.waiting import until

SNAPSHOT = b'{"cursor":5,"type":"session.snapshot","sessionId":"s","data":{"content":"id: 9\\nevent: x"}}'


class Line(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))


def entry(cursor: int, kind: str = "message.created") -> bytes:
    return b'{"cursor":%d,"prev":0,"type":"%b","sessionId":"s","data":{}}' % (cursor, kind.encode())


def as_sse(event: bytes, cursor: int, kind: str) -> bytes:
    frame = (b"id: %d\n" % cursor if cursor else b"") + b"event: %b\ndata: %b\n\n" % (kind.encode(), event)
    return b"%x\r\n%b\r\n" % (len(frame), frame)


def as_frame(payload: bytes, opcode: int = 1) -> bytes:
    size = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2)
    return bytes([0x80 | opcode]) + size + payload


def pieces(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    """*stream*, as several reads bring it."""
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    for start, end in pairwise(places):
        yield stream[start:end]


async def heard(kind: type[Follower], stream: bytes, cuts: list[int]) -> tuple[Crowd, Line, Follower]:
    crowd, line = Crowd(), Line()
    follower = kind(crowd, 3, "s", 80)
    follower.connection_made(line)
    for piece in pieces(stream, cuts):
        follower.data_received(piece)
    return crowd, line, follower


class TestFollower:
    @given(st.lists(st.integers(0, 900), max_size=12))
    def test_hears_each_message_of_sse_once(self, cuts: list[int]) -> None:
        """However the stream is cut into reads; other events, and what messages say, are none."""
        stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
        stream += as_sse(SNAPSHOT, 0, "session.snapshot") + as_sse(entry(6), 6, "message.created")
        stream += as_sse(entry(7, "turn.failed"), 7, "turn.failed") + as_sse(entry(8), 8, "message.created")

        crowd, _, follower = asyncio.run(heard(SseFollower, stream, cuts))

        assert (list(crowd.cursors), list(crowd.sessions)) == ([6, 8], [3, 3])
        assert follower.told.done()

    @given(st.lists(st.integers(0, 700), max_size=12))
    def test_hears_each_message_of_a_websocket_once(self, cuts: list[int]) -> None:
        """And answers pings, without which it would be dropped."""
        stream = b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + as_frame(SNAPSHOT) + as_frame(entry(6))
        stream += as_frame(b"hi", 9) + as_frame(entry(7, "turn.failed")) + as_frame(entry(8) + b" " * 200)

        crowd, line, _ = asyncio.run(heard(WsFollower, stream, cuts))

        assert list(crowd.cursors) == [6, 8]
        assert line.written[1:] == [b"\x8a\x82\0\0\0\0hi"]


class TestLatencies:
    def test_are_each_followers_and_the_last_ones(self) -> None:
        came = Heard([0, 0, 1, 1], [100, 100, 200, 200], [101.0, 104.0, 203.0, 202.0], 0, 0)

        each, last = latencies(came, 0, 4, 2)

        assert sorted(each) == [1.0, 2.0, 3.0, 4.0]
        assert sorted(last) == [3.0, 4.0]

    def test_are_none_if_a_follower_missed_a_message(self) -> None:
        came = Heard([0, 0, 1], [100, 100, 200], [101.0, 104.0, 203.0], 0, 0)

        with pytest.raises(RuntimeError, match="did not come once to each"):
            latencies(came, 0, 3, 2)


class TestExpiry:
    PLAN = Plan(sessions=2, warned=1, warned_s=1, pause_s=1, ended_s=1)
    AHEAD_MS: dict[str, int] = {"a": 400, "b": NO_WARNING_MS}  # noqa: RUF012  read only
    EVENTS = (
        Published("a", WARNED, 603, ["1000", "timeout"]),
        Published("b", WARNED, 1000, ["1000", "timeout"]),
        Published("a", EXPIRED, 1002, ["1000", "timeout"]),
        Published("b", EXPIRED, 1007, ["1000", "timeout"]),
    )

    def test_counts_lag_from_what_was_due(self) -> None:
        """A warning is due before the deadline that it names; sessions without one tell nothing."""
        told = told_of(self.EVENTS, self.AHEAD_MS, self.PLAN)

        assert [(each.due_ms, each.lag_ms) for each in told[WARNED].values()] == [(600, 3)]
        assert {session: each.lag_ms for session, each in told[EXPIRED].items()} == {"a": 2, "b": 7}

    def test_fails_if_a_session_expired_twice(self) -> None:
        with pytest.raises(RuntimeError, match="a expired twice"):
            told_of([*self.EVENTS, self.EVENTS[2]], self.AHEAD_MS, self.PLAN)

    def test_fails_if_a_session_did_not_expire(self) -> None:
        with pytest.raises(RuntimeError, match="1 expired"):
            told_of(self.EVENTS[:3], self.AHEAD_MS, self.PLAN)


class TestGoodClient:
    async def test_counts_a_stall_for_every_request_that_came_into_it(self) -> None:
        """An answer that takes 0.3 s at a hundred requests a second is not one slow request, but thirty."""
        client = GoodClient(["s"], per_s=100)
        answers = 0

        async def ask(_session: str) -> None:
            nonlocal answers
            answers += 1
            if answers == 1:
                await asyncio.sleep(0.3)  # the stall

        asking = asyncio.create_task(client.go_on("GET session", ask))
        await until(lambda: answers >= 40)
        asking.cancel()
        await asyncio.wait([asking])

        took_ms = client.between(0, float("inf"))["GET session"]
        assert sum(ms > 100 for ms in took_ms) >= 15


class TestPercentile:
    def test_is_what_so_many_do_not_exceed(self) -> None:
        values = list(range(1, 101))
        random.shuffle(values)

        assert [percentile(values, percent) for percent in (0, 50, 99, 100)] == [1, 50.5, 99.01, 100]

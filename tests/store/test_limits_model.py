"""The arithmetic of limits: to the last request of a quota, and as a plain-Python GCRA has it."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessions_api.domain.limits import Limit
from sessions_api.store.keys import Keyspace
from sessions_api.store.limits import TAKE
from tests.support.servers import TestServer

KEY = Keyspace().limit("ip", "192.0.2.1")
AT_ONE_INSTANT = """
local now, admitted = tonumber(ARGV[3]), 0
while true do
  local limits = read_limits(now, 1, 1)
  if refusing(limits) then return admitted end
  charge_all(limits, now)
  admitted = admitted + 1
end
"""


@pytest.mark.servers("valkey", "redis62", "debian")
@pytest.mark.parametrize("quota, window_s", [(7, 86_400), (22, 86_400), (56, 86_400), (30_011, 60)])
def test_the_whole_quota_passes_at_one_instant_and_not_one_more(
    server: TestServer, quota: int, window_s: int
) -> None:
    """A seventh of a day, seven times, is a day; no time passes that would hide what rounding takes."""
    script = (files("sessions_api.store") / "lua" / "lib" / "limits.lua").read_text() + AT_ONE_INSTANT
    now_ms = int(server.call("TIME")[0]) * 1000 + 123

    admitted = server.call("EVAL", script, 1, KEY, quota, window_s * 1000, now_ms)

    assert admitted == quota


rates = st.tuples(st.integers(1, 20) | st.integers(1, 9_999_999), st.sampled_from([1, 7, 60, 86_400]))
steps = st.one_of(
    st.tuples(st.just("take"), st.integers(1, 5) | st.integers(1, 9_999_999)),
    st.tuples(st.just("pass"), st.integers(1, 90_000)),
    st.tuples(st.just("change"), rates),
)


class Model:
    """GCRA in plain Python. When a script ran is known to lie between two instants, so all else does, too."""

    SLACK_MS = 0.002  # both sides round, and a reply has three digits behind the point

    def __init__(self, server: TestServer, client: redis.Redis) -> None:
        self.server = server
        self.client: Any = client
        self.base_ms = int(server.call("TIME")[0]) * 1000  # small numbers are exact ones
        self.low = self.high = 0.0  # when the whole quota is there again

    def now(self) -> float:
        seconds, micros = map(int, self.client.time())
        return seconds * 1000 + micros / 1000 - self.base_ms

    def take(self, limit: Limit, count: int) -> None:
        earliest = self.now()
        window_ms = limit.window_s * 1000
        word, admitted, left, retry_after_ms, reset_ms = self.client.eval(
            TAKE.source.decode(), 1, KEY, limit.quota, window_ms, count
        )
        latest = self.now()
        near_ms = min(max(0.0, self.low - latest), window_ms)
        far_ms = min(max(0.0, self.high - earliest), window_ms)
        most, least = self.room(limit, near_ms - self.SLACK_MS), self.room(limit, far_ms + self.SLACK_MS)
        assert min(least, count) <= admitted <= min(most, count)
        assert word == (b"ok" if admitted == count else b"limited")

        used_ms = admitted * limit.interval_ms
        self.low = min(max(self.low, earliest), earliest + window_ms) + used_ms
        self.high = min(max(self.high, latest), latest + window_ms) + used_ms
        ahead_ms = float(reset_ms)
        assert near_ms - self.SLACK_MS <= ahead_ms - used_ms <= far_ms + self.SLACK_MS
        assert (
            self.room(limit, ahead_ms + self.SLACK_MS) <= left <= self.room(limit, ahead_ms - self.SLACK_MS)
        )
        assert (left == 0) == (retry_after_ms > 0)
        assert left or abs(retry_after_ms - (ahead_ms + limit.interval_ms - window_ms)) <= 1.01
        assert not admitted or -1 != self.client.pttl(KEY) <= window_ms + 1

    @staticmethod
    def room(limit: Limit, ahead_ms: float) -> int:
        room = math.floor((limit.window_s * 1000 - ahead_ms) / limit.interval_ms)
        return max(0, min(room, limit.quota))

    def let_pass(self, ms: int) -> None:
        """Move the key's instant back, instead of waiting."""
        self.low, self.high = self.low - ms, self.high - ms
        value = self.client.get(KEY)
        if value is not None:
            whole, part = value.decode().split(".")
            self.client.set(KEY, f"{int(whole) - ms}.{part}", keepttl=True, xx=True)


@given(rate=rates, script=st.lists(steps, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_takes_is_as_the_model_says(
    server: TestServer, rate: tuple[int, int], script: list[tuple[str, Any]]
) -> None:
    server.flush()
    limit = Limit(*rate)
    with redis.Redis(port=server.port, host="127.0.0.1", protocol=2, socket_timeout=10) as client:
        model = Model(server, client)
        for what, value in script:
            match what:
                case "take":
                    model.take(limit, value)
                case "pass":
                    model.let_pass(value)
                case _:
                    limit = Limit(*value)

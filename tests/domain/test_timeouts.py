"""The policy of time: deadlines, warnings, renewals, and the three tiers of configuration."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions_api.domain import timeouts
from sessions_api.domain.timeouts import Clock, TimeoutChoice, TimeoutConfig
from tests.support.timeout_cases import CASES, LEASE_MS, Case

DEFAULT = TimeoutConfig(30_000, True, 720_000, 5_000)
durations = st.integers(1, 10**9)
configs = st.builds(
    lambda timeout, auto, maximum, share: TimeoutConfig(
        timeout, auto, maximum, max(1, timeout * share // 100)
    ),
    st.integers(2, 10**8),
    st.booleans(),
    st.integers(2, 10**9),
    st.integers(0, 99),
)
choices = st.builds(
    TimeoutChoice,
    timeout_ms=st.none() | durations,
    auto_renew=st.none() | st.booleans(),
    max_duration_ms=st.none() | durations,
    warning_ms=st.none() | durations,
)


def warned(clock: Clock, config: TimeoutConfig, now: int) -> Clock:
    """The clock after whatever warning is due was sent."""
    due = timeouts.warning_due_ms(clock, config, now)
    if due is not None and due <= now < timeouts.end_ms(clock):
        return msgspec.structs.replace(clock, warned_ms=now)
    return clock


def play(case: Case) -> None:
    """Lead a session through *case* by the policy alone; instants count from its creation."""
    config, now = case.config, 0
    clock = Clock(0, 0, timeouts.deadline_ms(0, 0, config))
    for number, step in enumerate(case.steps):
        now += step.after_ms
        where = f"{case.name}: step {number + 1}"
        ended = ""
        if not timeouts.is_live(clock, now):
            ended = timeouts.reason_of(clock, config)
            clock = msgspec.structs.replace(clock, expires_ms=timeouts.end_ms(clock), held_until_ms=0)
        else:
            match step.act:
                case "renew":
                    clock = timeouts.renewed(clock, config, now)
                case "message" | "heartbeat":
                    clock = timeouts.renewed(clock, config, now) if config.auto_renew else clock
                case "hold" | "extend":
                    if step.act == "hold":  # a message came, and a worker for it
                        clock = timeouts.renewed(clock, config, now) if config.auto_renew else clock
                        clock = warned(clock, config, now)
                    lease_ms = 10_000 if step.act == "hold" else LEASE_MS
                    held = min(now + lease_ms, config.max_duration_ms)
                    clock = msgspec.structs.replace(clock, held_until_ms=held)
                case "release":
                    clock = msgspec.structs.replace(clock, held_until_ms=0)
                    if config.auto_renew:
                        clock = timeouts.renewed(clock, config, now)
                    if not timeouts.is_live(clock, now):
                        ended = timeouts.reason_of(clock, config)
                        clock = msgspec.structs.replace(clock, expires_ms=now)
                case "configure":
                    config = msgspec.structs.replace(config, **step.change)
                    expires = timeouts.deadline_ms(0, clock.last_renewal_ms, config)
                    warned_ms = 0 if now < expires - config.warning_ms else clock.warned_ms
                    clock = msgspec.structs.replace(clock, expires_ms=expires, warned_ms=warned_ms)
                case _:
                    assert step.act == "ring"
            clock = clock if ended else warned(clock, config, now)
        assert clock.expires_ms == step.expires_ms, where
        assert (clock.warned_ms > 0) is step.near, where
        assert ended == step.ends, where


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_lives(case: Case) -> None:
    play(case)


class TestResolve:
    def test_session_comes_before_agent_before_default(self) -> None:
        resolved = timeouts.resolve(
            TimeoutChoice(timeout_ms=10_000), TimeoutChoice(timeout_ms=20_000, auto_renew=False), DEFAULT
        )

        assert resolved == TimeoutConfig(10_000, False, 720_000, 5_000, "sadd")

    def test_an_inherited_threshold_that_does_not_fit_is_halved(self) -> None:
        assert timeouts.resolve(TimeoutChoice(timeout_ms=4_001), TimeoutChoice(), DEFAULT).warning_ms == 2_000
        assert (
            timeouts.resolve(TimeoutChoice(), TimeoutChoice(warning_ms=60_000), DEFAULT).warning_ms == 15_000
        )

    @given(choices, choices)
    def test_each_field_is_of_the_first_tier_that_names_it(
        self, session: TimeoutChoice, agent: TimeoutChoice
    ) -> None:
        resolved = timeouts.resolve(session, agent, DEFAULT)

        for index, name in enumerate(("timeout_ms", "auto_renew", "max_duration_ms", "warning_ms")):
            tiers = {"s": getattr(session, name), "a": getattr(agent, name), "d": getattr(DEFAULT, name)}
            source = next(letter for letter, value in tiers.items() if value is not None)
            assert resolved.sources[index] == source
            if name != "warning_ms":
                assert getattr(resolved, name) == tiers[source]
        if resolved.sources[3] != "s":
            assert resolved.warning_ms < resolved.timeout_ms


class TestDeadline:
    @given(configs, st.integers(0, 10**9), st.integers(0, 10**9))
    def test_never_passes_the_maximum(self, config: TimeoutConfig, created: int, idle: int) -> None:
        deadline = timeouts.deadline_ms(created, created + idle, config)

        assert deadline <= created + config.max_duration_ms
        assert deadline <= created + idle + config.timeout_ms
        assert deadline in {created + config.max_duration_ms, created + idle + config.timeout_ms}

    @given(configs, st.lists(st.integers(0, 10**8), max_size=10))
    def test_renewals_move_it_forward_only(self, config: TimeoutConfig, pauses: list[int]) -> None:
        clock = Clock(0, 0, timeouts.deadline_ms(0, 0, config))
        now = 0
        for pause in pauses:
            now += pause
            if not timeouts.is_live(clock, now):
                break
            renewed = timeouts.renewed(clock, config, now)
            assert renewed.expires_ms >= clock.expires_ms
            assert timeouts.is_live(renewed, now)
            assert timeouts.is_capped(renewed, config) or renewed.expires_ms == now + config.timeout_ms
            clock = renewed

    @given(configs)
    def test_is_exact(self, config: TimeoutConfig) -> None:
        clock = Clock(0, 0, timeouts.deadline_ms(0, 0, config))

        assert timeouts.is_live(clock, clock.expires_ms - 1)
        assert not timeouts.is_live(clock, clock.expires_ms)
        assert timeouts.remaining_ms(clock, clock.expires_ms + 5) == 0

    @given(configs, st.integers(1, 10**9))
    def test_a_hold_makes_the_end_later_never_earlier(self, config: TimeoutConfig, held: int) -> None:
        clock = Clock(0, 0, timeouts.deadline_ms(0, 0, config), held_until_ms=held)

        assert timeouts.end_ms(clock) >= clock.expires_ms
        assert timeouts.is_live(clock, held - 1)

    @given(configs, st.integers(0, 10**9))
    def test_the_reason_is_the_maximum_exactly_at_the_cap(
        self, config: TimeoutConfig, last_renewal: int
    ) -> None:
        clock = Clock(0, last_renewal, timeouts.deadline_ms(0, last_renewal, config))

        assert (timeouts.reason_of(clock, config) == "max_duration") is timeouts.is_capped(clock, config)


class TestWarning:
    @given(configs, st.integers(0, 10**9))
    def test_near_expiration_follows_from_time_alone(self, config: TimeoutConfig, now: int) -> None:
        clock = Clock(0, 0, timeouts.deadline_ms(0, 0, config))
        warned = msgspec.structs.replace(clock, warned_ms=1)

        near = timeouts.is_near_expiration(clock, config, now)
        assert near is timeouts.is_near_expiration(warned, config, now)
        assert near is (clock.expires_ms - config.warning_ms <= now < clock.expires_ms)

    def test_once_per_approach(self) -> None:
        clock = Clock(0, 0, 30_000)
        assert timeouts.warning_due_ms(clock, DEFAULT, 1) == 25_000
        assert (
            timeouts.warning_due_ms(msgspec.structs.replace(clock, warned_ms=25_001), DEFAULT, 26_000) is None
        )

    def test_while_held_of_the_maximum_only(self) -> None:
        held = Clock(0, 0, 30_000, held_until_ms=60_000, warned_ms=25_001)

        assert timeouts.warning_due_ms(held, DEFAULT, 26_000) == 715_000
        assert timeouts.warning_due_ms(held, DEFAULT, 60_000) is None

    def test_a_renewal_takes_it_back_if_now_is_before_the_next(self) -> None:
        clock = Clock(0, 0, 30_000, warned_ms=26_000)
        assert timeouts.renewed(clock, DEFAULT, 27_000).warned_ms == 0
        capped = Clock(0, 0, 720_000, warned_ms=716_000)
        assert timeouts.renewed(capped, DEFAULT, 717_000).warned_ms == 716_000


@pytest.mark.parametrize(
    "timeout_ms, expected_ms",
    [(1_000, 1_000), (30_000, 10_000), (3_600_000, 300_000), (86_400_000, 300_000)],
)
def test_heartbeats_are_advised_at_a_third_of_the_timeout(timeout_ms: int, expected_ms: int) -> None:
    assert timeouts.heartbeat_after_ms(TimeoutConfig(timeout_ms, True, 1, 1)) == expected_ms

"""Lives of sessions in steps, as the policy of time and the scripts must both lead them.

``tests/domain/test_timeouts.py`` plays each case with the policy alone, in whole
milliseconds from 0; ``tests/store/test_alarms.py`` plays it with the scripts, where
a few milliseconds pass between the steps, and holds each step against the policy.
"""

from __future__ import annotations

from typing import NamedTuple

from sessions_api.domain.timeouts import TimeoutConfig


class Step(NamedTuple):
    """After *after_ms*, do *act*: renew, heartbeat, message, ring, hold, extend, release or configure.

    *expires_ms*: where the deadline then stands. *near*: whether the session was warned.
    *ends*: how the session ended by then, if it did.
    """

    after_ms: int
    act: str
    expires_ms: int
    near: bool = False
    ends: str = ""
    change: dict[str, int] = {}  # noqa: RUF012  never changed


class Case(NamedTuple):
    name: str
    config: TimeoutConfig
    steps: tuple[Step, ...]


S = 1_000
PLAIN = TimeoutConfig(100 * S, True, 1_000 * S, 20 * S)
BY_HAND = TimeoutConfig(100 * S, False, 1_000 * S, 20 * S)
SHORT = TimeoutConfig(100 * S, True, 150 * S, 20 * S)
LEASE_MS = 30 * S

CASES = (
    Case("expires after the timeout", PLAIN, (Step(100 * S, "ring", 100 * S, ends="timeout"),)),
    Case("lives until its last millisecond but one", PLAIN, (Step(99 * S, "renew", 199 * S),)),
    Case(
        "is warned once per approach",
        PLAIN,
        (
            Step(79 * S, "ring", 100 * S),
            Step(S, "ring", 100 * S, near=True),
            Step(5 * S, "ring", 100 * S, near=True),
            Step(15 * S, "ring", 100 * S, near=True, ends="timeout"),
        ),
    ),
    Case(
        "a renewal takes the warning back, and the next approach is warned of again",
        PLAIN,
        (
            Step(85 * S, "ring", 100 * S, near=True),
            Step(5 * S, "renew", 190 * S),
            Step(70 * S, "ring", 190 * S),
            Step(11 * S, "ring", 190 * S, near=True),
        ),
    ),
    Case(
        "a message and a heartbeat renew",
        PLAIN,
        (
            Step(50 * S, "message", 150 * S),
            Step(50 * S, "heartbeat", 200 * S),
            Step(99 * S, "ring", 200 * S, near=True),
        ),
    ),
    Case(
        "without autoRenew only a renewal by hand does",
        BY_HAND,
        (
            Step(50 * S, "message", 100 * S),
            Step(10 * S, "heartbeat", 100 * S),
            Step(10 * S, "renew", 170 * S),
            Step(100 * S, "ring", 170 * S, ends="timeout"),
        ),
    ),
    Case(
        "no renewal reaches beyond the maximum duration",
        SHORT,
        (
            Step(90 * S, "heartbeat", 150 * S),
            Step(30 * S, "heartbeat", 150 * S),
            Step(15 * S, "ring", 150 * S, near=True),
            Step(10 * S, "heartbeat", 150 * S, near=True),
            Step(5 * S, "ring", 150 * S, near=True, ends="max_duration"),
        ),
    ),
    Case(
        "a lowered timeout counts from the last renewal",
        PLAIN,
        (
            Step(30 * S, "renew", 130 * S),
            Step(10 * S, "configure", 90 * S, change={"timeout_ms": 60 * S}),
            Step(50 * S, "ring", 90 * S, ends="timeout"),
        ),
    ),
    Case(
        "a widened threshold warns at once",
        PLAIN,
        (Step(50 * S, "configure", 100 * S, near=True, change={"warning_ms": 60 * S}),),
    ),
    Case(
        "a narrowed threshold takes the warning back",
        PLAIN,
        (
            Step(85 * S, "ring", 100 * S, near=True),
            Step(0, "configure", 100 * S, change={"warning_ms": 10 * S}),
            Step(6 * S, "ring", 100 * S, near=True),
        ),
    ),
    Case(
        "a lowered maximum moves the deadline",
        PLAIN,
        (
            Step(10 * S, "configure", 60 * S, change={"max_duration_ms": 60 * S, "timeout_ms": 60 * S}),
            Step(50 * S, "ring", 60 * S, ends="max_duration"),
        ),
    ),
    Case(
        "a turn holds the session past its deadline and its end restarts the clock",
        PLAIN,
        (
            Step(90 * S, "hold", 190 * S),
            Step(5 * S, "extend", 190 * S),
            Step(29 * S, "extend", 190 * S),
            Step(29 * S, "extend", 190 * S),
            Step(29 * S, "extend", 190 * S),
            Step(29 * S, "extend", 190 * S),
            Step(1 * S, "release", 312 * S),
        ),
    ),
    Case(
        "while held it is not warned of the idle timeout",
        BY_HAND,
        (
            Step(70 * S, "hold", 100 * S),
            Step(8 * S, "extend", 100 * S),
            Step(10 * S, "ring", 100 * S),
            Step(8 * S, "release", 100 * S, near=True),
        ),
    ),
    Case(
        "held past its deadline it ends with the hold if it does not renew itself",
        BY_HAND,
        (
            Step(95 * S, "hold", 100 * S, near=True),
            Step(4 * S, "extend", 100 * S, near=True),
            Step(20 * S, "release", 119 * S, near=True, ends="timeout"),
        ),
    ),
    Case(
        "a hold that lapses past the deadline ends the session at the hold's end",
        BY_HAND,
        (
            Step(95 * S, "hold", 100 * S, near=True),
            Step(4 * S, "extend", 100 * S, near=True),
            Step(30 * S, "ring", 129 * S, near=True, ends="timeout"),
        ),
    ),
    Case(
        "the maximum duration caps a hold and is warned of",
        SHORT,
        (
            Step(90 * S, "hold", 150 * S),
            Step(9 * S, "extend", 150 * S),
            Step(25 * S, "extend", 150 * S),
            Step(7 * S, "ring", 150 * S, near=True),
            Step(2 * S, "extend", 150 * S, near=True),
            Step(17 * S, "ring", 150 * S, near=True, ends="max_duration"),
        ),
    ),
)

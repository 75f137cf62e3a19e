"""The checker finds what is wrong: each rule is given a history that breaks it, and one that breaks none."""

from __future__ import annotations

import pytest

from tests.chaos.checker import RULES, check
from tests.chaos.doctored import DOCTORS, Doctor, drop, follower_is_told_late
from tests.chaos.history import History, Struck
from tests.chaos.sound import ALIVE, BEGAN_MS, END_MS, asked, event, sound


class TestChecker:
    def test_accepts_a_sound_history(self) -> None:
        assert check(sound()) == []

    @pytest.mark.parametrize("kind, doctor", DOCTORS, ids=[doctor.__name__ for _, doctor in DOCTORS])
    def test_finds_what_is_wrong(self, kind: str, doctor: Doctor) -> None:
        history = sound()
        doctor(history)

        assert kind in {violation.kind for violation in check(history)}

    def test_has_no_rule_that_nothing_breaks(self) -> None:
        unbroken = set(RULES)
        for _, doctor in DOCTORS:
            history = sound()
            doctor(history)
            unbroken -= {rule for rule in RULES if any(rule(history))}

        assert unbroken == set()


class TestWhatFaultsExplain:
    """What is no violation, since a fault that was done explains it."""

    def test_no_reply_from_a_replica_that_was_killed(self) -> None:
        history = sound()
        history.asked.append(asked("get", ALIVE, 0, code="ReadError"))
        history.struck.append(
            Struck(kind="replica-kill", replica=0, began_ms=BEGAN_MS + 1_005, ended_ms=BEGAN_MS + 2_000)
        )

        assert check(history) == []

    def test_but_not_from_another_one(self) -> None:
        history = sound()
        history.asked.append(asked("get", ALIVE, 0, code="ReadError"))
        history.struck.append(
            Struck(kind="replica-kill", replica=1, began_ms=BEGAN_MS + 1_005, ended_ms=BEGAN_MS + 2_000)
        )

        assert [violation.kind for violation in check(history)] == ["hung up"]

    def test_a_late_end_while_redis_was_away(self) -> None:
        history = sound()
        follower_is_told_late(history)
        history.struck.append(
            Struck(kind="redis-kill", replica=None, began_ms=END_MS - 100, ended_ms=END_MS + 14_500)
        )

        assert check(history) == []

    def test_a_request_that_its_client_gave_up(self) -> None:
        history = sound()
        history.asked.append(asked("get", ALIVE, 0, code="TimeoutError", gave_up=True))

        assert check(history) == []


class TestTopologiesThatMayLose:
    """A failover may lose the newest writes; whoever had heard of them is told."""

    @staticmethod
    def rewound() -> History:
        """The last message and its answer are lost, and everybody had heard of both."""
        history = sound()
        history.may_rewind = True
        for _ in range(2):
            drop(history, ALIVE, 2)
        return history

    def test_is_found_if_nobody_is_told(self) -> None:
        kinds = {violation.kind for violation in check(self.rewound())}

        assert {"lost", "heard what is not there"} <= kinds

    def test_is_accepted_if_every_follower_is_told(self) -> None:
        history = self.rewound()
        history.followings[0].events.append(event(ALIVE, "gap", {"reason": "rewound"}))
        history.asked.append(asked("turn", ALIVE, 404, code="TURN_NOT_FOUND"))

        assert check(history) == []

    def test_is_not_accepted_where_replicas_had_it(self) -> None:
        """A follower may have heard of a write before it was answered; what was answered is there."""
        history = self.rewound()
        history.is_replicated = True
        history.followings[0].events.append(event(ALIVE, "gap", {"reason": "rewound"}))

        assert {violation.kind for violation in check(history)} == {"lost"}

    def test_a_turn_is_not_gone_without_its_message(self) -> None:
        history = sound()
        history.may_rewind = True
        history.asked.append(asked("turn", ALIVE, 404, code="TURN_NOT_FOUND"))

        assert [violation.kind for violation in check(history)] == ["unpromised"]

"""Schedules: drawn from a seed, the same each time, and replayed from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import DOING
from tests.chaos.schedule import FIRST_S, KINDS, TOPOLOGIES, Topology, draw, read

SEEDS = range(1, 101)


class TestASchedule:
    @pytest.mark.parametrize("topology", TOPOLOGIES)
    def test_of_a_seed_is_always_the_same(self, topology: Topology) -> None:
        assert draw(17, seconds=6, topology=topology) == draw(17, seconds=6, topology=topology)
        assert draw(17, seconds=6, topology=topology) != draw(18, seconds=6, topology=topology)

    @pytest.mark.parametrize("topology", TOPOLOGIES)
    @pytest.mark.parametrize("seconds", [1.0, 6.0, 30.0])
    def test_begins_and_mends_its_faults_in_its_time(self, topology: Topology, seconds: float) -> None:
        for seed in SEEDS:
            schedule = draw(seed, seconds=seconds, topology=topology)

            assert len(schedule.strikes) >= 2
            for strike in schedule.strikes:
                low_s, high_s = KINDS[strike.kind].seconds
                assert topology in KINDS[strike.kind].topologies
                assert strike.at_s > 0
                assert low_s - 0.01 <= strike.seconds <= high_s
                assert strike.at_s + strike.seconds <= max(seconds, FIRST_S + low_s) + 0.02

    @pytest.mark.parametrize("topology", TOPOLOGIES)
    def test_is_one_of_a_hundred_that_have_every_fault(self, topology: Topology) -> None:
        drawn = {strike.kind for seed in SEEDS for strike in draw(seed, seconds=6, topology=topology).strikes}

        assert drawn == {name for name, kind in KINDS.items() if topology in kind.topologies}

    def test_can_be_read_back(self, tmp_path: Path) -> None:
        schedule = draw(17, seconds=6)
        schedule.write(tmp_path / "schedule.json")

        assert read(tmp_path / "schedule.json") == schedule

    def test_of_a_fault_that_is_not_known_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "schedule.json"
        draw(17, seconds=6).write(path)
        path.write_text(path.read_text().replace('"kind": "', '"kind": "un'))

        with pytest.raises(ValueError, match="unknown faults"):
            read(path)

    def test_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "schedule.json").write_text("{}")

        with pytest.raises(ValueError, match="is no schedule"):
            read(tmp_path / "schedule.json")


def test_every_kind_of_fault_can_be_done() -> None:
    assert DOING.keys() == KINDS.keys()

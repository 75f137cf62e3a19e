"""Ids: what is one, and where it leads."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions_api.domain.ids import (
    PARTITIONS,
    UserId,
    is_uuid,
    new_message_id,
    new_op_id,
    new_session_id,
    new_turn_id,
    partition_of_session,
    partition_of_user,
)

users = st.uuids().map(lambda uuid: UserId(str(uuid)))


class TestIsUuid:
    @given(st.uuids())
    def test_takes_any_version_in_any_case(self, uuid: UUID) -> None:
        assert is_uuid(str(uuid))
        assert is_uuid(str(uuid).upper())

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "11111111-1111-4111-8111-11111111111",
            "11111111-1111-4111-8111-1111111111111",
            "11111111-1111-4111-8111-11111111111\n",
            "g1111111-1111-4111-8111-111111111111",
            "111111111111411181111111111111111111",
            "{1111111-1111-4111-8111-11111111111}",
            "１1111111-1111-4111-8111-111111111111",
            " 1111111-1111-4111-8111-111111111111",
        ],
    )
    def test_takes_nothing_else(self, text: str) -> None:
        assert not is_uuid(text)


class TestPartition:
    @given(users)
    def test_a_session_lies_in_its_users_partition(self, user: UserId) -> None:
        """The id alone says where: no lookup comes before the first command."""
        session_id = new_session_id(user)

        assert partition_of_session(session_id) == partition_of_user(user)

    @given(users)
    def test_a_session_id_is_a_uuid_v4_in_lower_case(self, user: UserId) -> None:
        session_id = new_session_id(user)

        assert UUID(session_id).version == 4
        assert session_id == session_id.lower()
        assert is_uuid(session_id)

    @given(st.uuids(version=4).map(str))
    def test_is_one_of_sixty_four(self, session_id: str) -> None:
        assert 0 <= partition_of_session(session_id) < PARTITIONS  # type: ignore[arg-type]

    def test_is_stable_over_releases(self) -> None:
        """Sessions stored today must be found tomorrow."""
        assert partition_of_user(UserId("11111111-1111-4111-8111-111111111111")) == 0
        assert partition_of_user(UserId("00000000-0000-4000-8000-000000000001")) == 1

    def test_random_users_spread_evenly(self) -> None:
        counts = [0] * PARTITIONS
        for number in range(64_000):
            counts[partition_of_user(UserId(f"{number:08x}-1111-4111-8111-111111111111"))] += 1

        assert 900 < min(counts) <= max(counts) < 1_100


def test_ids_do_not_repeat() -> None:
    for make in (new_turn_id, new_message_id, new_op_id):
        assert len({make() for _ in range(1_000)}) == 1_000


def test_an_op_id_holds_no_sign_that_the_scripts_read() -> None:
    """Ops are kept as ``op=word`` with blanks between."""
    assert not any(set(new_op_id()) & set("= ") for _ in range(1_000))

"""Workers give turns up; and what any write finds: its own turn, a cancelled, a lost one, none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.api.conftest import BASE
from tests.support.deskapi import UNKNOWN, Desk, at_desk, error, fields
from tests.support.servers import TestServer

# What scripts do on the other servers is the store's to test.
pytestmark = pytest.mark.servers("valkey", "fakeredis")


@pytest.fixture
async def desk(server: TestServer) -> AsyncIterator[Desk]:
    async with at_desk(server.url) as desk:
        yield desk


class TestFail:
    async def test_is_followed_by_another_attempt(self, desk: Desk) -> None:
        turn = await desk.claimed()
        for _ in range(2):
            assert not await desk.wrote(turn, "fail", code="BROKEN", message="It broke")

        info = await desk.turn(turn)
        assert (info["state"], info["attempt"]) == ("queued", 1)

    async def test_for_good_is_in_the_log(self, desk: Desk) -> None:
        turn = await desk.claimed()
        for _ in range(2):
            assert not await desk.wrote(turn, "fail", code="BROKEN", message="It broke", retry=False)

        info = await desk.turn(turn)
        assert (info["state"], info["error"]) == ("failed", {"code": "BROKEN", "message": "It broke"})

    async def test_may_ask_for_a_pause_of_a_minute_at_most(self, desk: Desk) -> None:
        turn = await desk.claimed()
        await desk.wrote(turn, "fail", code="RATE", message="Later", retryAfterMs=3_600_000)
        store = desk.api.state.store
        paused = await desk.turn(turn)
        assert paused["state"] == "queued"
        assert paused["startedAt"] < paused["notBefore"]
        await desk.age(59_000)
        await store.alarms.ring(desk.session_id)
        assert (await desk.claim(0)).status_code == 204
        await desk.age(1_000)
        await store.alarms.ring(desk.session_id)

        assert (await desk.claim()).json()["attempt"] == 2
        assert "notBefore" not in await desk.turn(turn)

    async def test_names_every_bad_field_at_once(self, desk: Desk) -> None:
        turn = await desk.claimed()
        reply = await desk.write(
            turn, "fail", fence="", code="lower", message="x" * 1001, retry="no", retryAfterMs=-1
        )

        assert fields(reply) == ["fence", "code", "message", "retry", "retryAfterMs"]

    async def test_needs_a_code_and_a_message(self, desk: Desk) -> None:
        turn = await desk.claimed()
        assert fields(await desk.write(turn, "fail")) == ["code", "message"]


class TestRelease:
    async def test_hands_the_turn_to_another_worker_uncounted(self, desk: Desk) -> None:
        turn = await desk.claimed()
        for _ in range(2):
            assert not await desk.wrote(turn, "release")
        again = (await desk.claim(worker="worker-2")).json()

        assert (again["turnId"], again["attempt"]) == (turn["turnId"], 1)
        assert again["fence"] != turn["fence"]

    async def test_needs_its_fence(self, desk: Desk) -> None:
        turn = await desk.claimed()
        assert fields(await desk.write(turn, "release", fence=None)) == ["fence"]


WRITES: dict[str, dict[str, Any]] = {
    "delta": {"text": "so", "offset": 0},
    "extend": {},
    "complete": {"content": "done"},
    "fail": {"code": "BROKEN", "message": "It broke"},
    "release": {},
}


@pytest.mark.parametrize("what", WRITES)
class TestEveryWrite:
    async def test_of_a_lapsed_turn_is_still_its_own(self, desk: Desk, what: str) -> None:
        turn = await desk.claimed()
        await desk.age(10_000)
        await desk.api.state.store.alarms.ring(desk.session_id)

        assert not await desk.wrote(turn, what, **WRITES[what])

    async def test_of_a_cancelled_turn_says_so_and_writes_nothing(self, desk: Desk, what: str) -> None:
        turn = await desk.claimed()
        await desk.cancel(turn)
        for _ in range(2):
            assert await desk.wrote(turn, what, **WRITES[what])

        assert (await desk.turn(turn))["state"] == "cancelled"
        assert len(await desk.history()) == 1

    async def test_of_another_attempt_is_409(self, desk: Desk, what: str) -> None:
        turn = await desk.claimed()
        await desk.wrote(turn, "release")
        again = (await desk.claim()).json()
        reply = await desk.write(turn, what, **WRITES[what])

        assert (reply.status_code, error(reply)) == (409, "TURN_LOST")
        assert not await desk.wrote(again, "complete", content="done")
        assert (await desk.history())[-1]["id"] == again["messageId"]

    async def test_of_a_turn_that_failed_for_good_is_409(self, desk: Desk, what: str) -> None:
        turn = await desk.claimed()
        await desk.wrote(turn, "fail", code="OTHER", message="It broke", retry=False)
        reply = await desk.write(turn, what, **WRITES[what])

        if what in {"fail", "release"}:  # it has given the attempt up already
            assert reply.json() == {"cancelled": False}
        else:
            assert (reply.status_code, error(reply)) == (409, "TURN_LOST")

    async def test_with_a_strange_fence_is_409(self, desk: Desk, what: str) -> None:
        turn = await desk.claimed()
        reply = await desk.write(turn, what, **WRITES[what] | {"fence": "1.0000000000000000"})

        assert (reply.status_code, error(reply)) == (409, "TURN_LOST")
        assert (await desk.turn(turn))["state"] == "running"

    async def test_of_an_unknown_turn_is_404(self, desk: Desk, what: str) -> None:
        for turn_id in (UNKNOWN, "no-uuid"):
            reply = await desk.write({"turnId": turn_id, "fence": "1.ab"}, what, **WRITES[what])
            assert (reply.status_code, error(reply)) == (404, "TURN_NOT_FOUND")
            assert reply.json()["error"]["details"] == {"turnId": turn_id}

    async def test_after_its_own_answer_is_told_so(self, desk: Desk, what: str) -> None:
        """Nothing was lost: who says so must not make the worker search for it."""
        turn = await desk.claimed()
        await desk.wrote(turn, "complete", content="done")
        reply = await desk.write(turn, what, **WRITES[what])

        if what == "complete":
            assert reply.json() == {"cancelled": False}
            return
        told = reply.json()["error"]
        assert (reply.status_code, told["code"]) == (409, "TURN_LOST")
        assert told["message"] == f"Turn '{turn['turnId']}' has already been completed by this attempt"
        assert told["details"] == {"turnId": turn["turnId"], "state": "completed"}

    async def test_of_no_object_is_told_so(self, desk: Desk, what: str) -> None:
        turn = await desk.claimed()
        url = f"{BASE}/{desk.session_id}/turns/{turn['turnId']}/{what}"

        for body in (b"[]", b'"fence"', b"3", b"false"):
            reply = await desk.http.post(url, content=body, headers={"content-type": "application/json"})
            assert fields(reply) == ["body"]
            assert reply.json()["error"]["message"] == "Invalid body: must be an object"

    async def test_of_a_deleted_session_is_404(self, desk: Desk, what: str) -> None:
        turn = await desk.claimed()
        await desk.http.delete(f"{BASE}/{desk.session_id}")
        reply = await desk.write(turn, what, **WRITES[what])

        assert (reply.status_code, error(reply)) == (404, "SESSION_NOT_FOUND")

    async def test_of_an_expired_session_is_410(self, desk: Desk, what: str) -> None:
        turn = await desk.claimed()
        await desk.age(31 * 60_000)
        await desk.api.state.store.alarms.ring(desk.session_id)
        reply = await desk.write(turn, what, **WRITES[what])

        assert (reply.status_code, error(reply)) == (410, "SESSION_EXPIRED")

    async def test_without_json_is_refused(self, desk: Desk, what: str) -> None:
        turn = await desk.claimed()
        url = f"{BASE}/{desk.session_id}/turns/{turn['turnId']}/{what}"
        reply = await desk.http.post(url, content=b"{", headers={"content-type": "application/json"})
        assert (reply.status_code, error(reply)) == (400, "VALIDATION_ERROR")

        reply = await desk.http.post(url, content=b"fence", headers={"content-type": "text/plain"})
        assert (reply.status_code, error(reply)) == (415, "UNSUPPORTED_MEDIA_TYPE")
        assert "fence" in fields(await desk.http.post(url))

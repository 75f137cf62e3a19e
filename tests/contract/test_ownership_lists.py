"""Lists, cursors and idempotency keys of two applications, and of two sessions, never meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.access import OTHER_AGENT, WORKER_AGENT, Caller
from tests.support.client import closed, problem, some_id
from tests.support.servers import TestServer
from tests.support.world import World, served_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, contract_redis: TestServer) -> Iterator[World]:
    with served_world(tmp_path_factory.mktemp("owned-lists"), contract_redis.url) as world:
        yield world


@pytest.fixture
def shop(world: World) -> Caller:
    return world.by_key["shop"]


@pytest.fixture
def rival(world: World) -> Caller:
    return world.by_key["rival"]


def listed(caller: Caller, **params: Any) -> dict[str, Any]:
    reply = caller.call("GET", "", params=params)
    assert reply.status_code == 200, reply.text
    page: dict[str, Any] = reply.json()
    return page


def ids(page: dict[str, Any]) -> list[str]:
    return [session["sessionId"] for session in page["sessions"]]


def opened(caller: Caller, count: int, **fields: Any) -> list[str]:
    """So many new sessions, newest first."""
    return [caller.session(**{"agentId": WORKER_AGENT} | fields) for _ in range(count)][::-1]


class TestLists:
    def test_are_of_the_keys_application(self, world: World, shop: Caller, rival: Caller) -> None:
        """Also by user and by agent, which both applications have in common; so are the totals."""
        user = some_id()
        ours = opened(shop, 3, userId=user)
        theirs = opened(rival, 2, userId=user)

        for caller, expected in ((shop, ours), (rival, theirs), (world.by_key["both"], theirs)):
            page = listed(caller, userId=user)
            assert ids(page) == expected
            assert page["total"] == len(expected)
            assert set(expected) <= set(ids(listed(caller)))
        assert not set(ids(listed(shop))) & set(ids(listed(rival)))
        assert not set(ids(listed(shop, agentId=WORKER_AGENT))) & set(ids(listed(rival)))

    def test_are_of_everybody_for_an_admin(self, world: World, shop: Caller, rival: Caller) -> None:
        user = some_id()
        ours, theirs = opened(shop, 2, userId=user), opened(rival, 2, userId=user)
        admin = world.by_key["admin"]

        assert ids(listed(admin, userId=user)) == theirs + ours
        assert ids(listed(admin, userId=user, app="shop")) == ours
        assert ids(listed(admin, userId=user, app="rival")) == theirs

    @pytest.mark.parametrize("app", ["shop", "no-such-app"])
    def test_of_another_application_are_refused_whether_there_is_one(self, rival: Caller, app: str) -> None:
        error = problem(rival.call("GET", "", params={"app": app}), 403, "FORBIDDEN")

        assert app not in error["message"]

    def test_of_its_own_name_are_its_own(self, shop: Caller) -> None:
        assert ids(listed(shop, app="shop")) == ids(listed(shop))

    @pytest.mark.parametrize("by", ["userId", "agentId", ""])
    def test_cursors_of_another_application_lead_to_nothing_of_its(
        self, shop: Caller, rival: Caller, by: str
    ) -> None:
        """By user and agent a cursor is an instant in one's own list; of a whole list it is refused."""
        user = some_id()
        ours, theirs = opened(shop, 3, userId=user), opened(rival, 3, userId=user)
        filters = {"userId": user, "agentId": WORKER_AGENT}
        params: dict[str, Any] = {by: filters[by]} if by else {}
        cursor = listed(rival, limit=1, **params)["nextCursor"]

        reply = shop.call("GET", "", params=params | {"cursor": cursor})

        if by:
            assert not set(ids(reply.json())) & set(theirs)
            assert set(ids(reply.json())) <= set(ids(listed(shop, **params)))
            assert by != "userId" or ids(reply.json()) == ours
        else:
            problem(reply, 400, "VALIDATION_ERROR")


class TestCursors:
    def test_of_one_session_are_only_instants_in_another(self, shop: Caller) -> None:
        """A page between the cursors of one session has messages of the other, and none of the first."""
        one, other = opened(shop, 2)
        cursors = [shop.say(one, f"one {number}")["cursor"] for number in range(2)]
        shop.say(other, "other")
        cursors.append(shop.say(one, "one 2")["cursor"])

        page = shop.history(other, after=cursors[0], before=cursors[2])
        before = shop.history(other, before=cursors[0])

        assert [message["content"] for message in page["messages"]] == ["other"]
        assert before["messages"] == []

    def test_of_another_applications_session_open_nothing_of_it(self, shop: Caller, rival: Caller) -> None:
        (theirs,), (ours,) = opened(rival, 1), opened(shop, 1)
        cursor = rival.say(theirs, "theirs")["cursor"]
        shop.say(ours, "ours")

        page = shop.history(ours, after=cursor)
        problem(shop.call("GET", f"/{theirs}/messages", params={"after": 0}), 404, "SESSION_NOT_FOUND")

        assert [message["content"] for message in page["messages"]] == ["ours"]

    @pytest.mark.parametrize("how", ["after", "last_event_id"])
    def test_of_one_session_replay_only_the_other_one(self, shop: Caller, how: str) -> None:
        one, other = opened(shop, 2)
        shop.say(one, "one")
        cursor = shop.say(one, "one again")["cursor"]
        shop.say(other, "other")

        with shop.events(other, **{how: str(cursor)}) as stream:
            created = stream.until("message.created")[-1]

        assert (created.data["sessionId"], created.data["data"]["content"]) == (other, "other")

    def test_of_one_session_resume_only_the_other_one(self, shop: Caller) -> None:
        one, other = opened(shop, 2)
        cursor = shop.say(one, "one")["cursor"]
        shop.say(other, "other")

        with shop.websocket(other, f"?after={cursor}") as socket:
            shop.call("DELETE", f"/{other}")
            _, frames = closed(socket)

        assert {frame["sessionId"] for frame in frames} == {other}
        assert "one" not in [frame["data"].get("content") for frame in frames]

    def test_the_end_of_one_stream_is_no_way_into_another(self, shop: Caller, rival: Caller) -> None:
        """``.end`` answers whoever asks that there is nothing more, without a look at the session."""
        (theirs,) = opened(rival, 1)

        answers = [
            shop.call("GET", f"/{session_id}/events", headers={"Last-Event-ID": "1.end"})
            for session_id in (theirs, some_id())
        ]

        assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 2


class TestIdempotencyKeys:
    def test_of_two_applications_never_meet(self, shop: Caller, rival: Caller) -> None:
        """The same key, user and content open a session for each; other content is no mismatch."""
        body = {"agentId": WORKER_AGENT, "userId": some_id()}
        again = body | {"agentId": OTHER_AGENT}
        headers = {"Idempotency-Key": some_id()}

        ours = shop.call("POST", "", json=body, headers=headers)
        theirs = rival.call("POST", "", json=body, headers=headers)
        repeats = [caller.call("POST", "", json=body, headers=headers) for caller in (shop, rival)]

        assert [reply.status_code for reply in (ours, theirs, *repeats)] == [201] * 4
        assert ours.json()["sessionId"] != theirs.json()["sessionId"]
        assert "idempotency-replayed" not in theirs.headers
        assert [reply.json()["sessionId"] for reply in repeats] == [
            ours.json()["sessionId"],
            theirs.json()["sessionId"],
        ]
        problem(rival.call("POST", "", json=again, headers=headers), 422, "IDEMPOTENCY_MISMATCH")

    def test_of_two_sessions_never_meet(self, shop: Caller) -> None:
        one, other = opened(shop, 2)
        headers = {"Idempotency-Key": "the same"}

        first, second = (shop.post(session_id, "hi", headers=headers) for session_id in (one, other))

        assert first.json()["id"] != second.json()["id"]
        assert "idempotency-replayed" not in second.headers

    def test_of_somebody_elses_session_find_nothing(self, shop: Caller, rival: Caller) -> None:
        """Neither that the key was used there nor with what."""
        (theirs,) = opened(rival, 1)
        headers = {"Idempotency-Key": "theirs"}
        assert rival.post(theirs, "secret", headers=headers).status_code == 201

        for content in ("secret", "a guess"):
            problem(shop.post(theirs, content, headers=headers), 404, "SESSION_NOT_FOUND")
        renewed = shop.call("POST", f"/{theirs}/renew", headers=headers)
        problem(renewed, 404, "SESSION_NOT_FOUND")


class TestDebug:
    def test_is_shown_to_an_admin_alone(self, world: World, shop: Caller) -> None:
        (session_id,) = opened(shop, 1)
        shown = {
            name: "debug" in caller.call("GET", f"/{session_id}", headers={"X-Debug": "true"}).json()
            for name, caller in world.by_key.items()
        }

        assert shown == dict.fromkeys(world.by_key, False) | {"admin": True}

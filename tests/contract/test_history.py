"""``GET /{id}/messages``: newest first, exact cursors, never skipping, repeating or lying about more."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.test_creating import ms
from tests.support.client import INSTANT, Api, problem


@pytest.fixture(scope="module")
def spoken(still: Api) -> tuple[str, list[dict[str, Any]]]:
    """A session of 23 messages, and what was answered to each, oldest first."""
    session_id = still.session()
    return session_id, [still.say(session_id, f"m{number}") for number in range(23)]


def contents(page: dict[str, Any]) -> list[str]:
    return [message["content"] for message in page["messages"]]


def names(first: int, last: int) -> list[str]:
    """``m<first>`` down to ``m<last>``."""
    return [f"m{number}" for number in range(first, last - 1, -1)]


class TestHistory:
    def test_is_empty_at_first(self, api: Api) -> None:
        page = api.history(api.session())

        assert page["messages"] == []
        assert page["hasMore"] is False
        assert not page.get("cursors")

    def test_messages_have_the_published_fields_and_ours(self, api: Api) -> None:
        created = api.create()
        posted = api.ask(created["sessionId"])

        answer, question = api.history(created["sessionId"])["messages"]

        for message in (answer, question):
            assert message.keys() >= {
                "id",
                "content",
                "authorId",
                "isAgent",
                "createdAt",
                "metadata",
                "cursor",
                "role",
            }
            assert INSTANT.fullmatch(message["createdAt"])
            assert message["turnId"] == posted["turnId"]
            assert isinstance(message["cursor"], int)
        assert (question["isAgent"], question["role"], question["authorId"]) == (
            False,
            "user",
            created["userId"],
        )
        assert (answer["isAgent"], answer["role"], answer["authorId"]) == (True, "agent", created["agentId"])

    def test_defaults_to_fifty_newest_first(self, still: Api, spoken: tuple[str, Any]) -> None:
        page = still.history(spoken[0])

        assert contents(page) == names(22, 0)
        assert page["hasMore"] is False

    @pytest.mark.parametrize(
        "limit, size", [("1", 1), ("0", 1), ("-4", 1), ("2.9", 2), ("7", 7), ("1000", 23), ("1e1", 10)]
    )
    def test_clamps_the_limit(self, still: Api, spoken: tuple[str, Any], limit: str, size: int) -> None:
        response = still.call("GET", f"/{spoken[0]}/messages", params={"limit": limit})

        if limit != "1e1" or response.status_code != 400:
            assert len(response.json()["messages"]) == size

    def test_clamps_it_to_a_hundred(self, still: Api) -> None:
        session_id = still.session(onBusy="merge")
        for number in range(100):
            still.say(session_id, str(number))

        assert len(still.history(session_id, limit=101)["messages"]) == 100

    @pytest.mark.parametrize("size", [1, 2, 5, 22, 23, 24])
    def test_walks_back_to_the_beginning(self, still: Api, spoken: tuple[str, Any], size: int) -> None:
        seen: list[str] = []
        params: dict[str, Any] = {}
        while True:
            page = still.history(spoken[0], limit=size, **params)
            seen += contents(page)
            assert page["hasMore"] == (len(seen) < 23)
            if not page["hasMore"]:
                break
            params = {"before": page["cursors"]["before"]}

        assert seen == names(22, 0)

    @pytest.mark.parametrize("size", [1, 2, 5, 22, 23])
    def test_walks_on_to_the_end(self, still: Api, spoken: tuple[str, Any], size: int) -> None:
        seen: list[str] = []
        after = 0
        while True:
            page = still.history(spoken[0], limit=size, after=after)
            seen = contents(page) + seen
            assert page["hasMore"] == (len(seen) < 23)
            if not page["hasMore"]:
                break
            after = page["cursors"]["after"]

        assert seen == names(22, 0)

    def test_cursors_are_exclusive(self, still: Api, spoken: tuple[str, Any]) -> None:
        session_id, posted = spoken
        low, high = posted[5]["cursor"], posted[10]["cursor"]

        assert contents(still.history(session_id, before=low)) == names(4, 0)
        assert contents(still.history(session_id, after=high)) == names(22, 11)
        assert contents(still.history(session_id, after=low, before=high)) == names(9, 6)
        assert contents(still.history(session_id, after=low, limit=3)) == names(8, 6)
        assert contents(still.history(session_id, after=low, before=low + 1)) == []

    def test_cursors_of_a_page_are_those_of_its_ends(self, still: Api, spoken: tuple[str, Any]) -> None:
        page = still.history(spoken[0], limit=4)

        assert page["cursors"]["before"] == page["messages"][-1]["cursor"]
        assert page["cursors"]["after"] == page["messages"][0]["cursor"]

    def test_nothing_beyond_the_ends(self, still: Api, spoken: tuple[str, Any]) -> None:
        session_id, posted = spoken

        for params in (
            {"after": posted[-1]["cursor"]},
            {"before": posted[0]["cursor"]},
            {"after": 8_640_000_000_000_000},
            {"before": 0},
        ):
            page = still.history(session_id, **params)
            assert page["messages"] == []
            assert page["hasMore"] is False

    def test_takes_instants(self, still: Api, spoken: tuple[str, Any]) -> None:
        session_id, posted = spoken
        middle = posted[11]["createdAt"]

        before = still.history(session_id, before=middle)["messages"]
        after = still.history(session_id, after=middle)["messages"]

        assert all(ms(message["createdAt"]) < ms(middle) for message in before)
        assert all(ms(message["createdAt"]) > ms(middle) for message in after)
        assert len(before) + len(after) <= 22
        assert contents({"messages": before})[-1] == "m0"
        assert contents({"messages": after})[0] == "m22"

    @pytest.mark.parametrize(
        "instant", ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00.000Z", "2020-01-01T02:00:00+02:00"]
    )
    def test_takes_instants_of_any_offset(self, still: Api, spoken: tuple[str, Any], instant: str) -> None:
        assert len(still.history(spoken[0], after=instant)["messages"]) == 23
        assert still.history(spoken[0], before=instant)["messages"] == []

    def test_a_follower_of_after_misses_nothing(self, api: Api) -> None:
        session_id = api.session()
        after, seen = 0, []
        for number in range(5):
            api.ask(session_id, str(number))
            page = api.history(session_id, after=after, limit=2)
            seen += contents(page)[::-1]
            after = page["cursors"]["after"]

        assert seen == [text for number in range(5) for text in (str(number), f"echo: {number}")]

    @pytest.mark.parametrize("name", ["before", "after", "limit"])
    @pytest.mark.parametrize(
        "junk", ["junk", "12junk", "", "NaN", "1e400", "2026-99-99T00:00:00Z", "é", "[]", "9" * 400]
    )
    def test_refuses_junk(self, still: Api, spoken: tuple[str, Any], name: str, junk: str) -> None:
        response = still.call("GET", f"/{spoken[0]}/messages", params={name: junk})

        if junk == "" or (junk in {"1e400", "9" * 400} and name == "limit"):  # a number all the same
            assert response.status_code in {200, 400}
            return
        error = problem(response, 400, "VALIDATION_ERROR")
        if name == "limit":
            assert "limit" in str(error)
        else:
            assert error["message"].startswith(f"Invalid pagination parameter '{name}': ")
            assert error["details"]["parameter"] == name

    def test_links_to_its_neighbours(self, still: Api, spoken: tuple[str, Any]) -> None:
        middle = spoken[1][11]["cursor"]
        response = still.call("GET", f"/{spoken[0]}/messages", params={"limit": 3, "before": middle})

        link = response.headers["link"]
        assert 'rel="next"' in link or 'rel="prev"' in link
        address = link.split(">")[0].lstrip("<")
        neighbour = still.http.get(address).json()
        assert set(contents(neighbour)).isdisjoint(contents(response.json()))

"""``GET /{id}/events``: snapshot, replay, live tail, the end; and that every way to read agrees."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.conftest import SLOW_ECHO
from tests.contract.test_creating import OURS, SHARED
from tests.support.client import INSTANT, Api, Event, Stream, closed, eventually, problem, some_id

LOGGED = {"message.created", "turn.failed", "turn.cancelled"}


def of_log(events: list[Event]) -> list[Event]:
    return [event for event in events if event.name in LOGGED]


def check(events: list[Event], session_id: str, *, start: int = 0) -> None:
    """Every event is whole, and the logged ones follow each other without a hole."""
    previous = start
    for event in events:
        if event.name == "closing":
            continue
        assert event.data["type"] == event.name
        assert event.data["sessionId"] == session_id
        assert INSTANT.fullmatch(event.data["time"])
        assert "data" in event.data
        if event.name in LOGGED:
            assert event.id == str(event.data["cursor"])
            assert event.data["prev"] == previous < event.data["cursor"]
            previous = event.data["cursor"]
        elif event.name != "session.snapshot":
            assert event.id is None
            assert "cursor" not in event.data


class TestStream:
    def test_has_the_headers_that_keep_proxies_from_holding_it_back(self, api: Api) -> None:
        with api.events(api.session()) as stream:
            assert stream.response.status_code == 200
            headers = stream.response.headers
            assert headers["content-type"].split(";")[0] == "text/event-stream"
            assert headers["cache-control"] == "no-cache, no-transform"
            assert headers["x-accel-buffering"] == "no"
            assert headers["x-request-id"]
            assert "content-length" not in headers
            stream.next()
            assert stream.retry_ms is not None
            assert 0 < stream.retry_ms <= 60_000

    def test_begins_with_a_snapshot_that_carries_the_cursor(self, api: Api) -> None:
        session_id = api.session()
        cursor = api.ask(session_id)["agentResponse"]["message"]["cursor"]

        with api.events(session_id) as stream:
            snapshot = stream.next()

        assert snapshot.name == "session.snapshot"
        assert snapshot.id == str(cursor)
        assert snapshot.data["cursor"] == cursor
        inner = snapshot.data["data"]
        assert set(inner.get("session", inner)) >= SHARED | OURS

    def test_then_follows_live(self, api: Api) -> None:
        session_id = api.session()

        with api.events(session_id) as stream:
            stream.until("agent.availability")
            posted = api.say(session_id, "one two three")
            events = stream.until("turn.completed")

        check(events, session_id)
        seen = [event.name for event in events]
        assert seen[0] in {"message.created", "session.renewed"}
        for name in ("session.renewed", "turn.queued", "turn.started", "turn.delta", "turn.completed"):
            assert name in seen, name
        question, answer = of_log(events)
        assert question.data["data"]["id"] == posted["id"]
        assert answer.data["data"]["content"] == "echo: one two three"
        assert answer.data["data"]["status"] == "complete"
        started = next(event.data["data"] for event in events if event.name == "turn.started")
        assert started == {"turnId": posted["turnId"], "attempt": 1, "messageId": answer.data["data"]["id"]}
        deltas = [event.data["data"] for event in events if event.name == "turn.delta"]
        assert "".join(delta["text"] for delta in deltas) == "echo: one two three"
        assert [delta["index"] for delta in deltas] == list(range(len(deltas)))
        assert [delta["offset"] for delta in deltas] == [
            len("".join(delta["text"] for delta in deltas[:n])) for n in range(len(deltas))
        ]
        completed = events[-1].data["data"]
        assert completed["turnId"] == posted["turnId"]
        assert completed["messageId"] == answer.data["data"]["id"]
        assert completed["cursor"] == answer.data["cursor"]
        renewed = next(event.data["data"] for event in events if event.name == "session.renewed")
        assert renewed.keys() >= {"expiresAt", "renewalCount", "by"}
        assert renewed["by"] == "message"

    def test_replays_from_a_cursor_and_joins_the_tail(self, api: Api) -> None:
        session_id = api.session()
        first = api.ask(session_id, "first")
        api.ask(session_id, "second")

        with api.events(session_id, after=first["cursor"]) as stream:
            snapshot = stream.next()
            api.say(session_id, "third")
            events = stream.until("turn.completed")

        assert snapshot.name == "session.snapshot"
        assert snapshot.id is None
        assert "cursor" not in snapshot.data
        check(events, session_id, start=first["cursor"])
        assert [event.data["data"]["content"] for event in of_log(events)] == [
            "echo: first", "second", "echo: second", "third", "echo: third",
        ]  # fmt: skip

    def test_last_event_id_is_a_cursor_too(self, api: Api) -> None:
        session_id = api.session()
        first = api.ask(session_id, "first")

        with api.events(session_id, last_event_id=str(first["cursor"])) as stream:
            events = stream.until("message.created")

        assert events[-1].data["data"] == first["agentResponse"]["message"]

    def test_after_zero_replays_all_and_agrees_with_the_history(self, api: Api) -> None:
        session_id = api.session()
        for number in range(6):
            api.ask(session_id, str(number))

        with api.events(session_id, after=0) as stream:
            events = [stream.next() for _ in range(14)]

        assert [event.name for event in events[:2]] == ["session.snapshot", "agent.availability"]
        check(events, session_id)
        told = [event.data["data"] for event in of_log(events)]
        assert told == api.history(session_id)["messages"][::-1]

    def test_replays_pages_without_end(self, still: Api) -> None:
        session_id = still.session(onBusy="merge")
        cursors = [still.say(session_id, "x" * 3000)["cursor"] for _ in range(100)]

        with still.events(session_id, after=0) as stream:
            events = [stream.next() for _ in range(102)]

        check(events, session_id)
        assert [event.data["cursor"] for event in of_log(events)] == cursors

    def test_in_mid_answer_the_snapshot_has_the_text_so_far(self, api: Api) -> None:
        session_id = api.session(agentId=SLOW_ECHO)
        with api.events(session_id) as first:
            api.say(session_id, "a b c d e f g h")
            first.until("turn.delta")

            with api.events(session_id) as second:
                snapshot = second.next()
                events = second.until("turn.completed")

        turn = snapshot.data["data"]["turn"]
        assert turn["text"]
        text = turn["text"] + "".join(e.data["data"]["text"] for e in events if e.name == "turn.delta")
        assert text == "echo: a b c d e f g h"

    def test_tells_renewals_changes_and_cancellations(self, still: Api) -> None:
        session_id = still.session()
        with still.events(session_id) as stream:
            stream.next()
            still.call("POST", f"/{session_id}/renew")
            manual = stream.until("session.renewed")[-1]
            still.call("POST", f"/{session_id}/heartbeat")
            beat = stream.until("session.renewed")[-1]
            still.call("PATCH", f"/{session_id}/timeout", json={"timeoutMinutes": 40})
            changed = stream.until("session.updated")
            turn_id = still.say(session_id)["turnId"]
            stream.until("turn.queued")
            still.call("POST", f"/{session_id}/turns/{turn_id}/cancel")
            cancelled = stream.until("turn.cancelled")[-1]

        assert manual.data["data"]["by"] == "manual"
        assert manual.data["data"]["renewalCount"] == 1
        assert beat.data["data"]["by"] == "heartbeat"
        assert "40" in str(changed[-1].data["data"])
        assert cancelled.data["data"] == {"turnId": turn_id, "by": "user"}
        assert cancelled.id

    def test_of_a_deleted_session_ends(self, api: Api) -> None:
        session_id = api.session()
        with api.events(session_id) as stream:
            stream.until("agent.availability")
            api.call("DELETE", f"/{session_id}")
            events = stream.rest()

        assert [event.name for event in events] == ["session.ended", "closing"]
        assert events[-1].data.get("data", events[-1].data)["code"] == 4404

    def test_two_followers_see_the_same(self, api: Api) -> None:
        session_id = api.session()
        with api.events(session_id) as one, api.events(session_id) as two:
            one.until("agent.availability")
            two.until("agent.availability")
            api.ask(session_id, "hello")
            assert one.until("turn.completed") == two.until("turn.completed")


class TestStartPosition:
    @pytest.mark.parametrize("after", ["junk", "-1", "1.5", "NaN", "9" * 30, "", "1 2"])
    def test_that_is_none(self, api: Api, after: str) -> None:
        session_id = api.session()

        with api.events(session_id, after=after) as stream:
            assert stream.response.status_code in {200, 400}
            if stream.response.status_code == 400:
                stream.response.read()
                problem(stream.response, 400, "VALIDATION_ERROR")
            elif after != "":
                assert stream.next().name in {"session.snapshot", "gap"}

    def test_beyond_the_log_is_a_gap(self, api: Api) -> None:
        session_id = api.session()
        newest = api.ask(session_id)["agentResponse"]["message"]["cursor"]

        with api.events(session_id, after=newest + 1_000_000) as stream:
            gap = stream.until("gap")[-1].data["data"]

        assert gap["reason"] == "rewound"
        assert gap["requested"] == newest + 1_000_000
        assert gap["newest"] == newest


def ended(quick: Api) -> tuple[str, list[dict[str, Any]]]:
    """A session that just ended, and what was said in it."""
    session_id = quick.session(timeoutConfig={"timeoutMinutes": 0.01})
    quick.ask(session_id, "hello")
    messages = quick.history(session_id)["messages"][::-1]
    eventually(lambda: quick.call("GET", f"/{session_id}").status_code == 410)
    return session_id, messages


class TestEndedSession:
    def test_replays_then_says_it_is_over(self, quick: Api) -> None:
        session_id, messages = ended(quick)

        with quick.events(session_id, after=0) as stream:
            assert stream.response.status_code == 200
            events = stream.rest()

        assert [event.name for event in events] == [
            "message.created",
            "message.created",
            "session.expired",
            "closing",
        ]
        assert [event.data["data"] for event in events[:2]] == messages
        check(events, session_id)
        assert events[2].data["data"].keys() >= {"expiredAt", "reason"}
        assert events[2].data["data"]["reason"] == "timeout"
        closing = events[3]
        assert closing.id == f"{messages[-1]['cursor']}.end"
        assert closing.data.get("data", closing.data)["code"] == 4410

    def test_is_204_to_who_has_seen_the_end(self, quick: Api) -> None:
        session_id, messages = ended(quick)

        with quick.events(session_id, last_event_id=f"{messages[-1]['cursor']}.end") as stream:
            assert stream.response.status_code == 204

    def test_replays_the_rest_to_who_has_not(self, quick: Api) -> None:
        session_id, messages = ended(quick)

        with quick.events(session_id, last_event_id=str(messages[0]["cursor"])) as stream:
            events = stream.rest()

        assert [event.name for event in events] == ["message.created", "session.expired", "closing"]

    def test_without_a_cursor_there_is_no_snapshot(self, quick: Api) -> None:
        session_id, _ = ended(quick)

        with quick.events(session_id) as stream:
            events = stream.rest()

        assert [event.name for event in events][-2:] == ["session.expired", "closing"]
        assert "session.snapshot" not in [event.name for event in events]


class TestExpiring:
    def test_warning_and_end_come_once_to_each_follower(self, quick: Api) -> None:
        session_id = quick.session(timeoutConfig={"timeoutMinutes": 0.1, "warningThresholdMinutes": 0.08})

        with (
            quick.events(session_id) as one,
            quick.events(session_id) as two,
            quick.websocket(session_id) as three,
        ):
            seen = [[event.name for event in stream.rest()] for stream in (one, two)]
            _, frames = closed(three)

        for names in seen:
            assert [n for n in names if n != "session.updated"] == [
                "session.snapshot", "agent.availability", "session.expiring", "session.expired", "closing",
            ]  # fmt: skip
        framed = [frame["type"] for frame in frames]
        assert framed.count("session.expiring") == framed.count("session.expired") == 1

    def test_warning_tells_what_is_left(self, quick: Api) -> None:
        created = quick.create(timeoutConfig={"timeoutMinutes": 0.1, "warningThresholdMinutes": 0.09})

        with quick.events(created["sessionId"]) as stream:
            warning = stream.until("session.expiring")[-1].data["data"]

        assert warning["expiresAt"] == created["expiresAt"]
        assert 0 < warning["minutesRemaining"] <= 0.1
        assert warning["reason"] == "timeout"
        session = quick.get(created["sessionId"])
        assert session["isNearExpiration"] is True
        assert session["warningState"]["sent"] is True
        assert session["stage"] == "expiring"

    def test_a_renewal_opens_a_new_approach(self, quick: Api) -> None:
        session_id = quick.session(timeoutConfig={"timeoutMinutes": 0.06, "warningThresholdMinutes": 0.04})

        with quick.events(session_id) as stream:
            stream.until("session.expiring")
            quick.call("POST", f"/{session_id}/renew")
            names = [event.name for event in stream.rest()]

        assert names.count("session.expiring") == 1
        assert names.count("session.expired") == 1
        assert "session.renewed" in names


def test_unknown_session_is_an_ordinary_404(api: Api) -> None:
    with api.events(some_id()) as stream:
        assert isinstance(stream, Stream)
        stream.response.read()
        problem(stream.response, 404, "SESSION_NOT_FOUND")

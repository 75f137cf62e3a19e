"""What is published, read: fact after fact, and no further than it can be trusted."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from sessions_api.domain.ids import SessionId
from sessions_api.errors import StorageFault
from sessions_api.live.events import facts_of, of_payload

SID = SessionId("11111111-1111-4111-8111-111111111100")
UPDATED = b"session.updated 0 0 7 1790000000000 0 \n\n"
SAID = b'message.created 1790000000001 0 7 1790000000001 21 - -\n{"content":"a\\nb\n c"}\n'


def test_each_fact_of_a_script_is_an_event() -> None:
    events = list(of_payload(SID, SAID + UPDATED))

    assert [(event.type, event.cursor, event.rev) for event in events] == [
        ("message.created", 1790000000001, 7),
        ("session.updated", 0, 7),
    ]
    assert events[0].data.endswith(b'"content":"a\\nb\n c"}')


def test_of_a_later_release_only_what_is_new_is_left_out() -> None:
    later = b"turn.paused 0 0 8 1790000000002 3 x\nabc\n"
    with capture_logs() as logs:
        events = list(of_payload(SID, SAID + later + UPDATED))

    assert [event.type for event in events] == ["message.created", "session.updated"]
    assert [(entry["event"], entry["fact"]) for entry in logs] == [
        ("fact_unknown", "turn.paused 0 0 8 1790000000002 3 x")
    ]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"no facts",
        b"session.updated 0 0 7 1790000000000\n\n",
        b"session.updated 0 0 7 1790000000000 -40 \n\n",
        b"session.updated 0 0 7 1790000000000 1 \n\n",
        b"session.updated 0 0 7 1790000000000 0 \nmore\n",
        b"session.updated 0 0 7 1790000000000 99 \nless\n",
        "session.ünknown 0 0 7 1790000000000 0 \n\n".encode(),
    ],
)
def test_what_no_script_published_is_refused_from_where_it_begins(broken: bytes) -> None:
    facts = facts_of(UPDATED + broken)

    assert next(facts)[0][0] == "session.updated"
    with pytest.raises(StorageFault if broken else StopIteration):
        next(facts)

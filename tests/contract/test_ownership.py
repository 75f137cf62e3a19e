"""The table of docs/access.md, walked from outside: each caller asks for theirs, another's, and nobody's.

What is another's looks exactly like what is nobody's: status, headers and body,
but for the id itself, the request's own and the time. The session of another
application has all that could give it away: a long history, a running turn,
as many followers as it may have; and one of its sessions has expired.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.access import COLUMNS, OTHER_AGENT, RIGHTS, Caller, Row, rows
from tests.support.client import closed, received, received_until, some_id
from tests.support.servers import TestServer
from tests.support.world import Target, World, absent, ask, code_of, served_world, success

ROWS = rows()
HTTP = [row for row in ROWS if not row.path.endswith("/ws")]
OF_SESSIONS = [row for row in HTTP if "{sessionId}" in row.path]
OF_AGENTS = [row for row in HTTP if "{agentId}" in row.path]
OTHERS = [row for row in HTTP if row not in OF_SESSIONS + OF_AGENTS]
FRAMES = [row for row in ROWS if row.path.endswith("/ws") and row.detail]
HANDSHAKE = next(row for row in ROWS if row.path.endswith("/ws") and not row.detail)
WRITES = [row for row in OF_SESSIONS if row.cells["app"] == "–" and "/turns/" in row.path]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, contract_redis: TestServer) -> Iterator[World]:
    with served_world(tmp_path_factory.mktemp("owned"), contract_redis.url) as world:
        yield world


@pytest.fixture
def world(served: World) -> Iterator[World]:
    yield served
    served.leave()


@pytest.mark.parametrize("row", OF_SESSIONS, ids=str)
class TestSessions:
    def test_open_to_whom_the_table_names(self, world: World, row: Row) -> None:
        for column in COLUMNS:
            mine = world.target()
            told = ask(world.who(column, mine), row, mine)

            if column == "nobody":
                assert (told.status, code_of(told)) == (401, "UNAUTHENTICATED"), column
            elif row.cells[column] == "–":
                assert (told.status, code_of(told)) == (403, "FORBIDDEN"), column
            else:
                assert told.status == success(row), (column, told)

    def test_of_others_look_as_if_they_were_not_there(self, world: World, row: Row) -> None:
        mine = world.neighbour
        for column in COLUMNS:
            caller = world.who(column, world.target() if column in RIGHTS else mine)
            for foreign in world.not_theirs(column):
                nothing = absent()._replace(turn_id=foreign.turn_id, fence=foreign.fence)
                told = ask(caller, row, foreign)

                assert told == ask(caller, row, nothing), column
                if row.cells[column] == "own" or column in RIGHTS:
                    assert (told.status, code_of(told)) == (404, "SESSION_NOT_FOUND"), column

    def test_that_are_nobodys_are_not_there_for_an_admin_either(self, world: World, row: Row) -> None:
        told = ask(world.by_key["admin"], row, absent())

        if row.cells["admin"] == "yes":
            assert (told.status, code_of(told)) == (404, "SESSION_NOT_FOUND")


@pytest.mark.parametrize("row", OF_AGENTS, ids=str)
class TestAgents:
    def test_open_to_whom_the_table_names(self, world: World, row: Row) -> None:
        mine = world.target()
        for column in COLUMNS:
            at = mine
            if row.method == "DELETE":  # one that nobody misses
                at = Target(mine.session_id, some_id())
                definition = {"name": "Gone soon", "kind": "worker"}
                world.by_key["admin"].http.put(f"/api/agents/{at.agent_id}", json=definition)
            told = ask(world.who(column, mine), row, at)
            while told.status == 200 != success(row):  # a turn that another test left
                told = ask(world.who(column, mine), row, at)

            if row.cells[column] == "–":
                assert told.status == (401 if column == "nobody" else 403), column
            else:
                assert told.status == success(row), (column, told)

    def test_of_others_look_as_if_they_were_not_there(self, world: World, row: Row) -> None:
        """Towards an agent's key; applications may create sessions with all of them, and know."""
        foreign = Target(world.neighbour.session_id, OTHER_AGENT)
        for column in ("nobody", "agent", *RIGHTS):
            caller = world.who(column, world.neighbour)
            told = ask(caller, row, foreign)

            assert told == ask(caller, row, foreign._replace(agent_id=some_id())), column
            if column == "agent" and row.cells[column] == "own":
                assert told.status == (403 if row.method == "PUT" else 404), column


@pytest.mark.parametrize("row", OTHERS, ids=str)
def test_the_rest_opens_to_whom_the_table_names(world: World, row: Row) -> None:
    mine = world.target()
    for column in COLUMNS:
        told = ask(world.who(column, mine), row, mine)

        if row.cells[column] == "–":
            assert told.status == (401 if column == "nobody" else 403), column
        else:
            assert told.status == success(row), (column, told)


class TestWebSocket:
    @pytest.mark.parametrize("column", COLUMNS)
    def test_opens_to_whom_the_table_names(self, world: World, column: str) -> None:
        mine = world.target()
        with world.who(column, mine).websocket(mine.session_id) as socket:
            if HANDSHAKE.cells[column] != "–":
                assert received(socket)["type"] == "session.snapshot"
                return
            if column == "nobody":
                socket.send('{"type": "ping"}')
            code, frames = closed(socket)

        assert [frame["type"] for frame in frames] == ["error"]
        expected = (4401, "UNAUTHENTICATED") if column == "nobody" else (1008, "FORBIDDEN")
        assert (code, frames[0]["error"]["code"]) == expected

    @pytest.mark.parametrize("column", [column for column in COLUMNS if column not in {"nobody", "admin"}])
    def test_of_others_looks_as_if_it_were_not_there(self, world: World, column: str) -> None:
        caller = world.who(column, world.target())
        for foreign in world.not_theirs(column):
            told = refused(caller, foreign)

            assert told == refused(caller, absent())
            assert told[0] == 4404

    @pytest.mark.parametrize("row", FRAMES, ids=str)
    def test_frames_are_for_whom_the_table_names(self, world: World, row: Row) -> None:
        kind, _, role = row.detail.partition(" role: ")
        is_of_stream = kind in {"auth", "resume", "ping"}
        for column in COLUMNS:
            mine = world.target()
            caller = world.who(column, mine, also="" if is_of_stream else "read")
            frame = {"type": kind, "ref": 1, "token": caller.credential, "after": 0, "turnId": mine.turn_id}
            if kind == "message":
                frame = {"type": kind, "ref": 1, "content": "hi"} | ({"role": role} if role else {})
            with caller.websocket(mine.session_id) as socket:
                with suppress(ConnectionClosed):  # of who may not even follow
                    socket.send(json.dumps(frame))
                reply = received_until(socket, "ack" if row.cells[column] != "–" else "error")[-1]

            if row.cells[column] == "–":
                expected = "UNAUTHENTICATED" if column == "nobody" else "FORBIDDEN"
                assert reply["error"]["code"] == expected, column
            else:
                assert reply["ref"] == 1, column


def refused(caller: Caller, at: Target) -> tuple[int, str]:
    """The close code, and what was said before."""
    with caller.websocket(at.session_id) as socket:
        code, frames = closed(socket)
    for frame in frames:
        del frame["error"]["requestId"], frame["error"]["timestamp"]
    return code, at.hidden(json.dumps(frames))


class TestScopes:
    """A key of an application and of an agent is both, and no third thing."""

    OPENED = (
        "GET …",
        "GET …/messages",
        "GET …/turns/{turnId}",
        "GET …/events",
        "POST …/messages role: agent",
    )

    @pytest.mark.parametrize("row", [row for row in OF_SESSIONS if row.cells["app"] == "own"], ids=str)
    def test_of_another_applications_session_its_agent_has_what_is_the_agents(
        self, world: World, row: Row
    ) -> None:
        told = ask(world.by_key["both"], row, world.neighbour)

        assert told.status == (success(row) if str(row) in self.OPENED else 404)


class TestFences:
    @pytest.mark.parametrize("row", WRITES, ids=str)
    def test_open_nothing_without_the_key_of_the_agent(self, world: World, row: Row) -> None:
        """Whoever else has one changes nothing: the worker goes on as before."""
        mine = world.target()
        stranger = world.by_key["stranger"]

        assert ask(stranger, row, mine) == ask(stranger, row, absent()._replace(turn_id=mine.turn_id))
        for name in ("shop", "rival"):
            assert ask(world.by_key[name], row, mine).status == 403
        assert ask(world.by_key["worker"], row, mine).status == 200

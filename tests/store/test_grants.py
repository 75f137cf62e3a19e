"""Every script of a session asks first whose it is: a stranger finds none, an ended token is told."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any, NamedTuple

import pytest

from sessions_api.domain.access import EVERYTHING, NOTHING, Grant, key_caller, token_grant
from sessions_api.domain.ids import LOCAL_APP, AppName, SessionId, new_op_id, new_session_id
from sessions_api.errors import SessionNotFound, Unauthenticated
from sessions_api.store import Store
from sessions_api.store.asked import counted_trips
from sessions_api.store.loader import load
from tests.support.servers import TestServer
from tests.support.stores import AGENT, CONFIG, MINUTE_MS, USER, age, claimed, dump, opened, say

pytestmark = pytest.mark.servers("valkey")
OTHER_AGENT = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
TEXTS = {
    path.name.removesuffix(".lua"): path.read_text()
    for path in (files("sessions_api.store") / "lua").iterdir()
    if path.name.endswith(".lua")
}
SCRIPTS = sorted(
    name for name, text in TEXTS.items() if re.search(r"^ARGV   sid, grant\b", text, re.MULTILINE)
)
NOBODY_CALLS = {"alarm"}
"""The service alone runs it, for every session: it does what is due and tells no caller anything."""
STRANGERS = [
    NOTHING,
    "other",
    "loca",
    "local2",
    "LOCAL",
    f"agent:{OTHER_AGENT}",
    "agent:",
    AGENT,
    f"other agent:{OTHER_AGENT}",
    "token:",
    "token:0",
    "token:x:9999999999999",
    "token:-1:9999999999999",
    "token:0:",
    "token:0:9999999999999x",
    "app",
    "*",
    ".",
    "%S+",
]


class Scene(NamedTuple):
    """A session whose turn runs, and what a worker knows of it."""

    session_id: SessionId
    turn_id: str
    fence: str
    now_ms: int


ARGS: dict[str, Any] = {
    "abandon": lambda _: ("GONE", "The agent was deleted"),
    "answer": lambda scene: (scene.turn_id, 0),
    "append": lambda _: ("m", "t", b"{}", "", "", 0),
    "cancel": lambda scene: (scene.turn_id, "user"),
    "claim": lambda _: ("worker", "f" * 16, "m", 1000, 3, AGENT),
    "complete": lambda scene: (scene.turn_id, scene.fence, b'{"content":"x"}', "", 0, "", 0, 0),
    "configure": lambda _: ("op", "", "s", 60_000 * 20, "", "", "", "", "", ""),
    "delta": lambda scene: (scene.turn_id, scene.fence, "so", 2, 0, 100),
    "end": lambda _: (),
    "extend": lambda scene: (scene.turn_id, scene.fence),
    "fail": lambda scene: (scene.turn_id, scene.fence, "retry", "BROKEN", "It broke", 0),
    "heartbeat": lambda _: ("op",),
    "history": lambda _: (1,),
    "read": lambda _: (),
    "renew": lambda _: ("op", ""),
    "replay": lambda _: (0, 10, 1000),
    "revoke": lambda _: ("op",),
    "speak": lambda _: ("m", b"{}", "", ""),
    "turn": lambda scene: (scene.turn_id,),
}


async def scene_of(store: Store) -> Scene:
    session = await opened(store)
    await say(store, session.session_id, "hello")
    taken = await claimed(store, session.session_id)
    return Scene(session.session_id, taken.turn.turn_id, taken.turn.fence, session.now_ms)


async def call(store: Store, name: str, scene: Scene, grant: Grant) -> list[Any]:
    """The script's reply to whoever has *grant*."""
    of = store.keyspace.of(scene.session_id)
    reply = await store.redis.script(
        load(name), [*of.all(), of.once("digest")], (of.sid, grant, *ARGS[name](scene))
    )
    return list(reply)


def answers(name: str, *words: bytes) -> list[bytes]:
    """How the script says *words*: ``claim`` has one word for all that cannot be taken."""
    return [b"taken", b"<sid>", b""] if name == "claim" else list(words)


def test_no_script_of_a_session_is_left_out() -> None:
    """But for ``create``, which finds none: its argument is the application that the session gets."""
    needs = re.compile(r"^-- needs: session\b", re.MULTILINE)

    assert {name for name, text in TEXTS.items() if needs.search(text)} == {*SCRIPTS, "create"}
    assert ARGS.keys() == {*SCRIPTS} - NOBODY_CALLS


@pytest.mark.parametrize("name", ARGS)
class TestEveryScript:
    async def test_finds_no_session_for_a_stranger_and_writes_nothing(
        self, store: Store, server: TestServer, name: str
    ) -> None:
        """The reply is that of a session that never was; nor does it say that one has ended."""
        scene = await scene_of(store)
        absent = scene._replace(session_id=new_session_id(USER))
        for is_over in (False, True):
            if is_over:
                await age(store, scene.session_id, CONFIG.timeout_ms + MINUTE_MS)
                assert (await call(store, "read", scene, EVERYTHING))[0] == b"expired"
            before = dump(server)

            for grant in STRANGERS:
                for at in (scene, absent):
                    reply = await call(store, name, at, grant)
                    hidden = [b"<sid>" if word == at.session_id.encode() else word for word in reply]
                    assert hidden == answers(name, b"absent", b"<sid>"), grant

            assert dump(server) == before

    async def test_refuses_a_token_that_has_ended_and_writes_nothing(
        self, store: Store, server: TestServer, name: str
    ) -> None:
        """Before it says anything else of the session."""
        scene = await scene_of(store)
        ended = {
            token_grant(1, scene.now_ms + MINUTE_MS): b"revoked",
            token_grant(0, scene.now_ms): b"expired",
            token_grant(0, 0): b"expired",
            token_grant(7, 0): b"revoked",
        }
        before = dump(server)

        for grant, why in ended.items():
            reply = await call(store, name, scene, grant)
            hidden = [b"<sid>" if word == scene.session_id.encode() else word for word in reply[:3]]
            assert hidden == answers(name, b"token", b"<sid>", why)

        assert dump(server) == before

    async def test_opens_to_whose_it_is(self, store: Store, name: str) -> None:
        """So that it is the grant alone for which the tests above are refused."""
        for grant in (LOCAL_APP, f"other agent:{OTHER_AGENT} agent:{AGENT}", "other local", "token"):
            scene = await scene_of(store)
            shown = token_grant(0, scene.now_ms + MINUTE_MS) if grant == "token" else grant

            reply = await call(store, name, scene, shown)

            assert reply[0] not in {b"absent", b"token"}
            assert reply[1] == scene.session_id.encode()
            assert name != "claim" or reply[0] == b"taken", "its turn runs already"


class TestGrants:
    async def test_of_an_agent_open_sessions_that_name_it_in_any_case(self, store: Store) -> None:
        session = await opened(store, agent=AGENT.upper())

        found = await store.sessions.read(session.session_id, grant=f"agent:{AGENT}")

        assert found.agent_id == AGENT.upper()

    async def test_of_a_token_end_when_it_is_revoked_and_with_the_session(self, store: Store) -> None:
        session = await opened(store)
        sid = session.session_id
        first, second = (token_grant(epoch, session.now_ms + MINUTE_MS) for epoch in (0, 1))

        assert (await store.sessions.revoke(sid, grant=LOCAL_APP, op=new_op_id())).token_epoch == 1
        with pytest.raises(Unauthenticated, match="revoked"):
            await store.sessions.read(sid, grant=first)
        assert (await store.sessions.read(sid, grant=second)).session_id == sid
        await store.sessions.end(sid, grant=LOCAL_APP)
        with pytest.raises(SessionNotFound):
            await store.sessions.read(sid, grant=second)

    async def test_of_a_token_end_at_their_millisecond(self, store: Store) -> None:
        session = await opened(store)
        grant = token_grant(0, session.now_ms + MINUTE_MS)
        assert (await store.sessions.read(session.session_id, grant=grant)).session_id == session.session_id

        over = token_grant(0, session.now_ms)
        with pytest.raises(Unauthenticated, match="expired"):
            await store.sessions.read(session.session_id, grant=over)

    async def test_a_revocation_that_is_repeated_is_one(self, store: Store) -> None:
        """Its reply may have been lost: tokens made since then stay good."""
        session = await opened(store)
        op = new_op_id()

        epochs = [
            (await store.sessions.revoke(session.session_id, grant=LOCAL_APP, op=op)).token_epoch
            for _ in range(2)
        ]

        assert epochs == [1, 1]

    @pytest.mark.parametrize(
        "scopes, opened_by, worked_by",
        [
            ({"app"}, "shop", NOTHING),
            ({f"agent:{AGENT}"}, NOTHING, f"agent:{AGENT}"),
            ({"app", f"agent:{AGENT}"}, "shop", f"agent:{AGENT}"),
            ({"admin"}, EVERYTHING, EVERYTHING),
            ({"admin", "app"}, EVERYTHING, EVERYTHING),
        ],
    )
    def test_of_a_key_add_up_to_read_and_never_to_change(
        self, scopes: set[str], opened_by: str, worked_by: str
    ) -> None:
        caller = key_caller(AppName("shop"), frozenset(scopes), name="key1")

        assert (caller.grant, caller.work_grant) == (opened_by, worked_by)
        assert {*caller.read_grant.split()} == {*opened_by.split(), *worked_by.split()} - {NOTHING}

    async def test_of_a_key_are_proven_once(self, store: Store) -> None:
        """A session's application never changes; one that is gone is found gone by whatever comes next."""
        session = await opened(store)
        sid = session.session_id

        with pytest.raises(SessionNotFound):
            await store.log.check_opens(sid, "other")
        for trips in (1, 0):
            with counted_trips() as spent:
                await store.log.check_opens(sid, LOCAL_APP)
            assert len(spent) == trips
        with counted_trips() as spent:
            await store.log.check_opens(sid, token_grant(0, 0))
            await store.log.check_opens(sid, EVERYTHING)
        assert not spent
        await store.sessions.end(sid, grant=LOCAL_APP)
        with pytest.raises(SessionNotFound):
            await store.log.history(sid, grant=LOCAL_APP, limit=1)

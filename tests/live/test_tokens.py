"""Session tokens on live connections: shown in a header or a first frame, and the stream ends with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.sync.client import ClientConnection

from sessions_api.domain.access import Caller, token_grant
from sessions_api.domain.ids import LOCAL_APP, new_op_id
from sessions_api.errors import Unauthenticated
from sessions_api.live.closing import UNAUTHENTICATED
from sessions_api.live.framing import TYPES
from sessions_api.live.handshake import AUTH_TIMEOUT_S, Handshake
from tests.live.test_lost_publish import Deafened
from tests.support.client import closed, eventually, received, received_until, some_id
from tests.support.scene import Follower, Scene, contents, types
from tests.support.servers import RealServer, TestServer, launch
from tests.support.tokens import Replicas, Signer, replicas
from tests.support.waiting import until

SOON = (0.2, 0.4)
NO_TOKENS: list[tuple[Any, int]] = [
    (None, 4401), ("", 4401), ("junk", 4401), ("é", 4401), ("\ud800", 4400), (7, 4400), ({}, 4400),
]  # fmt: skip
AN_HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def tokens_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    server = launch("valkey", tmp_path_factory.mktemp("tokens-redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tokens_redis: TestServer) -> Iterator[Replicas]:
    with replicas(tmp_path_factory.mktemp("live-tokens"), tokens_redis) as both:
        yield both


@pytest.fixture
def both(served: Replicas) -> Iterator[Replicas]:
    yield served
    served.leave()


@pytest.fixture
def signer(both: Replicas, tokens_redis: TestServer) -> Signer:
    return Signer(tokens_redis)


def say(socket: ClientConnection, **frame: Any) -> None:
    socket.send(json.dumps(frame))


def auth(socket: ClientConnection, token: str) -> dict[str, Any]:
    """What the frame is answered with; events that come before are passed over."""
    say(socket, type="auth", ref="auth", token=token)
    while (frame := received(socket)).get("ref") != "auth":
        pass
    return frame


def redis_s(server: TestServer) -> int:
    """Redis's clock."""
    return int(server.call("TIME")[0])


class TestBeginning:
    def test_by_a_header_follows_at_once(self, both: Replicas) -> None:
        session_id = both.near.session()
        bearer = both.bearer(both.near.token(session_id), far=True)

        with bearer.events(session_id) as stream, bearer.websocket(session_id) as socket:
            assert stream.next().name == "session.snapshot"
            assert received(socket)["type"] == "session.snapshot"

    @pytest.mark.parametrize("shows", ["token", "key"])
    def test_by_a_first_frame_follows_after_its_ack(self, both: Replicas, shows: str) -> None:
        session_id = both.near.session()
        shown = both.near.token(session_id) if shows == "token" else both.near.credential

        with both.bearer("").websocket(session_id) as socket:
            say(socket, type="auth", ref=7, token=shown)
            frames = [received(socket) for _ in range(2)]
            say(socket, type="message", ref=8, content="hi")
            ack = received_until(socket, "ack")[-1]

        assert frames[0] == {"type": "ack", "ref": 7, "status": 200, "data": {}}
        assert frames[1]["type"] == "session.snapshot"
        assert (ack["ref"], ack["status"]) == (8, 201)

    @pytest.mark.parametrize("kind", sorted(TYPES - {"auth"}))
    def test_by_any_other_frame_is_refused(self, both: Replicas, kind: str) -> None:
        """Though its token is a good one: nothing is done for a caller who is not known."""
        session_id = both.near.session()
        token = both.near.token(session_id)

        with both.bearer("").websocket(session_id) as socket:
            say(socket, type=kind, ref=1, token=token, content="hi", after=0)
            code, frames = closed(socket)

        assert code == 4401
        assert [frame["error"]["code"] for frame in frames] == ["UNAUTHENTICATED"]
        assert both.near.history(session_id)["messages"] == []

    @pytest.mark.parametrize(
        "frame", ["", "{", "[]", '{"type": "unknown"}', '{"type": "auth", "ref": {}}', b"\xff"]
    )
    def test_by_what_is_no_frame_is_a_bad_one(self, both: Replicas, frame: str | bytes) -> None:
        with both.bearer("").websocket(both.near.session()) as socket:
            socket.send(frame)
            code, frames = closed(socket)

        assert (code, frames[-1]["error"]["code"]) == (4400, "VALIDATION_ERROR")

    @pytest.mark.parametrize("token, code", NO_TOKENS)
    def test_by_what_is_no_token_is_refused(self, both: Replicas, token: Any, code: int) -> None:
        with both.bearer("").websocket(both.near.session()) as socket:
            say(socket, type="auth", token=token)
            assert closed(socket)[0] == code

    def test_by_a_token_that_is_not_for_it_is_refused(self, both: Replicas) -> None:
        mine, other = both.near.session(), both.near.session()
        cases = [(other, ("read",), 4404), (some_id(), ("read",), 4404), (mine, ("send", "renew"), 1008)]

        for session_id, rights, expected in cases:
            with both.bearer("").websocket(session_id) as socket:
                say(socket, type="auth", token=both.near.token(mine, *rights))
                assert closed(socket)[0] == expected

    async def test_has_five_seconds(self) -> None:
        """No longer: a connection of nobody holds its place in vain."""
        sent: list[Any] = []
        coming = asyncio.Queue[Any]()
        coming.put_nowait({"type": "websocket.connect"})

        async def send(message: Any) -> None:
            sent.append(message)

        def whom(_token: str | None) -> Caller:
            raise AssertionError

        handshake = Handshake(coming.get, send, request_id="r", instance="/", offered=[])
        with pytest.raises(Unauthenticated, match=r"within 0\.01 s"):
            await handshake.authenticate(whom, within_s=0.01)

        assert AUTH_TIMEOUT_S == 5
        assert [message["type"] for message in sent] == ["websocket.accept"]


class TestEnd:
    def test_of_the_token_ends_its_streams(self, both: Replicas, signer: Signer) -> None:
        """On a replica whose clock is an hour ahead, too: the second is Redis's."""
        session_id = both.near.session()
        exp = redis_s(signer.server) + 4
        token = signer.sign(signer.claims(session_id, exp=exp))
        bearers = [both.bearer(token, far=far) for far in (False, True)]

        with ExitStack() as stack:
            streams = [stack.enter_context(bearer.events(session_id)) for bearer in bearers]
            sockets = [stack.enter_context(bearer.websocket(session_id)) for bearer in bearers]
            ends = [stream.rest()[-1] for stream in streams]
            codes = [closed(socket)[0] for socket in sockets]

        assert redis_s(signer.server) >= exp
        assert [end.data["data"] for end in ends] == [{"code": 4401, "retry": False}] * 2
        assert codes == [4401] * 2

    def test_of_the_old_token_ends_nothing_after_a_newer_one(self, both: Replicas, signer: Signer) -> None:
        session_id = both.near.session()
        exp = redis_s(signer.server) + 1
        old = signer.sign(signer.claims(session_id, exp=exp))

        with both.bearer(old).websocket(session_id) as socket:
            assert auth(socket, both.near.token(session_id))["type"] == "ack"
            eventually(lambda: redis_s(signer.server) > exp)
            both.far.say(session_id, "still there?")
            heard = received_until(socket, "message.created")[-1]
            say(socket, type="message", ref=1, content="yes")
            ack = received_until(socket, "ack")[-1]

        assert heard["data"]["content"] == "still there?"
        assert ack["status"] == 201

    @pytest.mark.parametrize("far", [False, True])
    def test_by_a_revocation_comes_at_once(self, both: Replicas, far: bool) -> None:
        """To those that came with a token, and to nobody else; whatever the replica."""
        session_id = both.near.session()
        bearer = both.bearer(both.near.token(session_id), far=far)
        keyed = both.far if far else both.near

        with (
            bearer.events(session_id) as stream,
            bearer.websocket(session_id) as socket,
            keyed.events(session_id) as other,
        ):
            assert [stream.next().name, other.next().name] == ["session.snapshot"] * 2
            both.near.call("DELETE", f"/{session_id}/tokens")
            last = stream.rest()[-1]
            code, _ = closed(socket)
            both.near.say(session_id, "go on")
            heard = other.until("message.created")

        assert (last.name, last.data["data"]) == ("closing", {"code": 4401, "retry": False})
        assert code == 4401
        assert "tokens.revoked" not in [event.name for event in heard]


class TestAnotherToken:
    """A later ``auth`` frame."""

    def test_that_is_none_changes_nothing(self, both: Replicas) -> None:
        session_id, other = both.near.session(), both.near.session()
        none = [
            ("junk", 401),
            ("", 401),
            (both.near.token(other), 404),
            (both.near.token(session_id, "send"), 403),
        ]

        with both.bearer(both.near.token(session_id)).websocket(session_id) as socket:
            answers = [(auth(socket, token)["status"], status) for token, status in none]
            say(socket, type="message", ref=1, content="still me")
            ack = received_until(socket, "ack")[-1]

        assert all(answered == expected for answered, expected in answers)
        assert ack["status"] == 201

    def test_that_may_less_may_no_more(self, both: Replicas) -> None:
        session_id = both.near.session()

        with both.bearer(both.near.token(session_id)).websocket(session_id) as socket:
            auth(socket, both.near.token(session_id, "read"))
            say(socket, type="message", ref=1, content="hi")
            error = received_until(socket, "error")[-1]

        assert (error["ref"], error["error"]["code"]) == (1, "FORBIDDEN")

    def test_that_was_revoked_ends_the_stream(self, both: Replicas) -> None:
        session_id = both.near.session()
        revoked = both.near.token(session_id)
        both.near.call("DELETE", f"/{session_id}/tokens")

        with both.bearer(both.near.token(session_id)).websocket(session_id) as socket:
            auth(socket, revoked)
            code, _ = closed(socket)

        assert code == 4401

    @pytest.mark.servers("valkey")
    async def test_is_looked_at_though_a_page_is_being_read_for_the_one_before(
        self, scene: Scene, server: RealServer
    ) -> None:
        """Else one that was revoked would lengthen the stream of one that is about to end."""
        session = await scene.session()
        good, revoked = (token_grant(epoch, session.now_ms + AN_HOUR_MS) for epoch in (0, 9))
        subscription = await scene.hub.follow(session.session_id, grant=good, after=None)
        follower = Follower(subscription)
        await follower.next()

        server.pause()
        subscription.fall_behind()
        following = asyncio.create_task(follower.next())
        await until(lambda: subscription._recorded is not None)
        subscription.show(revoked)
        server.resume()

        assert (await following).closing == UNAUTHENTICATED
        follower.close()


@pytest.mark.servers("valkey")
class TestLostPublish:
    async def test_of_a_revocation_is_found_by_comparing_positions(self, server: RealServer) -> None:
        async with Scene(server.url, check_s=SOON) as scene:
            session = await scene.session()
            grant = token_grant(0, session.now_ms + AN_HOUR_MS)
            follower = Follower(await scene.hub.follow(session.session_id, grant=grant, after=None))
            await follower.next()

            async with Deafened(scene):
                await scene.store.sessions.revoke(session.session_id, grant=LOCAL_APP, op=new_op_id())
            events = await follower.until(lambda event: event.closing is not None)

            assert types(events) == ["closing"]
            assert events[-1].closing == UNAUTHENTICATED
            follower.close()

    async def test_of_a_message_shows_it_to_nobody_whose_token_has_ended(self, server: RealServer) -> None:
        """What is read to catch up is read with the token, so it is refused with it."""
        async with Scene(server.url, check_s=SOON) as scene:
            session = await scene.session()
            grant = token_grant(0, session.now_ms + AN_HOUR_MS)
            follower = Follower(await scene.hub.follow(session.session_id, grant=grant, after=None))
            await follower.next()

            async with Deafened(scene):
                await scene.store.sessions.revoke(session.session_id, grant=LOCAL_APP, op=new_op_id())
                await scene.say(session.session_id, "secret")
            events = await follower.until(lambda event: event.closing is not None)

            assert contents(events) == []
            follower.close()

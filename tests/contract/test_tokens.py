"""Session tokens: made, refreshed, revoked on every replica at once, ended with their session."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.access import RIGHTS, Caller
from tests.support.client import INSTANT, Api, closed, eventually, problem, received, some_id
from tests.support.servers import TestServer
from tests.support.tokens import Replicas, Signer, claims_of, replicas

NO_LIFE: list[Any] = [0, -1, 86_401, 1.5, 60.0, "60", True, None, [], 10**400]
NO_SCOPES: list[Any] = [[], "read", {}, 7, [1], ["read", None], ["admin"]]
ENDS_SOON = {"timeoutMinutes": 0.01, "warningThresholdMinutes": 0.001}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, contract_redis: TestServer) -> Iterator[Replicas]:
    with replicas(tmp_path_factory.mktemp("tokens"), contract_redis) as both:
        yield both


@pytest.fixture
def both(served: Replicas) -> Iterator[Replicas]:
    yield served
    served.leave()


@pytest.fixture
def signer(served: Replicas, contract_redis: TestServer) -> Signer:
    return Signer(contract_redis)


def is_refused(caller: Caller, session_id: str, *, saying: str = "") -> bool:
    """Whether the token opens nothing, here and as a WebSocket's."""
    error = problem(caller.call("GET", f"/{session_id}"), 401, "UNAUTHENTICATED")
    assert saying in error["message"]
    with caller.websocket(session_id) as socket:
        code, _ = closed(socket)
    return code == 4401


def opens(caller: Caller, session_id: str) -> bool:
    return caller.call("GET", f"/{session_id}").status_code == 200


class TestIssue:
    def test_tells_the_token_its_scopes_and_its_end(self, both: Replicas) -> None:
        session_id = both.near.session()
        body = {"scopes": ["send", "read", "send"], "ttlSeconds": 60}

        reply = both.near.call("POST", f"/{session_id.upper()}/tokens", json=body)

        assert reply.status_code == 201
        assert reply.headers["cache-control"] == "no-store"
        info = reply.json()
        assert info.keys() == {"token", "sessionId", "scopes", "expiresAt"}
        assert (info["sessionId"], info["scopes"]) == (session_id.upper(), ["read", "send"])
        assert INSTANT.fullmatch(info["expiresAt"])
        claims = claims_of(info["token"])
        assert claims.keys() == {"sub", "app", "rights", "epoch", "iat", "exp"}
        assert claims["exp"] - claims["iat"] == 60

    @pytest.mark.parametrize("options", [{}, {"json": {}}, {"json": {"scopes": None}}])
    def test_without_a_choice_is_for_a_user_and_a_quarter_of_an_hour(
        self, both: Replicas, options: dict[str, Any]
    ) -> None:
        reply = both.near.call("POST", f"/{both.near.session()}/tokens", **options)

        assert reply.json()["scopes"] == ["read", "send", "renew", "cancel"]
        claims = claims_of(reply.json()["token"])
        assert claims["exp"] - claims["iat"] == 900

    @pytest.mark.parametrize("ttl", [1, 86_400])
    def test_lives_as_long_as_asked(self, both: Replicas, ttl: int) -> None:
        claims = claims_of(both.near.token(both.near.session(), "read", ttlSeconds=ttl))

        assert claims["exp"] - claims["iat"] == ttl

    @pytest.mark.parametrize(
        "body, fields",
        [
            *(({"ttlSeconds": life}, ["ttlSeconds"]) for life in NO_LIFE),
            *(({"scopes": scopes}, ["scopes"]) for scopes in NO_SCOPES),
            ({"scopes": ["read", "write", "all"]}, ["scopes", "scopes"]),
            ({"scopes": ["write"], "ttlSeconds": 0}, ["scopes", "ttlSeconds"]),
        ],
    )
    def test_names_every_field_that_is_wrong(
        self, both: Replicas, body: dict[str, Any], fields: list[str]
    ) -> None:
        error = problem(
            both.near.call("POST", f"/{both.near.session()}/tokens", json=body), 400, "VALIDATION_ERROR"
        )

        assert [bad["field"] for bad in error["details"]["errors"]] == fields
        assert all(bad["allowed"] for bad in error["details"]["errors"])

    @pytest.mark.parametrize("body", [[], 7, "read"])
    def test_wants_an_object(self, both: Replicas, body: Any) -> None:
        problem(both.near.call("POST", f"/{both.near.session()}/tokens", json=body), 400, "VALIDATION_ERROR")


class TestToken:
    def test_goes_wherever_a_key_goes_on_every_replica(self, both: Replicas) -> None:
        session_id = both.near.session()
        token = both.near.token(session_id)

        for url in both.urls:
            for header in ({"X-API-KEY": token}, {"Authorization": f"bEaReR  {token}"}):
                caller = both.bearer("", far=url == both.urls[1])
                assert caller.call("GET", f"/{session_id}", headers=header).status_code == 200

    @pytest.mark.parametrize(
        "name", ["token", "access_token", "auth", "authorization", "api_key", "apiKey", "key", "X-API-KEY"]
    )
    def test_in_an_address_opens_nothing(self, both: Replicas, name: str) -> None:
        session_id = both.near.session()
        token = both.near.token(session_id)
        nobody = both.bearer("")

        for tail in ("", "/messages", "/events"):
            reply = nobody.call("GET", f"/{session_id}{tail}", params={name: token})
            problem(reply, 401, "UNAUTHENTICATED")
        with nobody.websocket(session_id, f"?{name}={token}") as socket:
            socket.send('{"type": "ping"}')
            code, frames = closed(socket)
        assert code == 4401
        assert token not in json.dumps(frames)

    def test_writes_as_the_sessions_user_whatever_it_says(self, both: Replicas) -> None:
        info = both.near.create()
        bearer = both.bearer(both.near.token(info["sessionId"], "send"))

        said = bearer.say(info["sessionId"], "hi", authorId=some_id(), userId=some_id(), isAgent=True)

        assert said["authorId"] == info["userId"]
        for role in ("agent", "system"):
            problem(bearer.post(info["sessionId"], "hi", role=role), 403, "FORBIDDEN")

    def test_replayed_on_another_session_finds_none(self, both: Replicas) -> None:
        """Nor by another spelling of the path; its own it opens in any case."""
        mine, other = both.near.session(), both.near.session()
        bearer = both.bearer(both.near.token(mine, *RIGHTS))

        for path in (other, some_id(), f"{mine}%20", f"{other}/%2e%2e/{mine}", f"{other}%2f..%2f{mine}"):
            for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/renew"), ("GET", "/events")):
                assert bearer.call(method, f"/{path}{tail}").status_code == 404
            with bearer.websocket(path) as socket:
                assert closed(socket)[0] in {1008, 4404}
        assert opens(bearer, mine.upper())


class TestRefresh:
    def test_makes_another_with_the_same_scopes_and_as_long_a_life(
        self, both: Replicas, signer: Signer
    ) -> None:
        """Counted from now; the old one stays good until its own end."""
        session_id = both.near.session()
        lived = {"iat": signer.now_s - 590, "exp": signer.now_s + 60}
        old = signer.sign(signer.claims(session_id, rights="read cancel", **lived))
        bearer = both.bearer(old)

        reply = bearer.call("POST", f"/{session_id}/tokens/refresh")

        assert reply.status_code == 201
        assert reply.json()["scopes"] == ["read", "cancel"]
        claims = claims_of(reply.json()["token"])
        assert claims["exp"] - claims["iat"] == 650
        assert claims["exp"] >= signer.now_s + 650
        assert opens(bearer, session_id)
        assert opens(both.bearer(reply.json()["token"], far=True), session_id)

    def test_never_gives_more_than_a_day(self, both: Replicas, signer: Signer) -> None:
        session_id = both.near.session()
        long = signer.sign(signer.claims(session_id, iat=signer.now_s - 10**8))

        reply = both.bearer(long).call("POST", f"/{session_id}/tokens/refresh")

        claims = claims_of(reply.json()["token"])
        assert claims["exp"] - claims["iat"] == 86_400

    def test_takes_no_token_that_has_ended(self, both: Replicas, signer: Signer) -> None:
        session_id = both.near.session()
        expired = signer.sign(signer.claims(session_id, exp=signer.now_s - 1))

        reply = both.bearer(expired).call("POST", f"/{session_id}/tokens/refresh")

        problem(reply, 401, "UNAUTHENTICATED")

    def test_takes_no_key(self, both: Replicas) -> None:
        problem(both.near.call("POST", f"/{both.near.session()}/tokens/refresh"), 403, "FORBIDDEN")


class TestRevoke:
    def test_ends_every_token_on_every_replica_at_once(self, both: Replicas) -> None:
        session_id = both.near.session()
        for _ in range(5):
            bearers = [both.bearer(both.near.token(session_id), far=far) for far in (False, True, True)]
            bearers.append(both.bearer(refreshed(bearers[0], session_id), far=True))
            assert all(opens(bearer, session_id) for bearer in bearers)

            assert both.near.call("DELETE", f"/{session_id}/tokens").json()["success"] is True

            assert all(is_refused(bearer, session_id, saying="revoked") for bearer in bearers)

    def test_ends_no_token_of_another_session_and_none_that_comes_after(self, both: Replicas) -> None:
        session_id, other = both.near.session(), both.near.session()
        untouched = both.bearer(both.near.token(other))

        both.far.call("DELETE", f"/{session_id}/tokens")

        assert opens(untouched, other)
        assert opens(both.bearer(both.near.token(session_id), far=True), session_id)

    def test_changes_nothing_else_of_the_session(self, both: Replicas) -> None:
        before = both.near.create()

        both.near.call("DELETE", f"/{before['sessionId']}/tokens")

        after = both.near.get(before["sessionId"])
        assert {k: v for k, v in after.items() if k != "timeRemaining"} == {
            k: v for k, v in before.items() if k != "timeRemaining"
        }

    def test_a_refresh_after_it_brings_nothing_back(self, both: Replicas) -> None:
        session_id = both.near.session()
        bearer = both.bearer(both.near.token(session_id), far=True)

        both.near.call("DELETE", f"/{session_id}/tokens")

        problem(bearer.call("POST", f"/{session_id}/tokens/refresh"), 401, "UNAUTHENTICATED")


class TestRevokeAll:
    def test_ends_the_tokens_of_every_session_and_their_streams(self, both: Replicas) -> None:
        """At once where it was asked for; the far replica hears of it with its next look at the keys."""
        sessions = [both.near.session() for _ in range(2)]
        tokens = [both.near.token(session_id) for session_id in sessions]
        near, far = both.bearer(tokens[0]), both.bearer(tokens[0], far=True)

        with (
            near.events(sessions[0]) as stream,
            near.websocket(sessions[0]) as socket,
            far.events(sessions[0]) as far_stream,
            both.far.events(sessions[0]) as kept,
        ):
            assert [each.next().name for each in (far_stream, kept)] == ["session.snapshot"] * 2
            assert both.admin.http.delete("/api/tokens").status_code == 200
            ends = [stream.rest()[-1], far_stream.rest()[-1]]
            assert closed(socket)[0] == 4401
            both.near.say(sessions[0], "go on")
            kept.until("message.created")

        assert [end.data["data"] for end in ends] == [{"code": 4401, "retry": False}] * 2
        for session_id, token in zip(sessions, tokens, strict=True):
            assert is_refused(both.bearer(token), session_id, saying="not valid")
        fresh = both.near.token(sessions[0])
        assert opens(both.bearer(fresh), sessions[0])
        assert not opens(far, sessions[0])
        assert opens(both.bearer(fresh, far=True), sessions[0])


def refreshed(bearer: Caller, session_id: str) -> str:
    return str(bearer.call("POST", f"/{session_id}/tokens/refresh").json()["token"])


class TestEnd:
    def test_comes_at_its_second(self, both: Replicas) -> None:
        session_id = both.near.session()
        bearer = both.bearer(both.near.token(session_id, ttlSeconds=1))

        eventually(lambda: not opens(bearer, session_id), within_s=5)

        assert is_refused(bearer, session_id, saying="expired")

    @pytest.mark.parametrize("far", [False, True])
    def test_comes_by_the_clock_of_redis_alone(self, both: Replicas, signer: Signer, far: bool) -> None:
        """The far replica's clock is an hour ahead: it takes what is good for another ten minutes."""
        session_id = both.near.session()
        good, over = (signer.sign(signer.claims(session_id, exp=signer.now_s + s)) for s in (600, -1))

        assert opens(both.bearer(good, far=far), session_id)
        assert is_refused(both.bearer(over, far=far), session_id, saying="expired")

    def test_comes_with_the_sessions_deletion(self, both: Replicas) -> None:
        session_id = both.near.session()
        bearer = both.bearer(both.near.token(session_id, *RIGHTS), far=True)
        assert opens(bearer, session_id)

        both.near.call("DELETE", f"/{session_id}")

        for method, tail in (("GET", ""), ("GET", "/messages?ended=true"), ("POST", "/tokens/refresh")):
            problem(bearer.call(method, f"/{session_id}{tail}"), 404, "SESSION_NOT_FOUND")

    def test_comes_with_the_sessions_end_but_for_what_is_retained(self, both: Replicas) -> None:
        """What its user may still read: nothing can be said, renewed or made of it any more."""
        session_id = both.near.session(timeoutConfig=ENDS_SOON)
        both.near.say(session_id, "last words")
        token = both.near.token(session_id, *RIGHTS)
        bearer = both.bearer(token, far=True)
        eventually(lambda: not opens(bearer, session_id))

        for tail in ("/renew", "/heartbeat", "/tokens/refresh"):
            problem(bearer.call("POST", f"/{session_id}{tail}"), 410, "SESSION_EXPIRED")
        problem(bearer.post(session_id), 410, "SESSION_EXPIRED")
        problem(both.near.call("POST", f"/{session_id}/tokens"), 410, "SESSION_EXPIRED")
        history = bearer.history(session_id, ended=True)
        assert [message["content"] for message in history["messages"]] == ["last words"]
        with bearer.events(session_id, after=0) as stream:
            assert [event.name for event in stream.rest()][-2:] == ["session.expired", "closing"]


class TestLocal:
    def test_without_keys_tokens_are_made_and_nobody_needs_them(self, api: Api) -> None:
        """So that a page that was written for tokens works while it is developed."""
        session_id = api.session()
        token = api.call("POST", f"/{session_id}/tokens").json()["token"]

        for shown in (token, "junk"):
            assert api.call("GET", f"/{session_id}", headers={"X-API-KEY": shown}).status_code == 200
        with api.websocket(session_id) as socket:
            socket.send(json.dumps({"type": "auth", "ref": 1, "token": token}))
            while (frame := received(socket))["type"] != "ack":
                pass
        assert frame["ref"] == 1

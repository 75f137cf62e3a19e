"""Two replicas with access keys on one Redis, and tokens made past them with the keys that are there."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import redis

from tests.support.access import Caller, Keys
from tests.support.client import ECHO
from tests.support.presence import attend_at
from tests.support.servers import TestServer
from tests.support.service import Service

LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
AN_HOUR_AHEAD = {"FAKETIME": "+3600s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
PREFIX = "tokens:"
SETTINGS = {
    "SESSIONS_ENV": "test",
    "SESSION_MIN_TIMEOUT_MINUTES": "0.005",
    "SESSIONS_KEEPER": "off",
    "SESSIONS_DISPATCHER": "off",
    "SESSIONS_KEY_PREFIX": PREFIX,
}
Json = dict[str, Any]


class Replicas:
    """An application's server, as it sees each of two replicas; *near* makes what *far* is asked about."""

    def __init__(self, near: Service, far: Service, keys: Keys) -> None:
        self.near, self.far = keys.caller(near.url, "shop"), keys.caller(far.url, "shop")
        self.admin = keys.caller(near.url, "admin")
        self.urls = (near.url, far.url)
        self._passing: list[Caller] = []

    def bearer(self, token: str, *, far: bool = False) -> Caller:
        """Whoever has the token."""
        self._passing.append(Caller(self.urls[far], token))
        return self._passing[-1]

    def leave(self) -> None:
        """Close what :meth:`bearer` made."""
        for caller in self._passing:
            caller.close()
        self._passing.clear()

    def close(self) -> None:
        self.leave()
        for caller in (self.near, self.far, self.admin):
            caller.close()


@contextmanager
def replicas(folder: Path, server: TestServer) -> Iterator[Replicas]:
    """The far one's clock is an hour ahead, where libfaketime is there to set it."""
    keys = Keys(shop=("shop", ["app"]), admin=("ops", ["admin"]))
    attend_at(server.url, ECHO, key_prefix=PREFIX)
    env = SETTINGS | keys.env
    ahead = str(LIBFAKETIME or "")
    with (
        Service(folder, redis_url=server.url, env=env, name="near") as near,
        Service(folder, redis_url=server.url, env=env | AN_HOUR_AHEAD, preload=ahead, name="far") as far,
    ):
        both = Replicas(near, far, keys)
        yield both
        both.close()
        for service in (near, far):
            service.assert_no_bug_logged()


def claims_of(token: str) -> Json:
    """What a token says, its signature unchecked."""
    claims: Json = json.loads(_unpacked(token.split(".")[1]))
    return claims


def packed(content: bytes | Json) -> str:
    """A part of a token."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unpacked(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


class Signer:
    """Signs what it is told with the service's own key, which it reads where only the service may."""

    def __init__(self, server: TestServer) -> None:
        self.server = server
        with redis.Redis(port=server.port, host="127.0.0.1", protocol=2, decode_responses=True) as client:
            ((self.kid, stored),) = client.hgetall(f"{PREFIX}signing").items()
            seconds, _ = client.time()
        self.secret = stored.split()[1]
        self.now_s = int(seconds)

    def sign(self, claims: Json, *, algorithm: str = "HS256", **header: Any) -> str:
        return jwt.encode(claims, self.secret, algorithm=algorithm, headers={"kid": self.kid} | header)

    def claims(self, session_id: str, **changed: Any) -> Json:
        """Those of a good token, but for what is *changed*."""
        return {
            "sub": session_id,
            "app": "shop",
            "rights": "read send",
            "epoch": 0,
            "iat": self.now_s,
            "exp": self.now_s + 600,
        } | changed

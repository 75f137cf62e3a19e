"""Requests of any kind, counted before anything is done for them; in each process for itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

from sessions_api.access.keyring import mint
from sessions_api.api.middleware import HELD_S
from tests.support.client import Api, closed, some_id
from tests.support.limits import Caller, limited, serving, some_address
from tests.support.servers import TestServer

HOUR_S = 3_600
QUOTAS = {"requests-key": 12, "requests-ip": 10}
LINES, KEYS = zip(*(mint("shop", ["app"]) for _ in range(4)), strict=True)
ADMIN_LINE, ADMIN_KEY = mint("ops", ["admin"])


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, contract_redis: TestServer) -> Iterator[list[Api]]:
    with serving(
        tmp_path_factory.mktemp("process"),
        contract_redis.url,
        SESSIONS_KEY_PREFIX="process:",
        SESSIONS_KEYS=";".join([ADMIN_LINE, *LINES]),
        SESSIONS_TRUSTED_PROXIES="127.0.0.1",
        SESSIONS_LIMIT_REQUESTS_KEY=f"{QUOTAS['requests-key']}/{HOUR_S}",
        SESSIONS_LIMIT_REQUESTS_IP=f"{QUOTAS['requests-ip']}/{HOUR_S}",
    ) as replicas:
        yield replicas


def handshake(caller: Caller) -> tuple[int, str]:
    """Close code and policy, or code of the error, of a handshake for a session that is none."""
    with caller.websocket(some_id()) as socket:
        with suppress(ConnectionClosed):
            socket.send(json.dumps({"type": "ping"}))  # who showed nothing has to begin with auth
        code, frames = closed(socket)
    error = frames[-1]["error"]
    return code, error.get("details", {}).get("policy", error["code"])


def test_by_key(replicas: list[Api]) -> None:
    one = Caller(replicas[:1], x_api_key=KEYS[0])
    assert handshake(one) == (4404, "SESSION_NOT_FOUND")
    for number in range(QUOTAS["requests-key"] - 1):
        reply = one.call("GET", f"/{some_id()}" if number % 2 else "", headers={"x-forwarded-for": "::1"})
        assert reply.status_code == (404 if number % 2 else 200)

    limited(one.call("GET", ""), "requests-key", QUOTAS["requests-key"], HOUR_S)
    assert handshake(one) == (4429, "requests-key")

    assert Caller(replicas[:1], x_api_key=KEYS[1]).call("GET", "").status_code == 200
    assert Caller(replicas[1:], x_api_key=KEYS[0]).call("GET", "").status_code == 200


def test_a_flood_waits_for_its_refusals(replicas: list[Api]) -> None:
    """Each of its connections is told about once a second, and others are served meanwhile."""
    flooders = [Caller(replicas[:1], x_api_key=KEYS[2]) for _ in range(4)]
    for _ in range(QUOTAS["requests-key"]):
        assert flooders[0].call("GET", "").status_code == 200
    other = Caller(replicas[:1], x_api_key=KEYS[3])
    is_over = threading.Event()

    def flood(caller: Caller) -> int:
        refused = 0
        while not is_over.is_set():
            assert caller.call("GET", "").status_code == 429
            refused += 1
        return refused

    with ThreadPoolExecutor(len(flooders)) as pool:
        started_s = time.monotonic()
        floods = [pool.submit(flood, caller) for caller in flooders]
        served = [other.call("GET", "").status_code for _ in range(QUOTAS["requests-key"] - 1)]
        is_over.set()
        refused = sum(each.result() for each in floods)
        took_s = time.monotonic() - started_s

    assert set(served) == {200}
    assert refused <= len(flooders) * took_s / HELD_S[0]


def test_without_one_by_address(replicas: list[Api]) -> None:
    """A key that opens nothing is none: whoever guesses is bounded by it too."""
    address = some_address()
    one = Caller(replicas[:1], x_forwarded_for=address)
    assert handshake(one) == (4401, "UNAUTHENTICATED")
    for number in range(QUOTAS["requests-ip"] - 1):
        key = f"abcdefghijkl.{'x' * 42}{number}"
        assert one.call("GET", "", headers={"x-api-key": key}).status_code == 401

    limited(one.call("GET", ""), "requests-ip", QUOTAS["requests-ip"], HOUR_S)
    limited(one.call("GET", "", headers={"x-api-key": "x"}), "requests-ip", QUOTAS["requests-ip"], HOUR_S)
    assert handshake(one) == (4429, "requests-ip")

    assert one.moved().call("GET", "").status_code == 401
    assert one.call("GET", "", headers={"x-api-key": ADMIN_KEY}).status_code == 200
    assert Caller(replicas[1:], x_forwarded_for=address).call("GET", "").status_code == 401


def test_who_is_alive_and_well_may_always_be_asked(replicas: list[Api]) -> None:
    """A flood must not look like an illness to whoever restarts what is ill."""
    anybody = Caller(replicas[:1], x_forwarded_for=some_address())

    for path in ("/health", "/../../../livez", "/../../../readyz") * QUOTAS["requests-ip"]:
        assert anybody.call("GET", path).status_code == 200

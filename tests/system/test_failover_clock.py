"""A failover to a primary whose clock is behind: what is told and written goes on in order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sentinel import Node, Sentinels
from tests.support.servers import running
from tests.support.service import Service
from tests.support.talk import AWAY, assert_told, on_thread, talking

LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
BEHIND_S = 0.5
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        LIBFAKETIME is None, reason="SKIPPED LOUDLY: no libfaketime; apt-get install faketime"
    ),
]


class Behind(Sentinels):
    """Its first primary has this machine's clock, its replicas' are behind."""

    def env_of(self, number: int) -> dict[str, str]:
        if not number:
            return {}
        return {
            "LD_PRELOAD": str(LIBFAKETIME),
            "FAKETIME": f"-{BEHIND_S}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Behind]:
    with running(Behind("valkey", tmp_path / "group")) as group:
        yield group


def behind_s(node: Node) -> float:
    seconds, micros = node.call("TIME")
    return time.time() - int(seconds) - int(micros) / 1e6


async def test_goes_on_in_order(group: Behind, tmp_path: Path) -> None:
    """Cursors are times: the first ones of the new primary follow on the last of the old all the same."""
    assert behind_s(group.nodes[0]) < BEHIND_S / 2 < behind_s(group.nodes[1])
    with Service(tmp_path / "one", redis_url=group.url) as service:
        async with talking([service]) as talk:
            before = group.primary
            await on_thread(before.kill)
            await talk.go_on()
            await on_thread(group.until_moved, before.port)
            assert behind_s(group.primary) > BEHIND_S / 2

        assert_told(talk)
        assert service.stop() == 0, service.log[-3000:]
        service.assert_no_bug_logged(allowed=AWAY)

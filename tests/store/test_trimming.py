"""How long a log gets, and how long it lives."""

from __future__ import annotations

import json

import pytest
import redis as redis_py

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import SessionId
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.store import Store
from tests.support.servers import TestServer
from tests.support.stores import (
    MINUTE_MS,
    age,
    claimed,
    complete,
    is_life,
    opened,
    put_state,
    say,
    written,
)

real = pytest.mark.servers("valkey", "redis62", "debian")


@pytest.mark.servers("valkey", "redis62", "debian")  # fakeredis does not take megabytes over TCP
class TestTrimming:
    async def _fill(
        self, store: Store, server: TestServer, sid: SessionId, entries: int, body: bytes
    ) -> list[int]:
        """*entries* old messages, as if they had been said and answered."""
        of = store.keyspace.of(sid)
        first = int(server.call("TIME")[0]) * 1000 - 10_000_000
        cursors = list(range(first, first + entries))
        with redis_py.Redis(port=server.port, host="127.0.0.1", protocol=2) as client:
            pipe = client.pipeline(transaction=False)
            for number, cursor in enumerate(cursors):
                prev = cursors[number - 1] if number else 0
                fields = {"prev": prev, "message": body}
                pipe.xadd(of.all()[2], fields, id=f"{cursor}-0")
            pipe.pexpire(of.all()[2], 3_600_000)
            pipe.execute()
        await put_state(store, sid, cursor=cursors[-1], log_bytes=entries * len(body))
        return cursors

    @real
    async def test_ten_thousand_entries_stay(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        sid = session.session_id
        cursors = await self._fill(store, server, sid, 9_999, b'{"by":"user"}')
        await say(store, sid)
        assert (await store.log.replay(sid, grant=EVERYTHING, after=None)).oldest == cursors[0]

        await complete(store, await claimed(store, sid))
        await say(store, sid)

        replay = await store.log.replay(sid, grant=EVERYTHING, after=0)
        gone = 10_002 - server.call("XLEN", store.keyspace.of(sid).all()[2])
        assert 2 <= gone <= 2 + 15  # room is made for some at a time
        assert replay.oldest == replay.entries[0].cursor == cursors[gone]
        assert replay.entries[0].prev == cursors[gone - 1]  # not 0: that something went is visible

        for _ in range(20):
            await say(store, sid)
            assert server.call("XLEN", store.keyspace.of(sid).all()[2]) <= 10_000

    async def test_eight_mebibytes_stay(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        sid = session.session_id
        cursors = await self._fill(store, server, sid, 16, b"x" * (512 * 1024))

        await say(store, sid)

        assert (await store.log.replay(sid, grant=EVERYTHING, after=None)).oldest == cursors[1]
        history = await store.log.history(sid, grant=EVERYTHING, limit=100)
        assert len(history.entries) == 16
        assert not history.has_more

    async def test_what_is_not_answered_stays_whatever_its_size(
        self, store: Store, server: TestServer
    ) -> None:
        session = await opened(store)
        sid = session.session_id
        cursors = await self._fill(store, server, sid, 3, b"x" * (3 * 1024 * 1024))
        await put_state(store, sid, log_bytes=0)
        first = await say(store, sid, "unanswered")
        await put_state(store, sid, log_bytes=9 * 1024 * 1024 + 100)

        await say(store, sid, "x" * 2_000_000)
        await say(store, sid, "x" * 2_000_000)
        await put_state(store, sid, log_bytes=20 * 1024 * 1024)
        await say(store, sid, "one more")

        entries = await written(store, sid)
        assert entries[0].cursor == first.cursor
        assert entries[0].prev == cursors[-1]
        taken = await claimed(store, sid)
        assert [json.loads(entry.body)["content"] for entry in taken.messages] == ["unanswered"]


class TestConfigOfRetention:
    async def test_every_write_moves_the_life_of_all_keys(self, store: Store, server: TestServer) -> None:
        """They live to the session's end plus its retention, and a little longer."""
        session = await opened(store, config=TimeoutConfig(MINUTE_MS, True, 720 * MINUTE_MS, 1_000))
        sid = session.session_id
        await say(store, sid)
        turn = (await claimed(store, sid)).turn
        await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="a", offset=0)
        await age(store, sid, 20_000)
        await store.turns.extend(sid, turn.turn_id, fence=turn.fence)

        read = await store.sessions.read(sid, grant=EVERYTHING)
        end_ms = max(read.expires_ms, read.held_until_ms) + read.retention_ms
        for key in (each for each in sorted(server.keys()) if sid.encode() in each and b"alarm" not in each):
            assert is_life(server.call("PTTL", key), end_ms - read.now_ms, slack_ms=2_000), key

"""Time, with several keepers: everything happens, once, whatever becomes of notifications and keepers."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest

import sessions_api
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import SessionId, UserId, new_op_id
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.errors import CallerError
from sessions_api.keeper.hints import Hints
from sessions_api.keeper.keeper import Keeper
from sessions_api.keeper.leases import Leases
from sessions_api.keeper.sweep import Sweep
from sessions_api.store import Store
from sessions_api.telemetry.loops import cancelled, run_forever
from tests.support.replicas import facts, stores
from tests.support.servers import RealServer, TestServer
from tests.support.stores import AGENT, CONFIG, MINUTE_MS, RETENTION_MS, age, opened, say
from tests.support.waiting import until

USERS = [UserId(f"{number:08x}-0000-4000-8000-000000000000") for number in range(40)]


@contextmanager
def notifications(mode: str, server: TestServer) -> Iterator[str]:
    """The URL for keepers; with *mode* ``off`` they may not switch notifications on either."""
    if mode != "off" or not isinstance(server, RealServer):
        yield server.url
        return
    server.config_set("notify-keyspace-events", "")
    server.call("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-config")
    try:
        yield f"redis://limited:secret@127.0.0.1:{server.port}/0"
    finally:
        server.call("ACL", "DELUSER", "limited")


@asynccontextmanager
async def racing(replicas: list[Store]) -> AsyncIterator[None]:
    """Keepers that all believe to keep every partition, with their hints: nothing keeps them apart."""
    tasks, all_hints = [], []
    for number, store in enumerate(replicas):
        leases = Leases(store, replica_id=f"racing-{number}")
        leases.kept.update(range(64))
        sweep = Sweep(store, leases)
        hints = Hints(store, on_alarm=partial(sweep.notice, trigger="hint"))
        await hints.start()
        all_hints.append(hints)
        tasks += [asyncio.create_task(run_forever(part.step, loop="racing")) for part in (sweep, hints)]
    try:
        yield
    finally:
        await cancelled(*tasks)
        for hints in all_hints:
            await hints.stop()


@asynccontextmanager
async def keeping(replicas: list[Store]) -> AsyncIterator[list[Keeper]]:
    """Started keepers that have shared out the partitions."""
    keepers = [Keeper(store, replica_id=f"replica-{i}") for i, store in enumerate(replicas)]
    for keeper in keepers:
        await keeper.start()
    try:
        await until(lambda: sorted(p for keeper in keepers for p in keeper.kept) == list(range(64)))
        yield keepers
    finally:
        for keeper in keepers:
            await keeper.stop()


async def renew(store: Store, session_id: SessionId) -> bool:
    try:
        await store.sessions.renew(session_id, grant="local", op=new_op_id())
    except CallerError:
        return False
    return True


@pytest.mark.parametrize("mode", ["on", "off", "switched off"])
class TestFiveKeepers:
    async def test_warn_and_expire_each_session_exactly_once(self, server: TestServer, mode: str) -> None:
        """A third of the sessions is renewed when warned: those are warned a second time, of another end."""
        renewals: list[asyncio.Task[bool]] = []
        with notifications(mode, server) as url:
            async with stores(url, 5) as replicas, facts(replicas[0]) as heard, racing(replicas):
                sids = [
                    (
                        await opened(
                            replicas[0], user, config=TimeoutConfig(1500, True, 720 * MINUTE_MS, 1000)
                        )
                    ).session_id
                    for user in USERS
                ]
                to_renew = set(sids[::3])
                renewed: set[SessionId] = set()

                def renew_when_warned(session_id: SessionId, kind: str) -> None:
                    if kind == "session.expiring" and session_id in to_renew:
                        to_renew.discard(session_id)
                        renewals.append(asyncio.create_task(renew(replicas[1], session_id)))
                    if kind == "session.renewed":
                        renewed.add(session_id)

                heard.on_fact = renew_when_warned
                if mode == "switched off" and isinstance(server, RealServer):
                    server.config_set("notify-keyspace-events", "")
                await until(lambda: heard.all_have(sids, "session.expired"), within_s=30)
                await asyncio.gather(*renewals)

        assert renewed
        for sid in sids:
            seen = heard.types[sid]
            assert seen.count("session.expired") == 1, seen
            assert seen[-1] == "session.expired", seen
            # Warned once per approach; a warning later than the end it warns of is not sent.
            assert seen.count("session.expiring") <= (2 if sid in renewed else 1), seen

    async def test_warn_each_session_that_is_near_its_end_exactly_once(
        self, server: TestServer, mode: str
    ) -> None:
        with notifications(mode, server) as url:
            async with stores(url, 5) as replicas, facts(replicas[0]) as heard, racing(replicas):
                if mode == "switched off" and isinstance(server, RealServer):
                    server.config_set("notify-keyspace-events", "")
                sids = [(await opened(replicas[0], user)).session_id for user in USERS]
                for sid in sids:
                    await age(replicas[0], sid, CONFIG.timeout_ms - CONFIG.warning_ms)
                await until(lambda: heard.all_have(sids, "session.expiring"), within_s=20)
                for sid in sids:
                    await age(replicas[0], sid, CONFIG.warning_ms)
                await until(lambda: heard.all_have(sids, "session.expired"), within_s=20)

        for sid in sids:
            assert heard.types[sid] == ["session.expiring", "session.expired"]


class TestAKilledKeeper:
    async def test_leaves_its_partitions_to_the_others(self, redis_url: str) -> None:
        async with (
            stores(redis_url, 3) as replicas,
            facts(replicas[0]) as heard,
            keeping(replicas) as (dying, *_),
        ):
            sids = [(await opened(replicas[0], user)).session_id for user in USERS]

            tasks, dying._tasks = dying._tasks, []
            await cancelled(*tasks)
            await dying._hints.stop()
            for sid in sids:
                await age(replicas[0], sid, CONFIG.timeout_ms)

            await until(lambda: heard.all_have(sids, "session.expired"), within_s=20)
        assert all(heard.count(sid)["session.expired"] == 1 for sid in sids)


class TestInTheEnd:
    async def test_redis_holds_nothing_but_empty_standing_keys(self, server: TestServer) -> None:
        """Sessions of every fate: unused, talked in, with a turn running, deleted; then retention passes."""
        async with stores(server.url, 2) as replicas, facts(replicas[0]) as heard, keeping(replicas):
            store = replicas[0]
            sids = [await self.lived(store, user, fate) for fate, user in enumerate(USERS)]
            over = [sid for fate, sid in enumerate(sids) if fate % 4 != 3]
            for sid in over:
                await age(store, sid, CONFIG.timeout_ms)
            await until(lambda: heard.all_have(over, "session.expired"), within_s=20)

            for sid in over:  # the rest of the retention passes by itself
                await age(store, sid, RETENTION_MS + MINUTE_MS - 100)  # keys live up to a minute longer
            await until(lambda: not self.keys_of_sessions(store, server), within_s=20)

        left = [key for key in sorted(server.keys()) if not key.startswith((b"sa:meta", b"sa:definitions"))]
        assert left == []

    @staticmethod
    async def lived(store: Store, user: UserId, fate: int) -> SessionId:
        """A session, and something that happened in it."""
        sid = (await opened(store, user)).session_id
        if fate % 4 >= 1:
            await say(store, sid)
            await say(store, sid)
        if fate % 4 == 2:
            claim = await store.turns.claim(
                sid, agent_id=AGENT, worker="test", fence_bits=new_op_id(), message_id=new_op_id(),  # type: ignore[arg-type]
                turn_ms=1000, max_attempts=3,
            )  # fmt: skip
            assert claim.turn is not None
            turn = claim.turn.turn
            await store.turns.delta(sid, turn.turn_id, fence=turn.fence, text="so", offset=0)
        if fate % 4 == 3:
            await store.sessions.end(sid, grant=EVERYTHING)
        return sid

    @staticmethod
    def keys_of_sessions(store: Store, server: TestServer) -> list[bytes]:
        return [
            key
            for key in sorted(server.keys())
            if not store.keyspace.is_standing(key) and b"keeper:" not in key
        ]


class TestTheClockOfThisMachine:
    def test_is_never_asked_by_a_part_that_decides_when_a_session_ends(self) -> None:
        """So a replica whose clock is an hour wrong does what the others do; Redis's clock decides.

        Connectors decide nothing of a session: another server may tell them a date. A monotonic
        clock tells no time of day, only how long something took.
        """
        package = Path(sessions_api.__file__).parent
        asked = [
            f"{path.relative_to(package)}:{node.lineno}"
            for part in ("domain", "store", "keeper", "agents")
            for path in (package / part).rglob("*.py")
            if path.parent.name != "connectors"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            and [name.name for name in node.names] != ["monotonic"]
            and {"time", "datetime"} & {getattr(node, "module", None), *(name.name for name in node.names)}
        ]

        assert asked == []

"""How each kind of fault of ``schedule.py`` is done, and mended.

A fault lasts as long as its strike says and is mended by whoever did it. Two that
are done to the same thing wait for one another: a server that is stopped cannot
be killed as well.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.chaos.asking import Service
from tests.chaos.failovers import OfCluster, failovers_of
from tests.chaos.history import History, Struck, now_ms
from tests.chaos.processes import HOUR_S, LIBFAKETIME, Replica
from tests.chaos.schedule import KINDS, Schedule, Strike
from tests.chaos.storages import Cluster, Single, WithSentinels
from tests.chaos.world import World, until
from tests.support.proxy import Proxy

AGAIN_S = 0.15
"""Between two blows of a fault that is done again and again."""
LISTENING_S = 20.0
MOST_LOST_REPLIES = 4
SLOW_S = 0.05


class Striker:
    """Does the strikes of one schedule to one world, and notes when."""

    def __init__(self, world: World, service: Service, history: History) -> None:
        self._world = world
        self._service = service
        self._history = history
        self._locks: dict[object, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, schedule: Schedule) -> None:
        """All of them, each at its time; returns when all is mended."""
        async with asyncio.TaskGroup() as group:
            for strike in schedule.strikes:
                group.create_task(self._strike(strike))

    async def _strike(self, strike: Strike) -> None:
        await asyncio.sleep(strike.at_s)
        kind = KINDS[strike.kind]
        replica = strike.target % len(self._world.replicas) if kind.is_of_replica else None
        async with self._locks[replica if replica is not None else kind.group]:
            struck = Struck(kind=strike.kind, replica=replica, began_ms=now_ms())
            self._history.struck.append(struck)
            try:
                await DOING[strike.kind](self, strike)
            finally:
                struck.ended_ms = now_ms()

    # ------------------------------------------------------------ replicas

    def _replica(self, strike: Strike) -> Replica:
        return self._world.replicas[strike.target % len(self._world.replicas)]

    async def kill_replica(self, strike: Strike) -> None:
        replica = self._replica(strike)
        await asyncio.to_thread(replica.kill)
        await asyncio.sleep(strike.seconds)
        await self._start(replica)

    async def terminate_replica(self, strike: Strike) -> None:
        replica = self._replica(strike)
        status = await asyncio.to_thread(replica.stop)
        if status != 0:
            self._world.badly_ended.append(f"replica {strike.target} ended with {status} on SIGTERM")
        await asyncio.sleep(strike.seconds)
        await self._start(replica)

    async def stop_replica(self, strike: Strike) -> None:
        replica = self._replica(strike)
        replica.pause()
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            replica.resume()

    async def set_clock_of_replica(self, strike: Strike) -> None:
        assert LIBFAKETIME is not None, "no libfaketime; apt-get install faketime"
        replica = self._replica(strike)
        replica.set_clock(HOUR_S if strike.target % 2 else -HOUR_S)
        await self.kill_replica(strike)

    @staticmethod
    async def _start(replica: Replica) -> None:
        """Until it answers; it need not be ready: what it needs for that may be struck as well."""
        await asyncio.to_thread(replica.start, until_ready=False)
        if not await until(lambda: asyncio.to_thread(replica.is_listening), within_s=LISTENING_S):
            raise AssertionError(f"a replica does not answer {LISTENING_S:g} s after its start")

    # ------------------------------------------------------------ between a replica and Redis

    def _single(self) -> Single:
        assert isinstance(self._world.storage, Single)
        return self._world.storage

    def _proxy(self, strike: Strike) -> Proxy:
        proxies = self._single().proxies
        return proxies[strike.target % len(proxies)]

    async def cut_link(self, strike: Strike) -> None:
        async for _ in again_and_again(strike.seconds):
            self._proxy(strike).cut()

    async def take_link_away(self, strike: Strike) -> None:
        proxy = self._proxy(strike)
        await proxy.refuse()
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            await proxy.accept()

    async def freeze_link(self, strike: Strike) -> None:
        proxy = self._proxy(strike)
        proxy.freeze()
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            proxy.thaw()

    async def slow_link(self, strike: Strike) -> None:
        proxy = self._proxy(strike)
        proxy.jitter_s = SLOW_S
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            proxy.jitter_s = 0.0

    async def lose_replies(self, strike: Strike) -> None:
        """Of some scripts: each has run, and nobody hears of it."""
        is_over = False
        for _ in range(1 + strike.target % MOST_LOST_REPLIES):
            self._proxy(strike).drop_reply(lambda command: not is_over and command[0] == b"EVALSHA")
        await asyncio.sleep(strike.seconds)
        is_over = True

    # ------------------------------------------------------------ the one server

    async def kill_redis(self, strike: Strike) -> None:
        await asyncio.to_thread(self._single().server.kill)
        await asyncio.sleep(strike.seconds)
        await self._start_redis()

    async def restart_redis(self, strike: Strike) -> None:
        await asyncio.to_thread(self._single().server.stop)
        await asyncio.sleep(strike.seconds)
        await self._start_redis()

    async def _start_redis(self) -> None:
        await asyncio.to_thread(self._single().server.start)
        await asyncio.to_thread(self._single().sync_always)

    async def stop_redis(self, strike: Strike) -> None:
        server = self._single().server
        server.pause()
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            server.resume()

    # ------------------------------------------------------------ any server of Redis

    async def fill_redis(self, strike: Strike) -> None:
        await self._with_setting("maxmemory", "1", strike.seconds)

    async def take_notifications(self, strike: Strike) -> None:
        await self._with_setting("notify-keyspace-events", "", strike.seconds)

    async def _with_setting(self, name: str, value: str, seconds: float) -> None:
        before = await asyncio.to_thread(self._world.storage.servers[0].config_get, name)
        await self._call("CONFIG", "SET", name, value)
        try:
            await asyncio.sleep(seconds)
        finally:
            await self._call("CONFIG", "SET", name, before)

    async def kill_connections(self, strike: Strike) -> None:
        async for _ in again_and_again(strike.seconds):
            await self._call("CLIENT", "KILL", "TYPE", "normal")

    async def kill_subscriptions(self, strike: Strike) -> None:
        async for _ in again_and_again(strike.seconds):
            await self._call("CLIENT", "KILL", "TYPE", "pubsub")

    async def flush_scripts(self, strike: Strike) -> None:
        async for _ in again_and_again(strike.seconds):
            await self._call("SCRIPT", "FLUSH")

    async def _call(self, *command: Any) -> None:
        """On each of them."""
        for server in self._world.storage.servers:
            await asyncio.to_thread(server.call, *command)

    async def kill_primary(self, strike: Strike) -> None:
        await failovers_of(self._world.storage).kill(strike.target, strike.seconds)

    async def stop_primary(self, strike: Strike) -> None:
        await failovers_of(self._world.storage).stop(strike.target, strike.seconds)

    async def fail_over(self, strike: Strike) -> None:
        await failovers_of(self._world.storage).fail_over(strike.target)

    async def kill_sentinel(self, strike: Strike) -> None:
        storage = self._world.storage
        assert isinstance(storage, WithSentinels)
        sentinels = storage.sentinels.sentinels
        sentinel = sentinels[strike.target % len(sentinels)]
        await asyncio.to_thread(sentinel.kill)
        await asyncio.sleep(strike.seconds)
        await asyncio.to_thread(sentinel.start)

    async def migrate_slots(self, strike: Strike) -> None:
        storage = self._world.storage
        assert isinstance(storage, Cluster)
        await OfCluster(storage.cluster).migrate(strike.target, strike.seconds)

    # ------------------------------------------------------------ workers and clients

    async def kill_worker(self, strike: Strike) -> None:
        worker = self._world.workers[strike.target % len(self._world.workers)]
        await asyncio.to_thread(worker.kill)
        await asyncio.sleep(strike.seconds)
        await asyncio.to_thread(worker.start)

    async def stop_worker(self, strike: Strike) -> None:
        worker = self._world.workers[strike.target % len(self._world.workers)]
        worker.pause()
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            worker.resume()

    async def tire_clients(self, strike: Strike) -> None:
        self._service.is_impatient = True
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            self._service.is_impatient = False


async def again_and_again(seconds: float) -> AsyncIterator[None]:
    """Once at least, then every so often for so long."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    yield
    while loop.time() + AGAIN_S < end_s:
        await asyncio.sleep(AGAIN_S)
        yield


DOING: dict[str, Callable[[Striker, Strike], Awaitable[None]]] = {
    "replica-kill": Striker.kill_replica,
    "replica-term": Striker.terminate_replica,
    "replica-stop": Striker.stop_replica,
    "replica-clock": Striker.set_clock_of_replica,
    "link-cut": Striker.cut_link,
    "link-away": Striker.take_link_away,
    "link-frozen": Striker.freeze_link,
    "link-slow": Striker.slow_link,
    "reply-lost": Striker.lose_replies,
    "redis-kill": Striker.kill_redis,
    "redis-restart": Striker.restart_redis,
    "redis-stop": Striker.stop_redis,
    "redis-full": Striker.fill_redis,
    "client-kill": Striker.kill_connections,
    "pubsub-kill": Striker.kill_subscriptions,
    "script-flush": Striker.flush_scripts,
    "notifications-off": Striker.take_notifications,
    "primary-kill": Striker.kill_primary,
    "primary-stop": Striker.stop_primary,
    "failover": Striker.fail_over,
    "sentinel-kill": Striker.kill_sentinel,
    "slot-migration": Striker.migrate_slots,
    "worker-kill": Striker.kill_worker,
    "worker-stop": Striker.stop_worker,
    "impatience": Striker.tire_clients,
}

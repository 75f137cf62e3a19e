"""A Redis Cluster to test against: processes of one make, on loopback, with short timeouts.

Primaries share the slots evenly, as ``redis-cli --cluster create`` deals them out;
replicas, if any, are theirs in turn. What a test does to it is found again by
asking: a failover leaves other primaries, a migration other owners.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import redis

from sessions_api.store.slots import SLOTS, slot_of
from tests.support.papers import Papers
from tests.support.servers import OPTIONS, RealServer, TestServer, binaries, binary_of, words

NODE_TIMEOUT_MS = 1000
READY_TIMEOUT_S = 20.0
KINDS = {"cluster": "valkey", "cluster62": "redis62"}
"""Kinds of cluster → the kind of its servers."""


SUITES = frozenset(
    {
        "live.test_follow",
        "live.test_hub",
        "live.test_replicas",
        *(
            f"store.test_{name}"
            for name in (
                "agents alarms append attendance availability cancel claim configure grants hold limits "
                "listing log meter partitions replicas sessions signing turn_ends"
            ).split()
        ),
    }
)
"""Modules whose tests of the newest server run on a cluster of it, too."""

APART = frozenset(
    {
        # they count what one server does, or hang it
        "test_is_one_round_trip",
        "test_costs_one_read_while_nothing_changes",
        "test_costs_no_round_trip_of_its_own",
        "test_leaves_the_channel_after_a_while",
        "test_a_position_found_over_while_a_first_page_is_read_changes_nothing",
        # they look into one server, or stand between it and the service
        "test_finds_no_session_for_a_stranger_and_writes_nothing",
        "test_refuses_a_token_that_has_ended_and_writes_nothing",
        "test_leaves_no_task",
        "test_a_repeat_after_a_lost_reply_may_count_twice",
        "test_a_repeat_after_a_lost_reply_errs_towards_refusing",
        # they fill one, or stop all, which takes seconds to undo and is done once (store.test_meter)
        "test_closed_says_that_redis_is_away",
        "test_closed_refuses_until_redis_answers",
        "test_local_counts_for_itself",
        "test_ends_the_search_for_redis",
        "test_redis_is_asked_ten_times_a_second_at_most",
        "test_a_full_redis_is_told_or_done_without",
        "test_with_a_full_redis_goes_on_by_itself",
    }
)
"""Not these. Nor those with ears, which hear no shard's."""


def cluster_kinds() -> list[str]:
    """Every kind of cluster that can run here."""
    return [kind for kind, make in KINDS.items() if make in binaries()]


def runs_on_cluster(module: str, test: str, fixtures: Iterable[str]) -> bool:
    """Whether a test that does not name a cluster runs on one all the same."""
    return module.removeprefix("tests.") in SUITES and test not in APART and "ears" not in fixtures


class ClusterNode(RealServer):
    """One server of a cluster."""

    def __init__(self, kind: str, folder: Path, papers: Papers | None = None, **options: str) -> None:
        super().__init__(kind, binary_of(kind), folder, papers=papers)
        self._options = OPTIONS | {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(folder),
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-require-full-coverage": "no",
            "cluster-replica-validity-factor": "0",
            "repl-diskless-sync-delay": "0",
        }
        self._options |= {name.replace("_", "-"): value for name, value in options.items()}

    def command_line(self) -> list[str]:
        return [str(self._binary), *words(self._options)]

    def restart_with(self, **options: str) -> None:
        self.stop()
        self._options |= {name.replace("_", "-"): value for name, value in options.items()}
        self.start()

    def reset_settings(self) -> None:
        changed, self._changed = self._changed, {}
        for name, value in changed.items():
            self.call("CONFIG", "SET", name, value)

    @property
    def node_id(self) -> str:
        node_id: bytes = self.call("CLUSTER", "MYID")
        return node_id.decode()

    @property
    def is_primary(self) -> bool:
        return bool(self.is_running and self.call("ROLE")[0] == b"master")

    def state(self) -> dict[str, str]:
        text = self.call("CLUSTER", "INFO").decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


class ClusterServer(TestServer):
    """The whole of it, spoken to in tests as one server: each command goes where its key is."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        *,
        primaries: int = 3,
        replicas: int = 0,
        makes: Iterable[str] = (),
        papers: Papers | None = None,
        **options: str,
    ) -> None:
        """*makes*: the kinds of the first servers, where they are not all alike."""
        self.kind = kind
        self.papers = papers
        all_makes = chain(makes, repeat(KINDS[kind]))
        self.nodes = [
            ClusterNode(make, folder / f"node{number}", papers, **options)
            for number, make in zip(range(primaries + replicas), all_makes, strict=False)
        ]
        self._primaries = primaries
        self.port = self.nodes[0].port

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"rediss+cluster://{hosts}?{self.papers.query}" if self.papers else f"redis+cluster://{hosts}"

    @property
    def is_running(self) -> bool:
        return all(node.is_running for node in self.nodes)

    def resume(self) -> None:
        for node in self.nodes:
            node.resume()

    # ------------------------------------------------------------ life

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        first, *others = self.nodes
        if first.state()["cluster_known_nodes"] != "1":
            self.settle()
            return
        share = SLOTS / self._primaries
        for number, node in enumerate(self.nodes):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < self._primaries:
                node.call("CLUSTER", "ADDSLOTS", *range(round(number * share), round((number + 1) * share)))
        for node in others:
            node.call("CLUSTER", "MEET", "127.0.0.1", first.port)
        _until(
            lambda: all(node.state()["cluster_known_nodes"] == str(len(self.nodes)) for node in self.nodes)
        )
        for number, replica in enumerate(self.nodes[self._primaries :]):
            primary_id = self.nodes[number % self._primaries].node_id
            _until(partial(_knows, replica, primary_id))
            replica.call("CLUSTER", "REPLICATE", primary_id)
        self.settle()

    def settle(self) -> None:
        """Return when all servers agree who serves what, and each knows all replicas."""
        _until(self._is_settled)

    def _is_settled(self) -> bool:
        views, replicas, listed = set(), set(), []
        known = 0
        for node in self.nodes:
            if not node.is_running:
                continue
            state = node.state()
            if state["cluster_state"] != "ok" or state["cluster_slots_ok"] != str(SLOTS):
                return False
            rows = node.call("CLUSTER", "SLOTS")
            views.add(tuple(sorted((row[0], row[1], row[2][1]) for row in rows)))
            listed.append({port for row in rows for _, port, *_ in row[3:]})
            role = node.call("ROLE")
            if role[0] == b"slave" and role[3] != b"connected":
                return False
            if role[0] == b"slave":
                replicas.add(node.port)
            known += len(role[2]) if role[0] == b"master" else 0
        return len(views) == 1 and known >= len(replicas) and all(replicas <= ports for ports in listed)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def mend(self) -> None:
        """Everybody is there and agrees; who is primary may be another than before."""
        for node in self.nodes:
            if node.is_running:
                node.resume()
            node.start()
        self.settle()

    def clean(self) -> None:
        self.mend()
        self.flush()
        for node in self.nodes:
            node.reset_settings()
            node.call("SCRIPT", "FLUSH")
            node.call("CONFIG", "RESETSTAT")

    # ------------------------------------------------------------ who serves what

    @property
    def primaries(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.is_primary]

    @property
    def replicas(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.is_running and not node.is_primary]

    def at(self, port: int) -> ClusterNode:
        return next(node for node in self.nodes if node.port == port)

    def serving(self, key: bytes | str) -> ClusterNode:
        """The primary that serves *key*, as most servers that run will have it soon."""
        slot = slot_of(key if isinstance(key, bytes) else key.encode())
        for node in self.nodes:
            if node.is_running and node.is_primary:
                for first, last, (_, port, *_), *_ in node.call("CLUSTER", "SLOTS"):
                    if first <= slot <= last and port == node.port:
                        return node
        raise AssertionError(f"nobody serves slot {slot}")

    def replica_of(self, primary: ClusterNode) -> ClusterNode:
        return next(node for node in self.replicas if node.call("ROLE")[2] == primary.port)

    def promote(self, replica: ClusterNode) -> None:
        """Have *replica* take over, nothing lost; a try that its primary did not answer is repeated."""
        for _ in range(5):
            replica.call("CLUSTER", "FAILOVER")
            deadline_s = time.monotonic() + 6.0  # the servers give a try up after 5 s
            while time.monotonic() < deadline_s:
                if replica.call("ROLE")[0] == b"master":
                    return
                time.sleep(0.02)
        raise AssertionError(f"{replica.port} did not take over")

    # ------------------------------------------------------------ as one server

    def call(self, *command: Any) -> Any:
        tls = self.papers.arguments if self.papers else {}
        with redis.RedisCluster(
            host="127.0.0.1", port=self._any().port, protocol=2, socket_timeout=10, **tls
        ) as client:
            return client.execute_command(*command)

    def _any(self) -> ClusterNode:
        return next(node for node in self.nodes if node.is_running)

    def flush(self) -> None:
        for node in self.primaries:
            node.flush()

    def keys(self) -> list[bytes]:
        return sorted(chain.from_iterable(node.keys() for node in self.primaries))

    def keys_without_ttl(self) -> list[bytes]:
        self.settle()
        return [key for node in self.primaries for key in node.keys_without_ttl()]

    def calls(self) -> dict[str, int]:
        """Command → how often it was called since the last cleaning, on all servers."""
        sums: dict[str, int] = {}
        for node in self.nodes:
            for name, calls in node.calls().items():
                sums[name] = sums.get(name, 0) + calls
        return sums

    # ------------------------------------------------------------ migration

    def begin_migration(self, slot: int, target: ClusterNode) -> ClusterNode:
        """From now on both sides know that the slot moves; who had it is returned."""
        source = self._owner(slot)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        return source

    def move_keys(self, slot: int, source: ClusterNode, target: ClusterNode, *, batch: int = 100) -> int:
        """Move every key of the slot, so many at a time, as redis-cli does."""
        moved = 0
        while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, batch):
            source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
        return moved

    def end_migration(self, slot: int, target: ClusterNode) -> None:
        """The target first, as redis-cli does: nobody may point at one that does not know yet."""
        for node in [target, *(node for node in self.primaries if node is not target)]:
            node.call("CLUSTER", "SETSLOT", slot, "NODE", target.node_id)

    def migrate(self, slot: int, target: ClusterNode) -> int:
        """The classic way, key by key."""
        source = self.begin_migration(slot, target)
        moved = self.move_keys(slot, source, target)
        self.end_migration(slot, target)
        return moved

    def migrate_at_once(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        """As Valkey 9 does it: the keys are sent ahead, then the slot changes hands in an instant."""
        source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.node_id)
        _until(lambda: target is self._owner(slot))
        self.settle()

    def _owner(self, slot: int) -> ClusterNode:
        for first, last, (_, port, *_), *_ in self._any().call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self.at(port)
        raise AssertionError(f"nobody serves slot {slot}")


def _knows(node: ClusterNode, node_id: str) -> bool:
    return node_id.encode() in node.call("CLUSTER", "NODES")


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"the cluster did not get there within {READY_TIMEOUT_S} s")
        time.sleep(0.02)

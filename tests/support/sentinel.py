"""A primary, two replicas and three sentinels: real processes, and what operators and accidents do to them.

One of each make for all tests of a module. What a test did is undone by
:meth:`Sentinels.heal`, from which whoever is primary then is no matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from tests.support.papers import Papers
from tests.support.servers import RealServer, binary_of

NAME = "mymaster"
DOWN_AFTER_MS = 2000
"""With 1000 a machine that was busy for a second had the sentinels replace primaries that were well."""
FAILOVER_TIMEOUT_MS = 3000
"""For each step of a failover; the next by the sentinels' own decision comes after twice as long."""
PATIENCE_S = 30.0


def eventually(condition: Callable[[], Any], *, within_s: float = PATIENCE_S) -> Any:
    """The first true value of *condition*, to which a refused connection is none."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            if value := condition():
                return value
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline_s, f"did not happen within {within_s} s"
        time.sleep(0.02)


class Node(RealServer):
    """A server that may be a replica; its replication can be cut while everything else goes on."""

    def __init__(self, kind: str, folder: Path, papers: Papers | None = None) -> None:
        super().__init__(kind, binary_of(kind), folder, papers=papers)
        self._starts_as: tuple[str, ...] = ()

    def command_line(self) -> list[str]:
        # Without the delay; else a replica waits 5 s before it is sent anything.
        return [*super().command_line(), "--repl-diskless-sync-delay", "0", *self._starts_as]

    def start_as_replica(self, primary: Node) -> None:
        """As with a configuration that the sentinels rewrote: it never takes itself for primary."""
        self._starts_as = ("--replicaof", "127.0.0.1", str(primary.port))
        self.start()
        self._starts_as = ()

    def role(self) -> str:
        return str(self.call("ROLE")[0].decode())

    def follow(self, primary: Node | None) -> None:
        self.call("REPLICAOF", *(("127.0.0.1", primary.port) if primary else ("NO", "ONE")))

    def is_following(self, primary: Node) -> bool:
        """It has everything up to now, and will have the rest."""
        info = self.info("replication")
        return (
            info["role"] == "slave"
            and info["master_port"] == primary.port
            and info["master_link_status"] == "up"
            and not info["master_sync_in_progress"]
        )

    def cut_replication(self) -> None:
        """Its replicas get nothing any more: what it acknowledges from now on is here alone."""
        self.call("ACL", "SETUSER", "default", "-psync", "-sync")
        self.call("CLIENT", "KILL", "TYPE", "replica")

    def mend_replication(self) -> None:
        # Never SYNC: a replica whose PSYNC was refused falls back to it, and then acknowledges nothing.
        self.call("ACL", "SETUSER", "default", "+@all", "-sync")


class Sentinel(RealServer):
    """A sentinel; its configuration is its own, as it rewrites it."""

    def __init__(self, kind: str, folder: Path, primary: Node) -> None:
        super().__init__(kind, binary_of(kind), folder, papers=primary.papers)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "sentinel.conf"
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            f"sentinel monitor {NAME} 127.0.0.1 {primary.port} 2",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {NAME} {FAILOVER_TIMEOUT_MS}",
            f"sentinel parallel-syncs {NAME} 2",
        ]
        self._file.write_text("\n".join(lines) + "\n")

    def command_line(self) -> list[str]:
        return [str(self._binary), str(self._file), "--sentinel"]

    def state(self) -> dict[str, str]:
        """What it says of the primary."""
        flat = [part.decode() for part in self.call("SENTINEL", "MASTER", NAME)]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def has_quorum(self) -> bool:
        """Whether it believes that enough of the others are there; a restarted one is missed for a moment."""
        try:
            self.call("SENTINEL", "CKQUORUM", NAME)
        except redis.ResponseError:
            return False
        return True

    def replica_flags(self) -> list[str]:
        """What it thinks of each replica, ``slave`` if nothing is wrong."""
        rows = self.call("SENTINEL", "REPLICAS", NAME)
        return [dict(zip(row[::2], row[1::2], strict=True))[b"flags"].decode() for row in rows]

    def primary_port(self) -> int:
        return int(self.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])


class Sentinels:
    """The whole of it; ``nodes`` and ``sentinels`` keep their ports whatever happens."""

    def __init__(self, kind: str, folder: Path, *, papers: Papers | None = None) -> None:
        self._kind = kind
        self.papers = papers
        self._folder = folder
        self.nodes: list[Node] = []
        self.sentinels: list[Sentinel] = []

    def start(self) -> None:
        # One after the other: a port is free only until somebody has it, and six were often not six.
        for number in range(3):
            node = Node(self._kind, self._folder / f"node{number}", self.papers)
            node.env = self.env_of(number)
            self.nodes.append(node)
            node.start()
            if number:
                node.follow(self.nodes[0])
        for number in range(3):
            sentinel = Sentinel(self._kind, self._folder / f"sentinel{number}", self.nodes[0])
            self.sentinels.append(sentinel)
            sentinel.start()
        eventually(self.is_whole)

    def env_of(self, number: int) -> dict[str, str]:
        """What the environment of a node has beside that of this process."""
        return {}

    def stop(self) -> None:
        for server in (*self.sentinels, *self.nodes):
            server.kill()

    @property
    def url(self) -> str:
        return self.url_of(NAME)

    def url_of(self, name: str, *, userinfo: str = "", arguments: str = "") -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        if self.papers:
            return f"rediss+sentinel://{userinfo}{hosts}/{name}/0?{self.papers.query}"
        return f"redis+sentinel://{userinfo}{hosts}/{name}/0{arguments}"

    @property
    def primary(self) -> Node:
        """As the first sentinel that runs names it."""
        port = next(sentinel for sentinel in self.sentinels if sentinel.is_running).primary_port()
        return next(node for node in self.nodes if node.port == port)

    @property
    def replicas(self) -> list[Node]:
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

    def is_whole(self) -> bool:
        """Everybody runs, agrees on one primary, and its replicas have all it has."""
        states = [sentinel.state() for sentinel in self.sentinels]
        if any(
            state["flags"] != "master"
            or (state["num-slaves"], state["num-other-sentinels"]) != ("2", "2")
            or state["port"] != states[0]["port"]
            for state in states
        ):
            return False
        replicas = [flags for sentinel in self.sentinels for flags in sentinel.replica_flags()]
        if any(flags != "slave" for flags in replicas):
            return False
        if not all(sentinel.has_quorum() for sentinel in self.sentinels):
            return False
        primary = self.primary
        return primary.role() == "master" and all(node.is_following(primary) for node in self.replicas)

    def heal(self) -> None:
        """Everybody runs, replicates and agrees. The keys stay."""
        for sentinel in self.sentinels:
            sentinel.start()
        for server in (*self.nodes, *self.sentinels):
            if server.is_running:
                server.resume()
        eventually(lambda: not any("failover" in sentinel.state()["flags"] for sentinel in self.sentinels))
        primary = self.primary
        primary.start()
        for node in self.nodes:
            node.start_as_replica(primary)
            node.mend_replication()
            if node is not primary and not node.is_following(primary):
                node.follow(primary)  # the sentinels would see to it, 10 s from now
        eventually(self.is_whole)

    def failover(self, *how: str) -> None:
        """Planned, as an operator does it; returns when every sentinel names the new primary."""
        before = self.primary.port
        self.sentinels[0].call("SENTINEL", "FAILOVER", NAME, *how)
        self.until_moved(before)

    def until_moved(self, before: int) -> None:
        eventually(lambda: all(s.primary_port() != before for s in self.sentinels if s.is_running))

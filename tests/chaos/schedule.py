"""Which faults happen when: drawn from a seed, or read from the file that a failed run left.

A seed gives the same faults at the same instants to the same targets, and dice of
the same number to every client. What a fault meets is up to the machine: a
schedule that failed once may pass the next time, and is worth repeating.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

Topology = Literal["single", "sentinel", "cluster"]
TOPOLOGIES: tuple[Topology, ...] = get_args(Topology)

EVERYWHERE = ("single", "sentinel", "cluster")
REPLICATED = ("sentinel", "cluster")
LOSING = frozenset({"primary-kill", "primary-stop", "failover"})
"""After these the newest writes may be lost; followers are told."""
FIRST_S = 0.3
"""Not before: clients must have begun."""
MOST_FAULTS_A_SECOND = 1.2


class Kind(NamedTuple):
    """A kind of fault: on which topologies, how long it may last."""

    topologies: tuple[str, ...]
    seconds: tuple[float, float]
    group: str
    """Those of one group wait for one another; of ``replica``, those of the same replica."""
    what: str

    @property
    def is_of_replica(self) -> bool:
        return self.group == "replica"


KINDS: dict[str, Kind] = {
    "replica-kill": Kind(EVERYWHERE, (0.0, 2.0), "replica", "SIGKILL of a replica; it is started again"),
    "replica-term": Kind(
        EVERYWHERE, (0.0, 1.0), "replica", "SIGTERM: it drains, ends with 0, is started again"
    ),
    "replica-stop": Kind(EVERYWHERE, (0.3, 5.0), "replica", "SIGSTOP, then SIGCONT"),
    "replica-clock": Kind(EVERYWHERE, (0.0, 0.5), "replica", "started again with a clock an hour wrong"),
    "link-cut": Kind(("single",), (0.0, 1.0), "replica", "its connections to Redis are cut, again and again"),
    "link-away": Kind(("single",), (0.3, 4.0), "replica", "its connections to Redis are cut and refused"),
    "link-frozen": Kind(
        ("single",), (0.3, 4.0), "replica", "half-open: its connections stay, nothing passes"
    ),
    "link-slow": Kind(("single",), (1.0, 3.0), "replica", "each chunk to or from Redis waits up to 50 ms"),
    "reply-lost": Kind(
        ("single",), (1.0, 2.0), "replica", "scripts run, their replies are dropped, the line cut"
    ),
    "redis-kill": Kind(("single",), (0.0, 1.5), "redis", "SIGKILL; started again with its append-only file"),
    "redis-restart": Kind(("single",), (0.0, 1.0), "redis", "SIGTERM; started again"),
    "redis-stop": Kind(("single",), (0.3, 4.0), "redis", "SIGSTOP, then SIGCONT"),
    "redis-full": Kind(EVERYWHERE, (0.5, 2.0), "redis", "maxmemory reached, nothing evicted"),
    "client-kill": Kind(EVERYWHERE, (0.2, 1.0), "redis", "CLIENT KILL of all connections, again and again"),
    "pubsub-kill": Kind(EVERYWHERE, (0.2, 1.0), "redis", "CLIENT KILL TYPE pubsub, again and again"),
    "script-flush": Kind(EVERYWHERE, (0.2, 1.0), "redis", "SCRIPT FLUSH, again and again"),
    "notifications-off": Kind(EVERYWHERE, (1.0, 4.0), "redis", "notify-keyspace-events is emptied"),
    "primary-kill": Kind(REPLICATED, (0.0, 1.0), "redis", "SIGKILL of a primary; another one takes over"),
    "primary-stop": Kind(REPLICATED, (0.3, 4.0), "redis", "SIGSTOP of a primary, then SIGCONT"),
    "failover": Kind(REPLICATED, (0.0, 0.1), "redis", "another primary, as an operator asks for it"),
    "sentinel-kill": Kind(("sentinel",), (0.5, 3.0), "redis", "SIGKILL of a sentinel; it is started again"),
    "slot-migration": Kind(
        ("cluster",), (0.5, 2.0), "redis", "partitions move to another primary, key by key"
    ),
    "worker-kill": Kind(
        EVERYWHERE, (0.0, 1.0), "worker", "SIGKILL of a worker, answering or not; another comes"
    ),
    "worker-stop": Kind(EVERYWHERE, (2.0, 5.0), "worker", "SIGSTOP, often past its turns' end, then SIGCONT"),
    "impatience": Kind(
        EVERYWHERE, (1.0, 3.0), "clients", "clients give up half of their requests in mid-flight"
    ),
}


class Strike(NamedTuple):
    """One fault to come: *at_s* after the clients began, for so many *seconds*."""

    at_s: float
    kind: str
    target: int
    """Which replica, worker or server, counted modulo how many there are."""
    seconds: float


class Schedule(NamedTuple):
    seed: int
    topology: Topology
    seconds: float
    replicas: int
    strikes: list[Strike]
    is_replicated: bool = False
    """The service answers when a replica of Redis has a write, too: nothing acknowledged may be lost."""

    @property
    def setting(self) -> str:
        """Where sessions are kept, and how surely."""
        return f"{self.topology}{', replicated' * self.is_replicated}"

    def __str__(self) -> str:
        faults = ", ".join(f"{s.at_s:.1f}s {s.kind}/{s.target} {s.seconds:.1f}s" for s in self.strikes)
        return f"seed {self.seed}: {self.replicas} replicas, {self.setting}, {self.seconds:g} s: {faults}"

    def write(self, path: Path) -> None:
        body = self._asdict() | {"strikes": [strike._asdict() for strike in self.strikes]}
        path.write_text(json.dumps(body, indent=1) + "\n")


def draw(
    seed: int, *, seconds: float, topology: Topology = "single", is_replicated: bool = False
) -> Schedule:
    """The schedule of *seed*."""
    dice = random.Random(f"schedule {seed} {topology}")
    possible = [name for name, kind in KINDS.items() if topology in kind.topologies]
    count = dice.randint(2, max(2, round(seconds * MOST_FAULTS_A_SECOND)))
    strikes = []
    for name in _drawn(dice, possible, count):
        low_s, high_s = KINDS[name].seconds
        lasting_s = dice.uniform(low_s, max(low_s, min(high_s, seconds - FIRST_S)))
        at_s = dice.uniform(FIRST_S, max(FIRST_S, seconds - lasting_s))
        strikes.append(Strike(round(at_s, 2), name, dice.randrange(12), round(lasting_s, 2)))
    return Schedule(seed, topology, seconds, dice.choice((2, 2, 3, 4)), sorted(strikes), is_replicated)


def _drawn(dice: random.Random, possible: list[str], count: int) -> list[str]:
    """Without repetition, as long as there are others."""
    found: list[str] = []
    while len(found) < count:
        found += dice.sample(possible, min(len(possible), count - len(found)))
    return found


def read(path: Path) -> Schedule:
    """A schedule that :meth:`Schedule.write` wrote.

    Raises:
        ValueError: the file is no schedule, or names a fault that is not known.
    """
    body: dict[str, Any] = json.loads(path.read_text())
    try:
        strikes = [Strike(**strike) for strike in body.pop("strikes")]
        schedule = Schedule(**body, strikes=strikes)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no schedule: {error}") from error
    unknown = {strike.kind for strike in strikes} - KINDS.keys()
    if unknown:
        raise ValueError(f"{path} names unknown faults: {', '.join(sorted(unknown))}")
    return schedule

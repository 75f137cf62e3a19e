"""Every key in Redis: its name, type, what it holds, and how long it lives.

========================  ======  ==================================================  =====================
key                       type    holds                                               life
========================  ======  ==================================================  =====================
``session:{t}:<sid>``     hash    the session (``state.py``), after expiry its        end + retention
                                  tombstone; turn id → record; place in a ring →
                                  turn that ended
``alarm:{t}:<sid>``       string  nothing: its TTL is the next alarm, leases apart,     next alarm
                                  its ``expired`` notification the hint
``log:{t}:<sid>``         stream  the conversation; created with its first entry      as the session
``draft:{t}:<sid>``       string  the running answer so far                           as the session
``once:{t}:<sha256>``     string  idempotency: what the first success was, no content 24 h, or 10 s
``limit:{t}:<policy>:…``  string  GCRA: when the whole quota is there again           the window
``limit:<policy>:…``      string  the same, of what is no session's (…: the subject)  the window
``due:{t}``               zset    sid → next alarm: the promise                       standing
``ready:{t}``             zset    ``<aid>:<ms>:<sid>`` with queued work               standing
``running:{t}``           zset    ``<aid>:<sid>`` whose turn runs                      standing
``users:{t}``             zset    ``<app>:<uid>:<listedMs>:<sid>``                   standing
``agents:{t}``            zset    ``<app>:<aid>:<listedMs>:<sid>``                   standing
``near:{t}``              zset    sid → deadline, of sessions that were warned        standing
``keeper:{t}``            string  the replica that keeps the partition                lease, 4 s
``replicas``              zset    keeper → until when it lives                        standing
``told:{replicas}``       hash    replica → until when it lives, what it says of itself standing
``settings:{replicas}``   hash    digest → settings of replicas that live             standing
``definitions``           hash    agent id → definition; ``version`` counts changes   standing
``states:{agents}``       hash    agent id → state, since; ``version`` counts changes standing
``presence:{agents}``     zset    agent id → when its workers are looked at again     standing
``workers:{agents}:<aid>`` hash   worker, replica → present until, free, capacity     the last presence
``signing``               hash    key id → created, secret: signs session tokens      standing
``key-uses``              hash    access key id → when it was used last               standing
``commit:{t}``            string  nothing: what is written with the last write, to wait 1 h
                                  until replicas have it (``replicated.py``)
``meta``                  hash    schema version and number of partitions             standing
========================  ======  ==================================================  =====================

``{t}`` is a hash tag, one of 64: all keys of a transition lie in one slot, so a
transition is one script, on one server and on a Cluster alike. The tags are
chosen so that their slots lie evenly over the slot space; bare indices leave
nodes of a cluster idle. Every write to a per-session key leaves a TTL; the keys
without one are the standing ones, and :func:`is_standing` is their list.

Channels: ``live:{t}:<sid>`` (what happens to a session), ``wake:{<aid>}`` (one
word, a session: the agent has work there; two words, a session and a turn: it
ended by another hand than its worker's). They are no keys, but carry tags. On a
cluster the first are sharded channels, heard at the slot's primary (``fleet.py``);
the second lie in other slots than what publishes them, and stay classic.
"""

from __future__ import annotations

from sessions_api.domain.ids import (
    PARTITIONS,
    AgentId,
    SessionId,
    partition_of_session,
)

SCHEMA = 2

TAGS: tuple[str, ...] = tuple(
    (
        "p99 pb5f p2dd pbab pa70 pc4f pac4 p1f2 pe80 p216 pcb9 p2e2 pd90 p306 pca4 p3d2 "
        "paa7 pcba p87 pc6e pe30 pbca p22c pb7e pcc7 p3f1 p11c p325 pbb7 p746 pb63 p235 "
        "pc16 p480 pce2 pafd pb06 p590 pbd2 p3c9 p35f p160 p3ab p1b4 p24f p89e p73e p1a9 "
        "pbf1 p2c7 pc08 p273 p1aa p3b7 pb18 pa0c p2ba p520 p26e p793 p3ca p4d p37e p143"
    ).split()
)
if len(TAGS) != PARTITIONS:
    raise AssertionError(TAGS)

_STANDING = (
    "due", "ready", "running", "users", "agents", "near",
    "replicas", "told", "settings", "definitions", "meta", "states", "presence", "signing", "key-uses",
)  # fmt: skip


class Keyspace:
    """Names keys under one prefix (``SESSIONS_KEY_PREFIX``)."""

    __slots__ = (
        "_limit_",
        "_partitions",
        "_workers_",
        "definitions",
        "key_uses",
        "meta",
        "prefix",
        "presence",
        "replicas",
        "settings",
        "signing",
        "states",
        "told",
    )

    def __init__(self, prefix: str = "sa:") -> None:
        self.prefix = prefix
        self.replicas = f"{prefix}replicas".encode()
        # In the slot of that one: a tag in braces counts for the whole key.
        self.told = f"{prefix}told:{{{prefix}replicas}}".encode()
        self.settings = f"{prefix}settings:{{{prefix}replicas}}".encode()
        self.definitions = f"{prefix}definitions".encode()
        self.meta = f"{prefix}meta".encode()
        self.signing = f"{prefix}signing".encode()
        self.key_uses = f"{prefix}key-uses".encode()
        self.presence = f"{prefix}presence:{{agents}}".encode()
        self.states = f"{prefix}states:{{agents}}".encode()
        self._workers_ = f"{prefix}workers:{{agents}}:"
        self._limit_ = f"{prefix}limit:"
        self._partitions = [PartitionKeys(prefix, tag) for tag in TAGS]

    def partition(self, number: int) -> PartitionKeys:
        return self._partitions[number]

    def of(self, session_id: SessionId) -> SessionKeys:
        """The keys of one session; they follow from its id alone."""
        return SessionKeys(self._partitions[partition_of_session(session_id)], session_id)

    def wake(self, agent_id: AgentId) -> bytes:
        """The channel on which an agent's new work is announced."""
        return f"{self.prefix}wake:{{{agent_id}}}".encode()

    def workers(self, agent_id: AgentId) -> bytes:
        """Who serves an agent; in one slot for all agents, so that one script tells of many."""
        return f"{self._workers_}{agent_id}".encode()

    def limit(self, policy: str, subject: str) -> bytes:
        """How a subject (an address, a key, an agent) stands with a policy.

        The caller sees to it that *subject* is short and has no brace in it.
        """
        return f"{self._limit_}{policy}:{subject}".encode()

    def session_of_alarm(self, key: bytes) -> SessionId | None:
        """The session whose alarm key *key* is, or None if it is no alarm key of ours."""
        text = key.decode("ascii", "replace")
        if not text.startswith(f"{self.prefix}alarm:{{"):
            return None
        return SessionId(text[-36:])

    def is_standing(self, key: bytes) -> bool:
        """Whether *key* may live without a TTL."""
        name = key.decode("ascii", "replace").removeprefix(self.prefix)
        return name.split(":", 1)[0] in _STANDING


class PartitionKeys:
    """The standing keys of one partition, and the prefixes of its sessions' keys."""

    def __init__(self, prefix: str, tag: str) -> None:
        self.tag = tag
        for name in ("due", "ready", "running", "users", "agents", "near", "keeper"):
            setattr(self, name, f"{prefix}{name}:{{{tag}}}".encode())
        for name in ("session", "alarm", "log", "draft", "once", "limit", "live"):
            setattr(self, f"{name}_", f"{prefix}{name}:{{{tag}}}:".encode())

    due: bytes
    ready: bytes
    running: bytes
    users: bytes
    agents: bytes
    near: bytes
    keeper: bytes
    session_: bytes
    alarm_: bytes
    log_: bytes
    draft_: bytes
    once_: bytes
    limit_: bytes
    live_: bytes


class SessionKeys:
    """The keys of one session, in the order every script takes them."""

    __slots__ = ("partition", "sid")

    def __init__(self, partition: PartitionKeys, session_id: SessionId) -> None:
        self.partition = partition
        self.sid = session_id.encode()

    @property
    def session(self) -> bytes:
        return self.partition.session_ + self.sid

    @property
    def log(self) -> bytes:
        return self.partition.log_ + self.sid

    @property
    def live(self) -> bytes:
        return self.partition.live_ + self.sid

    def once(self, digest: str) -> bytes:
        """The idempotency record of *digest*, in this session's slot."""
        return self.partition.once_ + digest.encode()

    def limit(self, policy: str, subject: str) -> bytes:
        """How a subject stands with a policy that this session's scripts apply, in this session's slot."""
        return self.partition.limit_ + f"{policy}:{subject}".encode()

    def all(self) -> list[bytes]:
        """session, alarm, log, draft, due, ready, users, agents, near, running, live."""
        part, sid = self.partition, self.sid
        return [
            part.session_ + sid,
            part.alarm_ + sid,
            part.log_ + sid,
            part.draft_ + sid,
            part.due,
            part.ready,
            part.users,
            part.agents,
            part.near,
            part.running,
            part.live_ + sid,
        ]

"""Limits on how often: which count for a request, and where they are counted.

================== ============================ =============== ===================================
policy             counts, by                   for callers     counted
================== ============================ =============== ===================================
creates-ip         creations, address           without app key exactly, before the creation
creates-key        creations, key               with a key      exactly, before the creation
messages-session   messages, session            all             exactly, in the message's own script
messages-session-ip messages, session and address without app key as messages-session
messages-user      messages, user of the session all            as messages-session
messages-agent     messages, agent              all             exactly, before the message; given
                                                                back if its script does not take it
messages-key       messages, key                with a key      by the last answer (store/limits.py)
requests-key       requests, key                with a key      in this process, without Redis
requests-ip        requests, address            without a key   in this process, without Redis
================== ============================ =============== ===================================

Creations and messages are counted over all replicas. The last two are a guard of
each process against floods, which must cost nothing to refuse.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from sessions_api.domain.access import Caller
from sessions_api.domain.ids import AgentId, SessionId
from sessions_api.domain.limits import Bucket, Limit, Standing
from sessions_api.errors import RateLimited, SessionExpired, SessionNotFound
from sessions_api.store.lanes import LANE
from sessions_api.store.limits import Asked

if TYPE_CHECKING:
    from sessions_api.store import Store

MAX_OWNERS: Final = 10_000
MAX_BUCKETS: Final = 10_000


FLOODS: Final = frozenset({"messages-key", "requests-key", "requests-ip"})
"""Policies whose refusals are held back for about a second (``middleware.py``)."""


class Policies(msgspec.Struct, frozen=True):
    """The operator's limits; None is no limit."""

    creates_ip: Limit | None = None
    creates_key: Limit | None = None
    messages_session: Limit | None = None
    messages_session_ip: Limit | None = None
    messages_user: Limit | None = None
    messages_agent: Limit | None = None
    messages_key: Limit | None = None
    requests_key: Limit | None = None
    requests_ip: Limit | None = None


class Admission(msgspec.Struct, frozen=True):
    """A message that may be sent, as far as is known before its script.

    *standings*: with the limits that count it already. *asked*: those that the
    script applies. *taken*: those that get it back if nothing comes of it.
    """

    standings: tuple[Standing, ...]
    asked: list[Asked]
    taken: tuple[Asked, ...] = ()


class Sender(Protocol):
    """A request, as far as this needs it."""

    @property
    def caller(self) -> Caller: ...

    @property
    def address(self) -> str: ...


class Gate:
    """Holds requests against the policies; each method raises RateLimited if one refuses."""

    def __init__(self, policies: Policies, store: Store) -> None:
        self._policies = policies
        self._store = store
        self._floods = Flood(policies.requests_key, policies.requests_ip)
        self._owners: OrderedDict[tuple[str, SessionId], tuple[str, AgentId]] = OrderedDict()

    def admit(self, whose: Sender) -> None:
        """Any request, before anything is done for it; from here on its commands have its sender's lane."""
        LANE.set(whose.caller.name if whose.caller.is_key else whose.address)
        self._floods.admit(whose)

    async def create(self, caller: Caller, address: str) -> tuple[Standing, ...]:
        """A creation.

        Raises:
            RateLimited
            StorageUnavailable, StorageFull: limits cannot be counted, and none pass uncounted.
        """
        policies, limits = self._policies, self._store.limits
        if caller.is_key and policies.creates_key is not None:
            return (await limits.take("creates-key", caller.name, policies.creates_key),)
        if not _has_app_key(caller) and policies.creates_ip is not None:
            return (await limits.take("creates-ip", address, policies.creates_ip),)
        return ()

    async def message(self, caller: Caller, address: str, session_id: SessionId) -> Admission:
        """A message; one that then is refused, or was accepted before, goes to :meth:`give_back`.

        Raises:
            RateLimited
            StorageUnavailable, StorageFull: as :meth:`create`.
        """
        policies, limits = self._policies, self._store.limits
        standings = self.speak(caller)
        asked: list[Asked] = []
        if policies.messages_session is not None:
            asked.append(("messages-session", session_id, policies.messages_session))
        if policies.messages_session_ip is not None and not _has_app_key(caller):
            asked.append(("messages-session-ip", f"{session_id}:{address}", policies.messages_session_ip))
        if policies.messages_user is None and policies.messages_agent is None:
            return Admission(standings, asked)
        owner = await self._owner(caller, session_id)
        if owner is None:
            return Admission(standings, asked)  # the script refuses it
        user, agent_id = owner
        if policies.messages_user is not None:
            asked.append(("messages-user", user, policies.messages_user))
        if policies.messages_agent is None:
            return Admission(standings, asked)
        by_agent: Asked = ("messages-agent", agent_id, policies.messages_agent)
        return Admission((*standings, await limits.take(*by_agent)), asked, (by_agent,))

    def speak(self, caller: Caller) -> tuple[Standing, ...]:
        """A message of an agent or the system, which its key's limit counts like any other.

        Raises:
            RateLimited
            StorageUnavailable: as :meth:`create`.
        """
        policies = self._policies
        if not caller.is_key or policies.messages_key is None:
            return ()
        return (self._store.limits.meter("messages-key", caller.name, policies.messages_key),)

    async def give_back(self, admission: Admission) -> None:
        """Nothing came of the message: a sender who is refused must not use up what is everybody's."""
        for taken in admission.taken:
            await self._store.limits.give_back(*taken)

    async def _owner(self, caller: Caller, session_id: SessionId) -> tuple[str, AgentId] | None:
        """Whose the session is, as far as the caller may know; it never changes, so it is read once."""
        key = (caller.grant, session_id)
        owner = self._owners.get(key)
        if owner is not None:
            self._owners.move_to_end(key)
            return owner
        try:
            session = await self._store.sessions.read(session_id, grant=caller.grant)
        except (SessionNotFound, SessionExpired):
            return None
        owner = self._owners[key] = (f"{session.app}:{session.user}", session.agent)
        if len(self._owners) > MAX_OWNERS:
            self._owners.popitem(last=False)
        return owner


class Flood:
    """Buckets of this process, by key and by address; the ones used last are kept."""

    def __init__(self, by_key: Limit | None, by_address: Limit | None) -> None:
        self._by_key = by_key
        self._by_address = by_address
        self._buckets: OrderedDict[tuple[str, str], Bucket] = OrderedDict()

    def admit(self, whose: Sender) -> None:
        """Raises RateLimited."""
        is_key = whose.caller.is_key
        policy, limit = ("requests-key", self._by_key) if is_key else ("requests-ip", self._by_address)
        if limit is None:
            return
        subject = whose.caller.name if is_key else whose.address
        bucket = self._buckets.get((policy, subject))
        if bucket is None:
            bucket = Bucket(limit.quota / limit.window_s, limit.quota)
            self._buckets[policy, subject] = bucket
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end((policy, subject))
        if not bucket.allows(monotonic()):
            wait_s = max(1, math.ceil(limit.interval_ms / 1000))
            raise RateLimited(policy, limit.quota, limit.window_s, wait_s)


def _has_app_key(caller: Caller) -> bool:
    return caller.is_key and caller.is_app

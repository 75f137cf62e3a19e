"""How the cost of a request grows: with sessions, messages, followers, a user's sessions, and replicas.

The sizes of a dimension exist side by side, so that they can take turns
(``charges.py``); replicas, which come one after the other, are the exception. No
keeper runs, and no dispatcher where nothing is answered: what is counted is the
requests' own. On two cores more replicas cannot answer more requests; that Redis's
time and round trips for each do not grow with them is what lets them elsewhere.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec

from bench.asking import (
    MARK,
    Heard,
    conversing,
    creating,
    listing,
    paging,
    posting,
    reading,
    replaying,
    telling,
)
from bench.charges import ALL, CONNECTIONS, Act, Case, Place, Study
from bench.figures import Figure
from bench.links import Ear, closing
from bench.machine import CORES
from bench.processes import DEPLOYED, DURABLE, Service, moved, redis_server, service
from bench.speaking import ANSWER, QUESTION, attend, body, each, in_batches, open_sessions, open_store, say
from bench.workers import BASE, WORKER_ID, define
from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import LOCAL_APP, SessionId, UserId, new_message_id
from sessions_api.domain.messages import NewMessage
from sessions_api.store import Store

PAGE = 50
LISTED = 20
FEW = 10
ADDRESSED = 200
TALKING = 20
MEMBERS = 10_000
"""Messages, or a user's sessions, of all cases of a size together: so many cases as that takes, 4 to 100."""


class Scale(msgspec.Struct, frozen=True):
    """How far it goes; *batch* requests at a time, *rounds* times."""

    sessions: tuple[int, ...] = (1_000, 10_000, 100_000)
    messages: tuple[int, ...] = (10, 100, 1_000, 10_000)
    followers: tuple[int, ...] = (1, 10, 100)
    open_sessions: tuple[int, ...] = (10, 100, 1_000)
    replicas: tuple[int, ...] = (1, 2, 3, 4)
    rounds: int = 12
    batch: int = 24


def scale(*, is_million: bool) -> Scale:
    """The whole; *is_million*: also with a million sessions, which takes 1.5 GB and minutes."""
    sizes = Scale().sessions
    return Scale(sessions=(*sizes, 1_000_000) if is_million else sizes)


SMALL = Scale((50, 100), (10, 60), (1, 3), (2, 5), (1, 2), rounds=2, batch=8)


async def run(folder: Path, *, scale: Scale) -> tuple[list[Figure], dict[str, object]]:
    studied = {"with sessions in Redis": await _with_sessions(folder, scale)}
    async with _site(folder) as site:
        studied["with messages in a session"] = await _with_messages(site, scale)
        studied["with a user's open sessions"] = await _with_open_sessions(site, scale)
        studied["with followers of a session"] = await _with_followers(site, scale)
    studied["with replicas"] = await _with_replicas(folder, scale)
    figures = [
        figure
        for name, studies in studied.items()
        for study in studies
        for figure in study.figures(f"Growth {name}")
    ]
    return figures, {
        name: {study.operation: study.details() for study in studies} for name, studies in studied.items()
    }


class Site(NamedTuple):
    """A Redis, and a worker on it."""

    place: Place
    worker: Service

    def case(self, size: int, act: Act) -> Case:
        return Case(size, self.place, [self.worker], act)

    @property
    def store(self) -> Store:
        return self.place.store

    def preparing(self) -> AbstractContextManager[None]:
        """Redis has the worker's core meanwhile, which has nothing to do yet."""
        return moved(self.place.redis, CORES.service)


@asynccontextmanager
async def _site(folder: Path, size: int = 0) -> AsyncIterator[Site]:
    """With nothing in the background."""
    with redis_server(folder / f"redis-{size}", {**DEPLOYED, **DURABLE}) as redis:
        async with open_store(redis.url) as store:
            await attend(store)
            with service(
                folder,
                redis.url,
                SESSIONS_DISPATCHER="off",
                SESSIONS_KEEPER="off",
                SESSION_MAX_OPEN_PER_USER="100000",
            ) as worker:
                yield Site(Place(redis, store), worker)


async def _measured(cases: dict[str, list[Case]], scale: Scale, *, flat: Sequence[str] = ALL) -> list[Study]:
    studies = [Study(operation, its, flat=flat) for operation, its in cases.items()]
    for study in studies:
        await study.measure(rounds=scale.rounds, batch=scale.batch)
    return studies


# ---------------------------------------------------------------- what is there


async def _fill(store: Store, sessions: Sequence[SessionId], count: int) -> None:
    """*count* messages in each session, none of which wants an answer."""
    await in_batches(
        store.log.speak(sid, grant=LOCAL_APP, message=NewMessage(new_message_id(), body(text)))
        for text in islice(cycle((QUESTION, ANSWER)), count)
        for sid in sessions
    )


def _cases_of(size: int) -> int:
    return max(4, min(100, MEMBERS // size))


async def _mark(store: Store, session_id: SessionId) -> tuple[SessionId, int]:
    """The session, and the cursor before its newest few messages."""
    page = await store.log.history(session_id, grant=EVERYTHING, limit=FEW + 1)
    return session_id, page.entries[FEW].cursor if len(page.entries) > FEW else 0


def _user() -> UserId:
    return UserId(str(uuid4()))


# ---------------------------------------------------------------- what grows


async def _with_sessions(folder: Path, scale: Scale) -> list[Study]:
    """Sessions in Redis."""
    cases: dict[str, list[Case]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        for size in scale.sessions:
            site = await stack.enter_async_context(_site(folder, size))
            user = _user()
            with site.preparing():
                sessions = await open_sessions(site.store, size)
                await open_sessions(site.store, LISTED, user_id=user)
                talking = random.sample(sessions, min(size, TALKING))
                addressed = random.sample(sessions, min(size, ADDRESSED))
                await _fill(site.store, talking, PAGE + FEW)
                await each(addressed, partial(say, site.store))
            for name, act in (
                ("GET session", reading(sessions)),
                ("POST message", posting(addressed)),
                (f"GET {PAGE} messages", paging(talking, PAGE)),
                (f"list a user's {LISTED}", listing([user], LISTED)),
            ):
                cases[name].append(site.case(size, act))
        return await _measured(cases, scale)


async def _with_messages(site: Site, scale: Scale) -> list[Study]:
    """Messages in a session."""
    cases: dict[str, list[Case]] = defaultdict(list)
    for size in scale.messages:
        with site.preparing():
            sessions = await open_sessions(site.store, _cases_of(size))
            await _fill(site.store, sessions, size)
        marks = await each(sessions, lambda sid: _mark(site.store, sid))
        operations = [
            (f"replay of the last {FEW}", replaying(site.worker, marks, FEW)),
            ("POST message", posting(sessions)),
        ]
        if size >= PAGE:
            operations.insert(0, (f"GET {PAGE} messages", paging(sessions, PAGE)))
        for name, act in operations:
            cases[name].append(site.case(size, act))
    return await _measured(cases, scale)


async def _with_open_sessions(site: Site, scale: Scale) -> list[Study]:
    """Sessions that one user has open; each user creates a few more."""
    cases: dict[str, list[Case]] = defaultdict(list)
    for size in scale.open_sessions:
        users = [_user() for _ in range(_cases_of(size))]
        with site.preparing():
            for user in users:
                await open_sessions(site.store, size, user_id=user)
        for name, act in (
            (f"list {FEW} of them", listing(users, FEW)),
            ("create session", creating(users)),
        ):
            cases[name].append(site.case(size, act))
    return await _measured(cases, scale)


async def _with_followers(site: Site, scale: Scale) -> list[Study]:
    """Followers of a session on the worker that takes its messages; the next comes when all have the last."""
    ears: list[Ear] = []
    cases: list[Case] = []
    with closing(ears):
        for size in scale.followers:
            sessions = await open_sessions(site.store, CONNECTIONS)
            heard = [Heard() for _ in sessions]
            for sid, its in zip(sessions, heard, strict=True):
                for _ in range(size):
                    path = f"{BASE}/{sid}/events"
                    ears.append(await Ear.open(site.worker, path, MARK, its.note))
            cases.append(site.case(size, telling(posting(sessions), heard, size)))
        return await _measured({"POST message": cases}, scale, flat=["commands"])


async def _with_replicas(folder: Path, scale: Scale) -> list[Study]:
    """Replicas, which are asked in turn; every one of them runs Echo."""
    cases: dict[str, list[Case]] = defaultdict(list)
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder / "redis", {**DEPLOYED, **DURABLE}))
        async with open_store(redis.url) as store:
            await define(store)
            sessions = await open_sessions(store, ADDRESSED)
            unheard = await open_sessions(store, ADDRESSED, agent_id=WORKER_ID)
            workers: list[Service] = []
            for size in scale.replicas:
                while len(workers) < size:
                    workers.append(stack.enter_context(service(folder, redis.url, SESSIONS_KEEPER="off")))
                for name, act in (
                    ("GET session", reading(sessions)),
                    ("POST message", posting(unheard)),
                    ("message and Echo's answer", conversing(sessions)),
                ):
                    case = Case(size, Place(redis, store), workers.copy(), act)
                    await case.trace()
                    for _ in range(scale.rounds):
                        await case.measure(scale.batch)
                    cases[name].append(case)
    answered = "message and Echo's answer"  # each replica may claim the turn, and one gets it
    return [Study(name, its, flat=() if name == answered else ALL) for name, its in cases.items()]

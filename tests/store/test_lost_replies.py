"""A reply that is lost after its script ran: the repeat finds what was done, and answers the same.

For every script: once without fault, once with its reply dropped. What the caller
gets, what the store holds and what followers hear must be the same, instants aside.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import MessageId, OpId, SessionId, TurnId, UserId
from sessions_api.domain.messages import NewMessage
from sessions_api.domain.sessions import ConfigChange, NewSession
from sessions_api.domain.timeouts import TimeoutConfig
from sessions_api.errors import AnswerTooLarge, SessionsError
from sessions_api.store import Store
from sessions_api.store.attendance import Presence
from sessions_api.store.connection import Redis
from sessions_api.store.keys import Keyspace
from sessions_api.store.replicas import Identity
from tests.support.proxy import Proxy
from tests.support.servers import TestServer
from tests.support.stores import AGENT, USER, age, agent_body, answer_body, dump, listening, once, user_body
from tests.support.waiting import eventually

SID = SessionId("5e551011-0000-4000-8000-000000000000")
CONFIG = TimeoutConfig(1_800_000, True, 43_200_000, 300_000)
BITS = "feedfacefeedface"


def turn_id(number: int) -> TurnId:
    return TurnId(f"00000000-0000-4000-8000-00000000000{number}")


def message_id(number: int) -> MessageId:
    return MessageId(f"33333333-0000-4000-8000-00000000000{number}")


class Scene:
    """One fixed session, every id the same in every run."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fence = ""

    async def create(self, once_: Any = None, number: int = 0) -> Any:
        session_id = SessionId(f"{SID[:24]}{number:02x}{SID[26:]}")
        new = NewSession(session_id, "local", AGENT, USER, b"{}", CONFIG, "queue", 3_600_000)  # type: ignore[arg-type]
        return await self.store.sessions.create(new, once=once_)

    async def say(
        self, number: int, on_busy: Any = None, once_: Any = None, *, is_agent_away: bool = False
    ) -> Any:
        return await self.store.log.append(
            SID, grant=EVERYTHING,
            message=NewMessage(message_id(number), user_body(message_id(number), f"{number}")),
            turn_id=turn_id(number), on_busy=on_busy, once=once_, is_agent_away=is_agent_away,
        )  # fmt: skip

    async def claim(self, bits: str = BITS) -> Any:
        claim = await self.store.turns.claim(
            SID,
            agent_id=AGENT,
            worker="w",
            fence_bits=bits,
            message_id=message_id(9),
            turn_ms=300_000,
            max_attempts=3,
        )
        if claim.turn is not None:
            self.fence = claim.turn.turn.fence
        return claim

    async def delta(self, text: str = "so far", offset: int = 0) -> Any:
        return await self.store.turns.delta(SID, turn_id(1), fence=self.fence, text=text, offset=offset)

    async def complete(self, body: bytes | None = answer_body("done")) -> Any:
        return await self.store.turns.complete(SID, turn_id(1), fence=self.fence, body=body)

    async def complete_with_last_text(self) -> Any:
        return await self.store.turns.complete(
            SID, turn_id(1), fence=self.fence, body=answer_body("so far so good"), last=" so good", offset=6
        )

    async def complete_streamed(self) -> Any:
        around = (b'{"content":', b',"isAgent":true}')
        return await self.store.turns.complete(SID, turn_id(1), fence=self.fence, around=around)

    async def fail(self, *, retry: bool, pause_ms: int = 0) -> Any:
        return await self.store.turns.fail(
            SID, turn_id(1), fence=self.fence, code="X", message="x", retry=retry, pause_ms=pause_ms
        )

    async def abandon(self) -> Any:
        return await self.store.turns.abandon(SID, code="X", message="x")

    async def speak(self, once_: Any = None) -> Any:
        message = NewMessage(message_id(8), agent_body(message_id(8), "by the way"))
        return await self.store.log.speak(SID, grant=EVERYTHING, message=message, once=once_)

    async def attend(self, *workers: str, ttl_ms: int = 60_000) -> None:
        await self.store.attendance.attend(
            [Presence(AGENT, worker, 3, ttl_ms, is_free=True) for worker in workers]
        )

    async def renew(self, once_: Any = None) -> Any:
        return await self.store.sessions.renew(SID, grant=EVERYTHING, op=OpId("op"), once=once_)

    async def cancel(self, number: int) -> Any:
        return await self.store.turns.cancel(SID, turn_id(number), grant=EVERYTHING)

    async def pass_(self, by_ms: int) -> None:
        await age(self.store, SID, by_ms)

    # ------------------------------------------------------------ where a run starts

    async def nothing(self) -> None: ...

    async def defined(self) -> None:
        await self.store.agents.put(definition())

    async def attended(self) -> None:
        await self.attend("a")

    async def deserted(self) -> None:
        """A presence that passed, and nobody looked since."""
        await self.attend("a", ttl_ms=1)

        async def is_gone() -> bool:
            return not (await self.store.attendance.read(AGENT)).workers

        await eventually(is_gone)

    async def session(self) -> None:
        await self.create()
        await self.pass_(60_000)

    async def queued(self) -> None:
        await self.session()
        await self.say(1)
        await self.pass_(1_000)  # so that each run renews as often as the other
        await self.say(2)
        await self.pass_(60_000)

    async def running(self) -> None:
        await self.queued()
        await self.claim()

    async def drafted(self) -> None:
        await self.running()
        await self.delta()

    async def lapsed(self) -> None:
        await self.drafted()
        await self.pass_(30_000)
        await self.store.alarms.ring(SID)

    async def warnable(self) -> None:
        await self.queued()
        await self.pass_(1_600_000)

    async def overdue(self) -> None:
        await self.drafted()
        await self.pass_(1_800_000)

    async def overlong(self) -> None:
        await self.running()
        await self.delta("a" * 100_000)

    async def held(self) -> None:
        """Kept alive by its turn only."""
        await self.drafted()
        await self.store.sessions.configure(
            SID,
            grant=EVERYTHING,
            op=OpId("setup"),
            change=ConfigChange(auto_renew=("s", 0), timeout_ms=("s", 30_000)),
        )
        await self.pass_(29_000)


def definition(name: str = "Echo") -> AgentDefinition:
    return AgentDefinition(AGENT, name, "echo")


async def too_large(scene: Scene) -> Any:
    try:
        await scene.delta("b", 100_000)
    except AnswerTooLarge as error:
        return str(error)
    raise AssertionError


Act = Callable[[Scene], Awaitable[Any]]
RUNS: dict[str, tuple[str, str, Act]] = {
    # name: the script, where the run starts, what is done
    "create": ("create", "nothing", lambda s: s.create()),
    "create once": ("create", "nothing", lambda s: s.create(once())),
    "read": ("read", "queued", lambda s: s.store.sessions.read(SID, grant=EVERYTHING)),
    "renew": ("renew", "session", lambda s: s.renew()),
    "renew once": ("renew", "session", lambda s: s.renew(once())),
    "heartbeat": (
        "heartbeat", "session",
        lambda s: s.store.sessions.heartbeat(SID, grant=EVERYTHING, op=OpId("op")),
    ),
    "revoke": (
        "revoke", "session",
        lambda s: s.store.sessions.revoke(SID, grant=EVERYTHING, op=OpId("op")),
    ),
    "configure": (
        "configure", "session",
        lambda s: s.store.sessions.configure(
            SID, grant=EVERYTHING, op=OpId("op"), change=ConfigChange(timeout_ms=("s", 600_000)), if_match=1
        ),
    ),
    "end": ("end", "drafted", lambda s: s.store.sessions.end(SID, grant=EVERYTHING)),
    "append": ("append", "session", lambda s: s.say(1)),
    "append once": ("append", "session", lambda s: s.say(1, once_=once())),
    "append merging": ("append", "queued", lambda s: s.say(3, "merge")),
    "append merging once": ("append", "queued", lambda s: s.say(3, "merge", once())),
    "append interrupting": ("append", "drafted", lambda s: s.say(3, "interrupt")),
    "append rejecting": ("append", "session", lambda s: s.say(1, "reject")),
    "append with nobody there": ("append", "session", lambda s: s.say(1, is_agent_away=True)),
    "speak": ("speak", "drafted", lambda s: s.speak()),
    "speak once": ("speak", "session", lambda s: s.speak(once())),
    "history": ("history", "queued", lambda s: s.store.log.history(SID, grant=EVERYTHING, limit=5)),
    "replay": ("replay", "drafted", lambda s: s.store.log.replay(SID, grant=EVERYTHING, after=0)),
    "turn": ("turn", "drafted", lambda s: s.store.turns.read(SID, turn_id(1), grant=EVERYTHING)),
    "answer": ("answer", "drafted", lambda s: s.store.turns.answer(SID, turn_id(1), grant=EVERYTHING)),
    "claim": ("claim", "queued", lambda s: s.claim()),
    "delta": ("delta", "running", lambda s: s.delta()),
    "delta again": ("delta", "drafted", lambda s: s.delta(" and on", 6)),
    "delta of a lapsed turn": ("delta", "lapsed", lambda s: s.delta(" and on", 6)),
    "delta too large": ("delta", "overlong", too_large),
    "extend": ("extend", "drafted", lambda s: s.store.turns.extend(SID, turn_id(1), fence=s.fence)),
    "complete": ("complete", "drafted", lambda s: s.complete()),
    "complete with what was streamed": ("complete", "drafted", lambda s: s.complete_streamed()),
    "complete with its last text": ("complete", "drafted", lambda s: s.complete_with_last_text()),
    "complete empty": ("complete", "running", lambda s: s.complete(None)),
    "complete of a lapsed turn": ("complete", "lapsed", lambda s: s.complete()),
    "complete that ends the session": ("complete", "held", lambda s: s.complete()),
    "fail": ("fail", "drafted", lambda s: s.fail(retry=True)),
    "fail with a pause": ("fail", "drafted", lambda s: s.fail(retry=True, pause_ms=20_000)),
    "fail for good": ("fail", "drafted", lambda s: s.fail(retry=False)),
    "fail of a lapsed turn": ("fail", "lapsed", lambda s: s.fail(retry=False)),
    "fail that ends the session": ("fail", "held", lambda s: s.fail(retry=False)),
    "release": ("fail", "drafted", lambda s: s.store.turns.release(SID, turn_id(1), fence=s.fence)),
    "cancel": ("cancel", "drafted", lambda s: s.cancel(1)),
    "cancel of a queued turn": ("cancel", "drafted", lambda s: s.cancel(2)),
    "cancel that ends the session": ("cancel", "held", lambda s: s.cancel(1)),
    "abandon": ("abandon", "drafted", lambda s: s.abandon()),
    "abandon that ends the session": ("abandon", "held", lambda s: s.abandon()),
    "abandon of nothing": ("abandon", "session", lambda s: s.abandon()),
    "alarm early": ("alarm", "queued", lambda s: s.store.alarms.ring(SID)),
    "alarm that warns": ("alarm", "warnable", lambda s: s.store.alarms.ring(SID)),
    "alarm that expires": ("alarm", "overdue", lambda s: s.store.alarms.ring(SID)),
    "due": ("due", "queued", lambda s: s.store.alarms.due(0)),
    "postpone": ("postpone", "queued", lambda s: s.store.alarms.postpone(SID, 60_000)),
    "keep": ("keep", "nothing", lambda s: s.store.alarms.keep(0, "replica")),
    "give back": ("keep", "nothing", lambda s: s.store.alarms.yield_(0, "replica")),
    "presence": ("presence", "nothing", lambda s: s.store.replicas.present(Identity("replica"), 60_000)),
    "prune": ("prune", "queued", lambda s: s.store.alarms.prune(0, "users")),
    "stale": ("stale", "queued", lambda s: s.store.ready.stale_ready(0)),
    "define": ("define", "nothing", lambda s: s.store.agents.put(definition())),
    "define again": ("define", "defined", lambda s: s.store.agents.put(definition("Renamed"))),
    "undefine": ("undefine", "defined", lambda s: s.store.agents.forget(AGENT)),
    "serving": ("serving", "queued", lambda s: s.store.agents.sessions_of(AGENT)),
    "attend": ("attend", "nothing", lambda s: s.attend("a", "b")),
    "leave": ("attend", "attended", lambda s: s.store.attendance.leave(AGENT, "a")),
    "settle": ("settle", "deserted", lambda s: s.store.attendance.settle()),
    "dismiss": ("dismiss", "attended", lambda s: s.store.attendance.forget(AGENT)),
}  # fmt: skip

# These are done for their effect: the second time there is nothing left to do, and they say so.
SAYS_WHAT_IT_DID = {
    "alarm that warns",
    "alarm that expires",
    "abandon",
    "abandon that ends the session",
    "define",
}


async def run(server: TestServer, name: str, *, faulty: bool) -> tuple[Any, Any, Any]:
    """What the caller gets, what the store then holds, what followers heard."""
    script, start, act = RUNS[name]
    server.clean()
    async with Proxy(server.url) as proxy, Redis.from_url(proxy.url) as redis:
        store = Store(redis, Keyspace())
        await store.open()
        scene = Scene(store)
        await getattr(scene, start)()
        with listening(server) as ears:
            if faulty:
                sha1 = next(each.sha1 for each in scripts() if each.name == script)
                for each in scripts():
                    server.call("SCRIPT", "LOAD", each.source)
                proxy.drop_reply(lambda command: command[:2] == [b"EVALSHA", sha1])
            try:
                result = await act(scene)
            except SessionsError as error:
                result = repr(error)
            assert proxy.dropped == int(faulty)
            heard = [
                (kind, _timeless(args), payload) for kind, args, payload in ears.heard() if kind != "wake"
            ]
        return _timeless(repr(result)), dump(server), heard


def scripts() -> list[Any]:
    from sessions_api.store import agents, alarms, attendance, log, ready, replicas, sessions, turns
    from sessions_api.store.connection import Script

    modules = (agents, alarms, attendance, log, ready, replicas, sessions, turns)
    return [value for module in modules for value in vars(module).values() if isinstance(value, Script)]


def _timeless(text: str) -> str:
    # An Appended's now_ms may be a later instant; what is left of the time, a few milliseconds less.
    return re.sub(r"\b1[0-9]{12}\b", "<ms>", text)


@pytest.mark.servers("valkey", "redis62")
@pytest.mark.parametrize("name", RUNS)
async def test_the_repeat_finds_what_was_done(server: TestServer, name: str) -> None:
    plain = await run(server, name, faulty=False)

    faulty = await run(server, name, faulty=True)

    assert faulty[1] == plain[1]
    assert faulty[2] == plain[2]
    if name not in SAYS_WHAT_IT_DID:
        assert faulty[0] == plain[0]


def test_every_script_is_put_to_the_test() -> None:
    assert {script for script, *_ in RUNS.values()} == {script.name for script in scripts()}


def test_the_session_lies_in_partition_0() -> None:
    """Where its user's sessions lie, and where ``due`` and ``prune`` look."""
    from sessions_api.domain.ids import partition_of_session, partition_of_user

    assert partition_of_session(SID) == partition_of_user(UserId(USER)) == 0

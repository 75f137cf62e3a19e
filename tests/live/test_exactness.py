"""Whatever is lost, cut or slow: every later entry once and in order, and a text without holes."""

from __future__ import annotations

import asyncio
import random

import pytest

from sessions_api.domain.ids import LOCAL_APP, SessionId
from sessions_api.domain.messages import utf16_units
from sessions_api.live.closing import TOO_SLOW
from sessions_api.live.events import Event
from tests.support.proxy import Proxy
from tests.support.scene import Answering, Follower, Scene, data
from tests.support.servers import RealServer
from tests.support.waiting import until

pytestmark = pytest.mark.servers("valkey")

LAST_MINUTES = 77
PIECES = ("word ", "🙂 ", "é", "a longer piece of text, ", "\n")


class Client:
    """What an application does with the events, and what it would complain about."""

    def __init__(self, scene: Scene, session_id: SessionId, dice: random.Random) -> None:
        self.entries: list[int] = []
        self.cursor: int | None = 0
        self.message_id = ""
        self.text = ""
        self.timeout_minutes = 0.0
        self.turn_id = ""
        self.has_all = False
        self._scene = scene
        self._session_id = session_id
        self._dice = dice

    @property
    def is_done(self) -> bool:
        return self.has_all and self.timeout_minutes == LAST_MINUTES

    async def run(self) -> None:
        """Follow, now and then leave, and come back with the cursor."""
        while not self.is_done:
            follower = await self._scene.follow(self._session_id, after=self.cursor)
            try:
                await self._read(follower)
            finally:
                follower.close()

    async def _read(self, follower: Follower) -> None:
        for number in range(self._dice.randint(5, 200)):
            event = await follower.next()
            if event.closing is not None:
                assert event.closing == TOO_SLOW
                return
            assert number or event.type == "session.snapshot"
            self.take(event)
            if self.is_done:
                return
            if self._dice.random() < 0.02:
                await asyncio.sleep(self._dice.uniform(0, 0.03))

    def take(self, event: Event) -> None:
        told = data(event)
        match event.type:
            case "session.snapshot":
                turn = told["turn"] or {"turnId": "", "messageId": "", "text": "", "offset": 0}
                self.turn_id, self.message_id, self.text = turn["turnId"], turn["messageId"], turn["text"]
                assert utf16_units(self.text) == turn["offset"]
                self.timeout_minutes = told["timeoutConfig"]["timeoutMinutes"]
            case "session.updated":
                self.timeout_minutes = told["timeoutConfig"]["timeoutMinutes"]
            case "turn.started":
                self.turn_id, self.message_id, self.text = told["turnId"], told["messageId"], ""
            case "turn.delta":
                if not self.text:
                    self.turn_id, self.message_id = told["turnId"], told["messageId"]
                assert told["messageId"] == self.message_id
                assert told["offset"] == utf16_units(self.text)
                self.text += told["text"]
            case "message.created" | "turn.failed" | "turn.cancelled":
                assert event.prev == (self.entries[-1] if self.entries else 0)
                self.entries.append(event.cursor)
                self.cursor = event.cursor
                if told.get("status") == "complete" and told["id"] == self.message_id:
                    assert told["content"].startswith(self.text)
                if told.get("turnId") == self.turn_id and (
                    event.type != "message.created" or told.get("status")
                ):
                    self.turn_id, self.message_id, self.text = "", "", ""
                self.has_all = told.get("content") == "the end"
            case "gap" | "session.expired" | "session.ended":
                raise AssertionError(event.type, told)
            case _:
                pass


@pytest.mark.parametrize("seed", range(6))
async def test_through_a_bad_network(server: RealServer, seed: int) -> None:
    """One replica's pub/sub loses one message in ten, and its connections are cut now and then."""
    dice = random.Random(seed)
    async with (
        Proxy(server.url) as proxy,
        Scene(proxy.url, check_s=(0.1, 0.3)) as near,
        Scene(server.url) as far,
    ):
        _lose_some(near, dice)
        proxy.jitter_s = 0.005 * (seed % 2)  # what was published before a read may arrive after it
        session_id = (await far.session()).session_id
        clients = [Client(near, session_id, random.Random(f"{seed} {number}")) for number in range(4)]
        running = [asyncio.create_task(client.run()) for client in clients]

        for number in range(60):
            await _something(far, session_id, dice, number)
            if dice.random() < 0.05:
                proxy.cut()
            if dice.random() < 0.3:
                await asyncio.sleep(dice.uniform(0, 0.02))
        await far.configure(session_id, timeout_ms=LAST_MINUTES * 60_000)
        await far.say(session_id, "the end", on_busy="merge")
        async with asyncio.timeout(20):
            await asyncio.gather(*running)
        entries = [entry.cursor for entry in (await _whole_log(far, session_id))]

    for client in clients:
        assert client.entries == entries


async def test_a_text_that_nobody_ends_is_whole_in_the_end(server: RealServer) -> None:
    """Every delta but the last is lost or not: the last one, or the position, brings the text."""
    dice = random.Random(7)
    async with Scene(server.url, check_s=(0.1, 0.3)) as near, Scene(server.url) as far:
        session_id = (await far.session()).session_id
        await far.say(session_id, "go")
        answering = await far.claim(session_id)
        client = Client(near, session_id, dice)
        follower = await near.follow(session_id, after=0)
        _lose_some(near, dice)

        for number in range(200):
            await answering.say(f"{number} ")
        near.hub.subscriber._on_message = near.hub._tails.on_message
        await answering.say("end")
        while not client.text.endswith("end"):
            client.take(await follower.next())
        follower.close()

    assert client.text == answering.text


def _lose_some(scene: Scene, dice: random.Random) -> None:
    on_message = scene.hub.subscriber._on_message

    def lossy(channel: bytes, payload: bytes) -> None:
        if dice.random() >= 0.1:
            on_message(channel, payload)

    scene.hub.subscriber._on_message = lossy


async def _something(scene: Scene, session_id: SessionId, dice: random.Random, number: int) -> None:
    """A user, an agent or an operator does something."""
    kinds = {"say": 5, "answer": 6, "interrupt": 1, "cancel": 1, "fail": 1, "retry": 2, "configure": 1}
    kind = dice.choices([*kinds], [*kinds.values()])[0]
    if kind == "configure":
        await scene.configure(session_id, timeout_ms=dice.randint(6, 60) * 60_000)
        return
    await scene.say(session_id, f"message {number}", on_busy="merge")
    if kind == "say":
        return
    answering = await _begun(scene, session_id, dice)
    match kind:
        case "cancel":
            await scene.store.turns.cancel(session_id, answering.turn_id, grant=LOCAL_APP)
        case "fail":
            await answering.fail()
        case "retry":
            await scene.store.turns.release(session_id, answering.turn_id, fence=answering.fence)
            await (await _begun(scene, session_id, dice)).complete()
        case "interrupt":
            await scene.say(session_id, f"no, {number}", on_busy="interrupt")
            await (await _begun(scene, session_id, dice)).complete()
        case _:
            await answering.complete("" if dice.random() < 0.2 else None)


async def _begun(scene: Scene, session_id: SessionId, dice: random.Random) -> Answering:
    """The next turn, some of its answer said."""
    answering = await scene.claim(session_id)
    for _ in range(dice.randint(0, 12)):
        await answering.say(dice.choice(PIECES))
    return answering


async def _whole_log(scene: Scene, session_id: SessionId) -> list[Event]:
    follower = await scene.follow(session_id, after=0)
    try:
        events = await follower.until(lambda event: b'"the end"' in event.data)
        return [event for event in events if event.cursor]
    finally:
        follower.close()
        await until(lambda: not scene.hub.followers)

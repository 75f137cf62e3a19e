"""A streamed answer is whole, everywhere and for everybody, and no character of it comes twice.

A worker says drawn texts over several attempts, which fail, lapse or are handed
back; followers at two replicas leave and come back at the other one with their
cursor; posters wait from the beginning, or join by a repeat in mid-answer.
"""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack, aclosing
from typing import Literal

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sessions_api.domain.ids import LOCAL_APP, SessionId, TurnId
from sessions_api.domain.messages import utf16_units
from sessions_api.live.events import Event
from sessions_api.live.outcomes import Beat, Chunk, Outcome, Restart
from sessions_api.live.waiting import Watch
from tests.support.proxy import Proxy
from tests.support.scene import Answering, Follower, Scene, data
from tests.support.servers import RealServer
from tests.support.stores import put_state
from tests.support.waiting import until

pytestmark = pytest.mark.servers("valkey")

# One, two, three and four bytes; one and two units; what JSON, Lua and event streams escape or split at.
LETTERS = st.one_of(
    st.sampled_from('ab \n\r"\\/\t\0\x7fé€\u2028\ufeff\U0001f642\U0001f469\u200d\U0001d11e\U0010ffff'),
    st.characters(exclude_categories=["Cs"]),
)
PIECES = st.lists(st.text(LETTERS, min_size=1, max_size=9), max_size=9)
Ending = Literal["complete", "streamed", "more", "other", "empty", "cancel", "fail"]
ENDINGS: tuple[Ending, ...] = ("complete", "streamed", "more", "other", "empty", "cancel", "fail")


class Attempt(msgspec.Struct, frozen=True):
    """What is said, and how it goes wrong."""

    pieces: list[str]
    end: Literal["release", "fail", "lapse", "revive"]


class Story(msgspec.Struct, frozen=True):
    attempts: list[Attempt]
    last: list[str]
    end: Ending
    seed: int = 0
    loses: bool = False
    """One replica hears one message in ten not at all, and the others late."""


STORIES = st.builds(
    Story,
    st.lists(st.builds(Attempt, PIECES, st.sampled_from(("release", "fail", "lapse", "revive"))), max_size=3),
    PIECES,
    st.sampled_from(ENDINGS),
    st.integers(0, 2**16),
    st.booleans(),
)


class Reader:
    """A client's text, put together from message id and offset as the documentation says."""

    def __init__(self, scenes: list[Scene], session_id: SessionId, dice: random.Random) -> None:
        self.text = ""
        self.message_id = ""
        self.entries: list[tuple[int, object]] = []
        self.is_done = False
        self.stays = False
        self.seen: list[tuple[str, str]] = []
        """Every state of the text: (message id, text)."""
        self._scenes = scenes
        self._session_id = session_id
        self._dice = dice

    async def run(self) -> None:
        while not self.is_done:
            cursor = self.entries[-1][0] if self.entries else 0
            follower = await self._dice.choice(self._scenes).follow(self._session_id, after=cursor)
            try:
                await self._read(follower)
            finally:
                follower.close()
            await asyncio.sleep(self._dice.choice((0, 0, 0.003)))

    async def _read(self, follower: Follower) -> None:
        left = self._dice.randint(2, 12)
        is_first = True
        while not self.is_done and (left or self.stays):
            event = await follower.next()
            assert event.closing is None, event
            assert (event.type == "session.snapshot") or not is_first
            is_first = False
            self._take(event)
            left = max(0, left - 1)

    def _take(self, event: Event) -> None:
        told = data(event)
        match event.type:
            case "session.snapshot":
                turn = told["turn"] or {"messageId": "", "text": "", "offset": 0}
                self._show(turn["messageId"], turn["text"])
                assert utf16_units(self.text) == turn["offset"]
            case "turn.queued":
                self._show("", "")
            case "turn.started":
                self._show(told["messageId"], "")
            case "turn.delta":
                if not self.text:
                    self.message_id = told["messageId"]
                assert told["messageId"] == self.message_id
                assert told["offset"] == utf16_units(self.text), "a hole, or a character twice"
                self._show(self.message_id, self.text + told["text"])
            case "message.created" | "turn.failed" | "turn.cancelled":
                assert event.prev == (self.entries[-1][0] if self.entries else 0)
                self.entries.append((event.cursor, told))
                self.is_done = told.get("content") == "the end"
                if event.type != "message.created" or told.get("status"):
                    self._show("", "")
            case _:
                assert event.type in {"session.renewed", "turn.completed"}

    def _show(self, message_id: str, text: str) -> None:
        self.message_id, self.text = message_id, text
        self.seen.append((message_id, text))


class Poster:
    """What a poster of ``transport: sse`` has at the end."""

    def __init__(self, *, is_repeat: bool) -> None:
        self._is_repeat = is_repeat
        self.text = ""
        self.message_id = ""
        self.outcome: Outcome
        self.seen: list[tuple[str, str]] = []

    async def run(self, watch: Watch, turn_id: TurnId) -> None:
        units = index = 0
        async with aclosing(watch.stream(turn_id, timeout_ms=20_000, is_repeat=self._is_repeat)) as parts:
            async for part in parts:
                match part:
                    case Restart():
                        assert part.attempt > 0
                        self.message_id, self.text, units, index = part.message_id, "", 0, 0
                    case Chunk():
                        assert (part.offset, part.index) == (units, index)
                        assert part.text
                        assert part.message_id == self.message_id or not index
                        self.message_id = part.message_id
                        self.text += part.text
                        units += utf16_units(part.text)
                        index += 1
                        self.seen.append((self.message_id, self.text))
                    case Beat():
                        pass
                    case Outcome():
                        self.outcome = part


class Play:
    """One story, played before readers and posters."""

    def __init__(self, story: Story, near: Scene, far: Scene) -> None:
        self.story = story
        self.said: dict[str, str] = {}
        self.readers: list[Reader] = []
        self.posters: list[Poster] = []
        self._near = near
        self._far = far
        self._dice = random.Random(story.seed)
        self._tasks = asyncio.TaskGroup()
        self._session_id: SessionId
        self._turn_id: TurnId

    async def run(self) -> None:
        session = await self._far.session()
        self._session_id = session.session_id
        self.readers = [
            Reader([self._near, self._far], self._session_id, random.Random(f"{self.story.seed} {number}"))
            for number in range(3)
        ]
        async with asyncio.timeout(25), AsyncExitStack() as stack, self._tasks:
            for reader in self.readers:
                self._tasks.create_task(reader.run())
            watches = [
                await stack.enter_async_context(scene.hub.watch(self._session_id))
                for scene in (self._near, self._far)
            ]
            self._turn_id = (await self._far.say(self._session_id, "go")).turn_id
            for watch in watches:
                self._post(watch, is_repeat=False)
            for attempt in self.story.attempts:
                await self._attempt(attempt)
            await self._last(stack)
            await self._far.say(self._session_id, "the end")

    def _post(self, watch: Watch, *, is_repeat: bool) -> None:
        poster = Poster(is_repeat=is_repeat)
        self.posters.append(poster)
        self._tasks.create_task(poster.run(watch, self._turn_id))

    async def _attempt(self, attempt: Attempt) -> None:
        answering = await self._claim()
        await self._say(answering, attempt.pieces)
        match attempt.end:
            case "release":
                turns = self._far.store.turns
                await turns.release(self._session_id, self._turn_id, fence=answering.fence)
            case "fail":
                await answering.fail(retry=True)
            case "lapse" | "revive":
                await self._set("held_until_ms")
        if attempt.end == "revive":
            await self._say(answering, ["still ", "here "])
            await answering.fail(retry=True)
        if attempt.end != "release":
            await self._set("retry_ms")

    async def _claim(self) -> Answering:
        answering = await self._far.claim(self._session_id, max_attempts=100)
        self.said[answering.message_id] = ""
        return answering

    async def _set(self, instant: str) -> None:
        """That instant has come: the lease's end, or that of the pause before the next attempt."""
        await put_state(self._far.store, self._session_id, **{instant: 1})
        await self._far.store.alarms.ring(self._session_id)

    async def _say(self, answering: Answering, pieces: list[str]) -> None:
        for piece in pieces:
            await answering.say(piece)
            self.said[answering.message_id] = answering.text
            if self._dice.random() < 0.3:
                await asyncio.sleep(self._dice.uniform(0, 0.003))

    async def _last(self, stack: AsyncExitStack) -> None:
        answering = await self._claim()
        half = len(self.story.last) // 2
        await self._say(answering, self.story.last[:half])
        watch = await stack.enter_async_context(
            self._dice.choice([self._near, self._far]).hub.watch(self._session_id)
        )
        self._post(watch, is_repeat=True)
        await self._say(answering, self.story.last[half:])
        for reader in self.readers:
            reader.stays = True
        await until(lambda: all(reader.text == answering.text for reader in self.readers))
        match self.story.end:
            case "complete":
                await answering.complete()
            case "streamed":
                await answering.complete_streamed()
            case "more":
                await answering.complete(answering.text + "and more \U0001f642")
            case "other":
                await answering.complete("something else")
            case "empty":
                await answering.complete("")
            case "cancel":
                await self._near.store.turns.cancel(self._session_id, self._turn_id, grant=LOCAL_APP)
            case "fail":
                await answering.fail()

    async def check(self) -> None:
        history = await self._far.store.log.replay(self._session_id, grant=LOCAL_APP, after=0)
        entries = [entry.cursor for entry in history.entries]
        [answer] = [json.loads(entry.body) for entry in history.entries if entry.status] or [None]
        for reader in self.readers:
            assert [cursor for cursor, _ in reader.entries] == entries
            self._check_seen(reader.seen)
            told = [entry for _, entry in reader.entries if isinstance(entry, dict) and entry.get("status")]
            assert [(one["id"], one["content"]) for one in told] == (
                [(answer["id"], answer["content"])] if answer else []
            )
        for poster in self.posters:
            if self.story.end == "fail":
                assert poster.outcome.kind == "failed"
                self._check_seen(poster.seen)
                continue
            assert poster.outcome.kind == ("cancelled" if self.story.end == "cancel" else "completed")
            assert poster.text == (answer["content"] if answer else "")
            if answer:
                assert poster.message_id == answer["id"]

    def _check_seen(self, seen: list[tuple[str, str]]) -> None:
        """Only what was said, and no attempt after a later one."""
        attempts = list(self.said)
        numbers = [attempts.index(message_id) for message_id, _ in seen if message_id]
        assert numbers == sorted(numbers)
        for message_id, text in seen:
            assert self.said.get(message_id, "").startswith(text)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(STORIES)
@example(Story([Attempt(["half an ans"], "fail")], [], "empty"))
@example(Story([Attempt(["one "], "revive"), Attempt(["two "], "lapse")], ["three"], "cancel"))
@example(Story([], ["streamed "], "other"))
@example(Story([Attempt(["one "], "fail")], [], "cancel"))
@pytest.mark.timeout(180)
async def test_a_streamed_answer_is_whole_for_everybody(server: RealServer, story: Story) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(server.url))
        near = await stack.enter_async_context(Scene(proxy.url, check_s=(0.1, 0.3)))
        far = await stack.enter_async_context(Scene(server.url, check_s=(0.1, 0.3)))
        if story.loses:
            proxy.jitter_s = 0.003
            _lose_some(near, random.Random(story.seed))
        play = Play(story, near, far)
        await play.run()
        await play.check()


def _lose_some(scene: Scene, dice: random.Random) -> None:
    """What is left comes in order, but after what was read meanwhile."""
    on_message = scene.hub.subscriber._on_message
    loop = asyncio.get_running_loop()
    at_s = loop.time()

    def lossy(channel: bytes, payload: bytes) -> None:
        nonlocal at_s
        at_s = max(at_s + 0.0001, loop.time() + dice.uniform(0, 0.02))
        if dice.random() >= 0.1:
            loop.call_at(at_s, on_message, channel, payload)

    scene.hub.subscriber._on_message = lossy

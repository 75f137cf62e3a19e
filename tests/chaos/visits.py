"""One client in one session: it talks, repeats, renews, cancels, races the end, and leaves or deletes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from tests.chaos.asking import REPLY_S, TURN_WAIT_MS, Service, names_turn, note
from tests.chaos.hearing import instant_ms
from tests.chaos.history import Ack, Asked, Life, Said, now_ms
from tests.support.client import BASE

if TYPE_CHECKING:
    from tests.chaos.clients import Client

PATIENCE_S = 30.0
"""With one message, through whatever happens; then it was never acknowledged."""
RACE_MS = 6.0


class Visit:
    """One client in one session."""

    def __init__(self, client: Client, life: Life, service: Service, dice: random.Random) -> None:
        self._client = client
        self._life = life
        self._service = service
        self._dice = dice
        self._path = f"{BASE}/{life.session_id}"
        self._said: list[Said] = []
        self._bodies: dict[str, dict[str, Any]] = {}  # content → what was sent
        self._is_over = False

    async def run(self) -> None:
        """Talk for a while, then leave the session to itself, or delete it."""
        dice = self._dice
        for _ in range(dice.choice((0, 1, 1, 2))):
            self._client.follow(self._life.session_id)
        steps = dice.randrange(3, 25)
        for _ in range(steps):
            if self._client.is_stopping or self._is_over:
                break
            await self._step()()
            await self._client.pause(0.01, 0.15)
        if self._life.is_brief and dice.random() < 0.6:
            await self._race_the_end()
        if dice.random() < 0.15:
            await self._delete()

    def _step(self) -> Callable[[], Awaitable[None]]:
        weights: dict[Callable[[], Awaitable[None]], int] = {
            self._say: 50,
            self._ask_and_wait: 6,
            self._say_over_websocket: 6,
            self._repeat: 8,
            self._get: 6,
            self._history: 4,
            self._heartbeat: 6,
            self._renew: 4,
            self._patch: 2,
            self._cancel: 6,
        }
        return self._dice.choices(list(weights), list(weights.values()))[0]

    # ------------------------------------------------------------ messages

    def _new(self) -> tuple[Said, dict[str, Any], dict[str, str]]:
        """A message that is in no other session, and was never said before."""
        content = f"{self._life.session_id} {self._client.name} {len(self._said)}"
        said = Said(
            session_id=self._life.session_id, who=self._client.name, content=content, began_ms=now_ms()
        )
        self._said.append(said)
        self._service.history.said.append(said)
        on_busy = self._dice.choices(("queue", "merge", "interrupt", "reject"), (6, 3, 2, 1))[0]
        return said, {"content": content, "onBusy": on_busy}, self._key_of(said)

    @staticmethod
    def _key_of(said: Said) -> dict[str, str]:
        key = said.content.replace(" ", "-")
        return {"Idempotency-Key": key, "Prefer": "return=minimal"}

    async def _say(self) -> None:
        said, body, headers = self._new()
        self._bodies[said.content] = body
        await self._post(said, body, headers)

    async def _ask_and_wait(self) -> None:
        said, body, headers = self._new()
        said.waits = True
        self._bodies[said.content] = body
        await self._post(said, body | {"transport": "http", "timeoutMs": TURN_WAIT_MS}, headers)

    async def _repeat(self) -> None:
        """What was acknowledged is sent once more: it must be the same again."""
        old = [said for said in self._said if said.acks]
        if old:
            said = self._dice.choice(old)
            await self._post(said, self._bodies[said.content], self._key_of(said))

    async def _post(self, said: Said, body: dict[str, Any], headers: dict[str, str]) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + PATIENCE_S
        at = self._dice.randrange(12)
        while loop.time() < deadline_s:
            said.tries += 1
            asked, reply = await self._service.ask(
                "post",
                "POST",
                f"{self._path}/messages",
                session_id=said.session_id,
                replica=at,
                waits=body.get("transport") == "http",
                body=body,
                headers=headers,
            )
            if asked.status == 201:
                self._acknowledge(said, asked, reply)
                return
            if asked.waits and asked.status in {404, 410, 502, 504} and names_turn(reply):
                # It was accepted, and is over. What as, a repeat that does not wait is told.
                body = {name: value for name, value in body.items() if name not in {"transport", "timeoutMs"}}
            elif asked.status in {404, 409, 410}:
                said.outcome = said.outcome or {404: "gone", 409: "busy", 410: "over"}[asked.status]
                self._is_over = self._is_over or asked.status != 409
                return
            else:
                await self._client.wait_as_told(asked)
            at += 1

    def _acknowledge(self, said: Said, asked: Asked, reply: dict[str, Any]) -> None:
        message = reply["userMessage"]
        asked.echoed = message["content"].partition(" ")[0]
        said.outcome = "acknowledged"
        said.acks.append(
            Ack(
                at_ms=asked.ended_ms,
                message_id=message["id"],
                cursor=reply["cursor"],
                turn_id=reply["turnId"],
            )
        )
        answer = reply.get("agentResponse")
        if answer and answer.get("text") and answer.get("message", {}).get("status") != "cancelled":
            said.answer = answer["text"]

    async def _say_over_websocket(self) -> None:
        """Over a socket of its own; through another one, or by HTTP, where that gives no answer."""
        said, body, headers = self._new()
        self._bodies[said.content] = body
        at = self._dice.randrange(12)
        frame = {"type": "message", "ref": 1, "idempotencyKey": headers["Idempotency-Key"]} | body
        for attempt in range(2):
            if await self._sent(said, frame, at + attempt):
                return
        await self._post(said, body, headers)

    async def _sent(self, said: Said, frame: dict[str, Any], at: int) -> bool:
        """Send it once; True if that was answered for good."""
        replica = at % len(self._service.urls)
        url = self._service.urls[replica].replace("http", "ws", 1)
        said.tries += 1
        try:
            async with (
                asyncio.timeout(REPLY_S),
                connect(
                    f"{url}{self._path}/ws",
                    subprotocols=[Subprotocol("sessions.v1")],
                    open_timeout=None,
                    close_timeout=1,
                ) as socket,
            ):
                asked = Asked(what="post", session_id=said.session_id, replica=replica, began_ms=now_ms())
                await socket.send(json.dumps(frame))
                async for text in socket:
                    reply = json.loads(text)
                    if reply.get("ref") == 1:
                        break
                else:
                    return False
                asked.ended_ms = now_ms()
        except (OSError, TimeoutError, WebSocketException):
            return False
        asked.status = reply["status"]
        if reply["type"] == "ack":
            data = reply["data"]
            asked.is_replay = True  # or not: an ack does not say
            self._service.history.asked.append(asked)
            self._acknowledge(said, asked, data)
            return True
        note(asked, reply)
        asked.retry_after = "1"  # a frame has no headers
        self._service.history.asked.append(asked)
        return False

    # ------------------------------------------------------------ everything else

    async def _once(self, what: str, method: str, path: str, **more: Any) -> tuple[Asked, Any]:
        """A request that is not worth repeating."""
        asked, reply = await self._service.ask(
            what,
            method,
            f"{self._path}{path}",
            session_id=self._life.session_id,
            replica=self._dice.randrange(12),
            **more,
        )
        if asked.status in {404, 410}:
            self._is_over = True
        return asked, reply

    async def _get(self) -> None:
        await self._once("get", "GET", "")

    async def _history(self) -> None:
        asked, reply = await self._once("history", "GET", "/messages")
        if asked.status == 200 and reply["messages"]:
            asked.echoed = reply["messages"][-1]["content"].removeprefix("echo: ").partition(" ")[0]

    async def _heartbeat(self) -> None:
        await self._once("heartbeat", "POST", "/heartbeat")

    async def _renew(self) -> None:
        await self._once("renew", "POST", "/renew")

    async def _patch(self) -> None:
        """A brief one may live a bit longer; the others get a minute more or less."""
        low, high = (2.0, 5.0) if self._life.is_brief else (600.0, 1200.0)
        body = {"timeoutMinutes": round(self._dice.uniform(low, high) / 60, 5)}
        await self._once("patch", "PATCH", "/timeout", body=body)

    async def _cancel(self) -> None:
        acks = [ack for said in self._said for ack in said.acks]
        if acks:
            turn_id = self._dice.choice(acks[-3:]).turn_id
            await self._once("cancel", "POST", f"/turns/{turn_id}/cancel")

    async def _race_the_end(self) -> None:
        """Everything at once, on every replica, within milliseconds of the instant at which it ends."""
        asked, info = await self._once("get", "GET", "")
        if asked.status != 200:
            return
        ends = [instant_ms(info[name]) for name in ("expiresAt", "heldUntil") if info.get(name)]

        async def at(offset_ms: float, act: Callable[[], Awaitable[None]]) -> None:
            await asyncio.sleep(max(0.0, (max(ends) - now_ms() + offset_ms) / 1000))
            await act()

        acts = (self._renew, self._heartbeat, self._say, self._get, self._get, self._patch)
        await asyncio.gather(*(at(self._dice.uniform(-RACE_MS, RACE_MS), act) for act in acts))

    async def _delete(self) -> None:
        """Until it is gone."""
        self._life.deleted_ms = now_ms()
        while True:
            asked, _ = await self._once("delete", "DELETE", "")
            if asked.status in {200, 404}:
                return
            await self._client.wait_as_told(asked)

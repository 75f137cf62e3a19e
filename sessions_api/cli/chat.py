"""Talk to an agent in this terminal: answers stream in, the prompt counts down to the session's end.

/renew keeps the session going, /stop ends a running answer, /new starts a new
session, /quit or Ctrl-D leaves; the session stays. Without a terminal, each line
of the input is a message, and the answers are the output. An agent that is just
being started is waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import suppress
from typing import Any
from uuid import uuid4

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from sessions_api.cli import service
from sessions_api.cli.opening import open_session
from sessions_api.cli.screen import Lines, Paper, Screen, open_screen
from sessions_api.cli.terminal import clean, duration, instant_ms, now_ms
from sessions_api.domain.agents import ECHO_ID

PAUSE_FIRST_S, PAUSE_LAST_S = 0.3, 8.0
NOT_BACK = {1008, 4400, 4401, 4404, 4410}
"""Close codes after which coming back is of no use."""
HELP = "/renew keeps the session going · /stop ends the answer · /new starts a session · /quit leaves"


def arguments(parser: argparse.ArgumentParser) -> None:
    service.arguments(parser)
    parser.add_argument(
        "--agent", type=service.uuid, default=ECHO_ID, metavar="ID", help="who answers (the built-in Echo)"
    )
    parser.add_argument(
        "--user", type=service.uuid, default=str(uuid4()), metavar="ID", help="who you are (somebody new)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="for an agent that is not there yet (%(default)g)",
    )
    parser.add_argument("--session", type=service.uuid, metavar="ID", help="go on with this session")
    parser.add_argument(
        "--timeout", type=float, metavar="MINUTES", help="of silence after which a new session ends"
    )


def run(args: argparse.Namespace) -> int:
    api = service.Service(args)
    with open_screen() as screen:
        return asyncio.run(_Chat(api, args, screen).run())


class _Chat:
    """One terminal; one session after the other."""

    def __init__(self, api: service.Service, args: argparse.Namespace, screen: Screen | Paper) -> None:
        self._api = api
        self._args = args
        self._screen = screen
        self._lines = Lines(screen)

    async def run(self) -> int:
        session_id = self._args.session or await self._create()
        self._lines.start()
        while True:
            talk = _Talk(self._api, session_id, self._screen, self._lines)
            outcome = await talk.run()
            if outcome == "quit":
                return 0
            if outcome == "over" and not self._screen.is_terminal:
                return await self._rest_unsent(talk)
            if outcome == "over" and not await self._wants_another():
                return 0
            session_id = await self._create()
            if talk.unsent:
                self._lines.put_back(talk.unsent)

    async def _create(self) -> str:
        body: dict[str, object] = {"agentId": self._args.agent, "userId": self._args.user}
        if self._args.timeout is not None:
            body["timeoutConfig"] = {"timeoutMinutes": self._args.timeout}
        session_id = await open_session(self._api, body, wait_s=self._args.wait, tell=self._screen.remark)
        self._screen.remark(f"session {session_id}" + (f" · {HELP}" if self._screen.is_terminal else ""))
        return session_id

    async def _wants_another(self) -> bool:
        self._screen.prompt("start a new session? [Y/n] ")
        answer = await self._lines.next()
        return answer is not None and answer.strip().lower() in {"", "y", "yes"}

    async def _rest_unsent(self, talk: _Talk) -> int:
        """The exit status of a script whose session is over: 0 if it had nothing more to say."""
        if not talk.unsent and await self._lines.next() is None:
            return 0
        self._screen.remark("the rest of the input was not sent")
        return 1


class _Talk:
    """One session, over as many connections as it takes."""

    def __init__(self, api: service.Service, session_id: str, screen: Screen | Paper, lines: Lines) -> None:
        self._url = f"{api.websocket_url}{service.SESSIONS}/{session_id}/ws"
        self._api = api
        self._screen = screen
        self._lines = lines
        self._cursor = 0
        self._end_ms = 0
        self._ahead_ms = 0  # the server's clock against this one
        self._is_near = False
        self._is_away = False
        self._open: set[str] = set()  # turns without an outcome
        self._closed: set[str] = set()
        self._ours: set[str] = set()
        self._unacked: dict[str, str] = {}  # key → content
        self._shown = ("", "")  # turn, text of it on the screen
        self._changed = asyncio.Event()
        self._socket: ClientConnection | None = None
        self._over = ""

    @property
    def unsent(self) -> list[str]:
        return list(self._unacked.values())

    async def run(self) -> str:
        """``quit``, ``new`` or ``over``."""
        listening = asyncio.create_task(self._stay_connected())
        speaking = asyncio.create_task(self._speak())
        clock = asyncio.create_task(self._tick())
        tasks = {listening, speaking, clock}
        try:
            await asyncio.wait({listening, speaking}, return_when=asyncio.FIRST_COMPLETED)
            if speaking.done():
                return await speaking
            await listening
            return "over"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    # ------------------------------------------------------------ listening

    async def _stay_connected(self) -> None:
        pause_s = PAUSE_FIRST_S
        while not self._over:
            try:
                async with connect(
                    f"{self._url}?after={self._cursor}",
                    subprotocols=[Subprotocol("sessions.v1")],
                    additional_headers=self._api.key_header,
                    proxy=None,
                    max_size=None,
                ) as socket:
                    pause_s = PAUSE_FIRST_S
                    self._socket = socket
                    for key, content in self._unacked.items():  # the same keys: nothing is sent twice
                        await self._send_message(key, content)
                    async for frame in socket:
                        await self._hear(json.loads(frame))
                    if socket.close_code in NOT_BACK:
                        self._end(socket.close_reason or "the session is over")
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake):
                pass
            finally:
                self._socket = None
            if not self._over:
                self._screen.remark("connection lost, coming back")
                await asyncio.sleep(pause_s)
                pause_s = min(PAUSE_LAST_S, 2 * pause_s)

    async def _hear(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "ack":
            self._accepted(frame)
        elif frame["type"] == "error":
            await self._refused(frame)
        else:
            self._event(frame)
        self._changed.set()
        self._show_prompt()

    def _accepted(self, frame: dict[str, Any]) -> None:
        if self._unacked.pop(frame["ref"] or "", None) is not None:
            turn_id = frame["data"]["turnId"]
            if turn_id not in self._closed:  # events may be ahead of the ack
                self._open.add(turn_id)

    async def _refused(self, frame: dict[str, Any]) -> None:
        error = frame["error"]
        if error["code"] in {"SESSION_EXPIRED", "SESSION_NOT_FOUND"}:
            self._end(error["message"])  # what was not sent stays unsent
        elif not (error["retryable"] and frame["ref"] in self._unacked):
            self._unacked.pop(frame["ref"] or "", None)
            self._screen.remark(f"{error['message']} ({error['code']})")
        elif self._socket is not None:  # try again by a new connection, with the same key
            await self._socket.close()

    def _event(self, event: dict[str, Any]) -> None:
        data = event["data"]
        self._ahead_ms = instant_ms(event["time"]) - now_ms()
        if event.get("prev") is not None and event["type"] != "session.snapshot":
            self._cursor = max(self._cursor, event["cursor"])
        match event["type"]:
            case "session.snapshot":
                self._end_ms = instant_ms(event["time"]) + data["timeRemaining"]
                self._is_near = data["isNearExpiration"]
                turn = data.get("turn")
                if turn:
                    self._open.add(turn["turnId"])
                    self._show(turn["turnId"], 0, turn["text"])
            case "session.renewed":
                self._end_ms, self._is_near = instant_ms(data["expiresAt"]), False
            case "session.expiring":
                self._end_ms, self._is_near = instant_ms(data["expiresAt"]), True
                left = duration(self._end_ms - now_ms() - self._ahead_ms)
                how = (
                    "it has reached its longest life"
                    if data["reason"] == "max_duration"
                    else "/renew keeps it going"
                )
                self._screen.remark(f"this session ends in {left}: {how}")
            case "session.expired":
                why = (
                    "it has reached its longest life"
                    if data["reason"] == "max_duration"
                    else "it was quiet for too long"
                )
                self._end(f"this session has ended: {why}")
            case "session.ended":
                self._end("this session was deleted")
            case "turn.queued":
                if data["turnId"] not in self._closed:
                    self._open.add(data["turnId"])
                    self._begin_anew(data["turnId"])
            case "turn.started":
                self._open.add(data["turnId"])
                self._begin_anew(data["turnId"])
            case "turn.delta":
                self._show(data["turnId"], data["offset"], data["text"])
            case "turn.completed":
                if "cursor" not in data:  # else the answer's own event ends it
                    self._close_turn(data["turnId"])
            case "turn.cancelled":
                self._close_turn(data["turnId"])
            case "turn.failed":
                self._close_turn(data["turnId"])
                self._screen.remark(f"the agent could not answer: {data['message']} ({data['code']})")
            case "message.created":
                self._message(data)
            case "agent.availability":
                self._agent_is(data["state"])
            case "gap":
                self._screen.remark("some messages are no longer there")
            case _:  # what came later than this release is not shown
                pass

    def _agent_is(self, state: str) -> None:
        if (state == "offline") != self._is_away:
            self._is_away = state == "offline"
            away = "the agent is offline; what you say waits for it"
            self._screen.remark(away if self._is_away else "the agent is back")

    def _message(self, message: dict[str, Any]) -> None:
        turn_id = message.get("turnId", "")
        if not message["isAgent"]:
            if message["metadata"].get("clientRef") not in self._ours:
                self._screen.line("you", message["content"])
            return
        if self._shown[0] == turn_id != "":
            self._show(turn_id, 0, message["content"])
            self._screen.end_answer(" (stopped)" if message.get("status") == "cancelled" else "")
            self._shown = ("", "")
        else:
            self._screen.line("agent", message["content"])
        self._close_turn(turn_id)

    def _show(self, turn_id: str, offset: int, text: str) -> None:
        """Print what the screen does not have yet of a running answer; *offset* counts UTF-16 units."""
        if self._shown[0] != turn_id:
            self._screen.begin_answer("agent")
            self._shown = (turn_id, "")
        shown = self._shown[1].encode("utf-16-le")
        piece = text.encode("utf-16-le")[max(0, len(shown) - 2 * offset) :].decode("utf-16-le", "ignore")
        self._screen.more(clean(piece))
        self._shown = (turn_id, self._shown[1] + piece)

    def _begin_anew(self, turn_id: str) -> None:
        """What an attempt said that was given up is not the answer."""
        if self._shown[0] == turn_id and self._shown[1]:
            self._screen.end_answer(" …")
            self._shown = ("", "")

    def _close_turn(self, turn_id: str) -> None:
        self._open.discard(turn_id)
        self._closed.add(turn_id)
        if self._shown[0] == turn_id != "":
            self._screen.end_answer("")
            self._shown = ("", "")

    def _end(self, why: str) -> None:
        if not self._over:
            self._over = why
            self._screen.remark(why)

    # ------------------------------------------------------------ speaking

    async def _speak(self) -> str:
        while (line := await self._lines.next()) is not None:
            match line.strip():
                case "":
                    self._show_prompt()
                case "/quit" | "/exit":
                    return "quit"
                case "/new":
                    return "new"
                case "/help":
                    self._screen.remark(HELP)
                case "/renew":
                    await self._send({"type": "renew", "ref": "renew"})
                case "/stop":
                    for turn_id in self._open:
                        await self._send({"type": "cancel", "ref": "stop", "turnId": turn_id})
                case _:
                    await self._say(line)
            self._show_prompt()
        await self._settled()
        return "quit"

    async def _say(self, content: str) -> None:
        key = str(uuid4())
        self._ours.add(key)
        self._unacked[key] = content
        await self._send_message(key, content)
        if not self._screen.is_terminal:
            await self._settled()  # a script's next line waits for the answer to this one

    async def _send_message(self, key: str, content: str) -> None:
        await self._send(
            {
                "type": "message",
                "ref": key,
                "idempotencyKey": key,
                "content": content,
                "metadata": {"clientRef": key},
            }
        )

    async def _send(self, frame: dict[str, object]) -> None:
        if self._socket is not None:
            with suppress(ConnectionClosed):
                await self._socket.send(json.dumps(frame))

    async def _settled(self) -> None:
        """Wait until everything said is answered."""
        while self._unacked or self._open:
            self._changed.clear()
            await self._changed.wait()

    # ------------------------------------------------------------ the countdown

    async def _tick(self) -> None:
        while True:
            self._show_prompt()
            await asyncio.sleep(1)

    def _show_prompt(self) -> None:
        if self._over or not self._end_ms:
            return
        left = duration(self._end_ms - now_ms() - self._ahead_ms)
        self._screen.prompt(f"{left:>8}{'!' if self._is_near else ' '}› ")

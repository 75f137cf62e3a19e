"""A worker as a stranger would write it: the wire contract and the standard library, a thread for each place.

    python worker_program.py AGENT NAME GATE PLACES URL…

It begins at the first replica and goes to the next one whenever a request gets no
reply, or a 5xx: writes are repeatable and nothing ties a turn to a replica. It
says what it did on standard output, a JSON object a line. How a turn is answered
is the first word of its message:

``hold``   streams a bit, then does nothing at all until the file GATE is there
``mute``   does nothing at all until GATE is there
``die``    ends this process with SIGKILL
``flood``  streams more than an answer may be
``huge``   completes with more than an answer may be

Anything else is streamed in two pieces, and what was streamed is the answer.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CLAIM_WAIT_S = 5
REPLY_S = 15
PAUSE_S = 0.05
MAX_ANSWER_CHARS = 100_000
_printing = threading.Lock()


def say(event: str, **fields: Any) -> None:
    with _printing:
        print(json.dumps({"event": event} | fields), flush=True)


class Replicas:
    """The service, over one connection to one replica at a time."""

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the reply, from whichever replica gives one that is no 5xx."""
        while True:
            try:
                status, reply = self._ask(path, body)
                if status < 500:
                    return status, reply
            except (OSError, http.client.HTTPException):
                pass
            self._go_on()
            time.sleep(PAUSE_S)

    def _ask(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self._connection is None:
            address = urlsplit(self._urls[0]).netloc
            self._connection = http.client.HTTPConnection(address, timeout=CLAIM_WAIT_S + REPLY_S)
        self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = self._connection.getresponse()
        text = reply.read()
        return reply.status, json.loads(text) if text else {}

    def _go_on(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._urls = [*self._urls[1:], self._urls[0]]


class Refused(Exception):
    """The turn is no longer ours, or was cancelled."""


class Turn:
    """One claimed turn."""

    def __init__(self, replicas: Replicas, claimed: dict[str, Any], name: str) -> None:
        self._replicas = replicas
        self._claimed = claimed
        self._path = f"/api/messaging/sessions/{claimed['session']['sessionId']}/turns/{claimed['turnId']}"
        self._units = 0
        self._about = {"worker": name, "attempt": claimed["attempt"]}

    def answer(self, wait_at_gate: Callable[[], None]) -> None:
        content = "\n".join(message["content"] for message in self._claimed["messages"])
        text = f"{self._claimed['session']['sessionId']} answers {content}"
        match content.split(" ", 1)[0]:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hold":
                self._stream(text[:20])
                wait_at_gate()
                self._write("complete", content=text, metadata=self._about)
            case "mute":
                wait_at_gate()
                self._write("complete", content=text, metadata=self._about)
            case "flood":
                for _ in range(3):
                    self._stream("x" * (MAX_ANSWER_CHARS // 2))
            case "huge":
                self._write("complete", content="x" * (MAX_ANSWER_CHARS + 1), metadata=self._about)
            case _:
                for piece in (text[:20], text[20:]):
                    self._stream(piece)
                self._write("complete", metadata=self._about)

    def _stream(self, text: str) -> None:
        self._write("delta", text=text, offset=self._units)
        self._units += len(text)  # ASCII

    def _write(self, what: str, **body: Any) -> None:
        status, reply = self._replicas.post(f"{self._path}/{what}", {"fence": self._claimed["fence"]} | body)
        code = reply.get("error", {}).get("code", "")
        is_cancelled = reply.get("cancelled", False)
        say(what, turnId=self._claimed["turnId"], status=status, code=code, cancelled=is_cancelled)
        if status != 200 or is_cancelled:
            raise Refused


def serve(agent_id: str, name: str, places: int, gate: Path, urls: list[str]) -> None:
    replicas = Replicas(urls)

    def wait_at_gate() -> None:
        while not gate.exists():
            time.sleep(PAUSE_S)

    while True:
        path = f"/api/agents/{agent_id}/turns/claim?wait={CLAIM_WAIT_S}"
        status, claimed = replicas.post(path, {"worker": name, "capacity": places})
        if status == 200:
            say("claimed", turnId=claimed["turnId"], attempt=claimed["attempt"])
            with suppress(Refused):
                Turn(replicas, claimed, name).answer(wait_at_gate)
        elif status != 204:
            say("claim", status=status, code=claimed["error"]["code"])
            time.sleep(PAUSE_S)


def main() -> None:
    agent_id, name, gate, places, *urls = sys.argv[1:]
    for _ in range(int(places)):
        arguments = (agent_id, name, int(places), Path(gate), urls)
        threading.Thread(target=serve, args=arguments, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()

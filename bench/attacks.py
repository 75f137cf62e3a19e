"""The attackers of a service, as a program: ``python -m bench.attacks PORT SECONDS SESSION…``.

A process of its own, and a nice one, so that a good client on the same core does
not wait for them. Each attack comes at a pace that leaves the service some air.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
import uvloop

SLOW = 200
PATIENCE_S = 35.0
NICE = 10
BASE = "/api/messaging/sessions"
_HOST = b" HTTP/1.1\r\nHost: localhost\r\n"
_JSON = b"Content-Type: application/json\r\n"
_UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_MASK = b"\0\0\0\0"


class Attack(NamedTuple):
    """Something done again and again by *crowd* attackers, each *per_s* times a second."""

    name: str
    crowd: int
    per_s: float
    act: Callable[[Attacker], Awaitable[None]]


class Attacker:
    """Opens connections to the service from addresses of its own."""

    def __init__(self, port: int, sessions: list[str]) -> None:
        self._port = port
        self.sessions = sessions

    async def say(self, *pieces: bytes, pause_s: float = 0.0, reads: int | None = None) -> None:
        """Send *pieces*, read what comes (at most *reads* bytes), hang up.

        Raises:
            OSError: the service hung up before all was sent, or said nothing in time.
        """
        source = (f"127.0.1.{random.randint(1, 250)}", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=source)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if pause_s:
                    await asyncio.sleep(pause_s)
            async with asyncio.timeout(PATIENCE_S):
                await (reader.read() if reads is None else reader.read(reads))
        finally:
            writer.transport.abort()

    @property
    def session(self) -> bytes:
        return random.choice(self.sessions).encode()


async def _garbage(attacker: Attacker) -> None:
    await attacker.say(random.randbytes(random.randint(1, 2_000)) + b"\r\n\r\n")


async def _doubtful(attacker: Attacker) -> None:
    framing = random.choice([b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"Host: evil\r\n"])
    await attacker.say(b"POST " + BASE.encode() + _HOST + framing + b"\r\n0\r\n\r\n")


async def _slow(attacker: Attacker) -> None:
    head = random.choice([b"GET /livez" + _HOST, b"POST /livez" + _HOST + b"Content-Length: 1000\r\n\r\n"])
    await attacker.say(head, *[b"X"] * 60, pause_s=0.6)


async def _large_head(attacker: Attacker) -> None:
    await attacker.say(b"GET /livez" + _HOST + b"X-A: " + b"a" * 300_000 + b"\r\n\r\n")


async def _large_body(attacker: Attacker) -> None:
    head = b"POST " + BASE.encode() + _HOST + _JSON + b"Content-Length: 100000000\r\n\r\n"
    await attacker.say(head, *[b"a" * 65_536] * 8, reads=1)


async def _endless_trailer(attacker: Attacker) -> None:
    head = b"POST " + BASE.encode() + _HOST + _JSON + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    await attacker.say(head, *[b"a: b\r\n" * 10_000] * 8)


async def _deep_json(attacker: Attacker) -> None:
    body = random.choice([b"[" * 100_000, b'{"a":' * 30_000, b"[" + b"[]," * 80_000 + b"[]]"])
    head = b"POST " + BASE.encode() + _HOST + _JSON + b"Connection: close\r\n"
    await attacker.say(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


async def _pipelined(attacker: Attacker) -> None:
    await attacker.say((b"GET /livez" + _HOST + b"\r\n") * 2_000)


async def _refused(attacker: Attacker) -> None:
    """A hundred requests that are told no, one behind the other, on one connection."""
    asked = [
        b"GET /nowhere/%d" % random.getrandbits(64) + _HOST + b"\r\n",
        b"GET " + BASE.encode() + b"/%d" % random.getrandbits(64) + _HOST + b"\r\n",
        b"PROPFIND " + BASE.encode() + _HOST + b"\r\n",
        b"GET " + BASE.encode() + b"?limit=x&cursor=%ff" + _HOST + b"\r\n",
        b"POST " + BASE.encode() + _HOST + _JSON + b"Content-Length: 9\r\n\r\n{}{}{}{}{",
    ]
    await attacker.say(*random.choices(asked, k=20), b"GET /" + _HOST + b"Connection: close\r\n\r\n")


async def _follower(attacker: Attacker) -> None:
    await attacker.say(
        b"GET " + BASE.encode() + b"/" + attacker.session + b"/events" + _HOST + b"\r\n", reads=1
    )


async def _odd_frames(attacker: Attacker) -> None:
    handshake = b"GET " + BASE.encode() + b"/" + attacker.session + b"/ws" + _HOST + _UPGRADE
    flood = random.choice(
        [
            b"\x01\x80" + _MASK + (b"\x00\x80" + _MASK) * 5_000,
            (b"\x89\x80" + _MASK) * 5_000,
            (b"\x81\x82" + _MASK + b"{}") * 5_000,
            random.randbytes(500),
        ]
    )
    await attacker.say(handshake, flood, pause_s=0.05, reads=65_536)


ATTACKS = (
    Attack("garbage", 5, 4, _garbage),
    Attack("doubtful", 2, 4, _doubtful),
    Attack("slow", SLOW, 1, _slow),
    Attack("large head", 1, 4, _large_head),
    Attack("large body", 1, 4, _large_body),
    Attack("endless trailer", 1, 4, _endless_trailer),
    Attack("deep JSON", 1, 4, _deep_json),
    Attack("pipelined", 1, 4, _pipelined),
    Attack("refused", 3, 2, _refused),
    Attack("follower", 5, 4, _follower),
    Attack("odd frames", 3, 4, _odd_frames),
)


async def _repeat(attack: Attack, attacker: Attacker, done: Counter[str]) -> None:
    await asyncio.sleep(random.random() / attack.per_s)
    while True:
        next_s = time.monotonic() + 1 / attack.per_s
        with contextlib.suppress(OSError):  # hung up on
            await attack.act(attacker)
        done[attack.name] += 1
        await asyncio.sleep(max(0.0, next_s - time.monotonic()))


async def attack(port: int, seconds: float, sessions: list[str]) -> dict[str, int]:
    """How often each attack was made."""
    done: Counter[str] = Counter()
    attacking = [
        asyncio.create_task(_repeat(attack, Attacker(port, sessions), done))
        for attack in ATTACKS
        for _ in range(attack.crowd)
    ]
    await asyncio.wait(attacking, timeout=seconds)
    for task in attacking:
        task.cancel()
    await asyncio.gather(*attacking, return_exceptions=True)
    return dict(done)


if __name__ == "__main__":
    os.nice(NICE)
    made = uvloop.run(attack(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
    sys.stdout.write(msgspec.json.encode(made).decode())

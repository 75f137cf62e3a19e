"""A service under attack, and what is sent to it over connections of its own."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.client import BASE, Api
from tests.support.service import Service
from tests.support.wire import Reply, Wire

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
LAST = LIVEZ + b"Connection: close\r\n\r\n"
POST = (
    f"POST {BASE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Request-Id: hostile\r\n"
).encode()
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@contextmanager
def soft_limit(descriptors: int) -> Iterator[None]:
    """This process, and those it starts, may have so many file descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def resident_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def replies_to(service: Service, *pieces: bytes) -> list[Reply]:
    """What comes back until the connection is closed; each piece is sent once the one before was answered."""
    with Wire(service.port) as wire:
        found = []
        for piece in pieces[:-1]:
            wire.send(piece)
            found.append(wire.reply())
        wire.send(pieces[-1])
        return found + wire.replies()


def refused(service: Service, *pieces: bytes) -> Reply:
    (reply,) = replies_to(service, *pieces)
    assert reply.status == reply.body["status"]
    assert reply.headers["connection"] == "close"
    return reply


def asking(api: Api, content: str = "one two three") -> bytes:
    """A request whose answer takes a while."""
    body = json.dumps({"content": content, "transport": "http"}).encode()
    head = POST.replace(BASE.encode(), f"{BASE}/{api.session()}/messages".encode())
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body

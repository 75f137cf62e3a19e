"""Everything that is published on live channels, as one more subscriber of Redis hears it.

The bytes are kept as they come and read afterwards, so that a hundred thousand
events in a second cost this process a few reads of its socket.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Thread
from typing import NamedTuple, Self

import hiredis

from bench.processes import Server
from sessions_api.live.events import facts_of
from sessions_api.store.lines import pack

PATTERN = b"sa:live:*"
READ_BYTES = 1 << 20
PATIENCE_S = 10.0
ROOM = b"1gb"
"""What Redis may hold back for this subscriber; by default it would cut one that falls 32 MB behind."""


class Published(NamedTuple):
    """The head of a live event; *args* depend on its type."""

    session_id: str
    type: str
    now_ms: int
    """When it was published, by Redis's clock."""
    args: list[str]


class Wiretap:
    """Hears all live channels from entering to leaving the context, and keeps events of *types*."""

    def __init__(self, server: Server, *types: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(server.url.removeprefix("unix://"))
        self._chunks: list[bytes] = []
        self._counts = dict.fromkeys(types, 0)
        self._thread = Thread(target=self._listen, name="wiretap", daemon=True)

    def __enter__(self) -> Self:
        limit = b"pubsub " + ROOM + b" " + ROOM + b" 60"
        self._socket.sendall(pack((b"CONFIG", b"SET", b"client-output-buffer-limit", limit)))
        if not self._socket.recv(1024).startswith(b"+OK"):
            raise RuntimeError("Redis grants this subscriber no room")
        self._socket.sendall(pack((b"PSUBSCRIBE", PATTERN)))
        if b"psubscribe" not in self._socket.recv(1024):
            raise RuntimeError("Redis does not let this subscriber listen")
        self._socket.settimeout(None)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def _listen(self) -> None:
        marks = {kind: b"\n%b " % kind.encode() for kind in self._counts}
        before = b""
        while chunk := self._socket.recv(READ_BYTES):
            for kind, mark in marks.items():
                self._counts[kind] += (before[1 - len(mark) :] + chunk).count(mark)
            self._chunks.append(chunk)
            before = chunk

    def count(self, kind: str) -> int:
        """How many events of *kind* were published so far."""
        return self._counts[kind]

    def events(self) -> Iterator[Published]:
        """What was published so far and is of one of the types, in its order."""
        reader = hiredis.Reader()
        for chunk in tuple(self._chunks):
            reader.feed(chunk)
            while (reply := reader.gets()) is not False:
                _, _, channel, payload = reply
                for (kind, _cursor, _prev, _rev, now, _bytes, *args), _ in facts_of(payload):
                    if kind in self._counts:
                        yield Published(channel[-36:].decode(), kind, int(now), args)

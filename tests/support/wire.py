"""TCP connections on which a test writes what no client library would."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from typing import Any, NamedTuple, Self

from tests.support.client import BASE

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_NO_CODE = 1005
_LOST = 1006


class Reply(NamedTuple):
    """One HTTP reply; *body* is its JSON."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def code(self) -> str:
        """The code of its error; empty if it is none."""
        return str(self.body["error"]["code"]) if "error" in self.body else ""


class Wire:
    """One connection, from the address *source*; *buffer*: how many bytes it takes unread (0: as usual)."""

    def __init__(
        self, port: int, *, source: str = "127.0.0.1", buffer: int = 0, within_s: float = 15
    ) -> None:
        self._socket = socket.socket()
        if buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if source != "127.0.0.1":
            self._socket.bind((source, 0))
        self._socket.settimeout(within_s)
        self._socket.connect(("127.0.0.1", port))
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Send all of it; False if the other side hung up before."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def send_while_open(self, data: bytes, *, most_bytes: int) -> int:
        """Send *data* again and again until the other side hangs up; returns how many bytes it took."""
        sent = 0
        while sent < most_bytes and self.send(data):
            sent += len(data)
        return sent

    def end(self) -> None:
        """Say that nothing more will come; the rest is still read."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave without a farewell."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def rest(self) -> bytes:
        """What comes until the other side hangs up."""
        while self._more():
            pass
        rest, self._unread = self._unread, b""
        return rest

    def reply(self) -> Reply:
        """The next HTTP reply."""
        while b"\r\n\r\n" not in self._unread:
            assert self._more(), f"hung up after {self._unread!r}"
        head, _, body = self._unread.partition(b"\r\n\r\n")
        headers = _headers(head)
        size = int(headers.get("content-length", "0"))
        while len(body) < size:
            assert self._more(), "hung up in the middle of a reply"
            body = self._unread[len(head) + 4 :]
        self._unread = body[size:]
        return Reply(int(head.split()[1]), headers, json.loads(body[:size] or b"null"))

    def replies(self) -> list[Reply]:
        """The HTTP replies that come until the other side hangs up; each is one of ours, whole."""
        found = []
        while self._unread or self._more():
            found.append(self.reply())
            assert "x-request-id" in found[-1].headers
        return found

    def is_closed(self) -> bool:
        """Whether the other side hangs up, having said nothing."""
        return self.rest() == b""

    def _more(self) -> bool:
        try:
            part = self._socket.recv(65_536)
        except ConnectionResetError:
            return False
        self._unread += part
        return part != b""


class Frames(Wire):
    """A WebSocket as bytes: any frame can be sent, broken ones too."""

    def open(self, session_id: str, *, extra: str = "") -> Self:
        self.send(handshake(session_id, extra=extra))
        while b"\r\n\r\n" not in self._unread:
            assert self._more(), "no handshake"
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return self

    def until_closed(self) -> tuple[int, list[dict[str, Any]]]:
        """The close code (1006: there was none), and the frames of JSON before it; pongs are left out."""
        frames: list[dict[str, Any]] = []
        while (head := self._exactly(2)) is not None:
            size = head[1] & 0x7F
            if size > 125:
                size = int.from_bytes(self._exactly(2 if size == 126 else 8) or b"")
            payload = self._exactly(size)
            if payload is None:
                break
            if head[0] & 0x0F == CLOSE:
                return int.from_bytes(payload[:2]) if payload else _NO_CODE, frames
            if head[0] & 0x0F == TEXT:
                frames.append(json.loads(payload))
        return _LOST, frames

    def _exactly(self, size: int) -> bytes | None:
        """The next *size* bytes, or None where the other side hangs up before."""
        while len(self._unread) < size:
            if not self._more():
                return None
        part, self._unread = self._unread[:size], self._unread[size:]
        return part


def handshake(session_id: str, *, extra: str = "", method: str = "GET") -> bytes:
    """The request for a WebSocket, with *extra* header lines."""
    return (
        f"{method} {BASE}/{session_id}/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"{extra}\r\n"
    ).encode()


def frame(opcode: int, payload: bytes = b"", *, is_last: bool = True) -> bytes:
    """One masked frame; the mask is zero, so the payload stands as it is."""
    head = bytes([opcode | (0x80 if is_last else 0)])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65_536:
        head += bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", size)
    return head + b"\0\0\0\0" + payload


def quietly_reset(*wires: Wire) -> None:
    for wire in wires:
        with suppress(OSError):
            wire.reset()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines)
    return {name.lower(): value.strip() for name, _, value in pairs}

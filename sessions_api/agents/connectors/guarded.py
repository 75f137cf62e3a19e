"""Connections to permitted addresses only, and replies that end: httpx2's transport on a network of ours.

A name is resolved where the connection is made, each address is judged
(``addresses.py``), and the connection goes to one of those, by number. Nothing
resolves the name a second time, so a DNS record that changes between check and
connection changes nothing, and a redirect comes to the same place. TLS still
verifies the name.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Final

import httpcore2
import httpx2

from sessions_api.agents.connectors.addresses import Address, Network, is_permitted
from sessions_api.agents.connectors.failure import AttemptFailed

CONNECT_S: Final = 10.0
IDLE_S: Final = 30.0
IDLE_CONNECTIONS: Final = 100
MAX_STREAM_BYTES: Final = 64 * 1024 * 1024

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

# A peer that vanished without a word is noticed after 90 s, not at the turn's deadline only.
_KEEPALIVE: Final[list[httpcore2.SOCKET_OPTION]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), number)
        for name, number in {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}.items()
        if hasattr(socket, name)
    ),
]


class AddressRefused(AttemptFailed):
    """None of the *addresses* of *host* is permitted; those are for the log."""

    def __init__(self, host: str, addresses: Sequence[Address]) -> None:
        # Without the address: what an internal name resolves to is not the user's to know.
        super().__init__("AGENT_UNREACHABLE", "The agent's address is not permitted", retry=False)
        self.host = host
        self.addresses = addresses


class Transport(httpx2.AsyncHTTPTransport):
    """httpx2's own, on connections of ours; bounds what a reply may bring."""

    def __init__(self, guard: Guard, context: ssl.SSLContext) -> None:
        super().__init__(verify=context)
        self._pool = httpcore2.AsyncConnectionPool(  # httpx2 2.16 has no argument for the backend
            ssl_context=context,
            max_connections=None,  # the dispatcher bounds how many turns run
            max_keepalive_connections=IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_S,
            network_backend=guard,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        reply = await super().handle_async_request(request)
        assert isinstance(reply.stream, httpx2.AsyncByteStream)  # noqa: S101  narrows; an async transport has no other
        reply.stream = _Bounded(reply.stream)
        return reply


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MAX_STREAM_BYTES
        async for part in self._stream:
            left -= len(part)
            if left < 0:
                raise AttemptFailed("ANSWER_TOO_LARGE", "The agent's answer is too large", retry=False)
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


class Guard(httpcore2.AsyncNetworkBackend):
    """Connects to permitted addresses only."""

    def __init__(self, allowed: tuple[Network, ...], resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  the signature is httpcore2's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + (CONNECT_S if timeout is None else timeout)
        addresses = await self._permitted(host, port, end_s)
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                return await self._inner.connect_tcp(
                    str(address),
                    port,
                    timeout=max(0.0, end_s - loop.time()) / left,
                    local_address=local_address,
                    socket_options=[*_KEEPALIVE, *(socket_options or ())],
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if left == 1:
                    raise
        raise AssertionError("unreachable: no address was left")  # pragma: no cover

    async def _permitted(self, host: str, port: int, end_s: float) -> list[Address]:
        """The permitted ones among the addresses of *host*; there is at least one."""
        try:
            async with asyncio.timeout_at(end_s):
                found = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host}: {error}") from error
        addresses = [address for address in found if is_permitted(address, self._allowed)]
        if not addresses:
            raise AddressRefused(host, found)
        return addresses


async def resolve_host(host: str, port: int) -> list[Address]:
    """What the system makes of *host*, which may also be a number in any of its spellings.

    Raises:
        OSError: the name is not known.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))

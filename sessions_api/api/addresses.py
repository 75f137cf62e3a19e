"""Where a request comes from: the peer's address, or what proxies of ours say of it.

``X-Forwarded-For`` is anybody's to write. It is read from its end, the part that
our own proxies wrote, up to the first address that is not one of theirs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from starlette.types import Scope

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

UNKNOWN: Final = "unknown"
"""Of a connection without an address, such as a unix socket's."""
_IPV6_PREFIX: Final = 64
_MAX_HOPS: Final = 32


class Addresses:
    """Tells clients apart by address; *proxies* are the networks whose word is taken."""

    def __init__(self, proxies: Sequence[Network] = ()) -> None:
        self._proxies = tuple(proxies)

    def client(self, scope: Scope) -> str:
        """The client's address, as limits count it: of IPv6 the /64, which one subscriber has whole."""
        peer = scope.get("client")
        if peer is None:
            return UNKNOWN
        if not self._proxies:
            return _subject(peer[0])
        at = _parsed(peer[0])
        if at is None:
            return UNKNOWN
        for hop in reversed(_hops(scope)):
            if not self._is_proxy(at):
                break
            before = _parsed(hop)
            if before is None:
                break  # no address: whoever wrote it, the last that is known stands
            at = before
        return _counted(at)

    def _is_proxy(self, address: Address) -> bool:
        return any(address in network for network in self._proxies)


def _hops(scope: Scope) -> list[str]:
    lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    hops = b",".join(lines).decode("latin-1").rsplit(",", _MAX_HOPS) if lines else []
    return [hop.strip() for hop in hops[-_MAX_HOPS:]]


@lru_cache(maxsize=4096)
def _subject(text: str) -> str:
    address = _parsed(text)
    return UNKNOWN if address is None else _counted(address)


def _counted(address: Address) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False).network_address) + "/64"
    return str(address)


def _parsed(text: str) -> Address | None:
    """An address as proxies write it: with a port, in brackets, or bare."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address

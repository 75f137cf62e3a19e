"""Which addresses an outgoing request may reach: public ones, and those the operator allows.

Tables of our own, because ``ipaddress.is_global`` depends on Python's patch
release (3.11.7 still calls NAT64's local prefix and site-local addresses
public) and says nothing of multicast.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IANA's special-purpose registry, multicast, and one public address that is none:
# Azure answers its machines there with their own secrets. The other clouds' metadata
# addresses (169.254.169.254, 100.100.100.200, 192.0.0.192, fd00:ec2::254) lie within these.
_CLOSED_V4: Final = tuple(
    map(
        IPv4Network,
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 "
        "192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 "
        "224.0.0.0/4 240.0.0.0/4 168.63.129.16/32".split(),
    )
)
# Of IPv6 only what is handed out as global unicast is open, without the parts that are special:
# 2001::/23 holds Teredo, 2002::/16 is 6to4. Both carry an IPv4 address of anybody's choice, and
# both are dead: they stay closed whatever they carry.
_OPEN_V6: Final = IPv6Network("2000::/3")
_CLOSED_V6: Final = tuple(map(IPv6Network, "2001::/23 2001:db8::/32 2002::/16 3fff::/20".split()))
_NAT64: Final = IPv6Network("64:ff9b::/96")


def is_permitted(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether *address* is public, or lies in one of the *allowed* networks.

    An IPv4-mapped address is the IPv4 address. NAT64's is public if the IPv4
    address in it is: where DNS64 is in use, every IPv4 host looks like that.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return _is_public(address) or any(address in network for network in allowed)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    if address in _NAT64:
        return _is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _OPEN_V6 and not any(address in network for network in _CLOSED_V6)

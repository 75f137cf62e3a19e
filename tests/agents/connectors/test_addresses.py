"""Which addresses may be reached."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions_api.agents.connectors.addresses import is_permitted

CLOSED = """
    127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1
    169.254.0.1 192.0.0.8 192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.1 203.0.113.1
    224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
    :: ::1 fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd12:3456::1 ff02::1 ff0e::1 100::1 5f00::1 4000::1
    2001:db8::1 3fff::1 2001:10::1 2001:20::1
"""
METADATA = (
    "169.254.169.254 169.254.170.2 100.100.100.200 192.0.0.192 168.63.129.16 fd00:ec2::254 fd20:ce::254"
)
EMBEDDED = """
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 ::ffff:0:127.0.0.1
    64:ff9b::127.0.0.1 64:ff9b::169.254.169.254 64:ff9b::10.0.0.1 64:ff9b:1::8.8.8.8
    2002:7f00:1:: 2002:a9fe:a9fe:: 2001:0:4136:e378:8000:63bf:80ff:fffe
"""
PUBLIC = """
    1.1.1.1 8.8.8.8 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1 168.63.129.17 223.255.255.255
    2606:4700:4700::1111 2a00:1450:4001::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8
"""


class TestPermitted:
    @pytest.mark.parametrize("address", [*CLOSED.split(), *METADATA.split(), *EMBEDDED.split()])
    def test_leaves_out_what_is_not_public(self, address: str) -> None:
        """Private, local, multicast, reserved, metadata; in IPv6's clothes too."""
        assert not is_permitted(ip_address(address))

    @pytest.mark.parametrize("address", PUBLIC.split())
    def test_holds_what_is_public(self, address: str) -> None:
        assert is_permitted(ip_address(address))

    def test_holds_what_the_operator_allows(self) -> None:
        """A network opens its own addresses, however they are written, and no other."""
        allowed = [ip_network("10.1.0.0/16"), ip_network("fd00::/8")]

        assert is_permitted(ip_address("10.1.2.3"), allowed)
        assert is_permitted(ip_address("::ffff:10.1.2.3"), allowed)
        assert is_permitted(ip_address("fd00::1"), allowed)
        assert not is_permitted(ip_address("10.2.0.1"), allowed)
        assert not is_permitted(ip_address("127.0.0.1"), allowed)

    def test_does_not_open_a_translated_address_with_the_private_one(self) -> None:
        """Behind NAT64, 10.1.2.3 is somebody else's."""
        assert not is_permitted(ip_address("64:ff9b::10.1.2.3"), [ip_network("10.1.0.0/16")])

    @given(st.ip_addresses(v=4))
    def test_is_no_wider_than_pythons_own_table(self, address: IPv4Address) -> None:
        """Whatever Python knows to be special is closed."""
        if is_permitted(address):
            assert address.is_global
            assert not address.is_multicast

    @given(st.ip_addresses(v=6))
    def test_is_no_wider_than_pythons_own_table_of_ipv6(self, address: IPv6Address) -> None:
        if is_permitted(address) and address.ipv4_mapped is None:
            assert address.is_global
            assert not address.is_multicast

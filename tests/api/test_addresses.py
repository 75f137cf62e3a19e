"""Client addresses: what our own proxies wrote is believed, what a client wrote never is."""

from __future__ import annotations

import ipaddress
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sessions_api.api.addresses import UNKNOWN, Addresses

PROXY, OUTER, CLIENT = "10.0.0.1", "10.0.7.7", "203.0.113.9"
OURS = Addresses([ip_network("10.0.0.0/16"), ip_network("fd00::/8")])
any_line = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=60)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(str)


def client(addresses: Addresses, *forwarded: str, peer: str | None = PROXY, **others: str) -> str:
    """Of a request whose ``X-Forwarded-For`` came in these lines."""
    headers = [(b"x-forwarded-for", line.encode("latin-1")) for line in forwarded]
    headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in others.items()]
    scope: dict[str, Any] = {"client": None if peer is None else (peer, 4711), "headers": headers}
    return addresses.client(scope)


class TestWithoutProxies:
    @given(line=any_line)
    def test_the_peer_stands_whatever_a_header_says(self, line: str) -> None:
        assert client(Addresses(), line, peer=CLIENT) == CLIENT

    def test_no_peer_is_unknown(self) -> None:
        """A unix socket's: they share one limit."""
        assert client(Addresses(), CLIENT, peer=None) == UNKNOWN
        assert client(OURS, CLIENT, peer=None) == UNKNOWN
        assert client(OURS, CLIENT, peer="") == UNKNOWN


class TestBehindProxies:
    @pytest.mark.parametrize(
        "lines",
        [
            [CLIENT],
            [f"{CLIENT}, {OUTER}"],
            [CLIENT, OUTER],
            [f" {CLIENT} ,{OUTER},{OUTER}\t"],
            [f"6.6.6.6, {CLIENT}, {OUTER}"],
            ["6.6.6.6", CLIENT, OUTER],
            [f"{OUTER}, {CLIENT}"],
            [f"{PROXY}, 6.6.6.6, {CLIENT}, {OUTER}"],
            ["junk", CLIENT],
            [f"{CLIENT}:4711"],
            [f"::ffff:{CLIENT}"],
            [f"[::ffff:{CLIENT}]:4711, {OUTER}:80"],
        ],
        ids=str,
    )
    def test_the_last_address_that_is_no_proxys_is_the_clients(self, lines: list[str]) -> None:
        assert client(OURS, *lines) == CLIENT

    @pytest.mark.parametrize("line", ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:443", "[2001:db8::1"])
    def test_ipv6_in_any_of_its_forms_too(self, line: str) -> None:
        assert client(OURS, line) == client(OURS, line, peer="fd00::1") == "2001:db8::/64"

    def test_a_stranger_is_not_believed(self) -> None:
        assert client(OURS, "6.6.6.6", peer=CLIENT) == CLIENT
        assert client(OURS, "6.6.6.6", peer="10.1.0.1") == "10.1.0.1"

    def test_where_all_are_ours_the_farthest_stands(self) -> None:
        """A client inside the network."""
        assert client(OURS, f"{OUTER}, {PROXY}") == OUTER
        assert client(OURS) == PROXY

    @pytest.mark.parametrize("junk", ["", "unknown", "_hidden", "256.1.1.1", "010.1.1.1", "1.1.1.1/8", "-"])
    def test_what_is_no_address_ends_the_chain(self, junk: str) -> None:
        """What stands before it may be anybody's; the last address that is known stands."""
        assert client(OURS, f"6.6.6.6, {junk}") == PROXY
        assert client(OURS, f"6.6.6.6, {junk}, {OUTER}") == OUTER
        assert client(OURS, f"{junk}, {CLIENT}") == CLIENT

    def test_a_mapped_peer_is_the_proxy_that_it_is(self) -> None:
        """A socket that takes IPv4 and IPv6 names its IPv4 peers so."""
        assert client(OURS, CLIENT, peer=f"::ffff:{PROXY}") == CLIENT

    @pytest.mark.parametrize(
        "name", ["forwarded", "x_real_ip", "x_client_ip", "true_client_ip", "cf_connecting_ip"]
    )
    def test_no_other_header_is_read(self, name: str) -> None:
        """A proxy that sets the one passes the others through as the client sent them."""
        value = "for=6.6.6.6" if name == "forwarded" else "6.6.6.6"

        assert client(OURS, CLIENT, **{name: value}) == CLIENT
        assert client(OURS, **{name: value}) == PROXY

    def test_a_long_chain_is_read_for_32_hops(self) -> None:
        assert client(OURS, ", ".join([CLIENT, *[OUTER] * 31])) == CLIENT
        assert client(OURS, ", ".join([CLIENT, *[OUTER] * 32])) == OUTER
        assert client(OURS, "," * 60_000 + CLIENT) == CLIENT


class TestSubjects:
    def test_ipv6_counts_by_its_64(self) -> None:
        """A subscriber has them all."""
        assert client(Addresses(), peer="2001:db8:1:2::1") == "2001:db8:1:2::/64"
        assert client(Addresses(), peer="2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
        assert client(Addresses(), peer="2001:db8:1:3::1") == "2001:db8:1:3::/64"
        assert client(Addresses(), peer="fe80::1%eth0") == "fe80::/64"

    def test_ipv4_counts_one_by_one_mapped_or_not(self) -> None:
        """As IPv6 all of it would be one /64."""
        assert client(Addresses(), peer="192.0.2.1") == "192.0.2.1"
        assert client(Addresses(), peer="::ffff:192.0.2.1") == "192.0.2.1"
        assert client(Addresses(), peer="::ffff:c000:202") == "192.0.2.2"


class TestAnyHeader:
    @given(lines=st.lists(any_line, max_size=4), real=ipv4 | ipv6, hops=st.integers(0, 3))
    @settings(max_examples=400)
    def test_nothing_that_a_client_sends_makes_it_another(
        self, lines: list[str], real: str, hops: int
    ) -> None:
        """Proxies append: what the client sent itself stands before that, in its line or in others."""
        address = ipaddress.ip_address(real)
        address = getattr(address, "ipv4_mapped", None) or address
        assume(not any(address in network for network in OURS._proxies))
        written = ", ".join([real, *[OUTER] * hops])

        honest = client(OURS, written)

        assert client(OURS, *lines, written) == honest
        assert client(OURS, *lines, f"{''.join(lines)}, {written}") == honest
        assert honest == client(Addresses(), peer=real)

    @given(lines=st.lists(any_line | ipv4 | ipv6, max_size=4), peer=ipv4 | ipv6 | st.just(PROXY) | any_line)
    @settings(max_examples=400)
    def test_what_comes_of_it_is_an_address_or_unknown(self, lines: list[str], peer: str) -> None:
        """So it can be part of a key in Redis, where a brace would choose the slot."""
        found = client(OURS, *lines, peer=peer)

        assert found == UNKNOWN or str(ip_network(found)) in {found, f"{found}/32"}

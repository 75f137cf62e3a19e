"""Slots: Redis's own arithmetic, what servers say of them, and how the partitions spread over them."""

from __future__ import annotations

from collections import Counter
from statistics import mean

import pytest

from sessions_api.store.address import Host
from sessions_api.store.keys import TAGS, Keyspace
from sessions_api.store.slots import SLOTS, Range, ranges, redirection, slot_of, slot_of_command
from tests.support.servers import TestServer

ASKED = Host("10.0.0.1", 6379)


class TestSlotOf:
    @pytest.mark.servers("cluster", "cluster62")
    def test_is_what_the_server_says(self, server: TestServer) -> None:
        keys = ["", "a", "{a}b", "x{a}b", "{}a", "x{}a{b}", "{a", "a}", "{{a}}", "x{a}{b}", "ä{ö}", "sa:meta"]
        keys += [f"sa:session:{{{tag}}}:x" for tag in TAGS]

        assert [slot_of(key.encode()) for key in keys] == [
            server.call("CLUSTER", "KEYSLOT", key) for key in keys
        ]

    def test_of_a_command_is_that_of_its_first_key(self) -> None:
        key = slot_of(b"{a}1")

        assert slot_of_command((b"EVALSHA", b"sha", 2, b"{a}1", b"{a}2", b"arg")) == key
        assert slot_of_command((b"EVAL", b"return 1", 1, "{a}1")) == key
        assert slot_of_command(("get", "{a}1")) == key
        assert slot_of_command((b"XRANGE", b"{a}1", b"-", b"+")) == key
        assert slot_of_command((b"MEMORY", b"USAGE", b"{a}1")) == key

    @pytest.mark.parametrize(
        "command",
        [
            (b"PING",),
            (b"TIME",),
            ("PUBLISH", "{a}1", "x"),
            (b"CONFIG", b"GET", b"x"),
            (b"SCAN", b"0"),
            (b"EVAL", b"return 1", 0),
        ],
    )
    def test_of_a_command_without_a_key_is_none(self, command: tuple[bytes | str | int, ...]) -> None:
        assert slot_of_command(command) is None


class TestPartitions:
    @pytest.mark.parametrize("primaries", range(3, 17))
    def test_spread_evenly_over_a_cluster(self, primaries: int) -> None:
        """Slots dealt out as ``redis-cli --cluster create`` does: nobody has a quarter more than the mean."""
        share = SLOTS / primaries
        counts = Counter(int(slot_of(f"{{{tag}}}".encode()) / share) for tag in TAGS)

        assert len(counts) == primaries
        assert max(counts.values()) / mean(counts.values()) <= 1.25

    def test_have_a_slot_each(self) -> None:
        assert len({slot_of(tag.encode()) for tag in TAGS}) == len(TAGS)

    def test_keep_all_keys_of_a_session_in_one_slot(self) -> None:
        keyspace = Keyspace()
        partition = keyspace.partition(7)
        names = [value for value in vars(partition).values() if isinstance(value, bytes)]

        assert {slot_of(name + b"x" if name.endswith(b":") else name) for name in names} == {
            slot_of(partition.tag.encode())
        }


class TestRedirection:
    def test_names_slot_and_server(self) -> None:
        assert redirection("MOVED 3999 10.0.0.2:6381", asked=ASKED) == (3999, Host("10.0.0.2", 6381))
        assert redirection("ASK 1 redis-2.example:6381", asked=ASKED) == (1, Host("redis-2.example", 6381))

    def test_of_an_ipv6_address(self) -> None:
        assert redirection("MOVED 1 ::1:6381", asked=ASKED) == (1, Host("::1", 6381))

    def test_without_a_host_is_to_the_one_that_was_asked(self) -> None:
        """``cluster-preferred-endpoint-type unknown-endpoint``: all stand behind one address."""
        assert redirection("MOVED 1 :6381", asked=ASKED) == (1, Host("10.0.0.1", 6381))

    @pytest.mark.parametrize("error", ["MOVED 1 ?:6381", "MOVED", "TRYAGAIN Multiple keys", "MOVED x 1:2"])
    def test_that_names_nobody_is_none(self, error: str) -> None:
        assert redirection(error, asked=ASKED) is None


class TestRanges:
    def test_of_redis_6(self) -> None:
        reply = [
            [0, 5, [b"10.0.0.2", 6379, b"id"], [b"10.0.0.3", 6379, b"id2"]],
            [6, 6, [b"10.0.0.4", 1, b""]],
        ]

        assert list(ranges(reply, asked=ASKED)) == [
            Range(0, 5, Host("10.0.0.2", 6379)),
            Range(6, 6, Host("10.0.0.4", 1)),
        ]

    def test_by_announced_hostnames(self) -> None:
        """``cluster-preferred-endpoint-type hostname``: TLS certificates name those."""
        reply = [[0, 5, [b"redis-1.example", 6379, b"id", [b"ip", b"10.0.0.2"]]]]

        assert list(ranges(reply, asked=ASKED)) == [Range(0, 5, Host("redis-1.example", 6379))]

    @pytest.mark.parametrize("nobody", [None, b""])
    def test_without_a_host_are_of_the_one_that_was_asked(self, nobody: bytes | None) -> None:
        reply = [[0, 5, [nobody, 6380, b"id", []]]]

        assert list(ranges(reply, asked=ASKED)) == [Range(0, 5, Host("10.0.0.1", 6380))]

    def test_of_a_server_without_the_hostname_it_should_have_go_by_its_ip(self) -> None:
        reply = [[0, 5, [b"?", 6379, b"id", [b"ip", b"10.0.0.2"]]], [6, 9, [b"?", 6379, b"id", []]]]

        assert list(ranges(reply, asked=ASKED)) == [Range(0, 5, Host("10.0.0.2", 6379))]

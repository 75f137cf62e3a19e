"""The line of a key: what `mint` writes and `parse` reads, and what neither ever shows."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions_api.access.keyring import Keyring, mint, parse
from sessions_api.domain.access import EVERYTHING
from sessions_api.errors import SettingsError
from tests.support.keyrings import GOOD, HASH, SECRET

AGENT = "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11"

apps = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
scopes = st.one_of(
    st.sampled_from(["admin", "app"]),
    st.uuids().map(lambda uuid: f"agent:{uuid}"),
    st.uuids().map(lambda uuid: f"agent:{str(uuid).upper()}"),
)


def problems(text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse(text, where="KEYS")
    return caught.value.problems


class TestMint:
    def test_a_key_is_an_id_and_256_bits(self) -> None:
        line, key = mint("shop", ["app"])

        assert re.fullmatch(r"[a-z0-9]{12}\.[A-Za-z0-9_-]{43}", key)
        assert line.split()[:3] == [key[:12], "shop", "app"]

    def test_the_line_holds_no_secret(self) -> None:
        line, key = mint("shop", ["app"])

        assert key.partition(".")[2] not in line

    def test_no_two_are_alike(self) -> None:
        assert len({part for _ in range(100) for part in mint("shop", ["app"])[1].split(".")}) == 200

    @pytest.mark.parametrize(
        "app, wanted",
        [
            ("", ["app"]),
            ("Shop", ["app"]),
            ("a" * 33, ["app"]),
            ("shop\n", ["app"]),
            ("shop", []),
            ("shop", ["root"]),
            ("shop", ["app", "agent:support"]),
        ],
    )
    def test_makes_no_key_that_could_not_be_read(self, app: str, wanted: list[str]) -> None:
        with pytest.raises(ValueError):
            mint(app, wanted)

    @given(apps, st.sets(scopes, min_size=1))
    def test_what_is_minted_is_read_and_found(self, app: str, wanted: set[str]) -> None:
        line, credential = mint(app, wanted)

        (key,) = parse(line, where="KEYS")

        assert key.app == app
        assert key.scopes == {scope.lower() for scope in wanted}
        keyring = Keyring(text=line)
        keyring.load()
        assert keyring.find(credential) == key


class TestParse:
    def test_skips_blank_lines_and_comments(self) -> None:
        text = f"# the shop's\n\n   \r\n  # more\n{GOOD}    # until May; then key2\r\n"

        assert [key.id for key in parse(text, where="KEYS")] == ["key1"]

    def test_a_key_calls_for_its_application_with_what_its_scopes_open(self) -> None:
        line = f"key1 shop app,agent:{AGENT.upper()} sha256:{HASH.upper()}"

        (key,) = parse(line, where="KEYS")

        assert key.scopes == {"app", f"agent:{AGENT}"}
        assert (key.caller.app, key.caller.name) == ("shop", "key1")
        assert key.caller.is_app
        assert not key.caller.is_admin
        assert key.caller.agents == {AGENT}
        assert (key.caller.grant, key.caller.work_grant) == ("shop", f"agent:{AGENT}")
        assert key.caller.read_grant == f"shop agent:{AGENT}"

    def test_an_admin_sees_everything(self) -> None:
        (key,) = parse(f"key1 ops admin sha256:{HASH}", where="KEYS")

        assert key.caller.is_admin
        assert key.caller.grant == EVERYTHING

    @pytest.mark.parametrize(
        "line, reason",
        [
            ("key1", "it has 1 words; a line is ID APP SCOPE"),
            (f"key1 shop sha256:{HASH}", "it has 3 words"),
            (f"key1 shop app, admin sha256:{HASH}", "it has 5 words"),
            (f"key shop app sha256:{HASH}", "no id: an id is 4 to 32 of a-z and 0-9"),
            (f"Key1 shop app sha256:{HASH}", "no id"),
            (f"{'k' * 33} shop app sha256:{HASH}", "no id"),
            (f"kéy1 shop app sha256:{HASH}", "no id"),
            (f"key1 Shop app sha256:{HASH}", "key key1: an app is 1 to 32 of a-z, 0-9 and -"),
            (f"key1 {'s' * 33} app sha256:{HASH}", "an app is"),
            (f"key1 shop root sha256:{HASH}", "key key1: a scope is admin, app or agent:<agentId>"),
            (f"key1 shop app, sha256:{HASH}", "a scope is"),
            (f"key1 shop agent:support sha256:{HASH}", "a scope is"),
            (f"key1 shop Agent:{AGENT} sha256:{HASH}", "a scope is"),
            (f"key1 shop app {HASH}", "key key1: a hash is sha256: and the 64 hex digits"),
            (f"key1 shop app sha256:{HASH[1:]}", "a hash is"),
            (f"key1 shop app sha512:{HASH}", "a hash is"),
            (f"key1 shop app {SECRET}", "a secret is in the place of its hash"),
            (f"key1 shop app sha256:{SECRET}", "a secret is in the place of its hash"),
            (f"key1 shop app key1.{SECRET}", "make another key with `sessions-api keys new`"),
            (f"key1.{SECRET}", "it is a key with its secret; a line is"),
            (f"key1.{SECRET} shop app sha256:{HASH}", "it is a key with its secret"),
        ],
    )
    def test_says_of_a_bad_line_what_is_allowed(self, line: str, reason: str) -> None:
        (problem,) = problems(f"# keys\n{line}\n")

        assert problem.startswith("KEYS, line 2: ")
        assert reason in problem

    def test_names_every_bad_line(self) -> None:
        found = problems(f"what\n{GOOD}\n\nkey2 Shop app sha256:{HASH}\n# fine\nkey3\n")

        assert [problem.partition(":")[0] for problem in found] == [
            "KEYS, line 1",
            "KEYS, line 4",
            "KEYS, line 6",
        ]

    def test_refuses_an_id_that_stands_twice(self) -> None:
        """With two hashes for one id, half of its users would be locked out."""
        assert problems(f"{GOOD}\n\n{GOOD}\nkey1 other admin sha256:{'0' * 64}") == [
            "KEYS, line 3: the id key1 is that of line 1 too",
            "KEYS, line 4: the id key1 is that of line 1 too",
        ]

    @given(st.text())
    def test_of_any_text_raises_nothing_else(self, text: str) -> None:
        with suppress(SettingsError):
            parse(text, where="KEYS")

    @given(
        st.lists(
            st.one_of(
                st.sampled_from(
                    [SECRET, HASH, f"sha256:{HASH}", f"sha256:{SECRET}", f"key1.{SECRET}", "key1", "app"]
                ),
                st.sampled_from([" ", "\t", "\n", ",", ".", ":", "agent:", "shop", "#", "sha256:"]),
                st.text(max_size=3),
            ),
            max_size=12,
        )
    )
    def test_never_shows_a_secret_or_a_hash(self, pieces: list[str]) -> None:
        """Whatever is wrong with a line, and wherever in it they stand."""
        told = ""
        try:
            parse("".join(pieces), where="KEYS")
        except SettingsError as error:
            told = str(error)

        assert SECRET not in told
        assert HASH not in told

    def test_nor_does_a_key_in_a_traceback(self) -> None:
        (key,) = parse(GOOD, where="KEYS")

        assert repr(key) == "Key('key1')"

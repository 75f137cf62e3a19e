"""The keyring: what a credential opens, how little short of a key opens nothing, and that uses are noted."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.keyrings import GOOD, HASH, SECRET, lines, loaded


class TestFind:
    def test_knows_a_key_as_text_and_as_bytes(self) -> None:
        keyring = loaded(text=GOOD)

        for credential in (f"key1.{SECRET}", f"key1.{SECRET}".encode()):
            found = keyring.find(credential)
            assert found is not None
            assert found.id == "key1"

    def test_several_keys_of_one_application_open_the_same(self) -> None:
        """So a key is changed without an hour in which none fits."""
        written, credentials = lines(2)
        keyring = loaded(text="\n".join(written))

        first, second = map(keyring.find, credentials)

        assert first is not None
        assert second is not None
        assert first.id != second.id
        assert first.caller.grant == second.caller.grant == "shop"

    def test_a_secret_opens_with_its_own_id_only(self) -> None:
        written, credentials = lines(2)
        keyring = loaded(text="\n".join(written))
        ids, secrets = zip(*(credential.split(".") for credential in credentials), strict=True)

        assert keyring.find(f"{ids[0]}.{secrets[1]}") is None
        assert keyring.find(f"{ids[1]}.{secrets[0]}") is None
        assert keyring.find(f"nobody.{secrets[0]}") is None

    @pytest.mark.parametrize(
        "credential",
        [
            "",
            ".",
            "key1",
            "key1.",
            SECRET,
            f".{SECRET}",
            f"key1{SECRET}",
            f"key1:{SECRET}",
            f"KEY1.{SECRET}",
            f"key1.{SECRET[:-1]}",
            f"key1.{SECRET}=",
            f"key1.{SECRET}\n",
            f" key1.{SECRET}",
            f"key1.{HASH}",
            f"key1.sha256:{HASH}",
            f"key1.{SECRET[:-1]}é",
            f"key1.{SECRET[:-1]}\ud800",
            "key1." + "x" * 10_000_000,
        ],
    )
    def test_what_is_no_key_is_none(self, credential: str) -> None:
        keyring = loaded(text=GOOD)

        assert keyring.find(credential) is None
        assert keyring.find(credential.encode(errors="surrogatepass")) is None

    @given(st.one_of(st.text(), st.binary(), st.binary().map(lambda raw: b"key1." + raw)))
    def test_never_raises(self, credential: str | bytes) -> None:
        assert loaded(text=GOOD).find(credential) is None

    @given(st.integers(0, len(f"key1.{SECRET}") - 1), st.characters(codec="latin-1"))
    def test_a_key_with_one_character_changed_is_none(self, place: int, character: str) -> None:
        credential = f"key1.{SECRET}"
        changed = credential[:place] + character + credential[place + 1 :]

        assert (loaded(text=GOOD).find(changed) is None) == (changed != credential)

    def test_notes_when_a_key_was_used(self) -> None:
        written, credentials = lines(2)
        keyring = loaded(text="\n".join(written))
        before_ms = time.time_ns() // 1_000_000

        keyring.find(credentials[0])
        keyring.find(credentials[1][:-1])

        uses = keyring.take_uses()
        assert list(uses) == [credentials[0].partition(".")[0]]
        assert before_ms <= uses[credentials[0].partition(".")[0]] <= time.time_ns() // 1_000_000

    def test_uses_are_taken_once(self) -> None:
        keyring = loaded(text=GOOD)
        keyring.find(f"key1.{SECRET}")

        assert list(keyring.take_uses()) == ["key1"]
        assert keyring.take_uses() == {}

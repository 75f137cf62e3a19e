"""The answer on its way out: whole characters, the service's offsets, nothing twice, nothing left out."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from sessions_api.sdk.draft import MOST_UNSENT, Draft, well_formed
from tests.support.waiting import until

# Any code points, halves of pairs among them, as a stream cut by somebody else has them.
pieces = st.lists(st.text(st.sampled_from("aé漢😀\ud83d\ude00\udbff"), max_size=6), max_size=12)


def units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


async def filled(parts: list[str]) -> Draft:
    draft = Draft()
    for part in parts:
        await draft.add(part)
    draft.close()
    return draft


class TestPieces:
    @given(parts=pieces, most=st.integers(2, 5))
    def test_join_to_what_was_said_and_never_split_a_character(self, parts: list[str], most: int) -> None:
        draft = asyncio.run(filled(parts))
        said = well_formed("".join(parts))

        sent = ""
        while piece := draft.peek(most):
            assert draft.offset == units(sent)
            assert units(piece) <= most
            piece.encode()  # no half of a pair
            draft.arrived(piece)
            sent += piece

        assert sent == said
        assert units(said) == units("".join(parts))

    async def test_hold_back_half_a_character_until_the_rest_comes(self) -> None:
        draft = Draft()

        await draft.add("a\ud83d")
        assert draft.peek(10) == "a"

        await draft.add("\ude00b")
        assert draft.peek(10) == "a😀b"

    async def test_replace_half_a_character_that_stays_alone(self) -> None:
        draft = await filled(["a\ud83d"])

        assert draft.peek(10) == "a\ufffd"


class TestRewind:
    async def test_goes_back_to_what_the_service_has(self) -> None:
        draft = await filled(["a😀b"])
        draft.arrived(draft.peek(10))

        assert draft.rewind(1)
        assert draft.peek(10) == "😀b"

    async def test_refuses_what_cannot_be(self) -> None:
        draft = await filled(["abc"])

        assert not draft.rewind(4)
        assert not draft.rewind(-1)
        assert not draft.rewind(None)
        assert not draft.rewind(0), "where it is already: the next try would be the same"


class TestAdd:
    async def test_waits_while_too_much_is_on_its_way(self) -> None:
        """A handler that is faster than the network fills no memory."""
        draft = Draft()
        adding = asyncio.create_task(draft.add("x" * (MOST_UNSENT + 1)))
        await until(lambda: draft.unsent)
        assert not adding.done()

        draft.arrived(draft.peek(10))

        await adding

    async def test_of_nothing_sends_nothing(self) -> None:
        draft = await filled(["", ""])

        assert not await draft.has_more()

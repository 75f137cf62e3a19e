"""Lists of live sessions: each once, in a stable order."""

from __future__ import annotations

import asyncio
import random

import pytest

from sessions_api.domain.ids import LOCAL_APP, AgentId, UserId
from sessions_api.errors import InvalidInput
from sessions_api.store import Store
from tests.support.stores import AGENT, CONFIG, OTHER_APP, USER, age, opened


class TestPage:
    async def _all(self, store: Store, limit: int, **owner: object) -> list[str]:
        ids: list[str] = []
        after = None
        while True:
            page = await store.listing.page(limit=limit, after=after, **owner)  # type: ignore[arg-type]
            assert len(page.sessions) <= limit
            ids += [session.session_id for session in page.sessions]
            after = page.next
            if after is None:
                return ids

    @pytest.mark.parametrize("limit", [1, 3, 7, 100])
    async def test_every_session_is_listed_once_whatever_the_page(self, store: Store, limit: int) -> None:
        """Newest first; a user's sessions made in one millisecond are no exception."""
        users = [f"{number:08x}-1111-4111-8111-111111111111" for number in range(5)]
        sessions = list(
            await asyncio.gather(*(opened(store, random.Random(n).choice(users)) for n in range(15)))
        )
        sessions += await asyncio.gather(*(opened(store, users[0], app=OTHER_APP) for _ in range(3)))
        mine = [session for session in sessions if session.app == LOCAL_APP]
        newest = mine[::-1]

        of_agent = await self._all(store, limit, app=LOCAL_APP, agent_id=AGENT)
        assert sorted(of_agent) == sorted(session.session_id for session in mine)
        for user in users:
            expected = [session.session_id for session in newest if session.user_id == user]
            assert [sid for sid in of_agent if sid in expected] == expected
            assert await self._all(store, limit, app=LOCAL_APP, user_id=UserId(user)) == expected
        everyones = await self._all(store, limit, app=None)
        assert sorted(everyones) == sorted(session.session_id for session in sessions)
        assert sorted(await self._all(store, limit, app=OTHER_APP)) == sorted(
            session.session_id for session in sessions if session.app == OTHER_APP
        )

    async def test_leaves_out_what_expired_or_was_deleted(self, store: Store) -> None:
        sessions = [await opened(store) for _ in range(4)]
        await age(store, sessions[1].session_id, CONFIG.timeout_ms)
        await store.sessions.end(sessions[2].session_id, grant=LOCAL_APP)

        ids = await self._all(store, 2, app=LOCAL_APP, user_id=USER)

        assert sorted(ids) == sorted([sessions[0].session_id, sessions[3].session_id])

    async def test_what_is_created_between_two_pages_moves_nothing(self, store: Store) -> None:
        sessions = [await opened(store) for _ in range(4)]
        for session in sessions:
            await age(store, session.session_id, 1_000)
        first = await store.listing.page(app=LOCAL_APP, user_id=USER, limit=2)

        await opened(store)
        second = await store.listing.page(app=LOCAL_APP, user_id=USER, limit=2, after=first.next)

        listed = {session.session_id for session in [*first.sessions, *second.sessions]}
        assert listed == {session.session_id for session in sessions}

    @pytest.mark.parametrize("cursor", ["x", "AAAA", "é", "=", "bm90IGEgY3Vyc29y" * 3])
    async def test_a_cursor_that_is_not_ours_is_refused(self, store: Store, cursor: str) -> None:
        for owner in ({"user_id": USER}, {"agent_id": AGENT}, {}):
            with pytest.raises(InvalidInput):
                await store.listing.page(app=LOCAL_APP, limit=5, after=cursor, **owner)

    async def test_totals_count_the_index(self, store: Store) -> None:
        await opened(store)
        await opened(store, "22222222-1111-4111-8111-111111111111")
        await opened(store, app=OTHER_APP)

        assert await store.listing.total(app=LOCAL_APP) == 2
        assert await store.listing.total(app=None) == 3
        assert await store.listing.total(app=LOCAL_APP, user_id=USER) == 1
        assert await store.listing.total(app=LOCAL_APP, agent_id=AGENT) == 2
        assert await store.listing.total(app=LOCAL_APP, agent_id=AgentId("0" * 8 + AGENT[8:])) == 0

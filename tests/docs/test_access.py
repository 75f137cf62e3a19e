"""The table in docs/access.md says exactly what ``api/routes.py`` allows, and what the frames do."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from sessions_api.access.keyring import mint, parse
from sessions_api.access.tokens import ALGORITHM, DEFAULT_LIFE_S
from sessions_api.api import frames
from sessions_api.api.endpoints import live
from sessions_api.api.endpoints.tokens import DEFAULT_RIGHTS
from sessions_api.api.routes import ALLOWS, WEBSOCKET
from sessions_api.domain.access import RIGHTS
from sessions_api.live.closing import GONE, POLICY, UNAUTHENTICATED
from sessions_api.live.framing import TYPES
from sessions_api.live.handshake import AUTH_TIMEOUT_S, SUBPROTOCOL
from sessions_api.store.signing import ROTATE_MS
from sessions_api.wire.tokens import LIFE_S
from tests.support import access
from tests.support.access import COLUMNS, DOC, Row

ROWS = access.rows()
HTTP = [row for row in ROWS if row.path != WEBSOCKET]
FRAMES = [row for row in ROWS if row.path == WEBSOCKET and row.detail]
OF_FRAMES = {
    "message": frames._SEND,
    "heartbeat": frames._RENEW,
    "renew": frames._RENEW,
    "cancel": frames._CANCEL,
} | dict.fromkeys(("auth", "resume", "ping"), live.ALLOWS)


def columns_of(allows: frozenset[str]) -> set[str]:
    """The columns that a route's *allows* opens."""
    if "open" in allows:
        return set(COLUMNS)
    if "token" in allows:  # to refresh one takes one, also from an admin
        return set(RIGHTS)
    return {"admin", *allows}


def opened(rows: list[Row]) -> set[str]:
    return set().union(*(row.opened_to for row in rows))


class TestTheTable:
    def test_has_every_route_and_no_other(self) -> None:
        assert {(row.method, row.path) for row in HTTP} == ALLOWS.keys()
        assert not [row for row, count in Counter(map(str, ROWS)).items() if count > 1]

    @pytest.mark.parametrize("method, path", ALLOWS)
    def test_opens_each_route_to_whom_the_code_does(self, method: str, path: str) -> None:
        rows = [row for row in HTTP if (row.method, row.path) == (method, path)]

        assert opened(rows) == columns_of(ALLOWS[method, path])

    def test_opens_the_websocket_to_whom_the_code_does(self) -> None:
        (handshake,) = (row for row in ROWS if row.path == WEBSOCKET and not row.detail)

        assert (
            handshake.opened_to
            == columns_of(live.ALLOWS)
            == columns_of(ALLOWS["GET", f"{access.SESSION}/events"])
        )

    @pytest.mark.parametrize("kind", sorted(TYPES))
    def test_opens_each_frame_to_whom_the_code_does(self, kind: str) -> None:
        rows = [row for row in FRAMES if row.detail.split()[0] == kind]

        assert opened(rows) == columns_of(OF_FRAMES[kind])

    def test_has_no_other_frames(self) -> None:
        assert {row.detail.split()[0] for row in FRAMES} == TYPES

    @pytest.mark.parametrize("row", ROWS, ids=str)
    def test_says_own_of_what_belongs_to_somebody(self, row: Row) -> None:
        """An admin owns all; a token opens its session alone, an agent's key its agent alone."""
        is_open = "nobody" in row.opened_to

        assert set(row.cells.values()) <= {"yes", "own", "–"}
        assert row.cells["admin"] != "own"
        assert {row.cells[column] for column in ("agent", *RIGHTS)} <= ({"yes"} if is_open else {"own", "–"})
        assert "{" in row.path or row.path.endswith("/sessions") or "own" not in row.cells.values()


class TestTheText:
    def test_names_every_right(self) -> None:
        documented = re.findall(
            r"^\| `(\w+)` \| [^|]+ \|$", DOC.split("## Tokens")[1].split("## ")[0], re.MULTILINE
        )

        assert documented == list(RIGHTS)
        assert set(documented[:4]) == DEFAULT_RIGHTS
        assert "Without `scopes` a token has the first four" in DOC

    def test_names_the_lives(self) -> None:
        assert f"without `ttlSeconds` it lives for {DEFAULT_LIFE_S} ({LIFE_S[0]}..{LIFE_S[1]})" in DOC
        assert f"within {AUTH_TIMEOUT_S:g} s" in DOC
        assert ROTATE_MS == 24 * 3_600_000
        assert "a new one every day" in DOC

    def test_names_the_codes_and_words_of_the_wire(self) -> None:
        assert f"{UNAUTHENTICATED.code}, {POLICY.code} (not allowed), {GONE.code}." in DOC
        assert f'"{SUBPROTOCOL}"' in DOC
        assert f"signed with {ALGORITHM}" in DOC

    def test_names_scopes_that_a_key_can_have(self) -> None:
        scopes = re.findall(
            r"^\| `([\w:<>]+)` \|", DOC.split("## Keys")[1].split("## Tokens")[0], re.MULTILINE
        )

        line, _ = mint("shop", [scope.replace("<agentId>", access.WORKER_AGENT) for scope in scopes])

        (key,) = parse(line, where="KEYS")
        assert len(key.scopes) == len(scopes) == 3

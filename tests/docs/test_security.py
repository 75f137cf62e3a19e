"""docs/security.md has the numbers of the code: every limit, and the bounds that no setting moves."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from sessions_api.access import keyring, tokens
from sessions_api.agents import desk
from sessions_api.agents.connectors import guarded, outgoing
from sessions_api.api import bodies, gate, idempotency, requests
from sessions_api.api.endpoints import messages, sessions, workers
from sessions_api.cli import connections, serving, upgraded
from sessions_api.live import framing, handshake, queue, sse
from sessions_api.settings import Settings
from sessions_api.store import signing, turns
from sessions_api.wire import shapes

SECURITY = Path("docs/security.md").read_text()
DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(Settings)}
POLICIES = gate.Policies.__struct_fields__
KIB = 1024


def table(heading: str) -> list[list[str]]:
    """The cells of the rows below *heading*, without the table's own head."""
    section = SECURITY.split(f"\n## {heading}\n", maxsplit=1)[1].split("\n## ", maxsplit=1)[0]
    rows = [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in section.splitlines()
        if line.startswith("| ")
    ]
    return rows[1:]


class TestLimits:
    def test_are_all_there_with_their_defaults_and_no_other(self) -> None:
        documented = {row[0]: row[1] for row in table("Limits on how often")}

        assert documented == {
            f"`{name.replace('_', '-')}`": f"`{DEFAULTS[f'sessions_limit_{name}']}`" for name in POLICIES
        }


class TestBounds:
    @pytest.mark.parametrize(
        "what, numbers",
        [
            (
                "connections of one process",
                [serving.BESIDE_FOLLOWERS, connections.RESERVED_DESCRIPTORS, connections.SPARE],
            ),
            ("request line", [connections.MAX_HEAD_BYTES // KIB, connections.HEADER_BYTES]),
            ("requests sent ahead", [connections.MAX_PIPELINED]),
            ("a request to arrive", [connections.Connection.arrival_s]),
            ("a client that takes nothing", [connections.Connection.taking_s, sse.SEND_TIMEOUT_S]),
            ("query", [requests.MAX_QUERY_BYTES // KIB, requests.MAX_QUERY_FIELDS]),
            ("body", [requests.MAX_BODY_BYTES // KIB, workers.MAX_ANSWER_BYTES // KIB**2]),
            ("JSON", [shapes.MAX_DEPTH, shapes.MAX_KEYS, shapes.MAX_CONTAINERS]),
            ("session's or message's `metadata`", [bodies.MAX_METADATA_BYTES, bodies.MAX_DEPTH]),
            ("attachments", [bodies.MAX_ATTACHMENTS]),
            ("a user's message", [DEFAULTS["session_max_content_chars"]]),
            ("an agent's answer", [turns.MAX_ANSWER_CHARS]),
            ("`Idempotency-Key`", [idempotency.MAX_KEY_CHARS]),
            ("session token", [tokens.MAX_TOKEN_CHARS]),
            ("page of history", [messages.MAX_PAGE, sessions.MAX_PAGE]),
            ("live sessions of a user", [DEFAULTS["session_max_open_per_user"]]),
            (
                "live connections",
                [DEFAULTS["sessions_max_followers_per_session"], DEFAULTS["sessions_max_followers"]],
            ),
            ("events that wait", [queue.MAX_EVENTS, queue.MAX_BYTES // KIB**2]),
            ("WebSocket: first frame", [handshake.AUTH_TIMEOUT_S]),
            ("WebSocket: a frame", [framing.MAX_FRAME_BYTES // KIB, upgraded.MAX_FRAGMENTS]),
            ("WebSocket: frames", [framing.FRAMES_PER_S, framing.FRAMES_BURST]),
            ("workers that wait", [desk.MAX_CLAIMS]),
            ("turns that one process asks for", [DEFAULTS["sessions_dispatcher_turns"]]),
            (
                "what a webhook",
                [
                    outgoing.MAX_BODY_BYTES // KIB**2,
                    guarded.MAX_STREAM_BYTES // KIB**2,
                    outgoing.MAX_EVENT_BYTES // KIB**2,
                    outgoing.MAX_REDIRECTS,
                ],
            ),
            ("file of keys", [keyring.FILE_BYTES // KIB**2]),
            ("what a process remembers", [tokens.MAX_REMEMBERED]),
        ],
    )
    def test_have_the_numbers_of_the_code(self, what: str, numbers: list[float]) -> None:
        [row] = [row for row in table("Bounds") if row[0].startswith(what)]

        assert re.findall(r"\d+(?:,\d{3})*", row[1]) == [f"{number:,.0f}" for number in numbers]

    def test_of_a_tokens_life_are_those_of_its_signing_keys(self) -> None:
        [token] = [row for row in table("The life of a secret") if row[0] == "session token"]
        [key] = [row for row in table("The life of a secret") if row[0].startswith("signing key")]

        assert signing.LONGEST_LIFE_S == 24 * 3600
        assert "1 s to 24 h; 15 minutes unless said" in token[4]
        assert tokens.DEFAULT_LIFE_S == 15 * 60
        assert f"{signing.KEEP_MS // 3_600_000} h later" in key[4]
        assert f"after {signing.SETTLED_MS // 1000} s" in key[3]

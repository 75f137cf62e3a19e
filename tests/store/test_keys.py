"""Keys and scripts as texts: what a reader is told of them is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from types import ModuleType
from typing import Any

import msgspec
import pytest

from sessions_api.domain.access import EVERYTHING
from sessions_api.domain.ids import (
    PARTITIONS,
    AgentId,
    OpId,
    SessionId,
    UserId,
    new_session_id,
    partition_of_session,
)
from sessions_api.errors import SettingsError
from sessions_api.store import (
    Store,
    agents,
    alarms,
    attendance,
    inspection,
    keys,
    keyuses,
    limits,
    log,
    ready,
    replicas,
    scripts,
    sessions,
    signing,
    turns,
)
from sessions_api.store.attendance import Presence
from sessions_api.store.connection import Redis, Script
from sessions_api.store.keys import TAGS, Keyspace
from sessions_api.store.loader import inlined
from sessions_api.store.replicas import Identity
from sessions_api.store.state import State, in_places
from tests.support.servers import TestServer
from tests.support.stores import AGENT, USER, Ears, age, claimed, opened, say

LUA = files("sessions_api.store") / "lua"
MODULES: tuple[ModuleType, ...] = (
    sessions, log, turns, ready, alarms, agents, attendance, limits, signing, keyuses, replicas, inspection,
    scripts,
)  # fmt: skip
FILES = sorted(entry.name.removesuffix(".lua") for entry in LUA.iterdir() if entry.name.endswith(".lua"))
LIB = sorted(entry.name.removesuffix(".lua") for entry in (LUA / "lib").iterdir())
SLOTS = 16_384


def text_of(name: str) -> str:
    return (LUA / f"{name}.lua").read_text()


def code_of(text: str) -> str:
    """Without comments."""
    return re.sub(r"--[^\n]*", "", re.sub(r"--\[\[.*?\]\]", "", text, flags=re.DOTALL))


def slot_of(key: bytes) -> int:
    """CRC-16 (XMODEM) of the hash tag, as Redis Cluster does it."""
    tag = key[key.index(b"{") + 1 : key.index(b"}")]
    crc = 0
    for byte in tag:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
    return (crc & 0xFFFF) % SLOTS


class TestKeyspace:
    def test_all_keys_of_a_session_lie_in_one_slot(self) -> None:
        """With its limits, idempotency records and channel: a transition is one script, on a Cluster too."""
        for number in range(200):
            of = Keyspace().of(new_session_id(UserId(f"{number:08x}-1111-4111-8111-111111111111")))

            assert len({slot_of(key) for key in [*of.all(), of.once("digest"), of.limit("policy", "x")]}) == 1

    def test_slots_spread_evenly_over_a_cluster(self) -> None:
        """Of any cluster of up to sixteen nodes, none keeps less than half or more than twice its share."""
        slots = [slot_of(f"{{{tag}}}".encode()) for tag in TAGS]
        assert len(set(TAGS)) == len(set(slots)) == PARTITIONS
        for nodes in range(1, 17):
            counts = [0] * nodes
            for slot in slots:
                counts[slot * nodes // SLOTS] += 1
            assert min(counts) >= PARTITIONS // nodes // 2, nodes
            assert max(counts) <= -(-PARTITIONS // nodes) * 2, nodes

    def test_two_prefixes_share_nothing(self) -> None:
        session_id = new_session_id(USER)

        assert not set(Keyspace("a:").of(session_id).all()) & set(Keyspace("b:").of(session_id).all())

    def test_only_standing_keys_may_live_without_a_ttl(self) -> None:
        keyspace = Keyspace()
        of = keyspace.of(new_session_id(USER))
        session, alarm, log_, draft, due, ready, users, agents_, near, running, _live = of.all()

        assert all(map(keyspace.is_standing, (due, ready, users, agents_, near, running)))
        assert all(map(keyspace.is_standing, (keyspace.replicas, keyspace.definitions, keyspace.meta)))
        assert all(map(keyspace.is_standing, (keyspace.presence, keyspace.states)))
        assert not keyspace.is_standing(keyspace.workers(AGENT))
        assert not any(map(keyspace.is_standing, (session, alarm, log_, draft, of.once("x"))))
        assert not keyspace.is_standing(keyspace.partition(0).keeper)
        assert not keyspace.is_standing(keyspace.limit("policy", "subject"))
        assert not keyspace.is_standing(of.limit("policy", "subject"))

    def test_the_table_lists_every_kind_of_key(self) -> None:
        partition = Keyspace().partition(0)
        kinds = {name.rstrip("_") for name in vars(partition)} - {"tag", "live"}
        for kind in {*kinds, "replicas", "definitions", "meta", "presence", "states", "workers"}:
            assert re.search(rf"^``{kind}[:`]", keys.__doc__ or "", re.MULTILINE), kind

    async def test_what_the_scripts_write_is_in_the_table(self, store: Store, server: TestServer) -> None:
        session = await opened(store)
        await say(store, session.session_id)
        turn = (await claimed(store, session.session_id)).turn
        await store.turns.delta(session.session_id, turn.turn_id, fence=turn.fence, text="a", offset=0)
        await say(store, session.session_id)
        await store.alarms.keep(0, "replica")
        await store.replicas.present(Identity("replica"), 1_000)
        await store.attendance.attend([Presence(AGENT, "worker", 1, 10_000, is_free=True)])

        for key in sorted(server.keys()):
            kind = key.decode().removeprefix("sa:").split(":")[0]
            assert f"``{kind}" in (keys.__doc__ or ""), key


class TestOpen:
    async def test_writes_down_what_it_is(self, store: Store, server: TestServer) -> None:
        assert server.call("HGET", "sa:meta", "schema") == b"2"
        assert server.call("HGET", "sa:meta", "partitions") == b"64"
        await store.open()

    @pytest.mark.parametrize("name", ["schema", "partitions"])
    async def test_refuses_what_is_not_of_its_making(
        self, redis: Redis, server: TestServer, name: str
    ) -> None:
        server.call("HSET", "sa:meta", name, "7")

        with pytest.raises(SettingsError, match=f"{name} 7"):
            await Store(redis, Keyspace()).open()


def _scripts() -> Iterator[tuple[ModuleType, Script]]:
    for module in MODULES:
        for value in vars(module).values():
            if isinstance(value, Script):
                yield module, value


class TestScriptTexts:
    def test_every_file_is_a_script_of_the_store(self) -> None:
        assert sorted(script.name for _, script in _scripts()) == FILES

    @pytest.mark.parametrize("name", FILES)
    def test_opens_with_purpose_keys_and_reply(self, name: str) -> None:
        text = text_of(name)
        assert text.startswith(f"--[[ {name}: ")
        header = text[: text.index("]]")]
        for part in ("\n\nKEYS   ", "\nARGV   ", "\nREPLY  "):
            assert part in header, part

    @pytest.mark.parametrize("name", FILES)
    def test_every_word_it_replies_is_announced_and_read(self, name: str) -> None:
        """And what is announced is replied: a reader may trust the REPLY lines."""
        text = text_of(name)
        header = text[text.index("REPLY") : text.index("]]")].split("\n\n")[0]
        announced = set(re.findall(r"'([a-z]+)'", header))
        for shared in ("absent", "expired"):
            if re.search(rf"\b{shared}\b", header):
                announced.add(shared)
        needs = re.search(r"^-- needs: (.+)$", text, re.MULTILINE)
        replied = set(re.findall(r"(?:return|or) \{'([a-z]+)'", code_of(text)))
        python = "".join((files("sessions_api.store") / f).read_text() for f in _python_files())

        assert replied <= announced
        for word in announced:
            assert f'b"{word}"' in python, word
        if needs and "over()" in code_of(text):
            assert "absent" in announced or name == "claim"

    @pytest.mark.parametrize("name", [*FILES, *(f"lib/{part}" for part in LIB)])
    def test_scans_nothing_and_builds_no_key(self, name: str) -> None:
        code = code_of(text_of(name))
        commands = set(re.findall(r"redis\.call\('([A-Z]+)'", code))
        assert not commands & {"KEYS", "SCAN", "HSCAN", "SSCAN", "ZSCAN", "FLUSHALL", "FLUSHDB", "SMEMBERS"}
        for key in re.findall(r"redis\.call\('[A-Z]+', ([^,)]+)", code):
            assert re.fullmatch(
                r"[a-z_]+( and)?|KEYS\[i \+ 1\]|prefix \.\. 'wake:\{' \.\. agent \.\. '\}'", key
            ), key

    @pytest.mark.parametrize("name", FILES)
    def test_asks_for_the_time_once(self, name: str) -> None:
        """On Redis 6.2 it moves within a script."""
        script = next(script for _, script in _scripts() if script.name == name)
        assert code_of(script.source.decode()).count("'TIME'") <= 1

    @pytest.mark.parametrize("name", FILES)
    def test_what_it_does_rarely_it_calls(self, name: str) -> None:
        """A function that is made when it is called is nothing to be handed on."""
        rare = re.findall(r"^-- rarely: (.+)$", text_of(name), re.MULTILINE)
        for word in " ".join(rare).split():
            for text in (text_of(name), *(text_of(f"lib/{part}") for part in LIB)):
                assert not re.search(rf"(?<![.\w']){word}\b(?!\()(?![\w'])", code_of(text)), (name, word)

    @pytest.mark.parametrize("name", FILES)
    def test_loaded_calls_the_functions_that_it_has(self, name: str) -> None:
        """Whatever was put together, put where it is called, or left out."""
        code = next(script for _, script in _scripts() if script.name == name).source.decode()
        code = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "''", code_of(code))
        made = re.findall(r"local function (\w+)\(", code)
        called = set(re.findall(r"(?<![.\w])(?<!function )(\w+)\(", code))
        given = {
            "and",
            "or",
            "if",
            "not",
            "in",
            "function",
            "return",
            "ipairs",
            "pairs",
            "tonumber",
            "type",
            "unpack",
        }

        named = re.findall(r"^local (\w+)$", code, re.MULTILINE)  # and made further down, or nowhere
        assert called <= {*made, *named, *given}
        assert len(made) == len(set(made))
        assert all(len(re.findall(rf"\b{function}\b", code)) > 1 for function in made)

    @pytest.mark.parametrize("name", [*FILES, *(f"lib/{part}" for part in LIB)])
    def test_has_no_text_that_looks_like_a_comment(self, name: str) -> None:
        """The loader takes comments out by what they begin with."""
        text = re.sub(r"--\[\[.*?\]\]", "", text_of(name), flags=re.DOTALL)
        texts = [found[1] for found in re.finditer(r"('[^'\n]*'|\"[^\"\n]*\")|--.*", text) if found[1]]

        assert not [text for text in texts if "--" in text]

    @pytest.mark.parametrize(
        "name",
        [
            name
            for name in FILES
            if re.search(r"^ARGV   sid, grant, .*\bturn_id\b", text_of(name), re.MULTILINE)
        ],
    )
    def test_loaded_reads_its_turn_with_the_session(self, name: str) -> None:
        code = next(script for _, script in _scripts() if script.name == name).source.decode()
        asked = re.search(r"'state', 'metadata', (ARGV\[\d\])\)", code)

        assert asked
        assert f"local asked = {asked[1]}" in code

    @pytest.mark.parametrize("use", ["pcall(save)", "local f = save", "save(1)"])
    def test_a_function_that_is_put_where_it_is_called_is_nothing_else(self, use: str) -> None:
        made = "local function save()\n  s.rev = 1\nend\n"
        assert inlined(f"{made}save()", without=[]).strip() == "do   s.rev = 1  end"
        with pytest.raises(ValueError, match="save"):
            inlined(made + use, without=[])

    def test_a_field_that_there_is_not_does_not_load(self) -> None:
        assert in_places("s.app = s.rev") == "s[1] = s[25]"
        with pytest.raises(KeyError, match="revision"):
            in_places("s.revision = 1")

    async def test_a_field_of_a_later_release_is_blank_until_then_and_kept_by_who_does_not_know_it(
        self, store: Store, server: TestServer
    ) -> None:
        session = await opened(store)
        key = store.keyspace.of(session.session_id).session
        state: list[Any] = msgspec.msgpack.decode(server.call("HGET", key, "state"))
        server.call("HSET", key, "state", msgspec.msgpack.encode(state[:-2]))  # of an earlier release

        beaten, _ = await store.sessions.heartbeat(session.session_id, grant=EVERYTHING, op=OpId("op"))
        assert beaten.renewals == session.renewals + 1
        state = msgspec.msgpack.decode(server.call("HGET", key, "state"))
        server.call("HSET", key, "state", msgspec.msgpack.encode([*state, "later"]))
        await store.sessions.heartbeat(session.session_id, grant=EVERYTHING, op=OpId("another"))

        assert msgspec.msgpack.decode(server.call("HGET", key, "state"))[-1] == "later"
        assert len(state) == len(State.__struct_fields__)


def _python_files() -> list[str]:
    names = "sessions log turns alarms replicas agents attendance limits scripts listing".split()
    return [f"{name}.py" for name in names]


class TestChannels:
    async def test_carry_the_sessions_tag_and_the_agents_id(self, store: Store, ears: Ears) -> None:
        """Sharded pub/sub routes by the tag; a worker listens for its agent."""
        session = await opened(store)
        await age(store, session.session_id, 1_000)
        await say(store, session.session_id)

        heard = ears.heard()

        agent = AgentId(session.agent_id)
        assert ("wake", store.keyspace.wake(agent).decode(), session.session_id.encode()) in heard
        live = store.keyspace.of(SessionId(session.session_id)).live.decode()
        assert f"{{{TAGS[partition_of_session(session.session_id)]}}}" in live
        assert {"message.created", "turn.queued", "session.renewed"} <= {kind for kind, *_ in heard}

"""Every parser below the API takes anything: what comes of it is a value, or the one error it promises."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sessions_api.api.requests import read_json
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import is_uuid
from sessions_api.domain.limits import LONGEST_WINDOW_S, parse_limit
from sessions_api.domain.messages import utf16_units
from sessions_api.domain.timeouts import MINUTE_MS
from sessions_api.errors import InvalidInput, SessionsError, SettingsError
from sessions_api.settings import VARIABLES, Settings
from sessions_api.wire.definitions import KINDS, NUMBERS, SESSION_NAMES, DefinitionReader
from sessions_api.wire.instants import LAST_MS, iso, parse_instant
from sessions_api.wire.timeouts import TimeoutBounds
from tests.support.client import ECHO
from tests.support.garbage import answered, objects, sent, texts, values

BOUNDS = TimeoutBounds(5 * MINUTE_MS, 1440 * MINUTE_MS)
quick = settings(max_examples=120, deadline=None)

CONFIG = "delayMs url secret baseUrl model apiKey system temperature maxTokens apiKeyEnv secretEnv".split()
definitions = objects(
    ["name", "kind", "config", "session", "onBusy", "agentId", *NUMBERS],
    {"name": "Support", "kind": "openai", "config": {"baseUrl": "https://[::1", "model": "m"}},
)
right_definitions = st.fixed_dictionaries(
    {"name": st.just("Support"), "kind": st.sampled_from(KINDS), "config": objects(CONFIG)},
    optional={"session": objects([*SESSION_NAMES, *SESSION_NAMES.values()])},
)


class TestLimits:
    @quick
    @given(st.text(max_size=20) | st.from_regex(r"[0-9]{0,8}/[0-9]{0,8}", fullmatch=True))
    @example("1/86401")
    @example("１/60")
    @example("1/60\n")
    def test_any_text(self, text: str) -> None:
        try:
            limit = parse_limit(text)
        except ValueError:
            return
        assert limit is None or (limit.quota >= 1 and 1 <= limit.window_s <= LONGEST_WINDOW_S)
        assert text == ("off" if limit is None else f"{limit.quota}/{limit.window_s}")


class TestInstants:
    @quick
    @given(
        st.text(max_size=30) | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?")
    )
    @example("0000-02-29T00:00:00Z")
    @example("2026-02-30")
    @example("9999-12-31T23:59:60-23:59")
    def test_any_text(self, text: str) -> None:
        try:
            ms = parse_instant(text)
        except ValueError:
            return
        assert isinstance(ms, int)

    @quick
    @given(st.integers(0, LAST_MS))
    def test_what_we_write_we_read(self, ms: int) -> None:
        assert parse_instant(iso(ms)) == ms


class TestIds:
    @quick
    @given(texts | st.text(alphabet="0123456789abcdefABCDEF-{}:\n\x00 １", min_size=34, max_size=38))
    @example(ECHO + "\n")
    @example("{" + ECHO[1:-1] + "}")
    def test_an_id_holds_nothing_that_means_something_in_a_key(self, text: str) -> None:
        if is_uuid(text):
            assert text.isascii()
            assert not set(text.lower()) - set("0123456789abcdef-")


class TestDefinitions:
    @quick
    @given(values | definitions | right_definitions, texts | st.just(ECHO))
    def test_any_request(self, body: Any, agent_id: str) -> None:
        read = answered(lambda: read_json(sent(body)))
        if isinstance(read, SessionsError) or "\ud800" in agent_id:
            return

        found = answered(lambda: DefinitionReader(BOUNDS).read_put(agent_id, read, None))

        assert isinstance(found, AgentDefinition | InvalidInput)

    @settings(quick, max_examples=30)
    @given(
        st.dictionaries(
            texts | st.just("agents"), values | st.lists(definitions | right_definitions, max_size=3)
        )
    )
    def test_any_file(self, document: dict[str, Any]) -> None:
        reader = DefinitionReader(BOUNDS, environ={"SECRET": "x"})

        found = reader.read_all(document)

        assert all(isinstance(each, AgentDefinition) for each in found)
        assert all(isinstance(problem, str) for problem in reader.problems)

    @quick
    @given(st.text(max_size=100))
    def test_any_toml(self, text: str) -> None:
        try:
            document = tomllib.loads(text)
        except ValueError:
            return
        DefinitionReader(BOUNDS).read_all(document)


class TestSettings:
    @quick
    @given(st.dictionaries(st.sampled_from(sorted(VARIABLES)) | st.just("SESSION_X"), texts, max_size=4))
    def test_any_environment(self, environ: dict[str, str]) -> None:
        with suppress(SettingsError):
            Settings.from_env(environ)


class TestText:
    @quick
    @given(st.text(alphabet=st.characters(codec="utf-8"), max_size=50))
    def test_its_length_is_what_javascript_counts(self, text: str) -> None:
        assert utf16_units(text) == len(text.encode("utf-16-le")) // 2

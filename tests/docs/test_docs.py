"""What the code has, the docs have: settings, routes, errors, close codes, events, commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from sessions_api import errors
from sessions_api.api.routes import ROUTES, WEBSOCKET
from sessions_api.cli import COMMANDS
from sessions_api.domain.limits import FORM
from sessions_api.live import closing
from sessions_api.settings import IGNORED, VARIABLES, Settings, range_of
from sessions_api.wire.events import EventType
from sessions_api.wire.messages import TurnInfo
from sessions_api.wire.problems import TABLE
from sessions_api.wire.timeouts import plain

API = Path("docs/api.md").read_text()
CONFIGURATION = Path("docs/configuration.md").read_text()
ARCHITECTURE = Path("docs/architecture.md").read_text()
DEFAULTS = {field.name.upper(): field.default for field in msgspec.structs.fields(Settings)}
ADRS = sorted(Path("docs/adr").glob("*.md"))


def error_codes() -> Iterator[tuple[int, str]]:
    for kind, row in TABLE.items():
        if row.status != 500:
            yield row.status, kind.code
    yield 500, "INTERNAL_ERROR"


class TestSettings:
    @pytest.mark.parametrize("name", VARIABLES)
    def test_stand_in_the_docs_with_default_and_range(self, name: str) -> None:
        row = re.search(
            rf"^\| `{name}` \| (.*?) \| (.*?) \| .+ \|$", CONFIGURATION.replace(r"\|", "¦"), re.MULTILINE
        )
        assert row is not None
        default = DEFAULTS[name]
        shown = plain(default) if isinstance(default, int | float) else default

        assert row[1] == (f"`{shown}`" if shown != "" else "none")
        allowed = range_of(name)
        if allowed == FORM:
            assert row[2] == "a limit"
        elif ".." in allowed or "|" in allowed:
            assert row[2] == allowed.replace("|", "¦")

    def test_none_is_documented_that_does_not_exist(self) -> None:
        documented = set(re.findall(r"^\| `([A-Z_]+)` \|", CONFIGURATION, re.MULTILINE))

        assert documented == set(VARIABLES)

    def test_what_a_limit_is_stands_there_once(self) -> None:
        for part in re.findall(r"[A-Z]+/SECONDS|[0-9]+\.\.[0-9]+|off", FORM):
            assert part in CONFIGURATION.split("## Limits on how often", maxsplit=1)[1]

    @pytest.mark.parametrize("name", IGNORED)
    def test_those_without_effect_are_named(self, name: str) -> None:
        assert f"`{name}`" in CONFIGURATION


class TestRoutes:
    @pytest.mark.parametrize("method, path", [*((r.method, r.path) for r in ROUTES), ("GET", WEBSOCKET)])
    def test_stand_in_the_docs(self, method: str, path: str) -> None:
        assert f"`{method} {path}`" in API


class TestTurns:
    def test_every_member_stands_in_the_docs(self) -> None:
        table = API.split("## Turns", maxsplit=1)[1].split("## ", maxsplit=1)[0]
        rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
        documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]

        assert documented == list(dict.fromkeys(documented))
        assert set(documented) == {field.encode_name for field in msgspec.structs.fields(TurnInfo)}


class TestErrors:
    @pytest.mark.parametrize("status, code", sorted(set(error_codes())))
    def test_stand_in_the_docs_with_their_status(self, status: int, code: str) -> None:
        rows = [line for line in API.splitlines() if line.startswith(f"| {status} |")]

        assert any(f"`{code}`" in row for row in rows)

    def test_every_code_of_the_tree_is_there(self) -> None:
        def codes(kind: type[errors.SessionsError]) -> Iterator[str]:
            yield kind.code
            for child in kind.__subclasses__():
                yield from codes(child)

        told_at_the_start_only = {errors.SettingsError.code}
        missing = {code for code in codes(errors.SessionsError) if f"`{code}`" not in API}
        assert missing <= told_at_the_start_only


class TestLive:
    @pytest.mark.parametrize("why", closing.ALL, ids=lambda why: str(why.code))
    def test_close_codes_stand_in_the_docs(self, why: closing.Closing) -> None:
        row = re.search(rf"^\| {why.code} \| .+ \| (yes|no)", API, re.MULTILINE)

        assert row is not None
        assert (row[1] == "yes") == why.retry

    @pytest.mark.parametrize("type_", get_args(EventType))
    def test_events_stand_in_the_docs(self, type_: str) -> None:
        assert f"`{type_}`" in API

    @pytest.mark.parametrize("type_", get_args(EventType))
    def test_the_example_page_listens_to_every_event(self, type_: str) -> None:
        """An EventSource hears a named event only if it was asked to."""
        assert f'"{type_}"' in Path("examples/chat.html").read_text()


class TestCommands:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_stand_in_the_readme(self, name: str) -> None:
        assert f"`{name}`" in Path("README.md").read_text()


class TestArchitecture:
    def test_is_two_pages_at_most(self) -> None:
        assert len(ARCHITECTURE.splitlines()) <= 130

    def test_the_glossary_has_at_most_twenty_rows(self) -> None:
        glossary = ARCHITECTURE.split("## Floors", maxsplit=1)[0]

        assert glossary.count("\n| **") <= 20

    def test_the_floors_are_those_of_the_package(self) -> None:
        floors = ARCHITECTURE.split("## Floors", maxsplit=1)[1].split("## ", maxsplit=1)[0]
        parts = {
            path.stem for path in Path("sessions_api").iterdir() if not path.name.startswith(("_", "py."))
        }

        assert all(re.search(rf"\b{part}\b", floors) for part in parts)


class TestDecisions:
    @pytest.mark.parametrize("page", ADRS, ids=lambda page: page.stem)
    def test_fit_a_screen_and_say_what_they_cost(self, page: Path) -> None:
        text = page.read_text()

        assert len(text.splitlines()) <= 40
        assert [*re.findall(r"^## (.+)$", text, re.MULTILINE)] == ["Context", "Decision", "Consequences"]

    def test_are_numbered_without_a_hole(self) -> None:
        assert [int(page.name[:4]) for page in ADRS] == list(range(1, len(ADRS) + 1))

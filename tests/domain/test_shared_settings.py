"""Which settings replicas compare: all that change what a session is, none that is one's own or secret."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sessions_api.access import keyring
from sessions_api.domain.ids import AppName
from sessions_api.settings import VARIABLES, Settings, shared
from sessions_api.settings.shared import OWN

AGENT = """
[[agents]]
id = "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11"
name = "Support"
kind = "openai"
history = {history}
[agents.config]
baseUrl = "https://llm.example.com/v1"
model = "small"
apiKey = "{secret}"
"""


def told(**env: str) -> dict[str, str]:
    settings = Settings.from_env(env)
    keys = settings.keyring()
    keys.load()
    return shared(settings, keys.keys())


class TestShared:
    def test_is_every_setting_that_is_not_named_as_a_replicas_own(self) -> None:
        """A new one is compared, until somebody says why it need not be."""
        fields = {field.name for field in msgspec.structs.fields(Settings)}
        by_content = {"SESSIONS_KEYS_FILE"}  # as SESSIONS_KEYS

        assert fields >= OWN
        assert told().keys() == {name for name in VARIABLES if name.lower() not in OWN} - by_content

    def test_shows_what_differs(self) -> None:
        base = told()
        assert base["SESSION_RETENTION_MINUTES"] == "60"

        changed = told(SESSION_RETENTION_MINUTES="90", PORT="8080", LOG_LEVEL="debug")

        assert {name for name in base if base[name] != changed[name]} == {"SESSION_RETENTION_MINUTES"}

    def test_holds_agents_by_what_they_are_wherever_their_file_is(self, tmp_path: Path) -> None:
        """Without their secrets: two keys of one model are one agent."""
        found = []
        for name, history, secret in (("a", 50, "first"), ("b", 50, "second"), ("c", 51, "first")):
            (tmp_path / name).write_text(AGENT.format(history=history, secret=secret))
            found.append(told(SESSIONS_AGENTS_FILE=str(tmp_path / name))["SESSIONS_AGENTS_FILE"])

        assert found[0] == found[1] != found[2]
        assert told()["SESSIONS_AGENTS_FILE"] == "none"

    def test_holds_access_keys_by_what_they_are_wherever_they_stand(self, tmp_path: Path) -> None:
        """Neither a key nor its hash can be read there."""
        lines = [keyring.mint(AppName("shop"), ["admin"])[0] for _ in range(2)]
        (tmp_path / "keys").write_text("\n".join(lines))
        (tmp_path / "keys").chmod(0o600)

        in_file = told(SESSIONS_KEYS_FILE=str(tmp_path / "keys"))
        in_environment = told(SESSIONS_KEYS=";".join(reversed(lines)))

        assert in_file == in_environment
        assert in_file["SESSIONS_KEYS"] != told(SESSIONS_KEYS=lines[0])["SESSIONS_KEYS"]
        assert not any(line.split("sha256:")[1] in str(in_file) for line in lines)
